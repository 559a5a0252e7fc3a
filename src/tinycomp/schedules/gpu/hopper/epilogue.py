"""What consumers of a matrix product on Hopper do with their accumulators: the elementwise work
behind the product, and stores, straight or through shared memory and TMA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ....dtype import DType
from ....ir.expr import BinaryOp as Op
from ....ir.expr import Expr, Load, Var, all_of, binary, const, substitute
from ....ir.node import postorder
from ....target import Target
from ....tir.nodes import Buffer, For, ForKind, If, PrimFunc, Scope, Stmt, Store
from ....tir.passes.simplify import simplify
from ....tir.passes.vectorize import vectorize
from ....tir.tile.layout import ROW_BYTES, WgmmaShape, fragment_row
from ....tir.tile.nodes import (
    Accumulator,
    Barrier,
    CommitStores,
    Cursor,
    FenceProxy,
    NamedBarrier,
    SharedTile,
    TensorMap,
    ThreadCode,
    TmaStore,
    WaitStores,
)
from .copies import matrix_map
from .operands import Epilogue, HopperTile, Operands

ROWS = 64  # of one wgmma
SLOTS = 2  # boxes of the result per warpgroup that are being stored
PAIRS = Target("cuda", vector_bits=64)  # a thread has two neighbouring columns


@dataclass(frozen=True)
class Writer:
    """Writes tiles of the result.

    Attributes:
        width: columns of a box that is stored by TMA, from a slot of `out_tile`.
        batched: whether there are several results.
    """

    name: str
    operands: Operands
    epilogue: Epilogue
    tile: HopperTile
    shape: WgmmaShape
    out_tile: SharedTile
    out_map: TensorMap
    width: int
    batched: bool

    barriers: ClassVar[tuple[Barrier, ...]] = ()
    cursors: ClassVar[tuple[Cursor, ...]] = ()

    @staticmethod
    def of(
        name: str, operands: Operands, epilogue: Epilogue, tile: HopperTile, shape: WgmmaShape
    ) -> Writer:
        out, results = epilogue.out, operands.batch * operands.slices
        width = ROW_BYTES // out.dtype.itemsize
        boxes = tile.consumers * SLOTS
        return Writer(
            name, operands, epilogue, tile, shape,
            shared_tile("out_tile", out.dtype, ROWS * ROW_BYTES, boxes),
            matrix_map("out", out, (operands.n, operands.m), results, (width, ROWS)),
            width, results > 1,
        )  # fmt: skip

    @property
    def maps(self) -> tuple[TensorMap, ...]:
        return (self.out_map,) if self.tile.staged else ()

    @property
    def tiles(self) -> tuple[SharedTile, ...]:
        return (self.out_tile,) if self.tile.staged else ()

    @property
    def done(self) -> tuple[Stmt, ...]:
        """What comes after the last tile."""
        return (WaitStores(0),) if self.tile.staged else ()

    def write(
        self, acc: Accumulator, batch: Var, row: Expr, column: Expr, part: Expr, warpgroup: Var,
        thread: Var,
    ) -> list[Stmt]:  # fmt: skip
        """Write the sums of a warpgroup, from wgmma tile `part` of the rows that begin at `row`."""
        row = row + part * ROWS
        if not self.tile.staged:
            return [
                ThreadCode(self._direct(acc, i, batch, row + i * ROWS, column, thread))
                for i in range(acc.tiles)
            ]
        out: list[Stmt] = []
        meet = NamedBarrier(warpgroup + 1, 1)
        chunks = [(i, c) for i in range(acc.tiles) for c in range(self.tile.columns // self.width)]
        for number, (i, c) in enumerate(chunks):
            slot = warpgroup * SLOTS + number % SLOTS
            corner = (column + c * self.width, row + i * ROWS)
            code = self._to_shared(acc, i, c, batch, corner[1], column, thread, slot)
            at = (*corner, *([batch] if self.batched else []))
            offset = slot * self.out_tile.nbytes
            since = _stores_since(number, len(chunks))
            out += [WaitStores(since - 1), meet, ThreadCode(code), FenceProxy(), meet]
            out += [TmaStore(self.out_map, at, self.out_tile, offset), CommitStores()]
        return out

    def _direct(
        self, acc: Accumulator, i: int, batch: Var, row: Expr, column: Expr, thread: Var
    ) -> Stmt:
        """Each thread stores its fragment where it belongs."""
        group, half, lane = Var("group"), Var("half"), Var("lane")
        register = group * 4 + half * 2
        e, o, tile = self.epilogue, self.operands, self.tile
        at_row = row + fragment_row(thread, half * 2)
        at_column = column + group * 8 + thread % 4 * 2
        known = {e.batch: batch, e.row: at_row, e.column: at_column + lane}
        value = self._value(acc, i * self.shape.registers + register + lane, known)
        store = Store(e.out, tuple(substitute(x, known) for x in e.indices), value)
        edges = [at_row < o.m] * bool(o.m % (tile.rows * tile.cluster))
        last = at_column + lane if o.n % 2 else at_column
        edges += [last < o.n] * bool(o.n % tile.columns)
        return self._loops(store, group, tile.columns // 8, half, lane, edges)

    def _to_shared(
        self, acc: Accumulator, i: int, chunk: int, batch: Var, row: Expr, column: Expr,
        thread: Var, slot: Expr,
    ) -> Stmt:  # fmt: skip
        """The fragment's columns of one box, swizzled as TMA expects them."""
        group, half, lane = Var("group"), Var("half"), Var("lane")
        e, o, tile = self.epilogue, self.operands, self.tile
        register = (group + chunk * self.width // 8) * 4 + half * 2
        in_row = fragment_row(thread, half * 2)
        in_column = group * 8 + thread % 4 * 2
        at_row, at_column = row + in_row, column + chunk * self.width + in_column
        known = {e.batch: batch, e.row: at_row, e.column: at_column + lane}
        value = self._value(acc, i * self.shape.registers + register + lane, known)
        itemsize = self.out_tile.dtype.itemsize
        pair = 2 * itemsize
        per_row, per_unit = ROW_BYTES // pair, 16 // pair  # in pairs, so that they stay aligned
        mask = (in_row % 8) * per_unit
        where = slot * (ROWS * per_row) + in_row * per_row
        where = where + binary(Op.BIT_XOR, in_column // 2, mask)
        store = Store(self.out_tile.buffer, (where * 2 + lane,), value)
        edges: list[Expr] = []
        if _reads_elements(e):
            edges += [at_row < o.m] * bool(o.m % (tile.rows * tile.cluster))
            edges += [at_column < o.n] * bool(o.n % tile.columns)
        return self._loops(store, group, self.width // 8, half, lane, edges)

    def _value(self, acc: Accumulator, register: Expr, known: dict[Var, Expr]) -> Expr:
        held = Load(acc.buffer, (register,), None)
        return substitute(self.epilogue.value, {**known, self.epilogue.acc: held})

    def _loops(
        self, store: Store, group: Var, groups: int, half: Var, lane: Var, edges: list[Expr]
    ) -> Stmt:
        if self.operands.n % 2:
            guarded = If(all_of(edges), store) if edges else store
            body: Stmt = For(lane, const(0), const(2), guarded, ForKind.UNROLLED)
        else:
            pairs = For(lane, const(0), const(2), store, ForKind.VECTORIZED)
            body = If(all_of(edges), pairs) if edges else pairs
        body = For(half, const(0), const(2), body, ForKind.UNROLLED)
        body = For(group, const(0), const(groups), body, ForKind.UNROLLED)
        func = PrimFunc(self.name, (), 0, body)
        return simplify(vectorize(func, PAIRS)).body


def shared_tile(name: str, dtype: DType, nbytes: int, stages: int) -> SharedTile:
    elements = const(stages * nbytes // dtype.itemsize)
    buffer = Buffer(name, (elements,), dtype, Scope.SHARED, 1024)
    return SharedTile(name, dtype, nbytes, stages, buffer)


def _stores_since(number: int, count: int) -> int:
    """How many stores ago the slot of box `number` of `count` per tile was used.

    >>> [_stores_since(i, 3) for i in range(3)], [_stores_since(i, 4) for i in range(4)]
    ([1, 3, 2], [2, 2, 2, 2])
    """
    if number >= SLOTS:
        return SLOTS
    last = max(i for i in range(count) if i % SLOTS == number)  # of the tile before
    return count - last + number


def _reads_elements(epilogue: Epilogue) -> bool:
    return any(isinstance(node, Load) for node in postorder(epilogue.value))
