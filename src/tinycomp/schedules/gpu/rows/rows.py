"""Rows on a GPU: softmax, normalisations and other chains of reductions over the last axes.

Each row belongs to some threads: a few for a short one, a warp, a block, or the blocks of a
cluster (`plan`). A thread holds every T-th vector of the row in registers; a reduction first
adds up what each thread holds, then combines the threads of a warp by register exchange, the warps
of a block through shared memory, and the blocks of a cluster through each other's. So a row is read
from memory once per input and written once. Rows too long for registers are kept in shared memory,
and rows too long for that are read again by each reduction. (Warp-level reductions: Luitjens,
"Faster Parallel Reductions on Kepler", 2014. Clusters: the reductions of QuACK, Dao-AILab, 2025.)
"""

from __future__ import annotations

import math

from ....diagnostics import ScheduleError
from ....ir.expr import IntImm, Load, Var, as_int
from ....ir.node import postorder
from ....te.tensor import ComputeOp, IterKind, IterVar, Tensor, is_reduction
from ....tir.passes.bind_threads import REDUCE_THREADS
from ....tir.primitives.annotate import CLUSTER
from ....tir.primitives.common import kinds_in
from ....tir.schedule import CachedTensor, Stage
from ....tir.tree import block_of, blocks_in, read_buffers
from ...common import Kernel, extent_of
from ...rows import stages_to_keep
from .plan import (
    HELD,
    HELD_BY_MANY,
    Memory,
    RowPlan,
    elements_of,
    is_per_row,
    plan_rows,
)

_SMALL = 8  # a reduction this short is done by every thread itself
_LOADS = 4  # vectors that a thread asks for together where it reads a row in a loop


def schedule_rows(kernel: Kernel, rows: int) -> None:
    """Schedule a group whose stages share their first `rows` axes; the rest is the row."""
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    if not out.axis:
        return
    rows = _with_single_axes(kernel, rows)
    plan = plan_rows(kernel, out, rows)
    across = _read_across_rows(kernel, rows)
    kept = [op for op in stages_to_keep(kernel, rows) if op not in across]
    if plan.memory is not Memory.REGISTERS:  # compute again what is not reduced
        kept = [
            op for op in kept if is_reduction(op) or kernel.is_output(op) or is_per_row(op, rows)
        ]
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


def _with_single_axes(kernel: Kernel, rows: int) -> int:
    """`rows` and the axes of one element that follow in all stages; some axis is left for the
    row."""
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    stages = [out, *kernel.reductions]
    while rows < len(out.axis) - 1 and all(
        rows < len(op.axis) and is_one(op.axis[rows]) for op in stages
    ):
        rows += 1
    return rows


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


def _read_rows(kernel: Kernel, kept: list[ComputeOp], plan: RowPlan) -> list[CachedTensor]:
    """Copies of the rows of inputs that reductions read."""
    func, found = kernel.schedule.func, []
    blocks = {kernel.stage(op).block_name: op for op in kept}
    for buffer in func.params[: len(func.params) - func.num_outputs]:
        trailing = math.prod(map(as_int, buffer.shape[plan.rows :]))
        if elements_of(buffer) != plan.count * plan.length or trailing != plan.length:
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
            if not isinstance(source, ComputeOp) or not source.axis:
                continue
            if len(load.indices) < rows:
                if not is_reduction(source):  # one for all rows
                    found.add(source)
                continue
            pairs = zip(load.indices[:rows], own, source.axis, strict=False)
            if len(own) < rows or any(i is not v and not is_one(a) for i, v, a in pairs):
                found.add(source)
    if any(is_reduction(op) for op in found):
        raise ScheduleError("the group does not consist of rows")
    return found


def is_one(axis: IterVar) -> bool:
    return isinstance(axis.extent, IntImm) and axis.extent.value == 1


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
    block, repeat, row = stage.split(row, factors=[None, plan.repeat, plan.together])
    stage.bind(block, "blockIdx.x")
    stage.bind(row, "threadIdx.y")
    if plan.repeat == 1:
        return row
    stage.reorder(block, row, repeat)
    stage.unroll(repeat)
    return repeat


def _bind_row(stage: Stage, axis: Var, plan: RowPlan, copies: bool = False) -> None:
    """Vector j of the part of a block belongs to its thread j % threads."""
    extent = extent_of(stage, axis)
    if extent == 1:
        return
    lanes = plan.lanes if extent % plan.lanes == 0 else 1
    block, step, thread, lane = stage.split(axis, factors=plan.factors(extent, lanes))
    _unroll(stage, step, plan, copies)
    stage.bind(thread, "threadIdx.x")
    if plan.blocks > 1:
        stage.bind(block, CLUSTER)
    if lanes > 1:
        stage.vectorize(lane)


def _unroll(stage: Stage, step: Var, plan: RowPlan, copies: bool = False) -> None:
    """All steps of a thread through what it holds in registers, or only copies; a few of those
    that compute with what is in memory."""
    most = HELD if plan.memory is Memory.REGISTERS else HELD_BY_MANY if copies else 1
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
    extent = extent_of(stage, axis)
    if extent > _SMALL or (extent == plan.length and plan.threads > 1):
        _reduce_across(kernel, tensor, axis, plan)
        return
    stage.unroll(axis)
    if plan.memory is Memory.GLOBAL and plan.lanes > 1:
        _copy_vectors(kernel, stage, target, row, plan)


def _reduce_across(kernel: Kernel, tensor: Tensor | CachedTensor, axis: Var, plan: RowPlan) -> None:
    """Every thread reduces its elements, then the threads combine."""
    stage = kernel.schedule[tensor]
    whole = extent_of(stage, axis) % plan.lanes == 0 and plan.memory is not Memory.SHARED
    lanes = plan.lanes if whole else 1  # from shared memory, neighbours read neighbouring banks
    factors = plan.factors(extent_of(stage, axis), lanes)
    block, step, thread, lane = stage.split(axis, factors=factors)
    stage.reorder(block, thread, step, lane)
    thread = stage.fuse(block, thread)
    partial = kernel.schedule[kernel.schedule.rfactor(tensor, thread)]
    _bind_threads(stage, stage.axes[-1], plan, combine=True)
    loops = list(partial.axes)
    _bind_threads(partial, next(a for a in loops if a is thread), plan)
    outer = next(a for a in loops if a is step)
    partial.unroll(next(a for a in loops if a is lane))
    if plan.memory is Memory.GLOBAL:
        _read_vectors(kernel, partial, outer, plan)
    else:
        _unroll(partial, outer, plan)


def _bind_threads(stage: Stage, axis: Var, plan: RowPlan, combine: bool = False) -> None:
    """One iteration for each thread of the row; they may `combine` what they have."""
    thread = axis
    if plan.blocks > 1:
        block, thread = stage.split(axis, factor=plan.threads)
    if combine:
        stage.pragma(thread, REDUCE_THREADS)
    else:
        stage.bind(thread, "threadIdx.x")
    if plan.blocks > 1:
        stage.bind(block, CLUSTER)


def _read_vectors(kernel: Kernel, partial: Stage, step: Var, plan: RowPlan) -> None:
    """Several vectors of each input at once, then their reduction."""
    steps = extent_of(partial, step)
    together = _LOADS if steps >= 4 * _LOADS else _dividing(steps, _LOADS)
    _, inner = partial.split(step, factor=together)
    partial.unroll(inner)
    if plan.lanes > 1:
        _copy_vectors(kernel, partial, partial, inner, plan)


def _copy_vectors(kernel: Kernel, reader: Stage, target: Stage, axis: Var, plan: RowPlan) -> None:
    """Let a stage read the rows of inputs in vectors, inside a loop of `target`."""
    func = kernel.schedule.func
    block = block_of(func, reader.block_name)
    inputs = func.params[: len(func.params) - func.num_outputs]
    for buffer in read_buffers(block):
        if buffer not in inputs or elements_of(buffer) < plan.length:
            continue
        name = kernel.schedule.cache_read(buffer.name, "local", [reader.block_name])
        copy = kernel.schedule[name]
        rank = len(copy.axes)
        copy.compute_at(target, axis)
        copy.vectorize(copy.fuse(*copy.axes[-rank:]))
