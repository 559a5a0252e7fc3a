"""split: one loop becomes two."""

from __future__ import annotations

from dataclasses import replace

from ...diagnostics import ScheduleError
from ...ir.expr import IntImm, Var, as_expr, const
from ..nodes import For, PrimFunc
from ..tree import loop_of, replace_stmt, substitute_stmt
from .common import guard_blocks


def split(
    func: PrimFunc, axis: Var, factor: int | None = None, nparts: int | None = None
) -> tuple[PrimFunc, Var, Var]:
    """Split a loop into an outer and an inner one; exactly one of the sizes is given.

        for i in range(64):            for i.outer in range(8):
          body(i)               -->      for i.inner in range(8):      # factor=8 or nparts=8
                                           body(i.outer * 8 + i.inner)

    A size that does not divide the extent is guarded by a predicate on the blocks inside.

    Returns:
        The new function, the outer and the inner axis.
    """
    loop = loop_of(func, axis)
    size = factor if factor is not None else nparts
    if size is None or (factor is not None and nparts is not None):
        raise ScheduleError(
            f"split({axis.name}): give exactly one of factor (inner extent) and nparts (outer "
            f"extent), got factor={factor}, nparts={nparts}"
        )
    if size < 1:
        raise ScheduleError(f"split({axis.name}): the size must be at least 1, got {size}")
    rounded = (loop.extent + (size - 1)) // size
    outer_extent, inner_extent = (rounded, as_expr(size)) if factor else (as_expr(size), rounded)
    outer, inner = Var(f"{axis.name}.outer"), Var(f"{axis.name}.inner")
    value = outer * inner_extent + inner
    body = substitute_stmt(loop.body, {axis: value + loop.min})
    if not (isinstance(loop.extent, IntImm) and loop.extent.value % size == 0):
        body = guard_blocks(body, value < loop.extent)
    inner_loop = replace(loop, var=inner, min=const(0), extent=inner_extent, body=body)
    return replace_stmt(func, loop, For(outer, const(0), outer_extent, inner_loop)), outer, inner
