"""Attention of 16-bit operands on the tensor cores of warps.

As `attention`, with both products by `mma.sync`: a warp owns 16 queries, whose scores go through
shared memory to the lanes that soften them, and the weights back as an operand of the second
product. The result stays in registers as an accumulator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from ... import te
from ...dtype import DType
from ...ir.expr import Binary, BinaryOp, Expr, Load, Var, as_expr, const, select
from ...te.intrin import BufferView
from ...tir.nodes import Buffer, For, ForKind, If, Scope, Seq, Stmt, Store
from ...tir.passes.bind_threads import REDUCE_THREADS
from ...tir.tensor_intrinsics.warp import (
    WarpOp,
    collective,
    load_matrix,
    mma,
    mma_of,
    store_fragment,
)
from .loops import allocated, inside, loop, rolled, rows_of, threads, unrolled, vector

_LANES = 32
_ROWS = 16  # queries of a warp
_KEYS = 64  # of a tile
_GRAIN = 16  # of the operands' depth
_WIDE = 8  # elements of one access
_STEPS = 16  # copies of one thread that are written out


@functools.cache
def scale_rows() -> Callable[[list[BufferView], list[BufferView]], Stmt]:
    """c[i, j] *= factor[i] for a fragment of an accumulator and factors in shared memory."""
    acc = mma_of(DType.BFLOAT16)
    assert acc is not None
    old = te.placeholder(acc.c.shape, acc.accumulator, "old")
    factor = te.placeholder(acc.c.shape[:1], acc.accumulator, "factor")
    new = te.compute(acc.c.shape, lambda i, j: old[i, j] * factor[i], name="new")
    op = WarpOp("map", (acc.c, None, acc.c))
    operation: Any = new.op
    return lambda ins, outs: collective(op, operation, ins, outs)


def _view(buffer: Buffer, base: Sequence[Any], shape: Sequence[int]) -> BufferView:
    """A part of a buffer over its last dimensions."""
    extents = tuple(const(n) for n in shape)
    place = tuple(as_expr(b) for b in base)
    return BufferView(buffer, place, extents, lambda b, i, v: Store(b, i, v))


class TensorCoreAttention:
    """Builds the loops of one kernel.

    Args:
        frame: an `attention._Attention` of tiles of 16 * `warps` queries and 64 keys, which knows
            the operands, masks, and what this block has to do.
    """

    def __init__(self, frame: Any, warps: int) -> None:
        self.frame, self.warps = frame, warps
        self.dtype, self.acc = frame.q.dtype, frame.acc
        sizes = frame.sizes
        self.depth, self.v_depth = (
            math.ceil(d / _GRAIN) * _GRAIN for d in (sizes.depth, sizes.v_depth)
        )
        self.buffers: dict[str, Buffer] = {}
        rows = warps * _ROWS
        for name, shape, offset in (
            ("queries", (rows, self.depth), 8), ("keys", (_KEYS, self.depth), 8),
            ("values", (_KEYS, self.v_depth), 8), ("weights", (rows, _KEYS), 8),
        ):  # fmt: skip
            self._make(name, shape, self.dtype, Scope.SHARED, (0, 64, offset))
        self._make("scores", (rows, _KEYS), self.acc, Scope.SHARED, (0, 32, 8))
        self._make("results", (rows, self.v_depth), self.acc, Scope.SHARED, (0, 32, 8))
        self._make("fade", (rows,), self.acc, Scope.SHARED)
        for name, shape, dtype in (
            ("query", (_ROWS, _GRAIN), self.dtype), ("key", (_GRAIN, _GRAIN), self.dtype),
            ("score", (_ROWS, _KEYS), self.acc), ("weight", (_ROWS, _GRAIN), self.dtype),
            ("value", (_GRAIN, _GRAIN), self.dtype), ("result", (_ROWS, self.v_depth), self.acc),
        ):  # fmt: skip
            self._make(name, (warps, *shape), dtype, Scope.WARP)
        for name, size in (("top", _ROWS), ("raised", 1), ("total", _ROWS)):
            self._make(name, (warps, size), self.acc, Scope.LOCAL)
        for name, size in (("sum", _ROWS), ("best", 1), ("mine", 2), ("faded", 1), ("base", 1)):
            self._make(name, (warps, _LANES, size), self.acc, Scope.LOCAL)

    def _make(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: DType,
        scope: Scope,
        aligned: tuple[int, int, int] | None = None,
    ) -> None:
        extents = tuple(const(n) for n in shape)
        self.buffers[name] = Buffer(name, extents, dtype, scope, aligned=aligned)

    def kernel(self) -> Stmt:
        frame, sizes = self.frame, self.frame.sizes
        tiles = math.ceil(sizes.queries / (self.warps * _ROWS)) * sizes.batch * sizes.heads
        first, count = frame.key_tiles()
        over_keys = loop("tile", count, lambda number: self._tile(first + number))
        body = Seq((*self._start(), over_keys, *self._finish()))
        grid = For(frame.block, const(0), const(tiles), body, ForKind.THREAD, "blockIdx.x")
        return allocated(list(self.buffers.values()), grid)

    def _threads(self, body: Callable[[Any, Any], Stmt]) -> Stmt:
        return threads(self.warps, _LANES, body)

    def _warps(self, body: Callable[[Any], Stmt]) -> Stmt:
        return rows_of(self.warps, body)

    # -- statements --------------------------------------------------------------------------

    def _start(self) -> list[Stmt]:
        frame, b = self.frame, self.buffers
        batch, head, first = frame.place
        rows = self.warps * _ROWS
        copy = self._copy("queries", rows, self.depth, frame.q, frame.attrs.q_axes,
                          (batch, head), first, frame.sizes.queries, frame.sizes.depth)  # fmt: skip
        low, zero = const(-math.inf, self.acc), const(0, self.acc)

        def clear(y: Var, x: Var) -> Stmt:
            return unrolled("r", _ROWS, lambda r: Seq((
                Store(b["top"], (y, r), low), Store(b["sum"], (y, x, r), zero)
            )))  # fmt: skip

        reset = self._warps(lambda y: self._reset("result", y, self.v_depth))
        return [copy, self._threads(clear), reset]

    def _reset(self, name: str, y: Expr, columns: int) -> Stmt:
        b, product = self.buffers, mma(self.dtype, self.acc).fcompute
        ins = [_view(b["query"], (y, 0, 0), (16, 16)), _view(b["key"], (y, 0, 0), (8, 16))]

        def one(j: Expr) -> Stmt:
            _, reset, _ = product(ins, [_view(b[name], (y, 0, j * 8), (16, 8))])
            return reset

        return unrolled("j", columns // 8, one)

    def _copy(
        self, name: str, rows: int, columns: int, source: Buffer, axes: Sequence[int],
        head: tuple[Expr, Expr], first: Expr, count: int, depth: int,
    ) -> Stmt:  # fmt: skip
        """Rows of a head to shared memory, zeros where there are none."""
        lanes = _WIDE if axes[3] == 3 and depth % _WIDE == 0 else 1
        chunks, block = columns // lanes, self.warps * _LANES
        total, by_rows = rows * chunks, axes[2] == 3

        def copy(y: Var, x: Var) -> Stmt:
            def step(s: Expr) -> Stmt:
                flat = (s * self.warps + y) * _LANES + x
                row, d = (flat % rows, flat // rows) if by_rows else (flat // chunks, flat % chunks)
                stmt = vector("lane", lanes, lambda lane: one(row, d * lanes, lane))
                return stmt if total % block == 0 else If(flat < total, stmt)

            def one(row: Expr, d: Expr, lane: Expr) -> Stmt:
                i, rows_in = inside(first + row, count, count % rows == 0)
                e, line_in = inside(d, depth, columns == depth, lanes)
                at = dict(zip(axes, (*head, i, e + lane), strict=True))
                value: Expr = Load(source, tuple(at[a] for a in range(4)), None)
                for condition in (*rows_in, *line_in):
                    value = select(condition, value, const(0, source.dtype))
                return Store(self.buffers[name], (row, d + lane), value)

            steps = math.ceil(total / block)
            plain = count % rows == 0 and columns == depth and steps <= _STEPS
            return (unrolled if plain else rolled)("step", steps, step)

        return self._threads(copy)

    def _tile(self, number: Expr) -> Stmt:
        frame, attrs, sizes = self.frame, self.frame.attrs, self.frame.sizes
        batch, head, _ = frame.place
        place = (batch, head // sizes.shared if sizes.shared > 1 else head)
        first = number * _KEYS
        keys = self._copy("keys", _KEYS, self.depth, frame.k, attrs.k_axes, place, first,
                          sizes.keys, sizes.depth)  # fmt: skip
        values = self._copy("values", _KEYS, self.v_depth, frame.v, attrs.v_axes, place, first,
                            sizes.keys, sizes.v_depth)  # fmt: skip
        soften = self._soften(first)
        return Seq((keys, values, self._warps(self._scores), *soften, self._warps(self._add)))

    def _scores(self, y: Var) -> Stmt:
        """scores = queries keys^T."""
        b = self.buffers
        product, load = mma(self.dtype, self.acc).fcompute, load_matrix("b", self.dtype).fcompute
        query = load_matrix("a", self.dtype).fcompute
        left = _view(b["query"], (y, 0, 0), (16, 16))

        def step(d: Expr) -> Stmt:
            own = query([_view(b["queries"], (y * _ROWS, d * _GRAIN), (16, 16))], [left])

            def pair(j: Expr) -> Stmt:
                fragment = load(
                    [_view(b["keys"], (j * 16, d * _GRAIN), (16, 16))],
                    [_view(b["key"], (y, 0, 0), (16, 16))],
                )
                parts = [
                    product([left, _view(b["key"], (y, half * 8, 0), (8, 16))],
                            [_view(b["score"], (y, 0, j * 16 + half * 8), (16, 8))])[2]
                    for half in range(2)
                ]  # fmt: skip
                return Seq((fragment, *parts))

            return Seq((own, unrolled("j", _KEYS // 16, pair)))

        store = store_fragment(self.acc).fcompute
        return Seq((
            self._reset("score", y, _KEYS),
            unrolled("d", self.depth // _GRAIN, step),
            unrolled("j", _KEYS // 8, lambda j: store(
                [_view(b["score"], (y, 0, j * 8), (16, 8))],
                [_view(b["scores"], (y * _ROWS, j * 8), (16, 8))],
            )),
        ))  # fmt: skip

    def _soften(self, first: Expr) -> list[Stmt]:
        """Weights exp(score - top); one row after the other, two keys for each lane."""
        b, softmax = self.buffers, self.frame.softmax

        def find(y: Var) -> Callable[[Expr], Stmt]:
            def mask(x: Var, r: Expr, c: Expr) -> Stmt:
                value = Load(b["scores"], (y * _ROWS + r, c * _LANES + x), None)
                place = (y * _ROWS + r, first + c * _LANES + x)
                return Store(b["mine"], (y, x, c), self.frame.masked(value, *place))

            def row(r: Expr) -> Stmt:
                best = lambda x: (y, x, const(0))  # noqa: E731
                mine = lambda x, c: Load(b["mine"], (y, x, const(c)), None)  # noqa: E731
                masks = _lanes(lambda x: Seq((
                    mask(x, r, const(0)), mask(x, r, const(1)),
                    Store(b["best"], best(x), Binary(BinaryOp.MAX, mine(x, 0), mine(x, 1))),
                )))  # fmt: skip
                top = Load(b["top"], (y, r), None)
                raised = Load(b["raised"], (y, const(0)), None)
                start = Store(b["raised"], (y, const(0)), top)
                across = _across(BinaryOp.MAX, b["raised"], (y, const(0)),
                                 lambda x: Load(b["best"], best(x), None))  # fmt: skip
                weigh = _lanes(lambda x: weights(x, r, raised, top))
                note = Store(b["fade"], (y * _ROWS + r,), softmax.weight(top, softmax.base(raised)))
                return Seq((masks, start, across, weigh, note, Store(b["top"], (y, r), raised)))

            def weights(x: Var, r: Expr, raised: Expr, top: Expr) -> Stmt:
                at, total = (y, x, r), Load(b["sum"], (y, x, r), None)
                base = Load(b["base"], (y, x, const(0)), None)
                stores: list[Stmt] = [
                    Store(b["base"], (y, x, const(0)), softmax.base(raised)),
                    Store(b["sum"], at, total * softmax.weight(top, base)),
                ]
                for c in range(2):
                    own = (y, x, const(c))
                    value = softmax.weight(Load(b["mine"], own, None), base)
                    weight = Load(b["mine"], own, None)
                    target = (y * _ROWS + r, const(c * _LANES) + x)
                    stores += [
                        Store(b["mine"], own, value),
                        Store(b["sum"], at, total + weight),
                        Store(b["weights"], target, weight.astype(self.dtype)),
                    ]
                return Seq(tuple(stores))

            return row

        return [self._warps(lambda y: unrolled("r", _ROWS, find(y)))]

    def _add(self, y: Var) -> Stmt:
        """result = result * fade + weights values."""
        b = self.buffers
        product = mma(self.dtype, self.acc, b_transposed=True).fcompute
        weight = load_matrix("a", self.dtype).fcompute
        load = load_matrix("b", self.dtype, True).fcompute

        def scale(j: Expr) -> Stmt:
            part = _view(b["result"], (y, 0, j * 8), (16, 8))
            return scale_rows()([part, _view(b["fade"], (y * _ROWS,), (16,))], [part])

        def step(k: Expr) -> Stmt:
            def pair(j: Expr) -> Stmt:
                fragment = load(
                    [_view(b["values"], (k * _GRAIN, j * 16), (16, 16))],
                    [_view(b["value"], (y, 0, 0), (16, 16))],
                )
                left = _view(b["weight"], (y, 0, 0), (16, 16))
                parts = [
                    product([left, _view(b["value"], (y, 0, half * 8), (16, 8))],
                            [_view(b["result"], (y, 0, j * 16 + half * 8), (16, 8))])[2]
                    for half in range(2)
                ]  # fmt: skip
                return Seq((fragment, *parts))

            own = weight(
                [_view(b["weights"], (y * _ROWS, k * _GRAIN), (16, 16))],
                [_view(b["weight"], (y, 0, 0), (16, 16))],
            )
            return Seq((own, unrolled("j", self.v_depth // 16, pair)))

        scales = unrolled("j", self.v_depth // 8, scale)
        return Seq((scales, unrolled("k", _KEYS // _GRAIN, step)))

    def _finish(self) -> list[Stmt]:
        b, frame = self.buffers, self.frame
        store = store_fragment(self.acc).fcompute

        def totals(y: Var) -> Stmt:
            sums = unrolled("r", _ROWS, lambda r: Seq((
                Store(b["total"], (y, r), const(0, self.acc)),
                _across(BinaryOp.ADD, b["total"], (y, r),
                        lambda x: Load(b["sum"], (y, x, r), None)),
            )))  # fmt: skip
            results = unrolled("j", self.v_depth // 8, lambda j: store(
                [_view(b["result"], (y, 0, j * 8), (16, 8))],
                [_view(b["results"], (y * _ROWS, j * 8), (16, 8))],
            ))  # fmt: skip
            return Seq((sums, results))

        batch, head, first = frame.place
        sizes = frame.sizes

        def write(y: Var, x: Var) -> Stmt:
            def row(r: Expr) -> Stmt:
                i = first + y * _ROWS + r
                stmt = unrolled("e", math.ceil(self.v_depth / _LANES), lambda e: one(r, i, e))
                fits = sizes.queries % (self.warps * _ROWS) == 0
                return stmt if fits else If(i < sizes.queries, stmt)

            def one(r: Expr, i: Expr, step: Expr) -> Stmt:
                e = step * _LANES + x
                value = frame.softmax.result(
                    Load(b["results"], (y * _ROWS + r, e), None),
                    Load(b["total"], (y, r), None), Load(b["top"], (y, r), None),
                )  # fmt: skip
                at = (batch, head, i, e)
                out = frame.outs[0]
                place = tuple(at[a] for a in frame.attrs.out_axes)
                stmt = Store(out, place, value.astype(out.dtype))
                return stmt if sizes.v_depth % _LANES == 0 else If(e < sizes.v_depth, stmt)

            return unrolled("r", _ROWS, row)

        return [self._warps(totals), self._threads(write)]


def _lanes(body: Callable[[Var], Stmt]) -> Stmt:
    x = Var("x")
    return For(x, const(0), const(_LANES), body(x), ForKind.THREAD, "threadIdx.x")


def _across(
    op: BinaryOp, target: Buffer, place: tuple[Expr, ...], source: Callable[[Expr], Expr]
) -> Stmt:
    """`target[place] = target[place] op source(x)` over the lanes x of a warp."""
    x = Var("x")
    store = Store(target, place, Binary(op, Load(target, place, None), source(x)))
    return For(x, const(0), const(_LANES), store, annotations={REDUCE_THREADS: True})
