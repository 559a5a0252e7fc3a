"""The tile of a matrix product on Hopper, by a model of waves, tensor cores and copies."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from ...tir.tile.layout import ROW_BYTES
from ...tir.tile.verify import SHARED_LIMIT
from .hopper_operands import HopperTile

BLOCKS = 132  # multiprocessors of an H100 or H200
CLOCK = 1.46e9  # cycles/s that power allows
_TENSOR = 5.98e12  # sustained FLOP/s of one multiprocessor, 16-bit operands
_REFILL = 61e9  # bytes/s from L2 to one multiprocessor
_STORE = 33e9  # bytes/s to memory, one multiprocessor's share
_SHARED = 128 * 1.46e9  # bytes/s that wgmma reads
_GATHER = 128 * 1.46e9 / 20  # elements/s that one multiprocessor gathers, at 20 instructions each
_FILL = 1.2e-6  # seconds until the first product
_MEETING = 0.3e-6  # seconds until the blocks of a cluster have met
_BARRIERS = 50e-9  # seconds that a step waits, whatever its size


@dataclass(frozen=True, slots=True)
class _Shape:
    rows: int
    columns: int
    consumers: int
    alternate: bool


_SHAPES = tuple(
    _Shape(rows, columns, consumers, alternate)
    for rows, consumers, widest, alternate in (
        (64, 1, 256, False), (128, 1, 128, False), (128, 2, 256, False), (256, 2, 128, False),
        (64, 2, 256, True), (128, 2, 128, True),
    )
    for columns in (64, 128, 192, 256)
    if columns <= widest
)  # fmt: skip


_GATHERING = tuple(
    _Shape(rows, columns, consumers, False)
    for rows, columns, consumers in (
        (64, 64, 1), (64, 128, 1), (64, 256, 1), (128, 64, 2), (128, 128, 2), (256, 64, 2),
        (256, 128, 2),
    )
)  # fmt: skip


@functools.cache
def choose_hopper_tile(
    batch: int, m: int, n: int, k: int, itemsize: int = 2, staged: bool = True,
    gathers: bool = False,
) -> HopperTile:  # fmt: skip
    """The tile of least estimated time, by a model of waves, tensor cores and copies.

    Args:
        itemsize: of the result.
        gathers: B is computed.

    >>> tile = choose_hopper_tile(1, 8192, 8192, 8192)
    >>> tile.rows, tile.columns, tile.depth, tile.consumers, tile.cluster, tile.alternate
    (128, 256, 4, 2, 2, False)
    """
    tiles = _candidates(staged, gathers)
    return min(tiles, key=lambda t: estimated_seconds(t, batch, m, n, k, itemsize, gathers))


def _candidates(staged: bool, gathers: bool) -> Iterator[HopperTile]:
    for shape in _GATHERING if gathers else _SHAPES:
        for cluster in (1,) if gathers else (1, 2):
            stage = (shape.rows + shape.columns) * ROW_BYTES
            boxes = shape.consumers * 2 * 64 * ROW_BYTES * staged
            depth = min(8, (SHARED_LIMIT - boxes - 1024) // stage)
            yield HopperTile(
                shape.rows, shape.columns, depth, shape.consumers, cluster, staged=staged,
                alternate=shape.alternate,
            )  # fmt: skip


def estimated_seconds(
    tile: HopperTile, batch: int, m: int, n: int, k: int, itemsize: int = 2, gathers: bool = False
) -> float:
    """Estimated time of a product with 16-bit operands; see `choose_hopper_tile`."""
    rows = math.ceil(math.ceil(m / tile.rows) / tile.cluster) * tile.cluster
    tiles = batch * rows * math.ceil(n / tile.columns)
    waves = math.ceil(tiles / BLOCKS)
    flops = 2 * tile.rows * tile.columns * (ROW_BYTES // 2)
    copied = (tile.rows + tile.columns / tile.cluster) * ROW_BYTES
    read = tile.rows // 64 * (64 + tile.columns) * ROW_BYTES
    gathered = tile.columns * (ROW_BYTES // 2) * gathers
    slowest = max(flops / _TENSOR, copied / _REFILL, read / _SHARED, gathered / _GATHER)
    step = slowest + _BARRIERS
    epilogue = tile.rows * tile.columns * itemsize / _STORE
    start = _FILL + _MEETING * (tile.cluster > 1)
    products = math.ceil(k * 2 / ROW_BYTES) * step
    if tile.alternate:  # only the last write of a block is exposed
        return waves * max(products, epilogue) + epilogue + start
    # Writes overlap with copies for the next tile, not with its products.
    return waves * (products + epilogue / 2) + epilogue / 2 + start
