"""What the producer of a matrix product on Hopper copies by TMA: tensor maps of the operands, and
the boxes of one step of the sum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ....ir.expr import BinaryOp as Op
from ....ir.expr import Expr, Var, as_int, binary, const
from ....tir.nodes import Buffer
from ....tir.tile.layout import ROW_BYTES, Major, Swizzle
from ....tir.tile.nodes import Barrier, Cursor, SharedTile, TensorMap, TmaLoad
from .operands import Gathered, HopperTile, Operands, Windows

_SWIZZLE = Swizzle(ROW_BYTES)


@dataclass(frozen=True, slots=True)
class Step:
    """Where a step of the sum is: which batch of the operands, which tap of a window, and the first
    element within that tap."""

    batch: Expr
    tap: Expr
    element: Expr


class Copies:
    """The copies of one product.

    Attributes:
        step: elements of the sum in one stage of the ring.
        steps: of the part of the sum that a block computes.
        maps: of A and of B, unless B is computed.
    """

    def __init__(self, operands: Operands, tile: HopperTile, rank: Var) -> None:
        self.operands, self.tile, self.rank = operands, tile, rank
        self.step = ROW_BYTES // operands.dtype.itemsize
        self.depth = operands.k // operands.taps  # of a tap
        self.per_tap = math.ceil(self.depth / self.step)
        self.total = operands.taps * self.per_tap
        self.parts = operands.slices * tile.split
        self.steps = math.ceil(self.total / self.parts)
        self.a_map = self._a_map()
        b = operands.b
        self.b_map = None if isinstance(b, Gathered) else self._b_map(b)
        self.maps = (self.a_map,) if self.b_map is None else (self.a_map, self.b_map)

    def _a_map(self) -> TensorMap:
        o, box = self.operands, (self.step, self.tile.rows)
        if not isinstance(o.a, Windows):
            return matrix_map("a", o.a, (o.k, o.m), o.batch * o.a_batches, box)
        n, h, w, c = (as_int(d) for d in o.a.image.shape)
        pixel = c * o.dtype.itemsize
        strides = (pixel, pixel * w, pixel * w * h)
        return TensorMap("a", o.a.image, (c, w, h, n), strides, box, _SWIZZLE, o.a.walk)

    def _b_map(self, b: Buffer) -> TensorMap:
        o, tile = self.operands, self.tile
        if o.b_major is Major.MN:
            box = (self.step, self.step // tile.cluster)  # 128 bytes of columns
            return matrix_map("b", b, (o.n, o.k), o.batch * o.b_batches, box)
        columns = tile.columns // tile.cluster
        if o.taps == 1:
            return matrix_map("b", b, (o.k, o.n), o.batch * o.b_batches, (self.step, columns))
        tap = self.depth * o.dtype.itemsize
        dims, strides = (self.depth, o.taps, o.n), (tap, tap * o.taps)
        return TensorMap("b", b, dims, strides, (self.step, 1, columns), _SWIZZLE)

    def place(self, result: Expr, k: Expr) -> Step:
        """Where step `k` of this block's part of a result begins."""
        slices, split = self.operands.slices, self.tile.split
        part = result % slices
        if split > 1:
            part = part * split + self.rank
        number = part * self.steps + k
        if self.operands.taps == 1:
            return Step(result // slices, const(0), number * self.step)
        tap = number // self.per_tap
        if self.parts * self.steps > self.total:  # zeros: channels behind the end
            tap = binary(Op.MIN, tap, self.operands.taps - 1)
        return Step(result // slices, tap, (number - tap * self.per_tap) * self.step)

    def load_a(
        self, step: Step, row: Expr, tile: SharedTile, cursor: Cursor, full: Barrier
    ) -> TmaLoad:
        """The rows of a tile from `row` on."""
        a = self.operands.a
        if not isinstance(a, Windows):
            at = self._batched((step.element, row), step, self.operands.a_batches)
            return TmaLoad(self.a_map, at, tile, const(0), cursor, full)
        at = (step.element, *a.pixel(row))
        return TmaLoad(self.a_map, at, tile, const(0), cursor, full, tap=a.tap(step.tap))

    def load_b(
        self, step: Step, column: Expr, tile: SharedTile, cursor: Cursor, full: Barrier
    ) -> Iterator[TmaLoad]:
        """What this block copies of B to all blocks of the cluster: each has its part."""
        assert self.b_map is not None
        cluster, o = self.tile.cluster, self.operands
        rank = self.rank if cluster > 1 else const(0)
        if o.b_major is Major.K:
            part = self.tile.columns // cluster
            tap = (step.tap,) if o.taps > 1 else ()
            boxes = [((step.element, *tap, column + rank * part), 0, part)]
        else:
            part = self.step // cluster
            boxes = [
                ((column + first, step.element + rank * part), first * ROW_BYTES, part)
                for first in range(0, self.tile.columns, self.step)
            ]
        for place, offset, part in boxes:
            at = self._batched(place, step, o.b_batches)
            where = rank * (part * ROW_BYTES) + offset
            yield TmaLoad(self.b_map, at, tile, where, cursor, full, cluster > 1)

    def _batched(self, place: tuple[Expr, ...], step: Step, batches: bool) -> tuple[Expr, ...]:
        return (*place, step.batch) if self.operands.batch * batches > 1 else place


def matrix_map(
    name: str, buffer: Buffer, dims: tuple[int, int], batch: int, box: tuple[int, int]
) -> TensorMap:
    """A matrix, or `batch` of them one after the other; `dims` and `box` innermost first."""
    row = dims[0] * buffer.dtype.itemsize
    if batch > 1:
        strides = (row, row * dims[1])
        return TensorMap(name, buffer, (*dims, batch), strides, (*box, 1), _SWIZZLE)
    return TensorMap(name, buffer, dims, (row,), box, _SWIZZLE)
