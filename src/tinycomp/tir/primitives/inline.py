"""compute_inline: a stage disappears into its readers.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((8,), name="A")
>>> B = te.compute((8,), lambda i: A[i] * 2.0, name="B")
>>> C = te.compute((8,), lambda i: B[7 - i] + 1.0, name="C")
>>> s = create_schedule(C, [A])
>>> print(s.func.body)
for i in range(8):
    with block("B"): i = i
        B[i] = A[i] * 2f32
for i in range(8):
    with block("C"): i = i
        C[i] = B[7 - i] + 1f32
>>> s[B].compute_inline()
>>> print(s.func.body)
for i in range(8):
    with block("C"): i = i
        C[i] = A[7 - i] * 2f32 + 1f32
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import Load, substitute
from ...ir.fold import refold
from ...ir.node import Node, fold
from ..nodes import Block, PrimFunc, Seq, Store
from ..tree import replace_stmt
from .common import only_writer, own_nest, reduces, require_inputs_stay, require_plain_store
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class ComputeInline(Step):
    NAME = "compute_inline"

    def apply(self, schedule: Schedule) -> None:
        schedule.func = compute_inline(schedule.func, self.stage)


def compute_inline(func: PrimFunc, block_name: str) -> PrimFunc:
    """Replace every read of a stage by the expression that computes it.

    Raises:
        ScheduleError: the stage is a reduction, an output, or not plain stores.
    """
    block = only_writer(func, block_name)
    stores = inlinable_stores(func, block)
    require_inputs_stay(func, block)
    axes = [v.var for v in block.iter_vars]
    values = {s.buffer: s.value for s in stores}

    def step(node: Node, children: list) -> Node:
        node = refold(node, children)
        if isinstance(node, Load) and node.source in values:
            return substitute(values[node.source], dict(zip(axes, node.indices, strict=True)))
        return node

    func = replace_stmt(func, own_nest(func, block), None)
    allocs = tuple(b for b in func.allocs if b not in values)
    return replace(func, body=fold(func.body, step), allocs=allocs)


def inlinable_stores(func: PrimFunc, block: Block) -> list[Store]:
    """The stores of a stage that is neither a reduction nor an output."""
    if block.init is not None or reduces(block):
        raise ScheduleError(
            f"stage {block.name!r} is a reduction; each read would repeat it",
            hint="use compute_at to compute it where it is needed",
        )
    body = block.body.stmts if isinstance(block.body, Seq) else (block.body,)
    stores = [s for s in body if isinstance(s, Store)]
    if len(stores) != len(body) or any(s.predicate is not None for s in stores):
        raise ScheduleError(
            f"stage {block.name!r} is more than plain assignments: {type(body[0]).__name__}",
            hint="use compute_at to compute it where it is needed",
        )
    if any(s.buffer in func.params for s in stores):
        raise ScheduleError(
            f"stage {block.name!r} is an output of {func.name!r}",
            hint="only intermediate stages can disappear",
        )
    require_plain_store(block)
    return stores
