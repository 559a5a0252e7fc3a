"""Attention without tensor cores: both products as those of matrices, in tiles of shared memory and
registers.

The 16 x 16 threads hold the tile of the scores: thread (y, x) has `rows` neighbouring queries and
the keys x, x + 16, ...; a row belongs to 16 threads of one warp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....ir.expr import Binary, BinaryOp, Expr, Load, Var, const, select
from ....ops.fused_attention import Axes
from ....tir.nodes import Buffer, For, ForKind, If, Scope, Seq, Stmt, Store
from ....tir.passes.bind_threads import REDUCE_THREADS
from ..loops import allocated, inside, loop, rolled, rows_of, threads, unrolled, vector
from .frame import Frame

_SIDE = 16  # threads of a block in each direction
_WIDE = 4  # elements of one access of shared memory
_BUSY = 132  # blocks that give every multiprocessor of a large GPU work
_DEEP = 128  # elements of a head: more leave few registers
_SHARED_BYTES = 96 * 1024  # of a block: two fit on a multiprocessor


@dataclass(frozen=True)
class CoreTile:
    """A thread's share of a tile: `rows` queries, `columns` keys, and of the values `groups`
    times `lanes` neighbouring elements."""

    rows: int
    columns: int
    groups: int
    lanes: int

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and keys of a block's tile."""
        return _SIDE * self.rows, _SIDE * self.columns


def choose_core_tile(
    heads: int, queries: int, depth: int, v_depth: int, itemsize: int = 4
) -> CoreTile:
    """The largest tile of queries that leaves work for every multiprocessor.

    Args:
        heads: in the whole batch.
        itemsize: bytes of an element in shared memory.

    >>> choose_core_tile(12, 128, 64, 64)
    CoreTile(rows=1, columns=4, groups=1, lanes=4)
    >>> choose_core_tile(256, 2048, 64, 64)
    CoreTile(rows=4, columns=4, groups=1, lanes=4)
    """
    lanes = next(n for n in (4, 2, 1) if n == 1 or _waste(v_depth, _SIDE * n) <= 1.25)
    groups = math.ceil(v_depth / (_SIDE * lanes))
    rows = next(n for n in (4, 2, 1) if n == 1 or heads * math.ceil(queries / (_SIDE * n)) >= _BUSY)
    columns = 4
    tile = CoreTile(rows, columns, groups, lanes)
    while _shared_elements(tile, depth) * itemsize > _SHARED_BYTES and (rows > 1 or columns > 1):
        rows, columns = (rows, columns // 2) if columns >= rows else (rows // 2, columns)
        tile = CoreTile(rows, columns, groups, lanes)
    return tile


def _waste(extent: int, unit: int) -> float:
    return math.ceil(extent / unit) * unit / extent


def _shared_elements(tile: CoreTile, depth: int) -> int:
    line = _padded(depth)
    queries, keys = _SIDE * tile.rows, _SIDE * tile.columns
    values = keys * _SIDE * tile.groups * tile.lanes
    return (queries + keys) * line + values + queries * (keys + _WIDE)


def _padded(depth: int) -> int:
    """The stride of rows in shared memory: wide accesses of 16 rows meet in no bank."""
    return math.ceil(depth / _WIDE) * _WIDE + _WIDE


def _across(op: BinaryOp, target: Buffer, place: tuple[Expr, ...], source: Any) -> Stmt:
    """`target[place] = target[place] op source(x)` over the threads x of a row."""
    x = Var("x")
    store = Store(target, place, Binary(op, Load(target, place, None), source(x)))
    return For(x, const(0), const(_SIDE), store, annotations={REDUCE_THREADS: True})


class CoreAttention:
    """Builds the loops of one kernel.

    Args:
        frame: the operands, and what a block has to do.
        tile: of the frame's tile.
    """

    def __init__(self, frame: Frame, tile: CoreTile) -> None:
        self.frame, self.tile = frame, tile
        self.sizes, self.acc, self.softmax = frame.sizes, frame.acc, frame.softmax
        self.query_tile, self.key_tile = frame.tile
        self.line, self.value_line = _padded(self.sizes.depth), _SIDE * tile.groups * tile.lanes
        self.score_line = self.key_tile + _WIDE
        self.allocated: list[Buffer] = []

    # What a thread keeps has the threads as leading dimensions.

    def own(self, name: str, *shape: int) -> Buffer:
        return self.buffer(name, (_SIDE, _SIDE, *shape), Scope.LOCAL)

    def of_row(self, name: str) -> Buffer:
        """A value that the threads of a row have in common."""
        return self.buffer(name, (_SIDE, self.tile.rows), Scope.LOCAL)

    def buffer(self, name: str, shape: Sequence[int], scope: Scope) -> Buffer:
        made = Buffer(name, tuple(const(n) for n in shape), self.acc, scope)
        self.allocated.append(made)
        return made

    def kernel(self) -> Stmt:
        tile, frame, rows = self.tile, self.frame, self.query_tile
        self.queries = self.buffer("queries", (rows * self.line,), Scope.SHARED)
        self.keys = self.buffer("keys", (self.key_tile * self.line,), Scope.SHARED)
        self.values = self.buffer("values", (self.key_tile * self.value_line,), Scope.SHARED)
        self.weights = self.buffer("weights", (rows * self.score_line,), Scope.SHARED)
        self.score = self.own("score", tile.rows, tile.columns)
        self.sum = self.own("sum", tile.rows)
        self.result = self.own("result", tile.rows, tile.groups, tile.lanes)
        self.top = self.of_row("top")
        first, count = frame.key_tiles()
        key_tiles = loop("tile", count, lambda number: self._tile(first + number))
        body = Seq((self._start(), key_tiles, *self._finish()))
        grid = For(frame.block, const(0), const(frame.blocks), body, ForKind.THREAD, "blockIdx.x")
        return allocated(self.allocated, grid)

    # -- statements --------------------------------------------------------------------------

    def _start(self) -> Stmt:
        """Queries to shared memory, and nothing seen yet."""
        frame, (b, h, first) = self.frame, self.frame.place
        copy = self._copy(
            self.queries, self.query_tile, self.line, frame.q, frame.attrs.q_axes, (b, h), first,
            self.sizes.queries, self.sizes.depth,
        )  # fmt: skip
        zero, low = const(0, self.acc), const(-math.inf, self.acc)
        tile = self.tile

        def clear(y: Var, x: Var) -> Stmt:
            def row(r: Expr) -> Stmt:
                result = unrolled("g", tile.groups, lambda g: unrolled(
                    "lane", tile.lanes, lambda lane: Store(self.result, (y, x, r, g, lane), zero)
                ))  # fmt: skip
                return Seq((Store(self.top, (y, r), low), Store(self.sum, (y, x, r), zero), result))

            return unrolled("r", tile.rows, row)

        return Seq((copy, threads(_SIDE, _SIDE, clear)))

    def _tile(self, number: Expr) -> Stmt:
        """One tile of keys and values."""
        frame, sizes = self.frame, self.sizes
        first, rows, attrs = number * self.key_tile, self.key_tile, frame.attrs
        b, head, *_ = frame.key(first, const(0))
        keys = self._copy(
            self.keys, rows, self.line, frame.k, attrs.k_axes, (b, head), first, sizes.keys,
            sizes.depth,
        )  # fmt: skip
        values = self._copy(
            self.values, rows, self.value_line, frame.v, attrs.v_axes, (b, head), first,
            sizes.keys, sizes.v_depth,
        )  # fmt: skip
        return Seq((keys, values, *self._scores(first), *self._soften(), self._accumulate()))

    def _copy(
        self,
        target: Buffer,
        rows: int,
        line: int,
        source: Buffer,
        axes: Axes,
        head: tuple[Expr, Expr],
        first: Expr,
        count: int,
        depth: int,
    ) -> Stmt:
        """Rows `first` and following of a head of `source`, zeros where there are none.

        Threads follow each other along what lies along memory in `source`.
        """
        used = math.ceil(depth / _WIDE) * _WIDE if line != self.value_line else line
        lanes = _WIDE if axes[3] == 3 and depth % _WIDE == 0 and used % _WIDE == 0 else 1
        chunks = used // lanes
        total, block = rows * chunks, _SIDE * _SIDE
        by_rows = axes[2] == 3

        def copy(y: Var, x: Var) -> Stmt:
            def step(s: Expr) -> Stmt:
                flat = (s * _SIDE + y) * _SIDE + x
                row, chunk = (flat % rows, flat // rows) if by_rows else (
                    flat // chunks, flat % chunks
                )  # fmt: skip
                stmt = vector("lane", lanes, lambda lane: one(row, chunk * lanes, lane))
                return stmt if total % block == 0 else If(flat < total, stmt)

            def one(row: Expr, d: Expr, lane: Expr) -> Stmt:
                i, rows_in = inside(first + row, count, count % rows == 0)
                e, line_in = inside(d, depth, used == depth, lanes)
                at = dict(zip(axes, (*head, i, e + lane), strict=True))
                value: Expr = Load(source, tuple(at[a] for a in range(4)), None)
                for condition in (*rows_in, *line_in):
                    value = select(condition, value, const(0, source.dtype))
                return Store(target, (row * line + d + lane,), value.astype(self.acc))

            steps = math.ceil(total / block)
            together = 2 if depth <= _DEEP else 1  # that are under way at a time
            if steps % together:
                return unrolled("step", steps, step)
            return rolled("steps", steps // together, lambda outer: unrolled(
                "step", together, lambda s: step(outer * together + s)
            ))  # fmt: skip

        return threads(_SIDE, _SIDE, copy)

    def _scores(self, first: Expr) -> list[Stmt]:
        """score = queries keys^T, scaled and masked."""
        tile, score = self.tile, self.score
        left, right = self.own("left", tile.rows, _WIDE), self.own("right", tile.columns, _WIDE)

        def multiply(y: Var, x: Var) -> Stmt:
            def load(step: Expr) -> list[Stmt]:
                def query(r: Expr, e: Expr) -> Stmt:
                    at = (y * tile.rows + r) * self.line + step * _WIDE + e
                    return Store(left, (y, x, r, e), Load(self.queries, (at,), None))

                def key(c: Expr, e: Expr) -> Stmt:
                    at = (c * _SIDE + x) * self.line + step * _WIDE + e
                    return Store(right, (y, x, c, e), Load(self.keys, (at,), None))

                return [
                    unrolled("r", tile.rows, lambda r: vector("e", _WIDE, lambda e: query(r, e))),
                    unrolled("c", tile.columns, lambda c: vector("e", _WIDE, lambda e: key(c, e))),
                ]

            def add(e: Expr, r: Expr, c: Expr) -> Stmt:
                product = Load(left, (y, x, r, e), None) * Load(right, (y, x, c, e), None)
                at = (y, x, r, c)
                return Store(score, at, Load(score, at, None) + product)

            def step(s: Expr) -> Stmt:
                adds = unrolled("e", _WIDE, lambda e: self._each(lambda r, c: add(e, r, c)))
                return Seq((*load(s), adds))

            zero = const(0, self.acc)
            clear = self._each(lambda r, c: Store(score, (y, x, r, c), zero))
            finish = self._each(lambda r, c: self._mask(first, (y, x, r, c)))
            return Seq((clear, rolled("d", math.ceil(self.sizes.depth / _WIDE), step), finish))

        return [threads(_SIDE, _SIDE, multiply)]

    def _each(self, body: Any) -> Stmt:
        """The scores of a thread."""
        tile = self.tile
        return unrolled("r", tile.rows, lambda r: unrolled("c", tile.columns, lambda c: body(r, c)))

    def _mask(self, first: Expr, at: tuple[Expr, Expr, Expr, Expr]) -> Stmt:
        y, x, r, c = at
        row, key = y * self.tile.rows + r, first + c * _SIDE + x
        return Store(self.score, at, self.frame.masked(Load(self.score, at, None), row, key))

    def _soften(self) -> list[Stmt]:
        """Weights exp(score - top) to shared memory; what is there is scaled to the new top."""
        tile, low = self.tile, const(-math.inf, self.acc)
        best, top = self.own("best", tile.rows), self.top
        raised = self.of_row("raised")

        def find(y: Var, x: Var) -> Stmt:
            def row(r: Expr) -> Stmt:
                at = (y, x, r)

                def column(c: Expr) -> Stmt:
                    score = Load(self.score, (*at, c), None)
                    return Store(best, at, Binary(BinaryOp.MAX, Load(best, at, None), score))

                return Seq((
                    Store(best, at, low),
                    unrolled("c", tile.columns, column),
                    Store(raised, (y, r), Load(top, (y, r), None)),
                ))  # fmt: skip

            return unrolled("r", tile.rows, row)

        def combine(y: Var) -> Stmt:
            return unrolled("r", tile.rows, lambda r: _across(
                BinaryOp.MAX, raised, (y, r), lambda x: Load(best, (y, x, r), None)
            ))  # fmt: skip

        return [
            threads(_SIDE, _SIDE, find),
            rows_of(_SIDE, combine),
            threads(_SIDE, _SIDE, self._weigh(raised)),
        ]

    def _weigh(self, raised: Buffer) -> Any:
        tile = self.tile
        base, fade = self.own("base", tile.rows), self.own("fade", tile.rows)

        def weigh(y: Var, x: Var) -> Stmt:
            def row(r: Expr) -> Stmt:
                at, new = (y, x, r), Load(raised, (y, r), None)
                shift = Load(base, at, None)
                faded = self.softmax.weight(Load(self.top, (y, r), None), shift)

                def column(c: Expr) -> Stmt:
                    weight = (*at, c)
                    value = self.softmax.weight(Load(self.score, weight, None), shift)
                    line = (y * tile.rows + r) * self.score_line + c * _SIDE + x
                    total = Load(self.sum, at, None) + Load(self.score, weight, None)
                    return Seq((
                        Store(self.score, weight, value),
                        Store(self.sum, at, total),
                        Store(self.weights, (line,), Load(self.score, weight, None)),
                    ))  # fmt: skip

                def scale(g: Expr, lane: Expr) -> Stmt:
                    place = (*at, g, lane)
                    value = Load(self.result, place, None) * Load(fade, at, None)
                    return Store(self.result, place, value)

                return Seq((
                    Store(base, at, self.softmax.base(new)),
                    Store(fade, at, faded),
                    Store(self.top, (y, r), new),
                    Store(self.sum, at, Load(self.sum, at, None) * Load(fade, at, None)),
                    self._each_value(scale),
                    unrolled("c", tile.columns, column),
                ))  # fmt: skip

            return unrolled("r", tile.rows, row)

        return weigh

    def _each_value(self, body: Any) -> Stmt:
        """The values of a row that a thread accumulates."""
        tile = self.tile
        return unrolled(
            "g", tile.groups, lambda g: unrolled("lane", tile.lanes, lambda lane: body(g, lane))
        )

    def _accumulate(self) -> Stmt:
        """result += weights values."""
        tile, result = self.tile, self.result
        left = self.own("weight", tile.rows, _WIDE)
        right = self.own("value", tile.groups, tile.lanes)

        def multiply(y: Var, x: Var) -> Stmt:
            def weight(step: Expr, r: Expr, e: Expr) -> Stmt:
                at = (y * tile.rows + r) * self.score_line + step * _WIDE + e
                return Store(left, (y, x, r, e), Load(self.weights, (at,), None))

            def value(key: Expr, g: Expr, lane: Expr) -> Stmt:
                at = key * self.value_line + (g * _SIDE + x) * tile.lanes + lane
                return Store(right, (y, x, g, lane), Load(self.values, (at,), None))

            def add(e: Expr, r: Expr, g: Expr, lane: Expr) -> Stmt:
                at = (y, x, r, g, lane)
                product = Load(left, (y, x, r, e), None) * Load(right, (y, x, g, lane), None)
                return Store(result, at, Load(result, at, None) + product)

            def key(step: Expr, e: Expr) -> Stmt:
                values = unrolled("g", tile.groups, lambda g: vector(
                    "lane", tile.lanes, lambda lane: value(step * _WIDE + e, g, lane)
                ))  # fmt: skip
                adds = unrolled("r", tile.rows, lambda r: self._each_value(
                    lambda g, lane: add(e, r, g, lane)
                ))  # fmt: skip
                return Seq((values, adds))

            def step(s: Expr) -> Stmt:
                weights = unrolled("r", tile.rows, lambda r: vector(
                    "e", _WIDE, lambda e: weight(s, r, e)
                ))  # fmt: skip
                return Seq((weights, unrolled("e", _WIDE, lambda e: key(s, e))))

            return rolled("key", self.key_tile // _WIDE, step)

        return threads(_SIDE, _SIDE, multiply)

    def _finish(self) -> list[Stmt]:
        """The sums of the rows, and the result."""
        tile, frame, acc = self.tile, self.frame, self.acc
        total = self.of_row("total")

        def start(y: Var) -> Stmt:
            return unrolled("r", tile.rows, lambda r: Seq((
                Store(total, (y, r), const(0, acc)),
                _across(BinaryOp.ADD, total, (y, r), lambda x: Load(self.sum, (y, x, r), None)),
                *self._note(total, y, r),
            )))  # fmt: skip

        def write(y: Var, x: Var) -> Stmt:
            return unrolled("r", tile.rows, lambda r: unrolled(
                "g", tile.groups, lambda g: group(y, x, r, g)
            ))  # fmt: skip

        def group(y: Var, x: Var, r: Expr, g: Expr) -> Stmt:
            start, v_depth = (g * _SIDE + x) * tile.lanes, self.sizes.v_depth
            whole = v_depth % tile.lanes == 0

            def one(lane: Expr) -> Stmt:
                value = Load(self.result, (y, x, r, g, lane), None)
                sums = Load(total, (y, r), None), Load(self.top, (y, r), None)
                stmt = frame.stored(y * tile.rows + r, start + lane, value, *sums)
                return stmt if whole else If(start + lane < v_depth, stmt)

            if not whole:
                return unrolled("lane", tile.lanes, one)
            stmt = vector("lane", tile.lanes, one)
            return stmt if v_depth % self.value_line == 0 else If(start < v_depth, stmt)

        return [rows_of(_SIDE, start), threads(_SIDE, _SIDE, write)]

    def _note(self, total: Buffer, y: Var, r: Expr) -> list[Stmt]:
        """The largest score and the sum of a row, for who adds up the parts."""
        if self.frame.parts == 1:
            return []
        row = y * self.tile.rows + r
        return [
            self.frame.noted(row, const(which), Load(source, (y, r), None))
            for which, source in enumerate((self.top, total))
        ]
