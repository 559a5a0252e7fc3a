"""From a scheduled function to the plain loops that code generation consumes."""

from __future__ import annotations

from ..target import Target
from .nodes import PrimFunc
from .passes.auto_unroll import auto_unroll
from .passes.common_subexpr import common_subexpr
from .passes.compact_buffers import compact_buffers
from .passes.hoist_ifs import hoist_ifs
from .passes.loop_partition import loop_partition
from .passes.lower_blocks import lower_blocks
from .passes.prefetch import prefetch
from .passes.serialize_threads import serialize_threads
from .passes.simplify import simplify
from .passes.storage_rewrite import storage_rewrite
from .passes.trim_loops import trim_loops
from .passes.unroll import unroll
from .passes.vectorize import vectorize
from .passes.virtual_threads import inject_virtual_threads


def lower(func: PrimFunc, target: Target) -> PrimFunc:
    """`func` without Blocks: allocations placed, vectors and unrolled loops written out.

    Every step is a function on its own that keeps the meaning of `func`
    (`tinycomp.tir.interpreter.run` gives the same arrays before and after).
    """
    if target.kind != "cuda":
        func = serialize_threads(func)
    func = lower_blocks(func)
    func = compact_buffers(func)
    func = inject_virtual_threads(func)
    func = simplify(func)
    func = loop_partition(func)
    func = simplify(func)
    func = hoist_ifs(func)
    func = trim_loops(func)
    func = storage_rewrite(func)
    func = vectorize(func, target)
    func = unroll(auto_unroll(func))
    func = simplify(func)
    func = common_subexpr(func)
    return prefetch(func)
