"""Convolution in NHWC with packed weights: register tiles of pixels x channels.

    C[n, h, w, o] = sum_{r,s,i} X[n, h*sh + r*dh, w*sw + s*dw, i] * W[o // nr, r, s, i, o % nr]

A tile keeps th x tw pixels by nr channels in registers while r, s and i run; per step it loads
nr / lanes vectors of weights and broadcasts one input value per pixel. (Georganas et al., "Anatomy
of high-performance deep learning convolutions on SIMD architectures", SC 2018.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..dtype import DType
from ..ir.expr import Var, as_int
from ..relay.passes.alter_op_layout import COPY_COST, fill_blocks
from ..target import Target
from ..te.tensor import ComputeOp
from ..tir.schedule import Stage
from .common import (
    PARALLEL_CYCLES,
    Kernel,
    cycles_of,
    extent_of,
    inline_injective,
)
from .elementwise import schedule_injective
from .matmul import prefetch_distance, tile_cost


@dataclass(frozen=True)
class WindowTile:
    """A register tile of th x tw pixels and nr channels."""

    th: int
    tw: int
    nr: int


def choose_conv_tile(
    height: int, width: int, channels: int, target: Target, groups: int = 1
) -> WindowTile:
    """The tile of least estimated cost for an output of height x width pixels."""
    lanes = target.lanes(DType.FLOAT32)
    best: tuple[float, int, int, int] | None = None
    for vectors in (1, 2, 3, 4, 6):
        for th in (1, 2, 3, 4):
            for tw in range(1, min(width, 28) + 1):
                pixels = th * tw
                if th > height or pixels * vectors + vectors + 1 > target.vector_registers - 1:
                    continue
                merged, padded = fill_blocks(groups, channels // groups, vectors * lanes)
                computed = groups // merged * padded
                cost = _cost(height, width, computed, (th, tw, vectors), lanes) * merged
                cost *= COPY_COST if computed > channels else 1.0
                if best is None or cost < best[0]:
                    best = (cost, th, tw, vectors * lanes)
    assert best is not None
    return WindowTile(*best[1:])


def _cost(height: int, width: int, channels: int, tile: tuple[int, int, int], lanes: int) -> float:
    """Cycles per reduction step: whole tiles, and partial ones at the right and bottom."""
    th, tw, vectors = tile
    nr = vectors * lanes
    rows, rest_rows = divmod(height, th)
    total = rows * _row_cost(th, width, tw, channels, nr, lanes)
    if rest_rows:
        total += _row_cost(rest_rows, width, tw, channels, nr, lanes)
    return total


def _row_cost(th: int, width: int, tw: int, channels: int, nr: int, lanes: int) -> float:
    full, rest = divmod(width, tw)
    cost = full * tile_cost(th * tw, channels, th * tw, nr, lanes)
    return cost + (tile_cost(th * rest, channels, th * rest, nr, lanes) if rest else 0)


def schedule_conv(kernel: Kernel, conv: ComputeOp) -> None:
    """Tiles of the output; padding goes to a scratch copy of the input first."""
    pad = next(
        (t.op for t in conv.inputs if isinstance(t.op, ComputeOp) and t.op.tag == "pad"), None
    )
    inline_injective(kernel, keep=[pad] if pad else [])
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    lanes = kernel.target.lanes(DType.FLOAT32)
    th, tw, nr = conv.attrs["tile"]
    schedule = kernel.schedule
    accumulator = schedule.cache_write(conv.output(0), "local") if out is conv else conv.output(0)
    stage = kernel.stage(out)
    n, h, w, o = stage.axes
    oo, oi = stage.split(o, factor=nr)
    ho, hi = stage.split(h, factor=min(th, extent_of(stage, h)))
    wo, wi = stage.split(w, factor=min(tw, extent_of(stage, w)))
    stage.reorder(n, oo, ho, wo, hi, wi, oi)
    stage.unroll(hi)
    stage.unroll(wi)
    _vectors(stage, oi, lanes)
    threads, tile_loop = _spread(kernel, stage, (n, oo, ho, wo), conv)
    if cycles_of(conv, kernel.target) >= PARALLEL_CYCLES:
        stage.parallel(threads)
    tile = schedule[accumulator]
    tile.compute_at(stage, tile_loop)
    if out is not conv:
        schedule.set_scope(accumulator, "local")
    *_, ti_h, ti_w, ti_o, r, s, i = tile.axes
    weights = kernel.buffer(conv.inputs[-1]).name
    tile.pragma(i, "prefetch", (weights, prefetch_distance(th * tw * nr // lanes, nr)))
    tile.reorder(r, s, i, ti_h, ti_w, ti_o)
    tile.unroll(ti_h)
    tile.unroll(ti_w)
    _vectors(tile, ti_o, lanes)
    if pad is not None:
        schedule_copy(kernel, pad)


def _vectors(stage: Stage, axis, lanes: int) -> None:
    if extent_of(stage, axis) > lanes:
        parts, vector = stage.split(axis, factor=lanes)
        stage.unroll(parts)
        stage.vectorize(vector)
    else:
        stage.vectorize(axis)


def _spread(
    kernel: Kernel, stage: Stage, axes: tuple[Var, Var, Var, Var], conv: ComputeOp
) -> tuple[Var, Var]:
    """The loop for threads, and the innermost loop over tiles.

    Threads share blocks of rows whose input and output stay in half of the L2 cache while panels
    of channels pass by, and the panels.
    """
    n, oo, ho, wo = axes
    images, panels, rows = (extent_of(stage, a) for a in (n, oo, ho))
    along = ho
    if rows == 1:  # pixels in one row: a pointwise convolution
        rows, along = extent_of(stage, wo), wo
    touched = [conv.inputs[0], *kernel.outputs * max(1, len(kernel.outputs[0].op.inputs) - 1)]
    nbytes = sum(4 * math.prod(as_int(d) for d in t.shape) for t in touched)
    blocks = min(math.ceil(nbytes / images / (kernel.target.l2_bytes // 2)), rows)
    while blocks * panels * images < 8 and blocks * 2 <= rows:
        blocks *= 2
    if blocks == 1:
        return stage.fuse(n, oo), wo
    block, inner = stage.split(along, factor=math.ceil(rows / blocks))
    if along is ho:
        stage.reorder(n, block, oo, inner)
        return stage.fuse(n, block, oo), wo
    stage.reorder(n, block, oo, ho, inner)
    return stage.fuse(n, block, oo), inner


def schedule_copy(kernel: Kernel, op: ComputeOp) -> None:
    """A stage computed at the root into scratch memory."""
    lanes = kernel.target.lanes(op.output(0).dtype)
    schedule_injective(kernel.stage(op), lanes, cycles_of(op, kernel.target))
