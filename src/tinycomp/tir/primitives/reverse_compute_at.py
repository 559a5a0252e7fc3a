"""reverse_compute_at: a consumer moves into the loop that produces what it reads.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((16,), name="A")
>>> B = te.compute((16,), lambda i: A[i] * 2.0, name="B")
>>> C = te.compute((16,), lambda i: B[i] + 1.0, name="C")
>>> s = create_schedule(C, [A])
>>> outer, inner = s[B].split("i", factor=8)
>>> print(s.func.body)
for i.outer in range(2):
    for i.inner in range(8):
        with block("B"): i = i.outer * 8 + i.inner
            B[i] = A[i] * 2f32
for i in range(16):
    with block("C"): i = i
        C[i] = B[i] + 1f32
>>> s[C].reverse_compute_at(s[B], outer)
>>> print(s.func.body)
for i.outer in range(2):
    for i.inner in range(8):
        with block("B"): i = i.outer * 8 + i.inner
            B[i] = A[i] * 2f32
    for i in range(8):
        with block("C"): i = i.outer * 8 + i
            C[i] = B[i] + 1f32
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import Binary, BinaryOp, Call, Expr, IntImm, Var, all_of, is_const, variables
from ...te.simplify import Analyzer
from ...te.tensor import IterKind
from ..nodes import Block, Buffer, For, ForKind, PrimFunc, Seq
from ..region import region
from ..tree import (
    blocks_in,
    loads_in,
    loop_of,
    loops_above,
    read_buffers,
    replace_stmt,
    written_buffers,
)
from .common import (
    kinds_in,
    only_writer,
    own_nest,
    require_plain_store,
    result_buffers,
    root_of,
    split_guards,
)
from .compute_at import rebuild_nest
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule

Part = tuple[Expr, Expr]  # start and extent


@dataclass(frozen=True)
class ReverseComputeAt(Step):
    NAME = "reverse_compute_at"
    producer: str
    axis: str

    def apply(self, schedule: Schedule) -> None:
        axis = schedule.loop(self.producer, self.axis).var
        schedule.func = reverse_compute_at(schedule.func, self.stage, axis)


def reverse_compute_at(func: PrimFunc, block_name: str, axis: Var) -> PrimFunc:
    """Move the nest of a block to the end of loop `axis`, shrunk to what the loop has produced.

    The block must read each element that an iteration produces at a shifted axis of its own
    (`B[i + 1, j]`), so that the iterations share out its elements exactly.

    Raises:
        ScheduleError: an element could be missed or computed from what is not complete.
    """
    block = only_writer(func, block_name)
    target = loop_of(func, axis)
    producers = _producers(func, block, target)
    require_inputs_before(func, block, root_of(func, target), producers)
    above = [*loops_above(func, target), target]
    _require_iterations(block, above)
    analyzer = Analyzer(func.sizes)
    for loop in above:
        analyzer.bind(loop.var, loop.min, loop.extent)
    parts: dict[Var, Part] = {}
    for buffer, producer in producers.items():
        region_ = _written(func, producer, buffer, target, analyzer)
        for var, part in _followed(block, buffer, region_, analyzer).items():
            if parts.setdefault(var, part) != part:
                raise ScheduleError(
                    f"the producers of {block_name!r} compute different parts in one iteration",
                    hint="give them the same tiles, or leave the stage where it is",
                )
    _require_serial(block, parts, above)
    ranges = [parts.get(v.var) for v in block.iter_vars]
    names = {l.var.name for l in above}
    guards = [g for p in producers.values() for g in _outer_guards(p, above, analyzer)]
    guard = all_of(dict.fromkeys(guards))
    moved, _ = rebuild_nest(func, block, ranges, analyzer, names, guard, may_exceed=False)
    func = replace_stmt(func, own_nest(func, block), None)
    target = loop_of(func, axis)
    stmts = target.body.stmts if isinstance(target.body, Seq) else (target.body,)
    return replace_stmt(func, target, replace(target, body=Seq((*stmts, moved))))


def _producers(func: PrimFunc, block: Block, target: For) -> dict[Buffer, Block]:
    """What the block reads of the blocks inside the loop, and who computes it."""
    if own_nest(func, block) is not root_of(func, block):
        raise ScheduleError(
            f"stage {block.name!r} shares its loops with other stages",
            hint="move it before computing other stages in its loops",
        )
    if any(v.kind is IterKind.ORDERED for v in block.iter_vars):
        raise ScheduleError(f"stage {block.name!r} is computed at each time of a scan")
    inside = blocks_in(target)
    if block in inside:
        raise ScheduleError(
            f"{target.var.name!r} is a loop of {block.name!r} itself",
            hint="name a loop of a stage that it reads",
        )
    found = {
        buffer: producer
        for producer in inside
        for buffer in result_buffers(producer)
        if buffer in read_buffers(block)
    }
    if not found:
        raise ScheduleError(
            f"{block.name!r} reads nothing that is computed inside loop {target.var.name!r}",
            hint="name a loop of a stage that it reads",
        )
    for producer in found.values():
        only_writer(func, producer.name)
        require_plain_store(producer)
        for loop in [*loops_above(func, target), target]:
            if kinds_in(producer, loop.var) - {IterKind.SPATIAL}:
                raise ScheduleError(
                    f"{producer.name!r} is complete only after its reduction loop "
                    f"{loop.var.name!r}",
                    hint="name a loop outside of the reduction",
                )
    return found


def require_inputs_before(
    func: PrimFunc, block: Block, root: object, but: Sequence[Buffer] | dict[Buffer, Block]
) -> None:
    """ScheduleError unless what the block reads, without `but`, is computed before `root`."""
    order = func.body.stmts if isinstance(func.body, Seq) else (func.body,)
    place = next(i for i, s in enumerate(order) if s is root)
    mine = result_buffers(block)
    late = {b for s in order[place:] for b in written_buffers(s)}
    for buffer in read_buffers(block):
        if buffer in late and buffer not in but and buffer not in mine:
            raise ScheduleError(
                f"{block.name!r} also reads {buffer.name!r}, which is computed later",
                hint=f"compute {buffer.name!r} inline, or leave the stage where it is",
            )


def _written(
    func: PrimFunc, producer: Block, buffer: Buffer, target: For, analyzer: Analyzer
) -> list[Part]:
    """The part of a buffer that one iteration of the loop writes, exactly."""
    loops = loops_above(func, producer)
    inside = loops[next(i for i, l in enumerate(loops) if l is target) + 1 :]
    for loop in inside:
        analyzer.bind(loop.var, loop.min, loop.extent)
    ranges = {l.var: (l.min, l.min + l.extent - 1) for l in inside}
    places = tuple(
        b
        for v, b in zip(producer.iter_vars, producer.bindings, strict=True)
        if v.kind is not IterKind.REDUCE
    )
    found = region([places], buffer.shape, ranges, analyzer)
    spatial = [l for l in inside if IterKind.SPATIAL in kinds_in(producer, l.var)]
    sizes = [e for e in (*(l.extent for l in spatial), *(e for _, e in found))]
    count = len(spatial)
    if not all(isinstance(e, IntImm) for e in sizes) or math.prod(
        e.value for e in sizes[:count] if isinstance(e, IntImm)
    ) != math.prod(e.value for e in sizes[count:] if isinstance(e, IntImm)):
        raise ScheduleError(
            f"one iteration of {target.var.name!r} does not compute a box of {buffer.name!r}",
            hint="choose a loop around whole tiles",
        )
    return found


def _followed(
    block: Block, buffer: Buffer, written: Sequence[Part], analyzer: Analyzer
) -> dict[Var, Part]:
    """The part of each of the block's axes that reads a written part of the buffer."""
    places = list(dict.fromkeys(l.indices for l in loads_in(block) if l.source is buffer))
    own = {v.var: v for v in block.iter_vars}
    parts: dict[Var, Part] = {}
    for index, (start, extent), size in zip(places[0], written, buffer.shape, strict=True):
        base, shift = _shifted(index)
        axis = own.get(base) if base is not None else None
        if len(places) > 1 or axis is None or axis.var in parts:
            raise ScheduleError(
                f"{block.name!r} reads {buffer.name!r} at "
                f"{' and '.join(str(list(p)) for p in places)}, not at one axis per dimension",
                hint="only elementwise, transposed and reduced reads can be followed",
            )
        last = axis.min + axis.extent + shift
        if not (analyzer.proves(axis.min + shift >= 0) and analyzer.proves(last <= size)):
            raise ScheduleError(
                f"axis {axis.name!r} of {block.name!r} reads outside of {buffer.name!r} under a "
                "condition: these elements would be missed",
                hint="use compute_at to move the producer instead",
            )
        parts[axis.var] = (analyzer.simplify(start - shift), extent)
    return parts


def _outer_guards(producer: Block, above: Sequence[For], analyzer: Analyzer) -> list[Expr]:
    """The guards of a producer that concern whole iterations of the loops above.

    A guard that also concerns loops inside must be the end of an axis, where the consumer ends too.
    """
    known = {l.var for l in above}
    ends = {
        analyzer.simplify(b < v.min + v.extent)
        for v, b in zip(producer.iter_vars, producer.bindings, strict=True)
    }
    outer: list[Expr] = []
    for guard in split_guards(producer.predicate, ())[1]:
        plain = guard.args[0] if isinstance(guard, Call) and guard.name == "likely" else guard
        if all(v in known for v in variables(plain)):
            outer.append(guard)
        elif analyzer.simplify(plain) not in ends:
            raise ScheduleError(
                f"{producer.name!r} is computed only where {plain}, which depends on loops inside",
                hint="split by factors that divide, or move the stage elsewhere",
            )
    return outer


def _shifted(index: Expr) -> tuple[Var | None, int]:
    """The variable and constant of an index `v + c`."""
    if isinstance(index, Var):
        return index, 0
    if isinstance(index, Binary) and isinstance(index.a, Var) and isinstance(index.b, IntImm):
        if index.op is BinaryOp.ADD:
            return index.a, index.b.value
        if index.op is BinaryOp.SUB:
            return index.a, -index.b.value
    return None, 0


def _require_iterations(block: Block, above: Sequence[For]) -> None:
    """What reduces nothing still has its first value, which a loop without iterations loses."""
    empty = next((l for l in above if is_const(l.extent, 0)), None)
    if empty is not None:
        raise ScheduleError(
            f"loop {empty.var.name!r} has no iterations, so {block.name!r} would not be computed",
            hint="leave the stage where it is",
        )


def _require_serial(block: Block, parts: dict[Var, Part], above: Sequence[For]) -> None:
    """A reduction must not be spread over loops whose iterations run at once."""
    at_once = [l for l in above if l.kind not in (ForKind.SERIAL, ForKind.UNROLLED)]
    for axis in block.iter_vars:
        if axis.kind is IterKind.REDUCE and axis.var in parts:
            used = variables(parts[axis.var][0])
            shared = [l for l in at_once if l.var in used]
            if shared:
                raise ScheduleError(
                    f"{block.name!r} would reduce over the {shared[0].kind} loop "
                    f"{shared[0].var.name!r}",
                    hint="move it further in, or leave that loop serial",
                )
