"""Kernels without reductions on a GPU: everything inlined, outputs spread over threads."""

from __future__ import annotations

import math

from ...ir.expr import Call, Var
from ...ir.node import postorder
from ...te.tensor import ComputeOp, is_reduction
from ...tir.lower_gpu import ACCESS
from ...tir.schedule import Stage
from ...tir.tree import loads_in
from ..common import Kernel, extent_of, inline_injective
from ..elementwise import transposed_axis
from .bind import THREADS, bind_flat

_ENOUGH_THREADS = 132 * 1024
"""Threads that keep a large GPU busy; with fewer, more threads are worth more than wide access."""
_TILE = 32  # a transposed tile: rows of one warp


def schedule_elementwise(kernel: Kernel) -> None:
    """One pass over each output: coalesced, with wide accesses where the tensor is large."""
    inline_injective(kernel)
    for op in kernel.stages:
        if kernel.is_output(op) and not is_reduction(op):
            schedule_injective(kernel, op)


def schedule_injective(kernel: Kernel, op: ComputeOp) -> None:
    stage = kernel.stage(op)
    axes = list(stage.axes)
    if not axes:
        return
    across = transposed_axis(stage)
    if across is not None and _transposable(stage, across):
        _schedule_transposed(kernel, stage, across)
        return
    lanes = min(ACCESS.lanes(op.output(i).dtype) for i in range(op.num_outputs))
    total = math.prod(extent_of(stage, a) for a in axes)
    last = extent_of(stage, axes[-1])
    if lanes > 1 and last % lanes == 0 and total >= lanes * _ENOUGH_THREADS and _is_plain(stage):
        axes[-1], vector = stage.split(axes[-1], factor=lanes)
        stage.vectorize(vector)
    bind_flat(stage, axes)


def _is_plain(stage: Stage) -> bool:
    """Whether nothing is chosen by position, which would take vectors apart again."""
    calls = (n.name for n in postorder(stage.block.body) if isinstance(n, Call))
    return not any(name in ("if_then_else", "checked_index") for name in calls)


def _transposable(stage: Stage, across: Var) -> bool:
    """Whether the tile of a transposing stage is worth it: one input, read at plain places."""
    loads = loads_in(stage.block.body)
    wide = [load for load in loads if load.indices]
    sides = [extent_of(stage, a) for a in (across, stage.axes[-1])]
    return len(wide) == 1 and _is_plain(stage) and min(sides) >= _TILE // 2


def _schedule_transposed(kernel: Kernel, stage: Stage, across: Var) -> None:
    """Tiles of 32 x 32 through shared memory: read along the input, written along the output."""
    *_, last = stage.axes
    source = next(load.source for load in loads_in(stage.block.body) if load.indices)
    outside = [a for a in stage.axes if a not in (across, last)]
    row_block, row = stage.split(across, factor=_TILE)
    column_block, column = stage.split(last, factor=_TILE)
    stage.reorder(*outside, row_block, column_block, row, column)
    block = stage.fuse(*outside, row_block, column_block)
    stage.bind(block, "blockIdx.x")
    step, row = stage.split(row, factor=THREADS // _TILE)
    stage.reorder(step, row, column)
    stage.bind(row, "threadIdx.y")
    stage.bind(column, "threadIdx.x")
    copy = kernel.schedule.cache_read(source.name, "shared", [stage.block_name])
    tile = kernel.schedule[copy]
    tile.compute_at(stage, block)
    own = [a for a in tile.axes if a is not block]
    wide = [a for a in own if extent_of(tile, a) > 1]
    line = wide[-1]
    others = tile.fuse(*own[: own.index(line)]) if own.index(line) else None
    _, column = tile.split(line, factor=_TILE)
    tile.bind(column, "threadIdx.x")
    if others is not None:
        _, row = tile.split(others, factor=THREADS // _TILE)
        tile.bind(row, "threadIdx.y")
