"""From a scheduled function to the loops that CUDA code generation consumes."""

from __future__ import annotations

from ..target import Target
from .nodes import PrimFunc
from .passes.auto_unroll import auto_unroll
from .passes.barriers import insert_barriers
from .passes.bind_threads import bind_threads
from .passes.common_subexpr import common_subexpr
from .passes.compact_buffers import compact_buffers
from .passes.hoist_ifs import hoist_ifs
from .passes.lower_blocks import lower_blocks
from .passes.lower_collectives import lower_collectives
from .passes.pipeline import mark_double_buffers, pipeline
from .passes.private_buffers import place_buffers
from .passes.share_memory import share_memory
from .passes.simplify import simplify
from .passes.uniform_conditions import uniform_conditions
from .passes.vectorize import vectorize
from .passes.virtual_threads import inject_virtual_threads

ACCESS = Target("cuda", vector_bits=128)  # the widest access of one thread is 16 bytes


def lower_gpu(func: PrimFunc) -> PrimFunc:
    """`func` without Blocks, as the program of one thread inside the grid and block loops, with
    barriers. Unrolled loops stay loops: the CUDA compiler writes them out."""
    func = mark_double_buffers(func)
    func = lower_blocks(func)
    func = bind_threads(func)
    func = place_buffers(func)
    func = compact_buffers(func)
    func = inject_virtual_threads(func)
    func = simplify(func)
    func = pipeline(uniform_conditions(func))
    func = insert_barriers(share_memory(func))
    func = lower_collectives(func)
    func = hoist_ifs(func)
    func = auto_unroll(vectorize(func, ACCESS))
    return common_subexpr(simplify(func))
