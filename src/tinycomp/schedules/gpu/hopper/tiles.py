"""The tile of a matrix product on Hopper, by a model of waves, tensor cores and copies.

The time of a product is that of its waves of blocks; a block's is the start, its steps of the sum,
each as long as the slowest of what it needs, and the store of the result. The figures are of an
H100 or H200; each says where it comes from, so that it can be measured again (`benchmarks/gpu`,
stages `ceilings` and `gemm`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ....dtype import DType
from ....ops.operand_parts import Split
from ....tir.tile.layout import ROW_BYTES
from ....tir.tile.verify import SHARED_LIMIT
from .operands import HopperTile
from .parts import PLANS
from .split import parts_bytes

BLOCKS = 132  # multiprocessors of an H100 or H200
_GROUPS = (16,) * 6 + (18,) * 2  # of them, within which clusters lie ("GPCs" of the H100 SXM)
CLOCK = 1.46e9  # cycles/s that power allows: 790 TFLOP/s of cuBLAS over 4096 FLOP/cycle each
TENSOR = 5.98e12  # FLOP/s of one multiprocessor, 16-bit operands: the same 790 TFLOP/s
REFILL = 61e9  # bytes/s from L2 to one multiprocessor: 8 TB/s measured on an H200 for all
STORE = 33e9  # bytes/s to memory, one multiprocessor's share of 4.3 TB/s
SHARED = 128 * CLOCK  # bytes/s that wgmma reads: 32 banks of 4 bytes
_GATHER = 128 * CLOCK / 20  # elements/s that one multiprocessor gathers, at 20 instructions each
_REMOTE = 25e9  # bytes/s from other blocks' shared memory: 3.3 TB/s measured on an H100 for all
FILL = 1.2e-6  # seconds until the first product (kernels of one wave in fast.cu's log)
MEETING = 0.3e-6  # seconds until the blocks of a cluster have met (a guess)
BARRIERS = 50e-9  # seconds that a step waits, whatever its size (a guess)
_SPLITS = (2, 3, 4, 5, 6, 8)
_SPLITTING_A = {
    DType.BFLOAT16: 200,
    DType.FLOAT32: 60,
}  # instructions of a warp for a stage of 64 rows (its SASS)
_TURN = 100  # cycles from the last product of a stage to the next, besides additions (a guess)


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

_OF_PARTS = {
    DType.BFLOAT16: ((64, 64, 1), (64, 128, 1), (128, 64, 2), (128, 128, 2)),
    DType.FLOAT32: (
        (64, 64, 1), (64, 128, 1), (64, 256, 1), (128, 64, 2), (128, 128, 2), (128, 192, 2),
        (128, 256, 2),
    ),
}  # fmt: skip
"""Each consumer has 64 rows, whose parts fit its registers."""

_SPLITTING = tuple(
    _Shape(rows, columns, consumers, False)
    for rows, columns, consumers in (
        (64, 32, 1), (64, 64, 1), (64, 128, 1), (128, 32, 2), (128, 64, 2), (128, 128, 2),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """A product to choose a tile for.

    Attributes:
        k: bytes of a row of A, by two; tensor cores take bytes twice as fast as 16-bit elements.
        itemsize: of the result.
        staged: whether it may go through shared memory and TMA.
        gathers: whether B is computed.
        narrow: whether B is K-major, so that tiles may have fewer columns than a line of memory.
        shares: whether the blocks of a cluster may share a sum.
        b_split: as in `Operands`; other operands have 16 bits.
    """

    batch: int
    m: int
    n: int
    k: int
    itemsize: int = 2
    staged: bool = True
    gathers: bool = False
    narrow: bool = False
    shares: bool = True
    b_split: Split | None = None

    @property
    def step(self) -> int:
        """Elements of the sum in one stage."""
        return ROW_BYTES // (2 if self.b_split is None else 4)

    @property
    def column_bytes(self) -> int:
        """Of one column of B in one stage."""
        split = self.b_split
        return ROW_BYTES if split is None else self.step * split.dtype.itemsize * split.count


@functools.cache
def choose_hopper_tile(task: Task) -> HopperTile:
    """The tile of least estimated time.

    >>> tile = choose_hopper_tile(Task(1, 8192, 8192, 8192))
    >>> tile.rows, tile.columns, tile.depth, tile.consumers, tile.cluster, tile.alternate
    (128, 256, 4, 2, 2, False)
    >>> tile = choose_hopper_tile(Task(1, 128, 768, 3072))  # few tiles, a long sum
    >>> tile.rows, tile.columns, tile.split
    (64, 64, 5)
    """

    def cost(tile: HopperTile) -> tuple[int, bool]:
        return round(estimated_seconds(tile, task) * 1e12), tile.alternate  # plain ones if equal

    return min(_candidates(task), key=cost)


def _candidates(task: Task) -> Iterator[HopperTile]:
    for shape in _shapes(task):
        boxes = shape.consumers * 2 * 64 * ROW_BYTES * task.staged
        for cluster in (1,) if task.gathers else (1, 2):
            if task.b_split and not task.b_split.transposed and shape.columns % (64 * cluster):
                continue  # each block copies whole rows of 64 columns
            yield HopperTile(
                shape.rows, shape.columns, _depth(shape, boxes, task), shape.consumers, cluster,
                staged=task.staged, alternate=shape.alternate,
            )  # fmt: skip
    if task.gathers or not task.shares:
        return
    for shape in _SPLITTING:
        if shape.columns % 64 and not task.narrow:
            continue
        for split in (s for s in _SPLITS if s * ROW_BYTES // 2 <= task.k):
            tile = HopperTile(shape.rows, shape.columns, 1, shape.consumers, split=split)
            yield replace(tile, depth=_depth(shape, parts_bytes(tile), task))


def _shapes(task: Task) -> Iterator[_Shape]:
    if task.b_split is None:
        yield from _GATHERING if task.gathers else _SHAPES
        return
    for rows, columns, consumers in _OF_PARTS[task.b_split.dtype]:
        yield _Shape(rows, columns, consumers, False)


def _depth(shape: _Shape, other: int, task: Task) -> int:
    """Stages of the ring that fit beside `other` bytes of shared memory."""
    stage = shape.rows * ROW_BYTES + shape.columns * task.column_bytes
    return min(8, (SHARED_LIMIT - other - 2048) // stage)


def blocks_of(tile: HopperTile, task: Task) -> tuple[int, int]:
    """How many blocks a product has, and how many the machine runs at a time."""
    together = tile.cluster * tile.split
    down = math.ceil(math.ceil(task.m / tile.rows) / tile.cluster) * tile.cluster
    blocks = task.batch * down * math.ceil(task.n / tile.columns) * tile.split
    return blocks, sum(group // together * together for group in _GROUPS)


def _step_seconds(tile: HopperTile, task: Task) -> float:
    """The slowest of what a stage needs."""
    flops = 2 * tile.rows * tile.columns * task.step
    copied = tile.rows * ROW_BYTES + tile.columns / tile.cluster * task.column_bytes
    split = task.b_split
    if split is None:
        read = tile.rows // 64 * (64 + tile.columns) * ROW_BYTES
        gathered = tile.columns * task.step * task.gathers
        return max(flops / TENSOR, copied / REFILL, read / SHARED, gathered / _GATHER)
    plan = PLANS[split]
    flops *= len(plan.products) * split.dtype.itemsize // 2  # tf32 has half the rate
    part = tile.columns * task.column_bytes // split.count
    read = tile.rows * ROW_BYTES + tile.rows // 64 * part * len(plan.products)
    slowest = max(flops / TENSOR, copied / REFILL, read / SHARED)
    alone = _SPLITTING_A[split.dtype] + _TURN + tile.columns // 2 * plan.promotes
    return max(slowest, alone / CLOCK + slowest / tile.consumers)


def estimated_seconds(tile: HopperTile, task: Task) -> float:
    """Estimated time of a product."""
    blocks, slots = blocks_of(tile, task)
    waves = math.ceil(blocks / slots)
    step = _step_seconds(tile, task) + BARRIERS
    size = tile.rows * tile.columns
    epilogue = size * task.itemsize / STORE
    start = FILL + MEETING * (tile.cluster * tile.split > 1)
    products = math.ceil(math.ceil(task.k * 2 / ROW_BYTES) / tile.split) * step
    if tile.split > 1:  # each block writes its sums, and reads a share of those of all others
        exchange = 4 * size * (1 / SHARED + (tile.split - 1) / tile.split / _REMOTE) + MEETING
        return waves * (start + products + exchange + epilogue / tile.split)
    if tile.alternate:  # only the last write of a block is exposed
        return waves * max(products, epilogue) + epilogue + start
    # Writes overlap with copies for the next tile, not with its products.
    return waves * (products + epilogue / 2) + epilogue / 2 + start
