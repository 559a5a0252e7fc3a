"""Single reductions on a GPU that are not rows: windows, columns, and sums with few results.

- Windows (pooling, depthwise convolution, short sums): one thread computes an output, or several
  outputs below each other that share what they read.
- Columns: the reduced axes are outer ones. Neighbouring threads have neighbouring columns; several
  threads share a column, and add up in shared memory.
- Few results of much data: blocks reduce parts, a second launch reduces their results. The parts
  depend on shapes only, so the result is the same in every run.
(Harris, "Optimizing Parallel Reduction in CUDA", 2007.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....ir.expr import Load, Var, as_int, variables
from ....ir.node import postorder
from ....te.tensor import ComputeOp, Tensor
from ....tir.schedule import CachedTensor, Stage
from ...common import Kernel, extent_of, extents, inline_injective
from ..bind import THREADS, bind_flat
from ..window import outputs_of_thread, schedule_windows
from .plan import input_lanes, part_plan
from .rows import place_part, schedule_rows

_MAX_UNROLLED_WINDOW = 32
_LOADS = 4  # iterations of a long loop that are written out, to have their loads in flight
_COLUMNS = 32  # threads side by side: a line of 128 bytes in float32
_MULTIPROCESSORS = 132
_PART = 16 * 1024  # elements that a block reduces by itself at least
_MOST = 1024  # threads of a block, where there are few blocks
_FEW = 4  # elements for each thread: fewer are not shared among threads


def schedule_reduction(kernel: Kernel, reduction: ComputeOp, rows: int) -> None:
    """One reduction and the elementwise work before and after it."""
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    length = math.prod(as_int(a.extent) for a in reduction.reduce_axis)
    count = math.prod(extents(reduction))
    if reduction.num_outputs > 1:
        schedule_outputs(kernel, reduction)
    elif reduces_lines(reduction):
        if count < _MULTIPROCESSORS and count * length >= 16 * _PART:
            inline_injective(kernel)
            _schedule_parts_of_rows(kernel, reduction, count, length)
        else:
            schedule_rows(kernel, rows)
    elif length > _MAX_UNROLLED_WINDOW and count < _MULTIPROCESSORS * THREADS * 4:
        inline_injective(kernel)
        _schedule_columns(kernel, reduction, count, length)
    elif (together := outputs_of_thread(reduction)) > 1:
        schedule_windows(kernel, reduction, together)
    else:
        schedule_outputs(kernel, reduction)


def reduces_lines(op: ComputeOp) -> bool:
    """Whether what is reduced lies along memory, and nothing that is kept does."""
    reduced = {a.var for a in op.reduce_axis}
    kept = {a.var for a in op.axis if str(a.extent) != "1"}
    lines = [load.indices[-1] for load in postorder(op.body)
             if isinstance(load, Load) and load.indices]  # fmt: skip
    found = {v for index in lines for v in variables(index)}
    return bool(found & reduced) and not found & kept


def schedule_outputs(kernel: Kernel, reduction: ComputeOp, keep: Sequence[ComputeOp] = ()) -> None:
    """One thread for each output; the stages in `keep` are left alone."""
    inline_injective(kernel, keep)
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    schedule = kernel.schedule
    if not out.axis:
        return
    if out is reduction and reduction.num_outputs > 1:
        bind_flat(kernel.stage(out), list(kernel.stage(out).axes[: len(out.axis)]))
        return
    accumulator = _accumulator(kernel, reduction)
    stage = kernel.stage(out)
    thread = bind_flat(stage, list(stage.axes))
    inner = schedule[accumulator]
    inner.compute_at(stage, thread)
    _unroll_window(inner, inner.axes[-len(reduction.reduce_axis) :])


def _accumulator(kernel: Kernel, reduction: ComputeOp) -> Tensor | CachedTensor:
    """The tensor that is accumulated, apart from the output."""
    result = reduction.output(0)
    if kernel.outputs[0].op is reduction:
        return kernel.schedule.cache_write(result, "local")
    return result


def _unroll_window(stage: Stage, axes: tuple[Var, ...] | list[Var]) -> None:
    """All of a small window; some iterations of the innermost loop of a larger one."""
    window = 1
    for axis in reversed(axes):
        window *= extent_of(stage, axis)
        if window > _MAX_UNROLLED_WINDOW:
            break
        stage.unroll(axis)
    innermost = axes[-1]
    if extent_of(stage, innermost) > _MAX_UNROLLED_WINDOW:
        _, inner = stage.split(innermost, factor=_LOADS)
        stage.unroll(inner)


def _parts(count: int, length: int, unit: int) -> tuple[int, int]:
    """(parts, elements of a part) of a reduction; parts are whole units."""
    wanted = max(1, min(8 * _MULTIPROCESSORS // count, count * length // _PART // count))
    size = -(-length // wanted)
    if size >= 4 * _LOADS * unit:
        unit *= _LOADS
    size = -(-size // unit) * unit
    return -(-length // size), size


def _schedule_parts_of_rows(kernel: Kernel, reduction: ComputeOp, count: int, length: int) -> None:
    """Blocks reduce parts of the rows, which lie along memory; then a block adds up each row."""
    lanes = input_lanes(kernel, length)
    parts, size = _parts(count, length, THREADS * lanes)
    plan = part_plan(count * parts, size, lanes)
    accumulator = _accumulator(kernel, reduction)
    stage = kernel.schedule[accumulator]
    axis = stage.fuse(*stage.axes[len(reduction.axis) :])
    part, _ = stage.split(axis, factor=size)
    partial = kernel.schedule.rfactor(accumulator, part)
    assert isinstance(partial, CachedTensor)
    sums = kernel.schedule.cache_write(partial, "local")
    target = kernel.schedule[partial]
    block = target.fuse(*target.axes)
    target.bind(block, "blockIdx.x")
    place_part(kernel, sums, target, block, plan)
    out = kernel.stage(kernel.outputs[0].op)  # type: ignore[arg-type]
    if parts <= _MAX_UNROLLED_WINDOW:
        thread = bind_flat(out, list(out.axes))
        last = kernel.schedule[accumulator]
        last.compute_at(out, thread)
        last.unroll(last.axes[-1])
        return
    row = out.fuse(*out.axes)
    out.bind(row, "blockIdx.x")
    place_part(kernel, accumulator, out, row, part_plan(count, parts, 1))


def _schedule_columns(kernel: Kernel, reduction: ComputeOp, count: int, length: int) -> None:
    """Several threads share a column; where there are few columns, several blocks do."""
    accumulator = _accumulator(kernel, reduction)
    schedule = kernel.schedule
    columns = min(_COLUMNS, extents(reduction)[-1] if reduction.axis else 1)
    blocks = math.ceil(count / columns)
    if blocks < _MULTIPROCESSORS and count * length >= 16 * _PART:
        stage = schedule[accumulator]
        axis = stage.fuse(*stage.axes[len(reduction.axis) :])
        wanted = max(1, min(4 * _MULTIPROCESSORS // blocks, length // (4 * THREADS // columns)))
        part, _ = stage.split(axis, nparts=wanted)
        partial = schedule.rfactor(accumulator, part, factor_axis=0)
        assert isinstance(partial, CachedTensor)
        sums = schedule.cache_write(partial, "local")
        _bind_columns(kernel, schedule[partial], sums, columns)
    out = kernel.stage(kernel.outputs[0].op)  # type: ignore[arg-type]
    _bind_columns(kernel, out, accumulator, columns)


def _bind_columns(
    kernel: Kernel, target: Stage, accumulator: Tensor | CachedTensor, columns: int
) -> None:
    """Tiles of neighbouring columns over blocks; threads (x, y) add every y-th element of
    column x, then add up."""
    *outside, last = target.axes
    tile, column = target.split(last, factor=columns)
    block = target.fuse(*outside, tile)
    target.bind(block, "blockIdx.x")
    target.bind(column, "threadIdx.x")
    stage = kernel.schedule[accumulator]
    spatial = len(outside) + 1
    reduced = stage.axes[spatial:]
    axis = stage.fuse(*reduced)
    most = THREADS if extent_of(target, block) >= 8 * _MULTIPROCESSORS else _MOST
    share = min(most // columns, 1 << max(1, extent_of(stage, axis) // _FEW).bit_length() - 1)
    shared = sums = None
    if share > 1:
        _, y = stage.split(axis, factor=share)
        shared = kernel.schedule.rfactor(accumulator, y, factor_axis=0)
        sums = kernel.schedule.cache_write(shared, "local")
    stage = _compute_at(kernel, accumulator, target, block)
    if shared is None or sums is None:
        _unroll_window(stage, stage.axes[-1:])
    else:
        stage.unroll(stage.axes[-1])
        partial = _compute_at(kernel, shared, target, block)
        y, *own = [a for a in partial.axes if a is not block]
        partial.bind(y, "threadIdx.y")
        _bind_last_spatial(partial, own)
        total = _compute_at(kernel, sums, partial, own[-1])
        _unroll_window(total, total.axes[-1:])
    _bind_last_spatial(stage, [a for a in stage.axes if a is not block][:spatial])


def _compute_at(kernel: Kernel, tensor: Tensor | CachedTensor, target: Stage, axis: Var) -> Stage:
    kernel.schedule[tensor].compute_at(target, axis)
    return kernel.schedule[tensor]


def _bind_last_spatial(stage: Stage, axes: list[Var]) -> None:
    wide = [a for a in axes if extent_of(stage, a) > 1]
    stage.bind(wide[-1] if wide else axes[-1], "threadIdx.x")
