"""normalize: loops start at 0.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A, k = te.placeholder((9,), name="A"), te.reduce_axis((3, 9), name="k")
>>> B = te.compute((), lambda: te.sum(A[k], axis=k), name="B")
>>> s = create_schedule(B, [A])
>>> print(s.func.body)
for k in range(3, 9):
    with block("B"): reduce k = k
        init:
            B[] = 0f32
        B[] = B[] + A[k]
>>> _ = s.normalize()
>>> print(s.func.body)
for k in range(6):
    with block("B"): reduce k = k + 3
        init:
            B[] = 0f32
        B[] = B[] + A[k]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...ir.expr import const, is_const
from ...ir.node import rewrite
from ..nodes import For, PrimFunc, Stmt
from ..tree import substitute_stmt
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class Normalize(Step):
    NAME = "normalize"
    stage: str = ""

    def apply(self, schedule: Schedule) -> None:
        schedule.func = normalize(schedule.func)

    def call(self) -> str:
        return "s.normalize()"


def normalize(func: PrimFunc) -> PrimFunc:
    """Every loop counts from 0; what it counted from is added where the variable is used."""

    def step(node: Stmt) -> Stmt:
        if not isinstance(node, For) or is_const(node.min, 0):
            return node
        body = substitute_stmt(node.body, {node.var: node.var + node.min})
        return replace(node, min=const(0), body=body)

    return replace(func, body=rewrite(func.body, step))
