"""From a scheduled function to the loops that CUDA code generation consumes."""

from __future__ import annotations

from ..diagnostics import ScheduleError
from ..ir.expr import variables
from ..target import Target
from .nodes import Alloc, PrimFunc, Scope
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
from .tree import statements

ACCESS = Target("cuda", vector_bits=128)  # the widest access of one thread is 16 bytes


def lower_gpu(func: PrimFunc) -> PrimFunc:
    """`func` without Blocks, as the program of one thread inside the grid and block loops, with
    barriers. Unrolled loops stay loops: the CUDA compiler writes them out."""
    func = mark_double_buffers(func)
    func = lower_blocks(func)
    func = bind_threads(func)
    func = place_buffers(func)
    func = compact_buffers(func)
    _require_known_sizes(func)
    func = inject_virtual_threads(func)
    func = simplify(func)
    func = pipeline(uniform_conditions(func))
    func = insert_barriers(share_memory(func))
    func = lower_collectives(func)
    func = hoist_ifs(func)
    func = auto_unroll(vectorize(func, ACCESS))
    return common_subexpr(simplify(func))


def _require_known_sizes(func: PrimFunc) -> None:
    """ScheduleError if a buffer inside a kernel has a symbolic size."""
    for stmt in statements(func.body) if func.sizes else ():
        if not isinstance(stmt, Alloc) or stmt.buffer.scope is Scope.GLOBAL:
            continue
        symbolic = [d for d in stmt.buffer.shape if any(v in func.sizes for v in variables(d))]
        if symbolic:
            raise ScheduleError(
                f"{func.name}: {stmt.buffer.name!r} is in {stmt.buffer.scope} memory of a kernel, "
                f"but its dimension {symbolic[0]} is not known",
                hint="compute_at a loop inside of which a part of constant size is needed (split "
                "by a constant first), keep it between kernels (compute_root), or build(..., "
                "specialize=True)",
                span=func.span,
            )
