"""Matrix multiplication with a packed right operand: register tiles over whole K.

    C[i, j] = sum_k A[i, k] * B[j // nr, k, j % nr]

One tile keeps mr x nr accumulators in vector registers; per k it loads nr / lanes vectors of B and
broadcasts mr scalars of A. (Goto and van de Geijn, "Anatomy of high-performance matrix
multiplication", ACM TOMS 2008; packing happens once, in the graph.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..dtype import DType
from ..ir.expr import Var, as_int
from ..target import Target
from ..te.tensor import ComputeOp
from ..tir.schedule import Stage
from .common import PARALLEL_CYCLES, Kernel, cycles_of, extent_of, inline_injective


@dataclass(frozen=True)
class MatmulTile:
    """A register tile of `mr` rows and `nr` columns; `nr` is a multiple of the vector length."""

    mr: int
    nr: int


def tile_cost(m: int, n: int, mr: int, nr: int, lanes: int) -> float:
    """Cycles per step of k for an m x n result, from port and latency limits of the tile.

    Two FMAs and two loads issue per cycle, and an FMA takes four cycles; so a tile needs eight
    independent accumulators to keep the units busy. Partial tiles at the edges cost what their
    rows cost, but whole vectors of columns.
    """

    def one(rows: int, vectors: int) -> float:
        fmas = rows * vectors
        return max(fmas / 2, (rows + vectors) / 2, 4.0) + 0.3

    vectors = nr // lanes
    panels = math.ceil(n / nr)
    full, rest = divmod(m, mr)
    return panels * (full * one(mr, vectors) + (one(rest, vectors) if rest else 0))


def choose_matmul_tile(m: int, n: int, target: Target) -> MatmulTile:
    """The tile of least estimated cost that leaves registers for B and one broadcast."""
    lanes = target.lanes(DType.FLOAT32)
    best: tuple[float, int, int] | None = None
    for vectors in (1, 2, 3, 4, 6, 8):
        for mr in range(1, 15):
            if mr * vectors + vectors + 1 > target.vector_registers - 1 or mr > m:
                continue
            cost = tile_cost(m, n, mr, vectors * lanes, lanes)
            if best is None or cost < best[0]:
                best = (cost, mr, vectors * lanes)
    assert best is not None
    return MatmulTile(best[1], best[2])


def prefetch_distance(fmas: int, nr: int) -> int:
    """How many steps of k ahead to fetch packed operands: the latency of memory, about 500
    cycles, at two FMAs per cycle; at most 16 KB ahead."""
    steps = 1000 // max(1, fmas)
    return max(1, min(steps, 16 * 1024 // (4 * nr)))


def schedule_matmul(kernel: Kernel, product: ComputeOp) -> None:
    """Register tiles over the output, panels of columns over threads."""
    inline_injective(kernel)
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    mr, nr = product.attrs["tile"]
    lanes = kernel.target.lanes(DType.FLOAT32)
    schedule = kernel.schedule
    if out is product:
        accumulator = schedule.cache_write(product.output(0), "local")
    else:
        accumulator = product.output(0)
    stage = kernel.stage(out)
    *batch, i, j = stage.axes
    jo, ji = stage.split(j, factor=nr)
    io, ii = stage.split(i, factor=min(mr, extent_of(stage, i)))
    stage.reorder(*batch, jo, io, ii, ji)
    stage.unroll(ii)
    if nr > lanes:
        parts, vector = stage.split(ji, factor=lanes)
        stage.unroll(parts)
    else:
        vector = ji
    stage.vectorize(vector)
    threads, tile_loop = spread(kernel, stage, [*batch, jo], io, product)
    if cycles_of(product, kernel.target) >= PARALLEL_CYCLES:
        stage.parallel(threads)
    compute = schedule[accumulator]
    compute.compute_at(stage, tile_loop)
    if out is not product:
        schedule.set_scope(accumulator, "local")
    b = kernel.buffer(product.inputs[-1]).name
    compute.pragma(compute.axes[-1], "prefetch", (b, prefetch_distance(mr * nr // lanes, nr)))
    _schedule_tile(compute, lanes)


def spread(
    kernel: Kernel, stage: Stage, outer: list[Var], io: Var, product: ComputeOp
) -> tuple[Var, Var]:
    """The loop to run over threads, and the loop over tiles inside it.

    Threads share panels of columns, and blocks of rows where A is large: a block of rows of A
    should stay in half of the L2 cache while panels of B pass by.
    """
    k = as_int(product.reduce_axis[0].extent)
    rows_in_cache = max(1, kernel.target.l2_bytes // 2 // (4 * k * product.attrs["tile"][0]))
    tiles = extent_of(stage, io)
    panels = math.prod(extent_of(stage, axis) for axis in outer)
    blocks = math.ceil(tiles / rows_in_cache)
    while blocks * panels < 8 and blocks * 2 <= tiles:
        blocks *= 2
    if blocks > 1:
        block, io = stage.split(io, factor=math.ceil(tiles / blocks))
        stage.reorder(block, *outer, io)
        outer = [block, *outer]
    return stage.fuse(*outer), io


def _schedule_tile(compute: Stage, lanes: int) -> None:
    """k outermost, then rows written out, then vectors of columns."""
    *_, i, j, k = compute.axes
    compute.reorder(k, i, j)
    compute.unroll(i)
    if extent_of(compute, j) > lanes:
        parts, vector = compute.split(j, factor=lanes)
        compute.unroll(parts)
    else:
        vector = j
    compute.vectorize(vector)
