"""split: one loop becomes two or more.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((10,), name="A")
>>> B = te.compute((10,), lambda i: A[i] + 1.0, name="B")
>>> s = create_schedule(B, [A])
>>> print(s.func.body)
for i in range(10):
    with block("B"): i = i
        B[i] = A[i] + 1f32
>>> _ = s[B].split("i", factor=4)
>>> print(s.func.body)
for i.outer in range(3):
    for i.inner in range(4):
        with block("B") where likely(i.outer * 4 + i.inner < 10): i = i.outer * 4 + i.inner
            B[i] = A[i] + 1f32
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import Expr, IntImm, Var, as_expr, const
from ...te.simplify import Analyzer
from ..nodes import For, ForKind, PrimFunc, Stmt
from ..tree import loop_of, replace_stmt, substitute_stmt
from .common import guard_blocks, names_around, unique
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class Split(Step):
    NAME = "split"
    axis: str
    factor: int | None = None
    nparts: int | None = None
    factors: tuple[int | None, ...] | None = None

    def apply(self, schedule: Schedule) -> tuple[Var, ...]:
        loop = schedule.loop(self.stage, self.axis)
        sizes = _sizes(self.factor, self.nparts, self.factors)
        schedule.func, axes = split(schedule.func, loop.var, sizes, self.factors is None)
        return axes


def _sizes(
    factor: int | None, nparts: int | None, factors: tuple[int | None, ...] | None
) -> Sequence[int | None]:
    """The extents of the new loops, outermost first; None is to be inferred."""
    if sum(given is not None for given in (factor, nparts, factors)) != 1:
        raise ScheduleError(
            f"got factor={factor}, nparts={nparts}, factors={factors}",
            hint="give exactly one of factor (inner extent), nparts (outer extent) and factors",
        )
    if factors is None:
        return [nparts, factor]
    if len(factors) < 2 or sum(f is None for f in factors) > 1:
        raise ScheduleError(
            f"factors={list(factors)} does not say how to split",
            hint="give two or more extents, outermost first, at most one of them None",
        )
    return factors


def split(
    func: PrimFunc, axis: Var, sizes: Sequence[int | None], pair: bool = True
) -> tuple[PrimFunc, tuple[Var, ...]]:
    """Split a loop into nested ones of the given extents, one of which may be None (inferred).

    Extents whose product exceeds the loop's are guarded by a predicate on the blocks inside.

    Returns:
        The new function and the axes, outermost first: `i.outer, i.inner`, or `i.0, i.1, ...`
        unless `pair`.
    """
    loop = loop_of(func, axis)
    known = [size for size in sizes if size is not None]
    if any(type(size) is not int or size < 1 for size in known):
        wrong = next(size for size in known if type(size) is not int or size < 1)
        raise ScheduleError(
            f"the size must be an integer of at least 1, got {wrong!r}", hint="use 1 for no split"
        )
    if loop.kind is not ForKind.SERIAL:
        raise ScheduleError(
            f"loop {axis.name!r} is already {loop.kind}", hint=f"split first, then {loop.kind}"
        )
    inner_size = math.prod(known)
    analyzer = Analyzer(func.sizes)
    inferred = analyzer.simplify((loop.extent + (inner_size - 1)) // inner_size)
    extents: list[Expr] = [inferred if size is None else as_expr(size) for size in sizes]
    total: Expr = const(1)
    for extent in extents:
        total = total * extent
    if None not in sizes:
        _require_cover(total, loop, sizes)
    taken = names_around(func, loop, [loop])
    ends = ("outer", "inner") if pair else [str(n) for n in range(len(sizes))]
    axes = tuple(Var(unique(f"{axis.name}.{end}", taken)) for end in ends)
    value: Expr = axes[0]
    for var, extent in zip(axes[1:], extents[1:], strict=True):
        value = value * extent + var
    body: Stmt = substitute_stmt(loop.body, {axis: value + loop.min})
    if total is not loop.extent and not _covers(zip(axes, extents, strict=True), value, loop, func):
        body = guard_blocks(body, value < loop.extent)
    for var, extent in reversed(list(zip(axes[1:], extents[1:], strict=True))):
        body = replace(loop, var=var, min=const(0), extent=extent, body=body)
    return replace_stmt(func, loop, For(axes[0], const(0), extents[0], body)), axes


def _covers(loops: Iterable[tuple[Var, Expr]], value: Expr, loop: For, func: PrimFunc) -> bool:
    """Whether the new loops have no iterations besides those of a loop of symbolic extent."""
    analyzer = Analyzer(func.sizes)
    for var, extent in loops:
        analyzer.bind(var, 0, extent)
    return not isinstance(loop.extent, IntImm) and analyzer.proves(value < loop.extent)


def _require_cover(total: Expr, loop: For, sizes: Sequence[int | None]) -> None:
    if not isinstance(loop.extent, IntImm) or not isinstance(total, IntImm):
        raise ScheduleError(
            f"the extent {loop.extent} of {loop.var.name!r} is not a constant",
            hint="give one of the factors as None",
        )
    if total.value < loop.extent.value:
        raise ScheduleError(
            f"factors {list(sizes)} cover {total} of {loop.extent} iterations of {loop.var.name!r}",
            hint="give one of the factors as None: it is inferred",
        )
