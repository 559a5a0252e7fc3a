"""Kernels without reductions on a GPU: everything inlined, outputs spread over threads."""

from __future__ import annotations

import math

from ...ir.expr import Load, Var
from ...te.tensor import ComputeOp, is_reduction
from ...tir.lower_gpu import ACCESS
from ...tir.schedule import CachedTensor, Stage
from ..common import Kernel, extent_of, inline_injective
from .bind import THREADS, bind_flat
from .strides import Walk, merge_axes

_MULTIPROCESSORS = 132  # of a large GPU
_IN_FLIGHT = 64
"""Bytes that a thread should ask for before it waits. With 2048 threads on a multiprocessor that is
several times what hides the latency of memory (Little's law: 4.3 TB/s * 600 ns / 132 = 20 KB)."""
_TILE = 32  # side of a transposed tile: a line of 128 bytes in float32
_BANK_BYTES = 128  # of shared memory that are read at once
_WIDE_TILE = 64  # for elements of one or two bytes, and for large tensors


def schedule_elementwise(kernel: Kernel) -> Kernel:
    """One pass over each output: coalesced, with wide accesses where the tensor is large."""
    inline_injective(kernel)
    kernel = merge_axes(kernel)
    for op in kernel.stages:
        if kernel.is_output(op) and not is_reduction(op):
            schedule_injective(kernel, op)
    return kernel


def schedule_injective(kernel: Kernel, op: ComputeOp) -> None:
    stage = kernel.stage(op)
    walk = Walk.of(stage)
    if not stage.axes:
        return
    if walk is None:  # several outputs
        bind_flat(stage, list(stage.axes))
        return
    tiled = _tiled_loads(stage, walk)
    if tiled:
        across = walk.across()[tiled[0]]
        _schedule_transposed(kernel, stage, _loop_of(stage, across), tiled)
    else:
        _schedule_flat(stage, op, walk)


def _schedule_flat(stage: Stage, op: ComputeOp, walk: Walk) -> None:
    """Vectors over all axes together; for large tensors, several vectors to a thread."""
    total = math.prod(walk.extents)
    dtypes = [op.output(0).dtype, *(load.dtype for load in walk.strides)]
    lanes = walk.vector_lanes(min(ACCESS.lanes(d) for d in dtypes))
    while lanes > 1 and total // lanes < _MULTIPROCESSORS * THREADS:
        lanes //= 2  # with few threads, more threads are worth more than wide accesses
    loaded = sum(lanes * load.dtype.itemsize for load in walk.strides)
    times = 4
    while times > 1 and (
        (times // 2) * loaded >= _IN_FLIGHT or total // (lanes * times) < _MULTIPROCESSORS * 1024
    ):
        times //= 2
    fused = stage.fuse(*stage.axes)
    block, step, thread, lane = stage.split(fused, factors=[None, times, THREADS, lanes])
    stage.reorder(block, thread, step, lane)
    stage.bind(block, "blockIdx.x")
    stage.bind(thread, "threadIdx.x")
    stage.unroll(step)
    if lanes > 1:
        stage.vectorize(lane)
    else:
        stage.unroll(lane)


def _loop_of(stage: Stage, axis: Var) -> Var:
    """The loop that an iteration variable is bound to."""
    block = stage.block
    pairs = zip(block.iter_vars, block.bindings, strict=True)
    return next(b for v, b in pairs if v.var is axis and isinstance(b, Var))


def _tiled_loads(stage: Stage, walk: Walk) -> list[Load]:
    """The loads that are worth a transposed tile: contiguous along an axis that is not the last."""
    across = walk.across()
    if not across or len(walk.axes) < 2 or any(s is None for s in walk.strides.values()):
        return []
    extents = dict(zip(walk.axes, walk.extents, strict=True))
    chosen = max(across.values(), key=lambda v: extents[v])
    loads = [load for load, axis in across.items() if axis is chosen]
    sides = extents[chosen], walk.extents[-1]
    return loads if min(sides) > 1 and math.prod(sides) >= _TILE * 8 else []


def _schedule_transposed(kernel: Kernel, stage: Stage, across: Var, loads: list[Load]) -> None:
    """Tiles through shared memory: read along the inputs, written along the output.

    Lines of a tile are one bank longer than a power of two, so that columns are read from
    different banks. (Ruetsch and Micikevicius, "Optimizing Matrix Transpose in CUDA", 2009.)
    """
    last = stage.axes[-1]
    outside = [a for a in stage.axes if a not in (across, last)]
    itemsize = min(load.dtype.itemsize for load in loads)
    total = math.prod(extent_of(stage, a) for a in stage.axes)
    rows, columns = _tile_sides(extent_of(stage, across), extent_of(stage, last), itemsize, total)
    row_block, row = stage.split(across, factor=rows)
    column_block, column = stage.split(last, factor=columns)
    stage.reorder(*outside, row_block, column_block, row, column)
    block = stage.fuse(*outside, row_block, column_block)
    stage.bind(block, "blockIdx.x")
    sources = {load.source.name: load.dtype.itemsize for load in loads}
    _bind_tile(stage, [row, column])
    for name, size in sources.items():
        copy = kernel.schedule.cache_read(name, "shared", [stage.block_name])
        _place_tile(kernel, copy, stage, block, size)


def _tile_sides(across: int, last: int, itemsize: int, total: int) -> tuple[int, int]:
    """Rows and columns of a tile: square, or long where the other side is short."""
    large = total >= _MULTIPROCESSORS * 4 * _WIDE_TILE**2
    side = _WIDE_TILE if itemsize < 4 or (large and itemsize == 4) else _TILE
    rows, columns = min(across, side), min(last, side)
    area = side * side
    if rows < side:
        columns = min(last, 1 << (area // rows).bit_length() - 1, 256)
    elif columns < side:
        rows = min(across, 1 << (area // columns).bit_length() - 1, 256)
    return rows, columns


def _bind_tile(stage: Stage, axes: list[Var]) -> None:
    """The elements of a tile over all threads, in the order of these loops."""
    flat = stage.fuse(*axes)
    step, thread = stage.split(flat, factor=THREADS)
    stage.unroll(step)
    stage.bind(thread, "threadIdx.x")


def _place_tile(
    kernel: Kernel, copy: CachedTensor, target: Stage, block: Var, itemsize: int
) -> None:
    """The tile of an input, in shared memory with padded lines.

    A step from line to line moves by so many banks that all lines (up to as many as there are
    banks) of a column are in different ones.
    """
    tile = kernel.schedule[copy]
    tile.compute_at(target, block)
    own = [a for a in tile.axes if a is not block]
    sizes = [extent_of(tile, a) for a in own]
    lines = [d for d, size in enumerate(sizes) if size > 1]
    if len(lines) > 1 and sizes[lines[-1]] >= _TILE:
        banks = _BANK_BYTES // max(itemsize, 4)
        unit = max(1, 4 // itemsize)  # elements of one bank
        step = -(-banks // min(banks, math.prod(sizes[: lines[-1]])))
        tile.storage_align(own[lines[-2]], banks * unit, step * unit % (banks * unit))
    _bind_tile(tile, own)
