"""fuse: nested loops become one.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((4, 8), name="A")
>>> B = te.compute((4, 8), lambda i, j: A[i, j] + 1.0, name="B")
>>> s = create_schedule(B, [A])
>>> print(s.func.body)
for i in range(4):
    for j in range(8):
        with block("B"): i = i, j = j
            B[i, j] = A[i, j] + 1f32
>>> _ = s[B].fuse("i", "j")
>>> print(s.func.body)
for i.j.fused in range(32):
    with block("B"): i = i.j.fused // 8, j = i.j.fused % 8
        B[i, j] = A[i, j] + 1f32
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import Var, const, variables
from ..nodes import For, ForKind, PrimFunc
from ..tree import replace_stmt, substitute_stmt
from .common import axis_kinds, chain, names_around, unique
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class Fuse(Step):
    NAME = "fuse"
    SPLAT = "axes"
    axes: tuple[str, ...]

    def apply(self, schedule: Schedule) -> Var:
        loops = [schedule.loop(self.stage, a) for a in self.axes]
        if not loops:
            raise ScheduleError("there is nothing to fuse", hint="name at least one axis")
        fused = loops[0].var
        for other in loops[1:]:
            schedule.func, fused = fuse(schedule.func, fused, other.var)
        return fused


def fuse(func: PrimFunc, outer: Var, inner: Var) -> tuple[PrimFunc, Var]:
    """Fuse a loop with the one directly inside it; returns the new function and the fused axis.

    Both must be of one kind: a loop that is partly a reduction could be neither parallel nor
    factored.
    """
    loops = chain(func, [outer, inner])
    first, second = loops[0], loops[-1]
    if len(loops) != 2 or first.var is not outer:
        raise ScheduleError(
            f"loop {inner.name!r} is not directly inside {outer.name!r}",
            hint="reorder the loops first, or name them outermost first",
        )
    kinds = axis_kinds(func, outer) | axis_kinds(func, inner)
    if len(kinds) > 1:
        raise ScheduleError(
            f"{outer.name!r} and {inner.name!r} are of different kinds: "
            f"{' and '.join(sorted(kinds))}",
            hint="fuse spatial axes with spatial ones, reduction axes with reduction ones",
        )
    for loop in (first, second):
        if loop.kind is not ForKind.SERIAL:
            raise ScheduleError(
                f"loop {loop.var.name!r} is already {loop.kind}",
                hint=f"fuse first, then {loop.kind}",
            )
    if outer in variables(second.extent) or outer in variables(second.min):
        raise ScheduleError(
            f"the range of {inner.name!r} depends on {outer.name!r}", hint="fuse other loops"
        )
    taken = names_around(func, first, [first, second])
    fused = Var(unique(f"{outer.name}.{inner.name}.fused", taken))
    values = {
        first.var: fused // second.extent + first.min,
        second.var: fused % second.extent + second.min,
    }
    body = substitute_stmt(second.body, values)
    loop = For(fused, const(0), first.extent * second.extent, body)
    return replace_stmt(func, first, loop), fused
