"""partition: one loop becomes two that run one after the other.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((10,), name="A")
>>> B = te.compute((10,), lambda i: A[i] + 1.0, name="B")
>>> s = create_schedule(B, [A])
>>> print(s.func.body)
for i in range(10):
    with block("B"): i = i
        B[i] = A[i] + 1f32
>>> tail = s[B].partition("i", 8)
>>> s[B].vectorize("i")
>>> print(s.func.body)
for i in vectorized(8):
    with block("B"): i = i
        B[i] = A[i] + 1f32
for i in range(8, 10):
    with block("B.tail"): i = i
        B[i] = A[i] + 1f32
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...diagnostics import ScheduleError
from ...ir.expr import IntImm, Var, const
from ...ir.node import rewrite
from ...te.tensor import IterKind
from ..nodes import Block, Buffer, ForKind, PrimFunc, Seq, Stmt
from ..passes.visit import copy
from ..tree import block_of, blocks_in, loop_of, map_buffers, replace_stmt
from .common import (
    accessed_outside,
    fresh_buffer_name,
    kinds_in,
    require_nothing_kept,
    result_buffers,
)
from .step import Step

if TYPE_CHECKING:
    from ..schedule import CachedTensor, Schedule


@dataclass(frozen=True)
class Partition(Step):
    NAME = "partition"
    axis: str
    point: int

    def apply(self, schedule: Schedule) -> CachedTensor:
        axis = schedule.loop(self.stage, self.axis).var
        schedule.func, tails = partition(schedule.func, axis, self.point)
        handles = {
            old: schedule.new_stage(result_buffers(block_of(schedule.func, new))[0], new)
            for old, new in tails.items()
        }
        return handles[self.stage]


def partition(func: PrimFunc, axis: Var, point: int) -> tuple[PrimFunc, dict[str, str]]:
    """The first `point` iterations of a loop, then the others, which can be shaped apart.

    Returns:
        The function, and for each stage inside the loop the name of the one that computes its
        later part. Intermediate stages that only the loop uses get a buffer for each part.
    """
    loop = loop_of(func, axis)
    if not isinstance(loop.extent, IntImm) or loop.kind is not ForKind.SERIAL:
        raise ScheduleError(
            f"loop {axis.name!r} has extent {loop.extent} and is {loop.kind}",
            hint="partition serial loops of known extent",
        )
    if type(point) is not int or not 0 < point < loop.extent.value:
        raise ScheduleError(
            f"the point {point!r} is not inside of the {loop.extent} iterations of {axis.name!r}",
            hint=f"give an integer from 1 to {loop.extent.value - 1}",
        )
    require_nothing_kept(func, loop)
    head = replace(loop, extent=const(point))
    rest = const(loop.extent.value - point)
    tail: Any = copy(replace(loop, min=loop.min + point, extent=rest))
    if len(blocks_in(tail)) < len(blocks_in(loop)):  # a copy has no loops without iterations
        raise ScheduleError(
            f"a loop inside of {axis.name!r} has no iterations", hint="there is nothing to gain"
        )
    buffers: dict[Buffer, Buffer] = {}
    names: dict[str, str] = {}
    for block in blocks_in(loop):
        for buffer in result_buffers(block):
            if buffer not in buffers and not accessed_outside(func, loop, buffer):
                name = fresh_buffer_name(func, f"{buffer.name}.tail")
                buffers[buffer] = replace(buffer, name=name)
        names[block.name] = fresh_buffer_name(func, f"{block.name}.tail")

    def step(node: Stmt) -> Stmt:
        if not isinstance(node, Block):
            return node
        started = IterKind.REDUCE in kinds_in(node, tail.var) and node.init is not None
        return replace(node, name=names[node.name], init=None if started else node.init)

    tail = map_buffers(rewrite(tail, step), buffers)
    func = replace_stmt(func, loop, Seq((head, tail)))
    return replace(func, allocs=(*func.allocs, *buffers.values())), names
