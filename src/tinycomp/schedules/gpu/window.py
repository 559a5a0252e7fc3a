"""Overlapping windows on a GPU: pooling and depthwise convolution.

A thread computes several outputs below each other (in NHWC beside each other). It reads what their
windows cover once, into registers; neighbouring threads have neighbouring columns (channels), so
these reads are coalesced. Of channels, which share no window, a thread has as many as make a word.
"""

from __future__ import annotations

import math

from ...ir.expr import Load, Var, as_int, variables
from ...ir.node import postorder
from ...te.tensor import ComputeOp, Tensor
from ...tir.schedule import Stage
from ..common import Kernel, extent_of, extents, inline_injective
from .bind import THREADS, bind_flat

_MULTIPROCESSORS = 132
_MAX_WRITTEN_OUT = 256  # multiplications
_WORD = 4  # bytes that a thread reads at once of small elements


def outputs_of_thread(reduction: ComputeOp) -> int:
    """How many outputs below each other a thread computes; 1 where that saves nothing."""
    if _windowed(reduction) is None or len(reduction.axis) < 2:
        return 1
    sizes = extents(reduction)
    window = math.prod(as_int(a.extent) for a in reduction.reduce_axis)
    for rows in (4, 2):
        threads = math.prod(sizes) // rows
        fits = rows * window <= _MAX_WRITTEN_OUT and sizes[-2] >= rows
        if fits and threads >= _MULTIPROCESSORS * THREADS and -sizes[-2] % rows <= sizes[-2] // 8:
            return rows
    return 1


def _windowed(reduction: ComputeOp) -> Tensor | None:
    """The tensor whose windows overlap along the last but one axis of the result, while the last
    axis runs along its memory."""
    if len(reduction.axis) < 2:
        return None
    row, column = reduction.axis[-2].var, reduction.axis[-1].var
    reduced = {a.var for a in reduction.reduce_axis}
    for load in (n for n in postorder(reduction.body) if isinstance(n, Load)):
        if len(load.indices) < 2:
            continue
        vertical, along = ({*variables(i)} for i in load.indices[-2:])
        if row in vertical and vertical & reduced and column in along:
            source = load.source
            return source if isinstance(source, Tensor) else None
    return None


def schedule_windows(kernel: Kernel, reduction: ComputeOp, rows: int) -> None:
    """One thread for `rows` outputs below each other, with the elementwise work after them."""
    source = _windowed(reduction)
    assert source is not None
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    keep = [source.op] if isinstance(source.op, ComputeOp) else []
    inline_injective(kernel, keep)
    result = reduction.output(0)
    accumulator = kernel.schedule.cache_write(result, "local") if out is reduction else result
    readers = [kernel.schedule[accumulator].block_name]
    image = source if keep else kernel.schedule.cache_read(source, "local", readers)
    stage = kernel.stage(out)
    *outside, row, column = stage.axes
    block, row = stage.split(row, factor=rows)
    lanes = _lanes(kernel, reduction, source, rows)
    column, lane = stage.split(column, factor=lanes)
    stage.reorder(*outside, block, column, row, lane)
    thread = bind_flat(stage, [*outside, block, column])
    stage.unroll(row)
    if lanes > 1:
        stage.vectorize(lane)
    for tensor in (accumulator, image):
        inner = kernel.schedule[tensor]
        inner.compute_at(stage, thread)
        spatial = inner.axes[
            : len(inner.axes) - len(reduction.reduce_axis) * (tensor is accumulator)
        ]
        _write_out(inner, thread, spatial[-1] if lanes > 1 else None)


def _lanes(kernel: Kernel, reduction: ComputeOp, source: Tensor, rows: int) -> int:
    """Neighbouring columns of a thread: 1 where windows overlap along them."""
    column = reduction.axis[-1].var
    for load in (n for n in postorder(reduction.body) if isinstance(n, Load)):
        if load.source is source and load.indices[-1] is not column:
            return 1
    lanes = max(1, _WORD // max(t.dtype.itemsize for t in (source, kernel.outputs[0])))
    threads = math.prod(extents(reduction)) // rows // lanes
    columns = extents(reduction)[-1]
    return lanes if columns % lanes == 0 and threads >= _MULTIPROCESSORS * THREADS // 4 else 1


def _write_out(stage: Stage, thread: Var, lane: Var | None) -> None:
    """Write out all loops of a stage inside a thread, `lane` as vectors."""
    axes = list(stage.axes)
    inside = axes[axes.index(thread) + 1 :]
    if lane is not None:
        inside.remove(lane)
        stage.reorder(*inside, lane)
        stage.vectorize(lane)
    for axis in inside:
        if extent_of(stage, axis) > 1:
            stage.unroll(axis)
