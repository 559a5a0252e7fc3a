"""Rows on a GPU: softmax, normalisations and other chains of reductions over the last axes.

Each row belongs to some threads: a few for a short one, a warp, or a block. A thread holds every
T-th vector of the row in registers; a reduction first adds up what each thread holds, then combines
the threads by register exchange and, between warps, through shared memory. So a row is read from
memory once per input and written once. Rows too long for registers are kept in shared memory, and
rows too long for that are read again by each reduction. (Warp-level reductions: Luitjens, "Faster
Parallel Reductions on Kepler", 2014.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ...codegen.cuda.limits import shared_limit
from ...diagnostics import ScheduleError
from ...ir.expr import IntImm, Load, Var, as_int
from ...ir.node import postorder
from ...te.tensor import ComputeOp, IterKind, IterVar, Tensor, is_reduction
from ...tir.lower_gpu import ACCESS
from ...tir.nodes import Buffer, PrimFunc
from ...tir.passes.bind_threads import REDUCE_THREADS, WARP
from ...tir.primitives.common import kinds_in
from ...tir.schedule import CachedTensor, Stage
from ...tir.tree import block_of, blocks_in, read_buffers
from ..common import Kernel, extent_of, extents
from ..rows import stages_to_keep

_WARP_ROW = 1024  # elements up to which a warp takes a row alone, if there are many rows
_HELD = 32  # elements of a row that a thread keeps in registers
_HELD_BY_MANY = 16  # the same for a thread of a block of 1024, which has 64 registers
_BLOCK = 1024  # threads of the largest block
_SMALL = 8  # a reduction this short is done by every thread itself
_MANY_ROWS = 132 * 8  # as many as keep a large GPU busy with a warp for each
_LOADS = 4  # vectors that a thread asks for together where it reads a row in a loop


class Memory(StrEnum):
    """Where a row stays between its reductions."""

    REGISTERS = "registers"
    SHARED = "shared"
    GLOBAL = "global"  # nowhere: it is read again


@dataclass(frozen=True)
class RowPlan:
    """How rows are spread over threads.

    Attributes:
        rows: leading axes that all stages share.
        count, length: of rows, and elements of one.
        threads: of one row.
        lanes: elements of one access.
    """

    rows: int
    count: int
    length: int
    threads: int
    lanes: int
    memory: Memory

    @property
    def together(self) -> int:
        """Rows of one block."""
        if self.threads > WARP:
            return 1
        most = 256 // self.threads
        while most > 1 and (self.count % most or self.count // most < _MANY_ROWS // 8):
            most //= 2
        return most


def schedule_rows(kernel: Kernel, rows: int) -> None:
    """Schedule a group whose stages share their first `rows` axes; the rest is the row."""
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    if not out.axis:
        return
    plan = plan_rows(kernel, out, rows)
    across = _read_across_rows(kernel, rows)
    kept = [op for op in stages_to_keep(kernel, rows) if op not in across]
    if plan.memory is not Memory.REGISTERS:  # compute again what is not reduced
        kept = [op for op in kept if is_reduction(op) or kernel.is_output(op) or _per_row(op, rows)]
    for op in kernel.stages:
        if op not in kept:
            kernel.stage(op).compute_inline()
    copies = _read_rows(kernel, kept, plan) if plan.memory is not Memory.GLOBAL else []
    accumulator: Tensor | CachedTensor | None = None
    if is_reduction(out):
        accumulator = kernel.schedule.cache_write(out.output(0), "local")
    target = kernel.stage(out)
    row = _bind_rows(target, plan)
    if accumulator is not None:
        _place(kernel, accumulator, out, target, row, plan)
    for op in reversed(kept):
        if op is not out:
            _place(kernel, op.output(0), op, target, row, plan)
    for copy in copies:
        stage = kernel.schedule[copy]
        rank = len(stage.axes)
        stage.compute_at(target, row)
        _bind_row(stage, stage.fuse(*stage.axes[-rank:][rows:]), plan, copies=True)


def plan_rows(kernel: Kernel, out: ComputeOp, rows: int) -> RowPlan:
    """Threads, vectors and memory for the rows of a group."""
    length = max(_row_length(op, rows) for op in kernel.stages)
    count = math.prod(extents(out)[:rows])
    func = kernel.schedule.func
    wide = [b for b in func.params if _elements(b) == count * length]
    lanes = min((ACCESS.lanes(b.dtype) for b in wide), default=1)
    while lanes > 1 and any(as_int(b.shape[-1]) % lanes for b in wide):
        lanes //= 2
    once = len(kernel.reductions) == 1 and _per_row(out, rows)
    if not once and any(len(b.shape) - rows > 1 for b in wide):
        lanes = 1  # what a thread holds of several dimensions is not told from what others hold
    threads = _threads(length, count, lanes)
    held = _HELD if threads < _BLOCK else _HELD_BY_MANY
    memory = Memory.GLOBAL if once else Memory.REGISTERS
    if not once and length > threads * held:
        bytes_of_row = sum(length * b.dtype.itemsize for b in wide if b not in _results(func))
        room = shared_limit(kernel.target.arch) - 4096  # some for partial results
        memory = Memory.SHARED if bytes_of_row <= room else Memory.GLOBAL
    return RowPlan(rows, count, length, threads, lanes, memory)


def input_lanes(kernel: Kernel, length: int) -> int:
    """Elements of one access to rows of all inputs."""
    func = kernel.schedule.func
    inputs = [b for b in func.params if b not in _results(func) and _elements(b) >= length]
    lanes = min((ACCESS.lanes(b.dtype) for b in inputs), default=1)
    while lanes > 1 and any(as_int(b.shape[-1]) % lanes for b in inputs):
        lanes //= 2
    return lanes


def part_plan(count: int, length: int, lanes: int) -> RowPlan:
    """A block for each row, which is read in a loop."""
    threads = min(256, -(-length // (lanes * WARP)) * WARP)
    return RowPlan(0, count, length, threads, lanes, Memory.GLOBAL)


def place_part(
    kernel: Kernel, tensor: Tensor | CachedTensor, target: Stage, row: Var, plan: RowPlan
) -> None:
    """Compute a reduction for one row, by the threads of a block."""
    stage = kernel.schedule[tensor]
    own = len(stage.axes)
    stage.compute_at(target, row)
    stage = kernel.schedule[tensor]
    reduced = [a for a in stage.axes[-own:] if IterKind.REDUCE in kinds_in(stage.block, a)]
    axis = stage.fuse(*reduced) if len(reduced) > 1 else reduced[0]
    if extent_of(stage, axis) > _SMALL:
        _reduce_across(kernel, tensor, axis, plan)


def _results(func: PrimFunc) -> Sequence[Buffer]:
    return func.params[-func.num_outputs :]


def _elements(buffer: Buffer) -> int:
    return math.prod(map(as_int, buffer.shape))


def _threads(length: int, count: int, lanes: int) -> int:
    """Threads of one row: fewer than a warp for a short one, up to 1024 for a long one."""
    vectors = -(-length // lanes)
    if vectors <= WARP // 2 and count % (WARP // 2) == 0:
        return max(2, 1 << (vectors - 1).bit_length())
    if length <= _WARP_ROW and (count >= _MANY_ROWS or vectors <= WARP):
        return WARP
    if count < _MANY_ROWS:  # two vectors each, so that all of the GPU has work
        return min(_BLOCK, -(-vectors // (2 * WARP)) * WARP)
    return 256 if length <= 256 * _HELD else _BLOCK


def _read_rows(kernel: Kernel, kept: list[ComputeOp], plan: RowPlan) -> list[CachedTensor]:
    """Copies of the rows of inputs that reductions read."""
    func, found = kernel.schedule.func, []
    blocks = {kernel.stage(op).block_name: op for op in kept}
    for buffer in func.params[: len(func.params) - func.num_outputs]:
        trailing = math.prod(map(as_int, buffer.shape[plan.rows :]))
        if _elements(buffer) != plan.count * plan.length or trailing != plan.length:
            continue
        if len(buffer.shape) - plan.rows > 1:
            continue
        readers = [b.name for b in blocks_in(func.body) if buffer in read_buffers(b)]
        if not any(is_reduction(blocks[name]) for name in readers if name in blocks):
            continue
        scope = "shared" if plan.memory is Memory.SHARED else "local"
        found.append(kernel.schedule.cache_read(buffer.name, scope, readers))
    return found


def _read_across_rows(kernel: Kernel, rows: int) -> set[ComputeOp]:
    """The stages that a reader needs of other rows than its own.

    Raises:
        ScheduleError: a reduction is among them, so the group does not consist of rows.
    """
    found: set[ComputeOp] = set()
    for reader in kernel.stages:
        own = [a.var for a in reader.axis[:rows]]
        for load in (n for n in postorder(reader.body) if isinstance(n, Load)):
            source = load.source.op
            if not isinstance(source, ComputeOp) or len(load.indices) < rows or not source.axis:
                continue
            pairs = zip(load.indices[:rows], own, source.axis, strict=False)
            if len(own) < rows or any(i is not v and not is_one(a) for i, v, a in pairs):
                found.add(source)
    if any(is_reduction(op) for op in found):
        raise ScheduleError("the group does not consist of rows")
    return found


def is_one(axis: IterVar) -> bool:
    return isinstance(axis.extent, IntImm) and axis.extent.value == 1


def _row_length(op: ComputeOp, rows: int) -> int:
    spatial = math.prod(extents(op)[rows:])
    return spatial * math.prod(as_int(a.extent) for a in op.reduce_axis)


def _per_row(op: ComputeOp, rows: int) -> bool:
    return all(e == 1 for e in extents(op)[rows:]) and bool(op.inputs)


def _bind_rows(stage: Stage, plan: RowPlan) -> Var:
    """Rows over blocks, several to a block if a warp or less takes one; the row over threads."""
    axes = list(stage.axes)
    leading, trailing = axes[: plan.rows], axes[plan.rows :]
    if not leading:
        leading, trailing = axes[:1], axes[1:]
        row, inner = stage.split(leading[0], nparts=1)
        trailing = [inner, *trailing]
    else:
        row = stage.fuse(*leading)
    if trailing:
        _bind_row(stage, stage.fuse(*trailing), plan)
    if plan.together == 1:
        stage.bind(row, "blockIdx.x")
        return row
    block, row = stage.split(row, factor=plan.together)
    stage.bind(block, "blockIdx.x")
    stage.bind(row, "threadIdx.y")
    return row


def _bind_row(stage: Stage, axis: Var, plan: RowPlan, copies: bool = False) -> None:
    """Vector j of the row belongs to thread j % threads."""
    extent = extent_of(stage, axis)
    if extent == 1:
        return
    lanes = plan.lanes if extent % plan.lanes == 0 else 1
    step, thread, lane = stage.split(axis, factors=[None, plan.threads, lanes])
    _unroll(stage, step, plan, copies)
    stage.bind(thread, "threadIdx.x")
    if lanes > 1:
        stage.vectorize(lane)


def _unroll(stage: Stage, step: Var, plan: RowPlan, copies: bool = False) -> None:
    """All steps of a thread through what it holds in registers, or only copies; a few of those
    that compute with what is in memory."""
    most = _HELD if plan.memory is Memory.REGISTERS else _HELD_BY_MANY if copies else 1
    if extent_of(stage, step) <= most:
        stage.unroll(step)
    else:
        _, inner = stage.split(step, factor=_dividing(extent_of(stage, step), 2 * _LOADS))
        stage.unroll(inner)


def _dividing(extent: int, most: int) -> int:
    """The largest divisor of `extent` up to `most`."""
    return max(n for n in range(1, most + 1) if extent % n == 0)


def _place(
    kernel: Kernel,
    tensor: Tensor | CachedTensor,
    op: ComputeOp,
    target: Stage,
    row: Var,
    plan: RowPlan,
) -> None:
    """Compute a stage for one row, by the threads of the row."""
    stage = kernel.schedule[tensor]
    stage.compute_at(target, row)
    stage = kernel.schedule[tensor]
    reduced = len(op.reduce_axis)
    own = stage.axes[-(len(op.axis) + reduced) :]
    if not reduced:
        if own[plan.rows :]:
            _bind_row(stage, stage.fuse(*own[plan.rows :]), plan)
        return
    axis = stage.fuse(*own[len(op.axis) :])
    if extent_of(stage, axis) > _SMALL:
        _reduce_across(kernel, tensor, axis, plan)


def _reduce_across(kernel: Kernel, tensor: Tensor | CachedTensor, axis: Var, plan: RowPlan) -> None:
    """Every thread reduces its elements, then the threads combine."""
    stage = kernel.schedule[tensor]
    whole = extent_of(stage, axis) % plan.lanes == 0 and plan.memory is not Memory.SHARED
    lanes = plan.lanes if whole else 1  # from shared memory, neighbours read neighbouring banks
    step, thread, lane = stage.split(axis, factors=[None, plan.threads, lanes])
    partial = kernel.schedule[kernel.schedule.rfactor(tensor, thread)]
    stage.pragma(stage.axes[-1], REDUCE_THREADS)
    loops = list(partial.axes)
    partial.bind(next(a for a in loops if a is thread), "threadIdx.x")
    outer = next(a for a in loops if a is step)
    partial.unroll(next(a for a in loops if a is lane))
    if plan.memory is Memory.GLOBAL:
        _read_vectors(kernel, partial, outer, plan)
    else:
        _unroll(partial, outer, plan)


def _read_vectors(kernel: Kernel, partial: Stage, step: Var, plan: RowPlan) -> None:
    """Several vectors of each input at once, then their reduction."""
    steps = extent_of(partial, step)
    together = _LOADS if steps >= 4 * _LOADS else _dividing(steps, _LOADS)
    _, inner = partial.split(step, factor=together)
    partial.unroll(inner)
    if plan.lanes == 1:
        return
    func = kernel.schedule.func
    block = block_of(func, partial.block_name)
    inputs = func.params[: len(func.params) - func.num_outputs]
    for buffer in read_buffers(block):
        if buffer not in inputs or _elements(buffer) < plan.length:
            continue
        copy = kernel.schedule[
            kernel.schedule.cache_read(buffer.name, "local", [partial.block_name])
        ]
        rank = len(copy.axes)
        copy.compute_at(partial, inner)
        copy.vectorize(copy.fuse(*copy.axes[-rank:]))
