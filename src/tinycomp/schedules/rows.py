"""Rows: softmax, normalisations and other chains of last-axes reductions, one row at a time.

Every stage is computed inside the loop over rows, into scratch memory the size of one row that
stays in the L1 cache; reductions run in vectors of partial results. So a chain of reductions and
elementwise work reads its input once from memory and writes its output once. (The idea is
AStitch's and FusionStitching's, Zheng et al., 2020 and 2022.)
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.expr import Var
from ..te.tensor import ComputeOp, Tensor, is_reduction
from ..tir.schedule import CachedTensor, Stage
from .common import PARALLEL_CYCLES, Kernel, cycles_of, extent_of, extents, vectorize_last
from .to_te import consumers

_ACCUMULATORS = 4  # vectors of partial results: hides the latency of the addition
_SMALL_ROW = 8  # a reduction this short is not worth vectors of partial results


def schedule_rows(kernel: Kernel, rows: int) -> None:
    """Schedule a group whose stages share their first `rows` axes; the rest is the row."""
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    lanes = kernel.target.lanes(kernel.outputs[0].dtype)
    kept = stages_to_keep(kernel, rows)
    for op in kernel.stages:
        if op not in kept:
            kernel.stage(op).compute_inline()
    target = kernel.stage(out)
    accumulator: Tensor | CachedTensor | None = None
    if is_reduction(out):
        accumulator = kernel.schedule.cache_write(out.output(0), "local")
    row = _schedule_output(
        target, rows, lanes, sum(cycles_of(op, kernel.target) for op in kernel.stages)
    )
    if accumulator is not None:
        _place(kernel, accumulator, out, target, row, rows, lanes)
    for op in reversed(kept):
        if op is not out:
            _place(kernel, op.output(0), op, target, row, rows, lanes)


def stages_to_keep(kernel: Kernel, rows: int) -> list[ComputeOp]:
    """The stages that get memory of their own, producers first: outputs, reductions, values of one
    element per row, and whatever several of these need."""
    ops = kernel.stages
    readers = consumers(kernel.outputs, ops)
    kept: set[ComputeOp] = set()
    reached: dict[ComputeOp, set[ComputeOp]] = {}
    for op in reversed(ops):
        users = {
            k for reader in readers[op] for k in ([reader] if reader in kept else reached[reader])
        }
        reached[op] = users
        per_row = all(e == 1 for e in extents(op)[rows:]) and bool(op.inputs)
        if kernel.is_output(op) or is_reduction(op) or (len(users) > 1 and op.inputs) or per_row:
            kept.add(op)
    return [op for op in ops if op in kept]


def _schedule_output(stage: Stage, rows: int, lanes: int, cycles: float) -> Var | None:
    """Rows over threads, the row itself in vectors; returns the loop over rows."""
    axes = stage.axes
    leading, trailing = list(axes[:rows]), list(axes[rows:])
    if trailing:
        vectorize_last(stage, stage.fuse(*trailing), lanes)
    if not leading:
        return None
    row = stage.fuse(*leading)
    if cycles >= PARALLEL_CYCLES and extent_of(stage, row) > 1:
        stage.parallel(row)
    return row


def _place(
    kernel: Kernel,
    tensor: Tensor | CachedTensor,
    op: ComputeOp,
    target: Stage,
    row: Var | None,
    rows: int,
    lanes: int,
) -> None:
    """Compute a stage inside the loop over rows, in vectors."""
    stage = kernel.schedule[tensor]
    if row is not None:
        stage.compute_at(target, row)
    if isinstance(tensor, Tensor):
        kernel.schedule.set_scope(tensor, "local")
        stage = kernel.schedule[tensor]
    reduced = len(op.reduce_axis)
    own = stage.axes[-(len(op.axis) + reduced) :]
    if not reduced:
        if own[rows:]:
            vectorize_last(stage, stage.fuse(*own[rows:]), lanes)
        return
    axis = stage.fuse(*own[len(op.axis) :])
    if extent_of(stage, axis) > _SMALL_ROW:
        reduce_in_vectors(kernel, tensor, axis, lanes)


def reduce_in_vectors(
    kernel: Kernel,
    tensor: Tensor | CachedTensor,
    axis: Var,
    lanes: int,
    at: int | None = None,
) -> None:
    """Partial results in vector lanes over the row, then one reduction across the lanes.

    Args:
        at: the number of the loop of the tensor's stage to compute the partial results in; by
            default they are where the stage is.
    """
    stage = kernel.schedule[tensor]
    extent = extent_of(stage, axis)
    width = min(lanes * _ACCUMULATORS, max(lanes, extent // lanes * lanes))
    while extent > lanes and extent % width and width > lanes:
        width -= lanes
    outer, inner = stage.split(axis, factor=width)
    partial = kernel.schedule[kernel.schedule.rfactor(tensor, inner)]
    if at is not None:
        partial.compute_at(stage, stage.axes[at])
    kernel.schedule.set_scope(partial.tensor, "local")
    stage.pragma(stage.axes[-1], "reduce_lanes")
    loops = {axis.name: axis for axis in partial.axes}
    lane, step = loops[inner.name], loops[outer.name]
    partial.reorder(step, lane)
    if width > lanes:
        parts, vector = partial.split(lane, factor=lanes)
        partial.unroll(parts)
        partial.vectorize(vector)
    else:
        partial.vectorize(lane)


def shared_rows(reductions: Sequence[ComputeOp]) -> int:
    """Leading axes of the reductions' results that are not of extent 1 for being reduced."""
    counts = []
    for op in reductions:
        last = len(op.axis)
        while last and str(op.axis[last - 1].extent) == "1":
            last -= 1
        counts.append(last)
    return min(counts)
