"""Attention on a GPU as one kernel that never writes the scores to memory.

A block owns a tile of the queries of one head. It goes over the keys tile by tile, and keeps for
every query the largest score so far, the sum of the exponentials, and the weighted values; when a
larger score comes, sum and values are scaled down. (Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018; Dao et al., "FlashAttention", NeurIPS 2022.)

The 16 x 16 threads hold the tile of the scores like that of a product: thread (y, x) has `rows`
neighbouring queries and the keys x, x + 16, ...; a row belongs to 16 threads of one warp.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ... import te
from ...codegen.cuda.limits import has_async_copies
from ...dtype import DType
from ...ir.expr import Binary, BinaryOp, Expr, Load, Var, as_int, const, select
from ...ops.fused_attention import AttentionAttrs, Axes
from ...ops.window import accumulation_dtype
from ...te.tensor import Tensor
from ...tir.nodes import Buffer, For, ForKind, If, Scope, Seq, Stmt, Store
from ...tir.passes.bind_threads import REDUCE_THREADS
from ...types import TensorType
from .attention_mma import TensorCoreAttention
from .attention_parts import combine_parts
from .loops import allocated, inside, loop, rolled, rows_of, threads, unrolled, vector
from .online_softmax import Mask, OnlineSoftmax

_SIDE = 16  # threads of a block in each direction
_WIDE = 4  # elements of one access of shared memory
_BUSY = 132  # blocks that give every multiprocessor of a large GPU work
_DEEP = 128  # elements of a head: more leave few registers
_SHARED_BYTES = 96 * 1024  # of a block: two fit on a multiprocessor


@dataclass(frozen=True)
class AttentionTile:
    """A thread's share of a tile: `rows` queries, `columns` keys, and of the values `groups`
    times `lanes` neighbouring elements."""

    rows: int
    columns: int
    groups: int
    lanes: int


@dataclass(frozen=True)
class _Sizes:
    batch: int
    heads: int
    queries: int
    keys: int
    depth: int
    v_depth: int
    shared: int  # query heads for each head of the keys


def choose_attention_tile(
    heads: int, queries: int, depth: int, v_depth: int, itemsize: int = 4
) -> AttentionTile:
    """The largest tile of queries that leaves work for every multiprocessor.

    Args:
        heads: in the whole batch.
        itemsize: bytes of an element in shared memory.

    >>> choose_attention_tile(12, 128, 64, 64)
    AttentionTile(rows=1, columns=4, groups=1, lanes=4)
    >>> choose_attention_tile(256, 2048, 64, 64)
    AttentionTile(rows=4, columns=4, groups=1, lanes=4)
    """
    lanes = next(n for n in (4, 2, 1) if n == 1 or _waste(v_depth, _SIDE * n) <= 1.25)
    groups = math.ceil(v_depth / (_SIDE * lanes))
    rows = next(n for n in (4, 2, 1) if n == 1 or heads * math.ceil(queries / (_SIDE * n)) >= _BUSY)
    columns = 4
    tile = AttentionTile(rows, columns, groups, lanes)
    while _shared_elements(tile, depth) * itemsize > _SHARED_BYTES and (rows > 1 or columns > 1):
        rows, columns = (rows, columns // 2) if columns >= rows else (rows // 2, columns)
        tile = AttentionTile(rows, columns, groups, lanes)
    return tile


def _waste(extent: int, unit: int) -> float:
    return math.ceil(extent / unit) * unit / extent


def _shared_elements(tile: AttentionTile, depth: int) -> int:
    line = _padded(depth)
    queries, keys = _SIDE * tile.rows, _SIDE * tile.columns
    values = keys * _SIDE * tile.groups * tile.lanes
    return (queries + keys) * line + values + queries * (keys + _WIDE)


def _padded(depth: int) -> int:
    """The stride of rows in shared memory: wide accesses of 16 rows meet in no bank."""
    return math.ceil(depth / _WIDE) * _WIDE + _WIDE


def expand_attention(
    attrs: AttentionAttrs, args: Sequence[Tensor], out: TensorType, arch: str
) -> list[Tensor] | None:
    """nn.attention as hand-written loops; None for what has no elements."""
    q, k, v = args[:3]
    batch, heads, queries, depth = (as_int(q.shape[a]) for a in attrs.q_axes)
    kv_heads, keys = (as_int(k.shape[attrs.k_axes[d]]) for d in (1, 2))
    v_depth = as_int(v.shape[attrs.v_axes[3]])
    if 0 in (*out.static_shape, depth, keys):
        return None
    sizes = _Sizes(batch, heads, queries, keys, depth, v_depth, heads // kv_heads)
    itemsize = accumulation_dtype(out.dtype).itemsize
    tile = choose_attention_tile(batch * heads, queries, depth, v_depth, itemsize)

    parts = _choose_parts(sizes, tile)
    if parts == 1 and out.dtype.bits == 16 and has_async_copies(arch):
        return [_on_tensor_cores(attrs, args, out, sizes)]

    def make(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        return _Attention(attrs, sizes, tile, ins, outs, parts).kernel()

    if parts == 1:
        return [te.extern(out.static_shape, args, make, name="attention", dtype=out.dtype)]
    acc = accumulation_dtype(out.dtype)
    rows = (parts, batch, heads, queries)
    values, notes = te.extern([(*rows, v_depth), (*rows, 2)], args, make, "part", [acc, acc])
    return [combine_parts(values, notes, _softmax(attrs, args[3:], sizes, tile, acc), out)]


def _on_tensor_cores(
    attrs: AttentionAttrs, args: Sequence[Tensor], out: TensorType, sizes: _Sizes
) -> Tensor:
    heads = sizes.batch * sizes.heads
    warps = 4 if heads * math.ceil(sizes.queries / (4 * _SIDE)) >= _BUSY else 2
    tile = AttentionTile(warps, 4, 1, 1)

    def make(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        return TensorCoreAttention(_Attention(attrs, sizes, tile, ins, outs), warps).kernel()

    return te.extern(out.static_shape, args, make, name="attention", dtype=out.dtype)


def _choose_parts(sizes: _Sizes, tile: AttentionTile) -> int:
    """Among how many blocks the keys are shared: several where there are few queries and many
    keys, at least two tiles for each. (Dao et al., "Flash-Decoding", 2023.)"""
    blocks = sizes.batch * sizes.heads * math.ceil(sizes.queries / (_SIDE * tile.rows))
    tiles = math.ceil(sizes.keys / (_SIDE * tile.columns))
    parts = min(tiles // 2, math.ceil(_BUSY / blocks))
    return math.ceil(tiles / math.ceil(tiles / parts)) if parts > 1 and 2 * blocks <= _BUSY else 1


# -- loops -------------------------------------------------------------------------------------


def _across(op: BinaryOp, target: Buffer, place: tuple[Expr, ...], source: Any) -> Stmt:
    """`target[place] = target[place] op source(x)` over the threads x of a row."""
    x = Var("x")
    store = Store(target, place, Binary(op, Load(target, place, None), source(x)))
    return For(x, const(0), const(_SIDE), store, annotations={REDUCE_THREADS: True})


class _Attention:
    """Builds the loops of one kernel."""

    def __init__(
        self,
        attrs: AttentionAttrs,
        sizes: _Sizes,
        tile: AttentionTile,
        ins: Sequence[Buffer],
        outs: Sequence[Buffer],
        parts: int = 1,
    ) -> None:
        self.attrs, self.sizes, self.tile = attrs, sizes, tile
        (self.q, self.k, self.v), self.masks, self.outs = ins[:3], ins[3:], outs
        self.parts, self.acc = parts, accumulation_dtype(self.q.dtype)
        self.query_tile, self.key_tile = _SIDE * tile.rows, _SIDE * tile.columns
        self.softmax = _softmax(attrs, self.masks, sizes, tile, self.acc)
        self.line, self.value_line = _padded(sizes.depth), _SIDE * tile.groups * tile.lanes
        self.score_line = self.key_tile + _WIDE
        self.block = Var("block")
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

    @property
    def part(self) -> Expr:
        """Which part of the keys this block sees."""
        return self.block % self.parts

    @cached_property
    def place(self) -> tuple[Expr, Expr, Expr]:
        """Batch, head and first query of this block."""
        tiles = math.ceil(self.sizes.queries / self.query_tile)
        tile = self.block // self.parts
        head, first = tile // tiles, tile % tiles * self.query_tile
        return head // self.sizes.heads, head % self.sizes.heads, first

    def kernel(self) -> Stmt:
        tile, sizes = self.tile, self.sizes
        rows = self.query_tile
        self.queries = self.buffer("queries", (rows * self.line,), Scope.SHARED)
        self.keys = self.buffer("keys", (self.key_tile * self.line,), Scope.SHARED)
        self.values = self.buffer("values", (self.key_tile * self.value_line,), Scope.SHARED)
        self.weights = self.buffer("weights", (rows * self.score_line,), Scope.SHARED)
        self.score = self.own("score", tile.rows, tile.columns)
        self.sum = self.own("sum", tile.rows)
        self.result = self.own("result", tile.rows, tile.groups, tile.lanes)
        self.top = self.of_row("top")
        tiles = math.ceil(sizes.queries / rows) * sizes.batch * sizes.heads
        first, count = self.key_tiles()
        key_tiles = loop("tile", count, lambda number: self._tile(first + number))
        body = Seq((self._start(), key_tiles, *self._finish()))
        blocks = const(tiles * self.parts)
        stmt: Stmt = For(self.block, const(0), blocks, body, ForKind.THREAD, "blockIdx.x")
        return allocated(self.allocated, stmt)

    def key_tiles(self) -> tuple[Expr, Expr]:
        """The first tile of the keys that this block sees, and how many it sees."""
        whole = math.ceil(self.sizes.keys / self.key_tile)
        share = math.ceil(whole / self.parts)
        first = self.part * share
        count, causal = const(share), self.attrs.causal
        if share * self.parts != whole:
            count = Binary(BinaryOp.MIN, count, whole - first)
        if causal is not None and causal + self.query_tile < self.sizes.keys:
            last = self.place[2] + self.query_tile + causal  # exclusive
            seen = (last + self.key_tile - 1) // self.key_tile - first
            count = Binary(BinaryOp.MAX, Binary(BinaryOp.MIN, seen, count), const(0))
        return first, count

    # -- statements --------------------------------------------------------------------------

    def _start(self) -> Stmt:
        """Queries to shared memory, and nothing seen yet."""
        b, h, first = self.place
        copy = self._copy(
            self.queries, self.query_tile, self.line, self.q, self.attrs.q_axes, (b, h), first,
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
        b, h, _ = self.place
        head = h // self.sizes.shared if self.sizes.shared > 1 else h
        first, attrs, sizes = number * self.key_tile, self.attrs, self.sizes
        rows = self.key_tile
        keys = self._copy(
            self.keys, rows, self.line, self.k, attrs.k_axes, (b, head), first, sizes.keys,
            sizes.depth,
        )  # fmt: skip
        values = self._copy(
            self.values, rows, self.value_line, self.v, attrs.v_axes, (b, head), first,
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
        return Store(self.score, at, self.masked(Load(self.score, at, None), row, key))

    def masked(self, product: Expr, row: Expr, key: Expr) -> Expr:
        """The score of a product of a row of this block and a key."""
        b, h, query = self.place
        return self.softmax.score(product, (b, h, query + row, key))

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
        tile, attrs, sizes, acc = self.tile, self.attrs, self.sizes, self.acc
        total = self.of_row("total")
        b, h, first = self.place

        def start(y: Var) -> Stmt:
            return unrolled("r", tile.rows, lambda r: Seq((
                Store(total, (y, r), const(0, acc)),
                _across(BinaryOp.ADD, total, (y, r), lambda x: Load(self.sum, (y, x, r), None)),
                *self._note(total, y, r),
            )))  # fmt: skip

        def write(y: Var, x: Var) -> Stmt:
            def row(r: Expr) -> Stmt:
                i = first + y * tile.rows + r
                stmt = unrolled("g", tile.groups, lambda g: group(r, i, g))
                return stmt if sizes.queries % self.query_tile == 0 else If(i < sizes.queries, stmt)

            def group(r: Expr, i: Expr, g: Expr) -> Stmt:
                start = (g * _SIDE + x) * tile.lanes
                if sizes.v_depth % tile.lanes == 0 and attrs.out_axes[3] == 3:
                    stmt = vector("lane", tile.lanes, lambda lane: one(r, i, g, lane))
                    return stmt if sizes.v_depth % self.value_line == 0 else If(
                        start < sizes.v_depth, stmt
                    )  # fmt: skip
                return unrolled("lane", tile.lanes, lambda lane: If(
                    start + lane < sizes.v_depth, one(r, i, g, lane)
                ))  # fmt: skip

            def one(r: Expr, i: Expr, g: Expr, lane: Expr) -> Stmt:
                value: Expr = Load(self.result, (y, x, r, g, lane), None)
                if self.parts > 1:
                    e = (g * _SIDE + x) * tile.lanes + lane
                    return Store(self.outs[0], (self.part, b, h, i, e), value)
                sums = Load(total, (y, r), None), Load(self.top, (y, r), None)
                value = self.softmax.result(value, *sums)
                at = (b, h, i, (g * _SIDE + x) * tile.lanes + lane)
                place = tuple(at[a] for a in attrs.out_axes)
                return Store(self.outs[0], place, value.astype(self.outs[0].dtype))

            return unrolled("r", tile.rows, row)

        return [rows_of(_SIDE, start), threads(_SIDE, _SIDE, write)]

    def _note(self, total: Buffer, y: Var, r: Expr) -> list[Stmt]:
        """The largest score and the sum of a row, for who adds up the parts."""
        if self.parts == 1:
            return []
        b, h, first = self.place
        i = first + y * self.tile.rows + r
        notes = (
            Store(self.outs[1], (self.part, b, h, i, const(n)), Load(source, (y, r), None))
            for n, source in enumerate((self.top, total))
        )
        fits = self.sizes.queries % self.query_tile == 0
        return [note if fits else If(i < self.sizes.queries, note) for note in notes]


def _softmax(
    attrs: AttentionAttrs, masks: Sequence[Any], sizes: _Sizes, tile: AttentionTile, acc: DType
) -> OnlineSoftmax:
    read = tuple(Mask(m.dtype, functools.partial(_broadcast, m)) for m in masks)
    shape = (_SIDE * tile.rows, _SIDE * tile.columns)
    return OnlineSoftmax(attrs, read, acc, sizes.queries, sizes.keys, shape)


def _broadcast(mask: Buffer, index: Sequence[Expr]) -> Expr:
    """The element of a mask that broadcasting puts at `index`."""
    own = index[4 - len(mask.shape) :]
    place = (const(0) if as_int(d) == 1 else i for d, i in zip(mask.shape, own, strict=True))
    return Load(mask, tuple(place), None)
