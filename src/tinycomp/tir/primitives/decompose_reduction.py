"""decompose_reduction: the initialisation of a reduction becomes a stage of its own.

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
>>> init = s[B].decompose_reduction("i")
>>> print(s.func.body)
for i in range(4):
    with block("B.init"): i = i
        B[i] = 0f32
for i in range(4):
    for k in range(8):
        with block("B"): i = i, reduce k = k
            B[i] = B[i] + A[i, k]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import Expr, Var, all_of, substitute
from ...te.tensor import IterKind
from ..nodes import Block, For, PrimFunc, Seq, Stmt
from ..tree import loops_above, replace_stmt
from .common import fresh_buffer_name, kinds_in, only_writer, own_loops, split_guards
from .step import Step

if TYPE_CHECKING:
    from ..schedule import CachedTensor, Schedule


@dataclass(frozen=True)
class DecomposeReduction(Step):
    NAME = "decompose_reduction"
    axis: str

    def apply(self, schedule: Schedule) -> CachedTensor:
        axis = schedule.loop(self.stage, self.axis).var
        schedule.func, name = decompose_reduction(schedule.func, self.stage, axis)
        return schedule.new_stage(schedule.buffer(self.stage), name)


def decompose_reduction(func: PrimFunc, block_name: str, axis: Var) -> tuple[PrimFunc, str]:
    """Initialise in a nest of its own, right before loop `axis`.

    Returns:
        The function and the name of the initialising block.
    """
    block = only_writer(func, block_name)
    if block.init is None:
        raise ScheduleError(
            f"stage {block_name!r} is not a reduction, or was decomposed before",
            hint="only a reduction has an initialisation",
        )
    loops = own_loops(func, block)
    position = next((i for i, l in enumerate(loops) if l.var is axis), None)
    if position is None:
        raise ScheduleError(
            f"other stages are computed inside loop {axis.name!r}",
            hint=f"choose one of {', '.join(l.var.name for l in loops)}",
        )
    reduced = [l for l in loops_above(func, block) if IterKind.REDUCE in kinds_in(block, l.var)]
    for loop in reduced:
        if not any(loop is l for l in loops[position:]):
            raise ScheduleError(
                f"loop {axis.name!r} is inside reduction loop {loop.var.name!r}, each iteration "
                "of which would start again",
                hint=f"choose {loop.var.name!r} or a loop around it",
            )
    name = fresh_buffer_name(func, f"{block_name}.init")
    kept = [l for l in loops[position:] if kinds_in(block, l.var) - {IterKind.REDUCE}]
    left = [l.var for l in loops[position:] if not any(l is k for k in kept)]
    nest = _init_nest(block, name, kept, left)
    func = replace_stmt(func, block, replace(block, init=None))
    target = own_loops(func, only_writer(func, block_name))[position]
    return replace_stmt(func, target, Seq((nest, target))), name


def _init_nest(block: Block, name: str, loops: list[For], left: list[Var]) -> Stmt:
    """The init in copies of `loops`, without guards of the loops that are left behind."""
    fresh: dict[Var, Expr] = {l.var: Var(l.var.name) for l in loops}
    spatial = [
        (v, substitute(b, fresh))
        for v, b in zip(block.iter_vars, block.bindings, strict=True)
        if v.kind is not IterKind.REDUCE
    ]
    _, guards = split_guards(block.predicate, left)
    assert block.init is not None
    stmt: Stmt = Block(
        name,
        tuple(v for v, _ in spatial),
        tuple(b for _, b in spatial),
        block.init,
        None,
        all_of(substitute(g, fresh) for g in guards),
        {},
        block.span,
    )
    for loop in reversed(loops):
        stmt = replace(loop, var=fresh[loop.var], body=stmt)
    return stmt
