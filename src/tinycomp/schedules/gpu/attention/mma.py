"""Attention of 16-bit operands on the tensor cores of warps.

Both products are by `mma.sync`. A warp has 16 rows; scores, weights and results stay in its
registers: the fragments of a product's result and of the next one's left operand hold the same
elements in the same lanes. (Dao, "FlashAttention-2", 2023.) What a row has, its top and its sums,
is a fragment too, whose columns are equal. Tiles of keys and values are copied ahead of time.

Where several query heads share a head of the keys, their queries are rows of one tile: row r is
query r / n of head r % n among the n that share, so that every key and value is read once for all
of them. That is what counts where there are few queries: such attention is as fast as the memory
that the keys are read from, with two operations for each byte and row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .... import te
from ....ir.expr import BinaryOp as Op
from ....ir.expr import Expr, Load, Var, as_expr, as_int, binary, const
from ....te.intrin import BufferView
from ....tir.nodes import Buffer, Collective, For, ForKind, If, Scope, Seq, Stmt, Store
from ....tir.passes.pipeline import PIPELINE
from ....tir.tensor_intrinsics.fragments import FragmentLayout
from ....tir.tensor_intrinsics.warp import (
    WarpOp,
    across_columns,
    load_matrix,
    mma,
    pack_fragment,
)
from ..loops import allocated, loop, rolled, rows_of, threads, unrolled, vector
from .frame import Frame

LANES = 32
ROWS = 16  # of a warp
_GRAIN = 16  # of keys, and of the elements of a head
_WIDTH = 8  # columns of a fragment of a result
_WIDE = 8  # elements of one access
_PAD = 8  # elements between rows in shared memory: ldmatrix meets no bank twice
_STEPS = 16  # copies of one thread that are written out
_STAGES = 2  # tiles of keys and values in shared memory
_FRAGMENT = FragmentLayout("c", 32)
_STATE = ("top", "raised", "base", "fade", "peak", "total", "sum")


class TensorCoreAttention:
    """Builds the loops of one kernel.

    Args:
        frame: the operands, and what a block has to do.
    """

    def __init__(self, frame: Frame, warps: int) -> None:
        self.frame, self.warps = frame, warps
        self.dtype, self.acc, self.keys = frame.q.dtype, frame.acc, frame.tile[1]
        sizes = frame.sizes
        self.depth, self.v_depth = (
            math.ceil(d / _GRAIN) * _GRAIN for d in (sizes.depth, sizes.v_depth)
        )
        rows = warps * ROWS
        shared = {
            "queries": (rows, self.depth + _PAD), "keys": (self.keys, self.depth + _PAD),
            "values": (self.keys, self.v_depth + _PAD),
        }  # fmt: skip
        held = {
            "query": (self.dtype, _GRAIN), "key": (self.dtype, _GRAIN),
            "value": (self.dtype, _GRAIN), "weight": (self.dtype, _GRAIN),
            "score": (self.acc, self.keys), "result": (self.acc, self.v_depth),
            **dict.fromkeys(_STATE, (self.acc, _WIDTH)),
        }  # fmt: skip
        self.buffers = {
            name: Buffer(name, _extents(*shape), self.dtype, Scope.SHARED)
            for name, shape in shared.items()
        }
        for name, (dtype, columns) in held.items():
            shape = _extents(warps, ROWS, columns)
            self.buffers[name] = Buffer(name, shape, dtype, Scope.WARP)

    def kernel(self) -> Stmt:
        frame, b = self.frame, self.buffers
        first, count = frame.key_tiles()
        tiles = loop("tile", count, lambda number: self._tile((first + number) * self.keys))
        sources = ((frame.k, frame.attrs.k_axes, frame.sizes.depth),
                   (frame.v, frame.attrs.v_axes, frame.sizes.v_depth))  # fmt: skip
        if all(_lanes(axes, depth) > 1 for _, axes, depth in sources):
            tiles = For(tiles.var, tiles.min, tiles.extent, tiles.body,
                        annotations={PIPELINE: _STAGES})  # fmt: skip
        body = Seq((*self._start(), tiles, *self._finish()))
        grid = For(frame.block, const(0), const(frame.blocks), body, ForKind.THREAD, "blockIdx.x")
        return allocated([x for n, x in b.items() if n not in ("keys", "values")], grid)

    # -- parts of buffers ----------------------------------------------------------------------

    def _part(self, name: str, base: Sequence[Any], shape: Sequence[int]) -> BufferView:
        """A part of a buffer over its last dimensions."""
        place = tuple(as_expr(x) for x in base)
        return BufferView(
            self.buffers[name], place, _extents(*shape), lambda b, i, v: Store(b, i, v)
        )

    def _fragment(self, name: str, y: Expr, column: Any = 0, columns: int = _WIDTH) -> BufferView:
        return self._part(name, (y, 0, column), (ROWS, columns))

    def _map(
        self, target: str, y: Expr, columns: int, value: Callable[[Any, Expr, Expr], Expr],
        *read: str,
    ) -> Stmt:  # fmt: skip
        """target[i, j] = value(load, i, j) for `columns` columns, by the lanes that hold them;
        `load(name)` is the same element of another array, or that of the row."""

        def one(number: Expr) -> Stmt:
            i, j = Var("i"), Var("j")
            start = number * _WIDTH

            def at(name: str) -> tuple[Expr, ...]:
                return (y, i, j if name in _STATE else start + j)

            def load(name: str) -> Expr:
                return Load(self.buffers[name], at(name), None)

            store = Store(self.buffers[target], at(target), value(load, i, start + j))
            return self._elements(store, i, j, [(n, 0 if n in _STATE else start) for n in read], y)

        return unrolled("fragment", columns // _WIDTH, one)

    def _elements(
        self, stmt: Stmt, i: Var, j: Var, read: Sequence[tuple[str, Any]], y: Expr,
        held: bool = True,
    ) -> Stmt:  # fmt: skip
        """A statement for the elements of a fragment that each lane holds."""
        operands = tuple(
            Load(self.buffers[name], (y, const(0), as_expr(start)), None) for name, start in read
        )
        for var, extent in ((j, _WIDTH), (i, ROWS)):
            stmt = For(var, const(0), const(extent), stmt)
        layouts = (*[_FRAGMENT] * len(operands), _FRAGMENT if held else None)
        return Collective(WarpOp("map", layouts), operands, stmt)

    def _threads(self, body: Callable[[Any, Any], Stmt]) -> Stmt:
        return threads(self.warps, LANES, body)

    # -- statements ----------------------------------------------------------------------------

    def _start(self) -> list[Stmt]:
        frame = self.frame
        low, zero = const(-math.inf, self.acc), const(0, self.acc)
        clear = rows_of(self.warps, lambda y: Seq((
            self._map("result", y, self.v_depth, lambda *_: zero),
            self._map("total", y, _WIDTH, lambda *_: zero),
            self._map("top", y, _WIDTH, lambda *_: low),
        )))  # fmt: skip
        copy = self._copy("queries", frame.q, frame.attrs.q_axes, frame.query, frame.sizes.depth)
        return [copy, clear]

    def _copy(
        self, name: str, source: Buffer, axes: Sequence[int],
        row: Callable[[Expr], tuple[Expr, Expr, Expr, Expr | None]], depth: int,
    ) -> Stmt:  # fmt: skip
        """Rows to shared memory, zeros where there are none: `row` gives batch, head and number of
        each, and whether it exists."""
        target = self.buffers[name]
        rows, width = map(as_int, target.shape)
        columns = width - _PAD
        lanes = _lanes(axes, depth)
        chunks, block = columns // lanes, self.warps * LANES
        total, by_rows = rows * chunks, axes[2] == 3

        def copy(y: Var, x: Var) -> Stmt:
            def step(s: Expr) -> Stmt:
                flat = (s * self.warps + y) * LANES + x
                at, d = (flat % rows, flat // rows) if by_rows else (flat // chunks, flat % chunks)
                stmt = vector("lane", lanes, lambda lane: one(at, d * lanes, lane))
                return stmt if total % block == 0 else If(flat < total, stmt)

            def one(at: Expr, d: Expr, lane: Expr) -> Stmt:
                batch, head, number, exists = row(at)
                place = dict(zip(axes, (batch, head, number, d + lane), strict=True))
                value: Expr = Load(source, tuple(place[a] for a in range(4)), None)
                inside = [] if exists is None else [exists]
                inside += [d < depth] * (columns != depth)
                for condition in inside:
                    value = te.if_then_else(condition, value, const(0, source.dtype))
                return Store(target, (at, d + lane), value)

            steps = math.ceil(total / block)
            return (unrolled if steps <= _STEPS else rolled)("step", steps, step)

        return self._threads(copy)

    def _tile(self, first: Expr) -> Stmt:
        """One tile of keys and values."""
        frame, attrs, sizes = self.frame, self.frame.attrs, self.frame.sizes

        def row(at: Expr) -> tuple[Expr, Expr, Expr, Expr | None]:
            return frame.key(first, at)

        copies = [
            self._copy("keys", frame.k, attrs.k_axes, row, sizes.depth),
            self._copy("values", frame.v, attrs.v_axes, row, sizes.v_depth),
        ]
        body = rows_of(self.warps, lambda y: Seq((
            self._scores(y), *self._soften(y, first), self._add(y)
        )))  # fmt: skip
        return allocated([self.buffers["keys"], self.buffers["values"]], Seq((*copies, body)))

    def _scores(self, y: Expr) -> Stmt:
        """score = queries keys^T"""
        product, load = mma(self.dtype, self.acc).fcompute, load_matrix("b", self.dtype).fcompute
        query = load_matrix("a", self.dtype).fcompute
        left = self._part("query", (y, 0, 0), (ROWS, _GRAIN))

        def step(d: Expr) -> Stmt:
            own = query([self._part("queries", (y * ROWS, d * _GRAIN), (ROWS, _GRAIN))], [left])

            def pair(j: Expr) -> Stmt:
                keys = self._part("keys", (j * 16, d * _GRAIN), (16, _GRAIN))
                fragment = load([keys], [self._part("key", (y, 0, 0), (16, _GRAIN))])
                parts = [
                    product(
                        [left, self._part("key", (y, half * 8, 0), (8, _GRAIN))],
                        [self._fragment("score", y, j * 16 + half * 8)],
                    )[2]
                    for half in range(2)
                ]
                return Seq((fragment, *parts))

            return Seq((own, unrolled("j", self.keys // 16, pair)))

        zero = const(0, self.acc)
        reset = self._map("score", y, self.keys, lambda *_: zero)
        return Seq((reset, unrolled("d", self.depth // _GRAIN, step)))

    def _soften(self, y: Expr, first: Expr) -> list[Stmt]:
        """Scores become weights."""
        frame, softmax, own = self.frame, self.frame.softmax, _WIDTH

        def masked(load: Any, i: Expr, j: Expr) -> Expr:
            return frame.masked(load("score"), y * ROWS + i, first + j)

        def largest(number: Expr) -> Stmt:
            return self._combine(Op.MAX, "peak", y, number)

        def add(number: Expr) -> Stmt:
            return self._combine(Op.ADD, "total", y, number)

        rest = unrolled("fragment", self.keys // own - 1, lambda f: largest(f + 1))
        return [
            self._map("score", y, self.keys, masked, "score"),
            self._map("peak", y, own, lambda load, i, j: load("score"), "score"),
            *([rest] if self.keys > own else []),
            self._map("raised", y, own, lambda load, i, j: load("top"), "top"),
            across_columns(Op.MAX, self._fragment("peak", y), self._fragment("raised", y)),
            self._map("base", y, own, lambda load, i, j: softmax.base(load("raised")), "raised"),
            self._map("fade", y, own, lambda load, i, j: softmax.weight(load("top"), load("base")),
                      "top", "base"),
            self._map("top", y, own, lambda load, i, j: load("raised"), "raised"),
            self._map("score", y, self.keys,
                      lambda load, i, j: softmax.weight(load("score"), load("base")),
                      "score", "base"),
            self._map("total", y, own, lambda load, i, j: load("total") * load("fade"),
                      "total", "fade"),
            unrolled("fragment", self.keys // own, add),
        ]  # fmt: skip

    def _combine(self, op: Op, target: str, y: Expr, number: Expr) -> Stmt:
        """target[i, j] = target[i, j] op score[i, 8 number + j]"""
        i, j = Var("i"), Var("j")
        held = Load(self.buffers[target], (y, i, j), None)
        score = Load(self.buffers["score"], (y, i, number * _WIDTH + j), None)
        store = Store(self.buffers[target], (y, i, j), binary(op, held, score))
        return self._elements(store, i, j, [(target, 0), ("score", number * _WIDTH)], y)

    def _add(self, y: Expr) -> Stmt:
        """result = result * fade + weights values"""
        product = mma(self.dtype, self.acc, b_transposed=True).fcompute
        load = load_matrix("b", self.dtype, True).fcompute
        left = self._part("weight", (y, 0, 0), (ROWS, _GRAIN))

        def step(k: Expr) -> Stmt:
            weight = pack_fragment(self._fragment("score", y, k * _GRAIN, _GRAIN), left, self.dtype)

            def pair(j: Expr) -> Stmt:
                values = self._part("values", (k * _GRAIN, j * 16), (_GRAIN, 16))
                fragment = load([values], [self._part("value", (y, 0, 0), (_GRAIN, 16))])
                parts = [
                    product(
                        [left, self._part("value", (y, 0, half * 8), (_GRAIN, 8))],
                        [self._fragment("result", y, j * 16 + half * 8)],
                    )[2]
                    for half in range(2)
                ]
                return Seq((fragment, *parts))

            return Seq((weight, unrolled("j", self.v_depth // 16, pair)))

        fade = self._map(
            "result", y, self.v_depth, lambda load, i, j: load("result") * load("fade"),
            "result", "fade",
        )  # fmt: skip
        return Seq((fade, unrolled("k", self.keys // _GRAIN, step)))

    def _finish(self) -> list[Stmt]:
        """The sums of rows, and the results where they belong."""
        return [rows_of(self.warps, lambda y: Seq((
            self._map("sum", y, _WIDTH, lambda *_: const(0, self.acc)),
            across_columns(Op.ADD, self._fragment("total", y), self._fragment("sum", y)),
            unrolled("fragment", math.ceil(self.frame.sizes.v_depth / _WIDTH),
                     lambda f: self._write(y, f)),
            *self._notes(y),
        )))]  # fmt: skip

    def _write(self, y: Expr, number: Expr) -> Stmt:
        i, j = Var("i"), Var("j")
        start, names = number * _WIDTH, ("result", "sum", "top")
        places = [start if name == "result" else const(0) for name in names]
        value, total, top = (
            Load(self.buffers[name], (y, i, at + j), None)
            for name, at in zip(names, places, strict=True)
        )
        stmt = self.frame.stored(y * ROWS + i, start + j, value, total, top)
        v_depth = self.frame.sizes.v_depth
        stmt = If(start + j < v_depth, stmt) if v_depth % _WIDTH else stmt
        return self._elements(stmt, i, j, list(zip(names, places, strict=True)), y, False)

    def _notes(self, y: Expr) -> list[Stmt]:
        """Top and sum of each row, for who adds up the parts."""
        notes: list[Stmt] = []
        for which, name in enumerate(("top", "sum") if self.frame.parts > 1 else ()):
            i, j = Var("i"), Var("j")
            value = Load(self.buffers[name], (y, i, j), None)
            stmt = If(j.equal(0), self.frame.noted(y * ROWS + i, j + which, value))
            notes.append(self._elements(stmt, i, j, [(name, 0)], y, False))
        return notes


def _lanes(axes: Sequence[int], depth: int) -> int:
    """Elements of a head that a thread copies together."""
    if axes[3] != 3:
        return 1
    return next(n for n in (_WIDE, 4, 2, 1) if depth % n == 0)


def _extents(*shape: int) -> tuple[Expr, ...]:
    return tuple(const(n) for n in shape)


__all__ = ["LANES", "ROWS", "TensorCoreAttention"]
