"""fuse: two nested loops become one."""

from __future__ import annotations

from ...diagnostics import ScheduleError
from ...ir.expr import Var, const
from ..nodes import For, PrimFunc
from ..tree import replace_stmt, substitute_stmt
from .common import chain


def fuse(func: PrimFunc, outer: Var, inner: Var) -> tuple[PrimFunc, Var]:
    """Fuse a loop with the one directly inside it.

        for i in range(4):                 for i.j.fused in range(32):
          for j in range(8):        -->      body(i.j.fused // 8, i.j.fused % 8)
            body(i, j)

    Returns:
        The new function and the fused axis.
    """
    loops = chain(func, [outer, inner], "fuse")
    first, second = loops[0], loops[-1]
    if len(loops) != 2 or first.var is not outer:
        raise ScheduleError(
            f"fuse({outer.name}, {inner.name}): {inner.name!r} is not directly inside {outer.name!r}",
            hint="reorder the loops first, or name them outermost first",
            excerpt=str(first),
        )
    fused = Var(f"{outer.name}.{inner.name}.fused")
    values = {
        first.var: fused // second.extent + first.min,
        second.var: fused % second.extent + second.min,
    }
    body = substitute_stmt(second.body, values)
    loop = For(fused, const(0), first.extent * second.extent, body)
    return replace_stmt(func, first, loop), fused
