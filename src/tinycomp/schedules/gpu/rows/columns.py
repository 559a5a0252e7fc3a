"""Columns on a GPU: softmax, normalisations and other chains of reductions over an inner axis.

    softmax(x[8, 64, 16384], axis=1): a column is x[b, :, j], whose elements are 16384 apart

A block takes neighbouring columns, so that its threads read whole lines of memory. Thread (x, y)
holds every Y-th element of column x, or of some columns side by side (a vector), in registers; a
reduction first adds up what each thread holds, then the threads of a column combine through shared
memory. So columns are read from memory once and written once. Those too long for registers are
kept in shared memory, and those too long for that are read again by each reduction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ....codegen.cuda.limits import shared_limit
from ....ir.expr import Load, Var, as_int
from ....ir.node import postorder
from ....te.tensor import ComputeOp, IterKind, Tensor, is_reduction
from ....tir.lower_gpu import ACCESS
from ....tir.primitives.common import kinds_in
from ....tir.schedule import CachedTensor, Stage
from ....tir.tree import blocks_in, read_buffers
from ...common import Kernel, extent_of, extents
from ...rows import stages_to_keep
from ..bind import THREADS
from .plan import HELD, Memory, elements_of

_MULTIPROCESSORS = 132  # of a large GPU
_LINE = 32  # threads side by side: 128 bytes in float32
_SECTOR = 8  # the fewest: what memory delivers at once
_SHARERS = 32  # of a column at most: each of them adds up what all of them found
_MOST = 512  # threads of a block
_UNROLLED = 8  # steps that are written out where columns are not in registers


@dataclass(frozen=True)
class ColumnPlan:
    """How columns are spread over threads.

    Attributes:
        axis: of the output, along which the columns lie.
        length: of a column.
        lanes: columns of a thread, side by side.
        across, sharers: threads along x, with different columns, and along y, of one column.
    """

    axis: int
    length: int
    lanes: int
    across: int
    sharers: int
    memory: Memory


def column_axis(kernel: Kernel) -> tuple[int, int] | None:
    """The axis over which all reductions of a chain run, and its length, if each position along the
    others is a column: it is not the last, and all stages have the same other axes."""
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    shape = extents(out)
    found: set[tuple[int, int]] = set()
    for op in kernel.reductions:
        places = _places_of(op, op.reduce_axis[0].var)
        if len(op.reduce_axis) != 1 or len(places) != 1:
            return None
        found.add((places.pop(), as_int(op.reduce_axis[0].extent)))
    if len(found) != 1:
        return None
    ((axis, length),) = found
    if axis >= len(shape) - 1 or shape[axis] not in (1, length):
        return None
    column = [*shape[:axis], 1, *shape[axis + 1 :]]
    if any(extents(op) not in (column, column[:axis] + column[axis + 1 :])
           for op in kernel.reductions):  # fmt: skip
        return None
    return axis, length


def _places_of(op: ComputeOp, axis: Var) -> set[int]:
    """The positions of indices where a stage reads along an axis."""
    loads = (n for n in postorder(op.body) if isinstance(n, Load))
    return {place for load in loads for place, index in enumerate(load.indices) if index is axis}


def schedule_columns(kernel: Kernel, axis: int, length: int) -> None:
    """Schedule a chain of reductions along an axis (see `column_axis`)."""
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    plan = plan_columns(kernel, extents(out), axis, length)
    kept = stages_to_keep(kernel, len(out.axis))
    if plan.memory is not Memory.REGISTERS:  # compute again what is not reduced
        kept = [op for op in kept if is_reduction(op) or op is out]
    for op in kernel.stages:
        if op not in kept:
            kernel.stage(op).compute_inline()
    copies = _read_columns(kernel, kept, plan) if plan.memory is not Memory.GLOBAL else []
    results = {op: op.output(0) for op in kept}
    accumulator: Tensor | CachedTensor | None = None
    if is_reduction(out):
        accumulator = kernel.schedule.cache_write(out.output(0), "local")
    target = kernel.stage(out)
    block = _bind_tiles(target, plan)
    if accumulator is not None:
        _place_reduction(kernel, accumulator, target, block, plan)
    for op in reversed(kept):
        if is_reduction(op) and op is not out:
            _place_reduction(kernel, results[op], target, block, plan)
        elif op is not out:
            _place_elements(kernel, results[op], target, block, plan)
    for copy in copies:
        _place_elements(kernel, copy, target, block, plan)


def plan_columns(kernel: Kernel, shape: list[int], axis: int, length: int) -> ColumnPlan:
    """Threads, vectors and memory for the columns of a chain whose output has this shape: as wide
    accesses as leave work for all multiprocessors, and as many sharers as hold a column in
    registers."""
    inner, outer = shape[-1], math.prod(shape) // shape[axis] // shape[-1]
    func = kernel.schedule.func
    wide = [b for b in func.params if elements_of(b) == outer * length * inner]
    lanes = min((ACCESS.lanes(b.dtype) for b in wide), default=1)
    while lanes > 1 and (inner % lanes or outer * inner // lanes < _MULTIPROCESSORS * _LINE):
        lanes //= 2
    while lanes > 1 and length * lanes > _SHARERS * HELD:
        lanes //= 2
    vectors = -(-inner // lanes)
    across = vectors if vectors <= 2 * _LINE else _LINE
    while across > _SECTOR and across < vectors and outer * vectors // across < _MULTIPROCESSORS:
        across //= 2
    sharers = 1
    while 2 * sharers * across <= _MOST and (
        length * lanes > sharers * HELD
        or (sharers * across < THREADS // 2 and length > 4 * sharers)
    ) and 2 * sharers <= min(length, _SHARERS):  # fmt: skip
        sharers *= 2
    if sharers == 1 and vectors > across:  # a column is short: more of them
        across = min(THREADS, vectors)
    held = sum(b.dtype.itemsize for b in wide if b not in func.params[-func.num_outputs :])
    room = shared_limit(kernel.target.arch) - sharers * across * lanes * 4 * 4
    memory = Memory.GLOBAL
    if length * lanes <= sharers * HELD:
        memory = Memory.REGISTERS
    elif length * across * lanes * held <= room:
        memory = Memory.SHARED
    return ColumnPlan(axis, length, lanes, across, sharers, memory)


def _read_columns(kernel: Kernel, kept: list[ComputeOp], plan: ColumnPlan) -> list[CachedTensor]:
    """Copies of the columns of inputs that reductions read."""
    shape = extents(kept[-1])
    shape[plan.axis] = plan.length
    func, found = kernel.schedule.func, []
    blocks = {kernel.stage(op).block_name: op for op in kept}
    for buffer in func.params[: len(func.params) - func.num_outputs]:
        if [as_int(d) for d in buffer.shape] != shape:
            continue
        readers = [b.name for b in blocks_in(func.body) if buffer in read_buffers(b)]
        if any(is_reduction(blocks[name]) for name in readers if name in blocks):
            scope = "shared" if plan.memory is Memory.SHARED else "local"
            found.append(kernel.schedule.cache_read(buffer.name, scope, readers))
    return found


def _bind_tiles(stage: Stage, plan: ColumnPlan) -> Var:
    """Tiles of neighbouring columns over blocks; returns the loop over blocks."""
    axes = list(stage.axes)
    *outside, last = axes[: plan.axis] + axes[plan.axis + 1 :]
    tile, column = stage.split(last, factor=plan.across * plan.lanes)
    stage.reorder(*outside, tile, axes[plan.axis], column)
    block = stage.fuse(*outside, tile)
    stage.bind(block, "blockIdx.x")
    _bind_elements(stage, axes[plan.axis], column, plan)
    return block


def _place_elements(
    kernel: Kernel, tensor: Tensor | CachedTensor, target: Stage, block: Var, plan: ColumnPlan
) -> None:
    """Compute a stage of the output's rank for one tile."""
    rank = len(kernel.schedule[tensor].axes)
    kernel.schedule[tensor].compute_at(target, block)
    stage = kernel.schedule[tensor]
    axes = list(stage.axes[-rank:])
    if rank > plan.axis + 1 and extent_of(stage, axes[plan.axis]) > 1:
        _bind_elements(stage, axes[plan.axis], axes[-1], plan)
    else:
        _bind_columns(stage, axes[-1], plan)


def _bind_elements(stage: Stage, element: Var, column: Var, plan: ColumnPlan) -> None:
    """Element k of column j belongs to thread (j / lanes, k % sharers)."""
    if extent_of(stage, element) == 1:
        _bind_columns(stage, column, plan)
        return
    step, y = stage.split(element, factor=plan.sharers)
    x, lane = stage.split(column, factor=plan.lanes)
    stage.reorder(y, x, step, lane)
    stage.bind(y, "threadIdx.y")
    stage.bind(x, "threadIdx.x")
    _unroll(stage, step, plan)
    if plan.lanes > 1:
        stage.vectorize(lane)


def _unroll(stage: Stage, step: Var, plan: ColumnPlan) -> None:
    """All steps through what is in registers, or some of those through memory."""
    if plan.memory is not Memory.REGISTERS and extent_of(stage, step) > _UNROLLED:
        _, step = stage.split(step, factor=_UNROLLED)
    stage.unroll(step)


def _place_reduction(
    kernel: Kernel, tensor: Tensor | CachedTensor, target: Stage, block: Var, plan: ColumnPlan
) -> None:
    """Every thread reduces its elements; then each thread of a column combines what all have."""
    schedule = kernel.schedule
    stage = schedule[tensor]
    shared: CachedTensor | None = None
    sums: Tensor | CachedTensor = tensor
    if plan.sharers > 1:
        _, y = stage.split(stage.axes[-1], factor=plan.sharers)
        shared = schedule.rfactor(tensor, y, factor_axis=0)
        assert isinstance(shared, CachedTensor)
        sums = schedule.cache_write(shared, "local")
    _place_at(kernel, tensor, target, block)
    stage = schedule[tensor]
    x, lane = _bind_columns(stage, stage.axes[-2], plan)
    element = stage.axes[-1]
    stage.reorder(x, element, lane)
    if shared is None:
        _unroll(stage, element, plan)
        return
    stage.unroll(element)
    _place_at(kernel, shared, target, block)
    partial = schedule[shared]
    y = next(a for a in partial.axes if a is not block)
    partial.bind(y, "threadIdx.y")
    x, _ = _bind_columns(partial, partial.axes[-1], plan)
    _place_at(kernel, sums, partial, x)
    total = schedule[sums]
    step = next(a for a in total.axes if _is_reduced(total, a))
    total.reorder(step, total.axes[-2])
    _unroll(total, step, plan)
    if plan.lanes > 1:
        total.vectorize(total.axes[-1])


def _bind_columns(stage: Stage, column: Var, plan: ColumnPlan) -> tuple[Var, Var]:
    x, lane = stage.split(column, factor=plan.lanes)
    stage.bind(x, "threadIdx.x")
    if plan.lanes > 1:
        stage.vectorize(lane)
    return x, lane


def _place_at(kernel: Kernel, tensor: Tensor | CachedTensor, target: Stage, axis: Var) -> None:
    kernel.schedule[tensor].compute_at(target, axis)


def _is_reduced(stage: Stage, axis: Var) -> bool:
    return IterKind.REDUCE in kinds_in(stage.block, axis)
