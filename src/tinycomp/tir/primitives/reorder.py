"""reorder: nested loops change places.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A, k = te.placeholder((4, 8), name="A"), te.reduce_axis((0, 8), name="k")
>>> B = te.compute((4,), lambda i: te.sum(A[i, k], axis=k), name="B")
>>> s = create_schedule(B, [A])
>>> print(s.func.body)
for i in range(4):
    for k in range(8):
        with block("B"): i = i, reduce k = k
            init:
                B[i] = 0f32
            B[i] = B[i] + A[i, k]
>>> s[B].reorder("k", "i")
>>> print(s.func.body)
for k in range(8):
    for i in range(4):
        with block("B"): i = i, reduce k = k
            init:
                B[i] = 0f32
            B[i] = B[i] + A[i, k]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import Var, variables
from ...te.tensor import IterKind
from ..nodes import For, PrimFunc, Stmt
from ..tree import replace_stmt
from .common import axis_kinds, chain, require_nothing_kept
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class Reorder(Step):
    NAME = "reorder"
    SPLAT = "axes"
    axes: tuple[str, ...]

    def apply(self, schedule: Schedule) -> None:
        axes = [schedule.loop(self.stage, a).var for a in self.axes]
        schedule.func = reorder(schedule.func, axes)


def reorder(func: PrimFunc, axes: Sequence[Var]) -> PrimFunc:
    """Put the given loops in this order; loops between them that are not named stay in place.

    Reduction axes may move outside spatial ones: the block's initialisation follows them.
    """
    if len(set(axes)) != len(axes):
        twice = next(a for a in axes if list(axes).count(a) > 1)
        raise ScheduleError(f"axis {twice.name!r} is named twice", hint="name each axis once")
    if len(axes) < 2:
        return func
    nest = chain(func, axes)
    headers = {loop.var: loop for loop in nest}
    order = iter(axes)
    placed = [headers[next(order)] if loop.var in headers and loop.var in axes else loop
              for loop in nest]  # fmt: skip
    for position, loop in enumerate(placed):
        inside = {l.var for l in placed[position:]}
        needed = [v for e in (loop.min, loop.extent) for v in variables(e) if v in inside]
        if needed:
            raise ScheduleError(
                f"the range of {loop.var.name!r} depends on {needed[0].name!r}",
                hint=f"{loop.var.name!r} must stay inside {needed[0].name!r}",
            )
    moved = [p.var for p, old in zip(placed, nest, strict=True) if p is not old]
    for axis in moved:
        if IterKind.ORDERED in axis_kinds(func, axis):
            raise ScheduleError(
                f"axis {axis.name!r} runs in sequence: later iterations depend on earlier ones",
                hint="reorder the other axes only",
            )
    for axis in {l.var for l in placed}:
        if _around(placed, axis) != _around(nest, axis):
            require_nothing_kept(func, headers[axis])
    body: Stmt = nest[-1].body
    for loop in reversed(placed):
        body = replace(loop, body=body)
    return replace_stmt(func, nest[0], body)


def _around(nest: Sequence[For], axis: Var) -> set[Var]:
    """The loops of a nest that are outside of one of them."""
    position = next(i for i, l in enumerate(nest) if l.var is axis)
    return {l.var for l in nest[:position]}
