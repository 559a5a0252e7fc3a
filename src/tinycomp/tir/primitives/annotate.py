"""vectorize, unroll, parallel, bind and pragma: how a loop runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...diagnostics import ScheduleError
from ...ir.expr import Var
from ..nodes import ForKind, PrimFunc
from ..tree import loop_of, loops_above, replace_stmt
from .common import require_spatial


def set_kind(func: PrimFunc, axis: Var, kind: ForKind, call_name: str) -> PrimFunc:
    """Mark a loop as vectorized, parallel or unrolled.

    Vectorized and parallel loops must not be reductions.
    """
    loop = loop_of(func, axis)
    if kind is not ForKind.UNROLLED:
        require_spatial(func, axis, call_name)
    if loop.kind not in (ForKind.SERIAL, kind):
        raise ScheduleError(f"{call_name}({axis.name}): the loop is already {loop.kind}")
    if kind is ForKind.PARALLEL:
        outer = next((l for l in loops_above(func, loop) if l.kind is ForKind.PARALLEL), None)
        if outer is not None:
            raise ScheduleError(
                f"parallel({axis.name}): it is inside the parallel loop {outer.var.name!r}",
                hint="fuse the two loops and make the fused one parallel",
            )
    return replace_stmt(func, loop, replace(loop, kind=kind))


def bind(func: PrimFunc, axis: Var, thread: str) -> PrimFunc:
    """Run a loop over a GPU thread axis such as "blockIdx.x" or "threadIdx.x"."""
    require_spatial(func, axis, "bind")
    loop = loop_of(func, axis)
    return replace_stmt(func, loop, replace(loop, kind=ForKind.THREAD, thread=thread))


def pragma(func: PrimFunc, axis: Var, key: str, value: Any) -> PrimFunc:
    """Attach a hint to a loop."""
    loop = loop_of(func, axis)
    return replace_stmt(func, loop, replace(loop, annotations={**loop.annotations, key: value}))
