"""Sums in parts over the blocks of a cluster: each computes the whole tile over its part of the
sum, and they add up in shared memory that they reach of each other (distributed shared memory).

    parts[block][i, j]  ->  out[i, j] = epilogue(parts[0][i, j] + parts[1][i, j] + ...)

Every block adds a share of the tile, in the order of the blocks, so results do not depend on who is
first. Unlike slices in memory this needs no second launch. (CUTLASS calls it split-K with a cluster
reduction.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ....ir.expr import BinaryOp as Op
from ....ir.expr import Expr, Load, Var, all_of, binary, const, substitute
from ....target import Target
from ....tir.nodes import Buffer, For, ForKind, If, PrimFunc, Scope, Stmt, Store
from ....tir.passes.simplify import simplify
from ....tir.passes.vectorize import vectorize
from ....tir.tile.layout import fragment_row
from ....tir.tile.nodes import (
    Accumulator,
    Arrive,
    Barrier,
    Cursor,
    NamedBarrier,
    SharedTile,
    TensorMap,
    ThreadCode,
    Wait,
)
from .epilogue import PAIRS, ROWS
from .operands import Epilogue, HopperTile, Operands

_LANES = 4  # neighbouring columns that a thread adds up
_QUADS = Target("cuda", vector_bits=32 * _LANES)
_APART = 8  # elements between rows, so that fragments are stored without bank conflicts


def parts_bytes(tile: HopperTile) -> int:
    """Shared memory for the sums of one block."""
    return tile.rows * (tile.columns + _APART) * 4


@dataclass(frozen=True)
class ClusterSum:
    """The end of a consumer whose cluster shares a tile's sum.

    Attributes:
        parts: the sums of each block.
        ready: the barrier that all consumers of the cluster arrive at.
    """

    operands: Operands
    epilogue: Epilogue
    tile: HopperTile
    rank: Var
    parts: SharedTile
    ready: Barrier
    cursor: Cursor

    maps: ClassVar[tuple[TensorMap, ...]] = ()
    done: ClassVar[tuple[Stmt, ...]] = ()

    @staticmethod
    def of(operands: Operands, epilogue: Epilogue, tile: HopperTile, rank: Var) -> ClusterSum:
        nbytes = parts_bytes(tile)
        shape = (const(tile.split), const(nbytes // 4))
        buffer = Buffer("parts", shape, operands.sum, Scope.CLUSTER, 1024)
        parts = SharedTile("parts", operands.sum, nbytes, 1, buffer)
        ready = Barrier("ready", tile.consumers * tile.split, 1)
        return ClusterSum(operands, epilogue, tile, rank, parts, ready, Cursor("meeting", 1))

    @property
    def tiles(self) -> tuple[SharedTile, ...]:
        return (self.parts,)

    @property
    def barriers(self) -> tuple[Barrier, ...]:
        return (self.ready,)

    @property
    def cursors(self) -> tuple[Cursor, ...]:
        return (self.cursor,)

    def write(
        self, acc: Accumulator, batch: Var, row: Expr, column: Expr, part: Expr, warpgroup: Var,
        thread: Var,
    ) -> list[Stmt]:  # fmt: skip
        """Give the sums of this warpgroup, wait for all others, add this block's share."""
        give = [ThreadCode(self._give(acc, i, part, thread)) for i in range(acc.tiles)]
        return [
            *give,
            NamedBarrier(warpgroup + 1, 1),
            Arrive(self.ready, self.cursor, True),
            Wait(self.ready, self.cursor, cluster=True),
            ThreadCode(self._take(batch, row, column, warpgroup * 128 + thread)),
        ]

    def _at(self, row: Expr, column: Expr) -> Expr:
        return row * (self.tile.columns + _APART) + column

    def _give(self, acc: Accumulator, i: int, part: Expr, thread: Var) -> Stmt:
        group, half, lane = Var("group"), Var("half"), Var("lane")
        register = group * 4 + half * 2
        row = (part + i) * ROWS + fragment_row(thread, half * 2)
        at = self._at(row, group * 8 + thread % 4 * 2) + lane
        value = Load(acc.buffer, (i * acc.shape.registers + register + lane,), None)
        store: Stmt = Store(self.parts.buffer, (self.rank, at), value)
        store = For(lane, const(0), const(2), store, ForKind.VECTORIZED)
        store = For(half, const(0), const(2), store, ForKind.UNROLLED)
        store = For(group, const(0), const(self.tile.columns // 8), store, ForKind.UNROLLED)
        return simplify(vectorize(PrimFunc("give", (), 0, store), PAIRS)).body

    def _take(self, batch: Var, row: Expr, column: Expr, thread: Expr) -> Stmt:
        """Each thread adds `_LANES` columns at a time of every few rows."""
        tile, e, o = self.tile, self.epilogue, self.operands
        per_row, threads = tile.columns // _LANES, tile.consumers * 128
        units = tile.rows * per_row
        rounds = math.ceil(units / tile.split / threads)
        turn, lane = Var("turn"), Var("lane")
        unit = (self.rank * rounds + turn) * threads + thread
        in_row, in_column = unit // per_row, unit % per_row * _LANES
        at_row, at_column = row + in_row, column + in_column
        known = {e.batch: batch, e.row: at_row, e.column: at_column + lane}
        total: Expr = self._part(0, in_row, in_column + lane)
        for block in range(1, tile.split):
            total = binary(Op.ADD, total, self._part(block, in_row, in_column + lane))
        value = substitute(e.value, {**known, e.acc: total})
        store: Stmt = Store(e.out, tuple(substitute(x, known) for x in e.indices), value)
        store = For(lane, const(0), const(_LANES), store, ForKind.VECTORIZED)
        edges = [unit < units] * (rounds * threads * tile.split > units)
        edges += [at_row < o.m] * bool(o.m % tile.rows)
        edges += [at_column < o.n] * bool(o.n % tile.columns)
        store = If(all_of(edges), store) if edges else store
        store = For(turn, const(0), const(rounds), store, ForKind.UNROLLED)
        return simplify(vectorize(PrimFunc("take", (), 0, store), _QUADS)).body

    def _part(self, block: int, row: Expr, column: Expr) -> Expr:
        return Load(self.parts.buffer, (const(block), self._at(row, column)), None)
