"""reverse_compute_inline: a stage takes over its only consumer.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((4, 8), name="A")
>>> B = te.compute((4, 8), lambda i, j: A[i, j] * 2.0, name="B")
>>> C = te.compute((8, 4), lambda i, j: B[j, i] + 1.0, name="C")
>>> s = create_schedule(C, [A])
>>> s[B].vectorize("j")
>>> print(s.func.body)
for i in range(4):
    for j in vectorized(8):
        with block("B"): i = i, j = j
            B[i, j] = A[i, j] * 2f32
for i in range(8):
    for j in range(4):
        with block("C"): i = i, j = j
            C[i, j] = B[j, i] + 1f32
>>> s[C].reverse_compute_inline()
>>> print(s.func.body)
for i in range(4):
    for j in vectorized(8):
        with block("C"): i = i, j = j
            C[j, i] = A[i, j] * 2f32 + 1f32
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import Expr, Load, Var
from ...ir.fold import refold
from ...ir.node import Node, fold
from ..nodes import Block, Buffer, PrimFunc, Store
from ..tree import blocks_in, loads_in, read_buffers, replace_stmt, substitute_stmt
from .common import only_writer, own_nest, reduces, result_buffers, root_of
from .compute_at import reader_outside
from .inline import inlinable_stores
from .reverse_compute_at import require_inputs_before
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class ReverseComputeInline(Step):
    NAME = "reverse_compute_inline"

    def apply(self, schedule: Schedule) -> None:
        schedule.func = reverse_compute_inline(schedule.func, self.stage)


def reverse_compute_inline(func: PrimFunc, block_name: str) -> PrimFunc:
    """Compute a stage in the loops of the stage whose every element it reads once.

    The producer's loops stay, and now belong to this stage; the producer disappears.

    Raises:
        ScheduleError: the producer is a reduction, an output or read elsewhere, or the stage does
            not read exactly one of its elements for each of its own.
    """
    block = only_writer(func, block_name)
    if reduces(block) or block.init is not None:
        raise ScheduleError(
            f"stage {block_name!r} is a reduction and needs loops of its own",
            hint="use reverse_compute_at",
        )
    producer, buffer = _producer(func, block)
    (store,) = _only_store(func, producer)
    axes = _one_to_one(block, buffer)
    if own_nest(func, block) is not root_of(func, block):
        raise ScheduleError(
            f"stage {block_name!r} shares its loops with other stages",
            hint="do this before compute_at",
        )
    if reader_outside(func, [own_nest(func, block)], [buffer]) is not None:
        raise ScheduleError(
            f"{buffer.name!r} is read by other stages too",
            hint=f's["{producer.name}"].compute_inline() lets each reader compute it',
        )
    require_inputs_before(func, block, root_of(func, producer), [buffer])
    values: dict[Var, Expr] = {a: v.var for a, v in zip(axes, producer.iter_vars, strict=True)}

    def step(node: Node, children: list) -> Node:
        node = refold(node, children)
        return store.value if isinstance(node, Load) and node.source is buffer else node

    body = fold(substitute_stmt(block.body, values), step)
    merged = replace(
        block,
        iter_vars=producer.iter_vars,
        bindings=producer.bindings,
        predicate=producer.predicate,
        body=body,
        span=producer.span | block.span,
    )
    func = replace_stmt(func, own_nest(func, block), None)
    func = replace_stmt(func, producer, merged)
    return replace(func, allocs=tuple(b for b in func.allocs if b is not buffer))


def _producer(func: PrimFunc, block: Block) -> tuple[Block, Buffer]:
    found = [
        (producer, buffer)
        for producer in blocks_in(func.body)
        if producer is not block
        for buffer in result_buffers(producer)
        if buffer in read_buffers(block)
    ]
    if len(found) != 1:
        names = ", ".join(p.name for p, _ in found) or "none"
        raise ScheduleError(
            f"stage {block.name!r} must read exactly one other stage; it reads {names}",
            hint="compute the others inline first",
        )
    return only_writer(func, found[0][0].name), found[0][1]


def _only_store(func: PrimFunc, producer: Block) -> list[Store]:
    stores = inlinable_stores(func, producer)
    if len(stores) != 1:
        raise ScheduleError(
            f"stage {producer.name!r} has {len(stores)} outputs",
            hint="only a stage of one output can take over its consumer",
        )
    return stores


def _one_to_one(block: Block, buffer: Buffer) -> list[Var]:
    """The block's axes in the order of the dimensions that they index."""
    places = list(dict.fromkeys(l.indices for l in loads_in(block) if l.source is buffer))
    own = {v.var: v.extent for v in block.iter_vars}
    axes = [i for i in places[0] if isinstance(i, Var) and i in own]
    same = len(places) == 1 and len(axes) == len(places[0]) == len(set(axes)) == len(own)
    if not same or any(own[a] is not e for a, e in zip(axes, buffer.shape, strict=True)):
        shown = " and ".join(str(list(p)) for p in places)
        raise ScheduleError(
            f"stage {block.name!r} reads {buffer.name!r} at {shown}: not each element once",
            hint="use compute_inline on the producer",
        )
    return axes
