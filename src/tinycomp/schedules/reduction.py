"""Reductions that leave the last axis: depthwise convolution, pooling, means over pixels.

The last (contiguous) output axis goes into vector lanes; each lane reduces on its own, so nothing
is combined across lanes. A few output points are kept in registers at once. Padding is inlined:
loop partition leaves the interior without tests, which is cheaper than a padded copy of the input.
"""

from __future__ import annotations

import math

from ..ir.expr import Var, as_int
from ..te.tensor import ComputeOp
from ..tir.schedule import Stage
from .common import PARALLEL_CYCLES, Kernel, cycles_of, extent_of, inline_injective

_MAX_UNROLLED_WINDOW = 25
_POINTS = 4  # neighbouring outputs of a window that share the vectors of its weights
_MIN_TASKS = 8  # iterations of the parallel loop that balance well over a few threads


def schedule_lane_reduction(kernel: Kernel, reduction: ComputeOp) -> None:
    """One reduction, elementwise work after it, nothing reduced along the last axis."""
    inline_injective(kernel)
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    schedule = kernel.schedule
    accumulator = reduction.output(0)
    if out is reduction:
        accumulator = schedule.cache_write(accumulator, "local")
    stage = kernel.stage(out)
    lanes = kernel.target.lanes(kernel.outputs[0].dtype)
    window = math.prod(as_int(a.extent) for a in reduction.reduce_axis)
    attach = _schedule_output(stage, lanes, window, cycles_of(reduction, kernel.target))
    inner = schedule[accumulator]
    if attach is not None:
        inner.compute_at(stage, attach)
    if out is not reduction:
        schedule.set_scope(accumulator, "local" if attach is not None else "global")
    _schedule_window(inner, len(out.axis), len(reduction.reduce_axis), lanes, window)


def _schedule_output(stage: Stage, lanes: int, window: int, cycles: float) -> Var | None:
    """Vectors of the last axis, a few points of the one before; returns the loop to reduce in."""
    *outside, last = stage.axes
    chunks: list[Var] = []
    if extent_of(stage, last) > lanes:
        chunk, last = stage.split(last, factor=lanes)
        chunks.append(chunk)
    if window <= _MAX_UNROLLED_WINDOW and outside and extent_of(stage, outside[-1]) > 1:
        points = min(_POINTS, extent_of(stage, outside[-1]))
        outside[-1], point = stage.split(outside[-1], factor=points)
        stage.reorder(*outside, *chunks, point, last)
        stage.unroll(point)
    outside += chunks
    if extent_of(stage, last) > 1:
        stage.vectorize(last)
    if not outside:
        return None
    leading, tasks = [], 1
    for axis in outside:
        leading.append(axis)
        tasks *= extent_of(stage, axis)
        if tasks >= _MIN_TASKS:
            break
    fused = stage.fuse(*leading)
    if cycles >= PARALLEL_CYCLES and tasks > 1:
        stage.parallel(fused)
    return fused if len(leading) == len(outside) else outside[-1]


def _schedule_window(inner: Stage, rank: int, reduce_rank: int, lanes: int, window: int) -> None:
    """Reduction loops outside, the register tile inside; small windows are written out."""
    own = inner.axes[-(rank + reduce_rank) :]
    spatial, reduced = own[:rank], own[rank:]
    inner.reorder(*reduced, *spatial)
    if window <= _MAX_UNROLLED_WINDOW:
        for axis in reduced:
            inner.unroll(axis)
    for axis in spatial[:-1]:
        if 1 < extent_of(inner, axis) <= _POINTS:
            inner.unroll(axis)
    if spatial and 1 < extent_of(inner, spatial[-1]) <= lanes:
        inner.vectorize(spatial[-1])
