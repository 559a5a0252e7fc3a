"""Rows on a GPU: softmax, normalisations and other chains of reductions over the last axes.

Each row belongs to a warp, or to a block if it is long. A thread holds every T-th element of the
row in registers; a reduction first adds up what each thread holds, then combines the threads by
register exchange and, between warps, through shared memory. So a row is read from memory once per
input and written once. (Warp-level reductions: Luitjens, "Faster Parallel Reductions on Kepler",
2014.)
"""

from __future__ import annotations

import math

from ...diagnostics import ScheduleError
from ...ir.expr import IntImm, Load, Var, as_int
from ...ir.node import postorder
from ...te.tensor import ComputeOp, IterVar, Tensor, is_reduction
from ...tir.passes.bind_threads import REDUCE_THREADS, WARP
from ...tir.schedule import CachedTensor, Stage
from ..common import Kernel, extent_of, extents
from ..rows import stages_to_keep

_WARP_ROW = 1024  # elements up to which a warp takes a row alone
_HELD = 32  # elements of a row that a thread keeps in registers
_SMALL = 8  # a reduction this short is done by every thread itself


def schedule_rows(kernel: Kernel, rows: int) -> None:
    """Schedule a group whose stages share their first `rows` axes; the rest is the row."""
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    if not out.axis:
        return
    length = max(_row_length(op, rows) for op in kernel.stages)
    threads = _threads(length)
    across = _read_across_rows(kernel, rows)
    kept = [op for op in stages_to_keep(kernel, rows) if op not in across]
    if length > threads * _HELD:  # too long for registers: compute again what is not reduced
        kept = [op for op in kept if is_reduction(op) or kernel.is_output(op) or _per_row(op, rows)]
    for op in kernel.stages:
        if op not in kept:
            kernel.stage(op).compute_inline()
    accumulator: Tensor | CachedTensor | None = None
    if is_reduction(out):
        accumulator = kernel.schedule.cache_write(out.output(0), "local")
    target = kernel.stage(out)
    row = _bind_rows(target, rows, threads)
    if accumulator is not None:
        _place(kernel, accumulator, out, target, row, rows, threads)
    for op in reversed(kept):
        if op is not out:
            _place(kernel, op.output(0), op, target, row, rows, threads)


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


def _threads(length: int) -> int:
    if length <= _WARP_ROW:
        return WARP
    return 256 if length <= 256 * _HELD else 1024


def _bind_rows(stage: Stage, rows: int, threads: int) -> Var:
    """Rows over blocks, several to a block if a warp takes one; the row over threads."""
    axes = list(stage.axes)
    leading, trailing = axes[:rows], axes[rows:]
    if not leading:
        leading, trailing = axes[:1], axes[1:]
        row, inner = stage.split(leading[0], nparts=1)
        trailing = [inner, *trailing]
    else:
        row = stage.fuse(*leading)
    if trailing:
        _bind_row(stage, stage.fuse(*trailing), threads)
    count = extent_of(stage, row)
    together = next(n for n in (8, 4, 2, 1) if count % n == 0) if threads == WARP else 1
    if together == 1:
        stage.bind(row, "blockIdx.x")
        return row
    block, row = stage.split(row, factor=together)
    stage.bind(block, "blockIdx.x")
    stage.bind(row, "threadIdx.y")
    return row


def _bind_row(stage: Stage, axis: Var, threads: int) -> None:
    """Element j of the row belongs to thread j % threads."""
    if extent_of(stage, axis) == 1:
        return
    step, thread = stage.split(axis, factor=threads)
    if extent_of(stage, step) <= _HELD:
        stage.unroll(step)
    stage.bind(thread, "threadIdx.x")


def _place(
    kernel: Kernel,
    tensor: Tensor | CachedTensor,
    op: ComputeOp,
    target: Stage,
    row: Var,
    rows: int,
    threads: int,
) -> None:
    """Compute a stage for one row, by the threads of the row."""
    stage = kernel.schedule[tensor]
    stage.compute_at(target, row)
    stage = kernel.schedule[tensor]
    reduced = len(op.reduce_axis)
    own = stage.axes[-(len(op.axis) + reduced) :]
    if not reduced:
        if own[rows:]:
            _bind_row(stage, stage.fuse(*own[rows:]), threads)
        return
    axis = stage.fuse(*own[len(op.axis) :])
    if extent_of(stage, axis) > _SMALL:
        _reduce_across(kernel, tensor, axis, threads)


def _reduce_across(kernel: Kernel, tensor: Tensor | CachedTensor, axis: Var, threads: int) -> None:
    """Every thread reduces its elements, then the threads combine."""
    stage = kernel.schedule[tensor]
    step, thread = stage.split(axis, factor=threads)
    partial = kernel.schedule[kernel.schedule.rfactor(tensor, thread)]
    stage.pragma(stage.axes[-1], REDUCE_THREADS)
    loops = list(partial.axes)
    partial.bind(next(a for a in loops if a is thread), "threadIdx.x")
    outer = next(a for a in loops if a is step)
    if extent_of(partial, outer) <= _HELD:
        partial.unroll(outer)
