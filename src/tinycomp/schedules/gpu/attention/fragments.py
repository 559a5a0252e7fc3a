"""Softmax on the fragments of wgmma: what the threads of a consumer of attention hold in registers,
and do with it.

A thread has two rows of the scores and of the weighted values, and two neighbouring columns of
every eight. The three other threads of a row are its neighbours in the warp.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ....dtype import DType
from ....ir.expr import BinaryOp as Op
from ....ir.expr import Call, Expr, Load, Var, binary, const
from ....target import Target
from ....tir.nodes import Buffer, For, ForKind, If, PrimFunc, Scope, Seq, Stmt, Store
from ....tir.passes.simplify import simplify
from ....tir.passes.vectorize import vectorize
from ....tir.tile.layout import ROW_BYTES, WgmmaShape, fragment_row
from ....tir.tile.nodes import Accumulator, SharedTile, ThreadCode
from .online_softmax import OnlineSoftmax

ROWS = 64  # queries of a consumer
_PAIRS = Target("cuda", vector_bits=64)
Place = tuple[Expr, Expr, Expr]
"""Batch, head, and the first query of a consumer."""


class SoftmaxFragments:
    """The registers of a thread, and code on them. (See `online_softmax` for the names.)

    Args:
        keys: of a tile.
        v_depth: elements of a value.
        dtype: of the operands of products.
        thread: the variable of the thread within its warpgroup.
    """

    def __init__(
        self, softmax: OnlineSoftmax, keys: int, v_depth: int, dtype: DType, thread: Var
    ) -> None:
        self.softmax, self.keys, self.v_depth, self.thread = softmax, keys, v_depth, thread
        acc = softmax.dtype

        def registers(name: str, count: int, of: DType = acc) -> Buffer:
            return Buffer(name, (const(count),), of, Scope.LOCAL)

        shape, out_shape = WgmmaShape(keys, dtype), WgmmaShape(v_depth, dtype)
        self.scores = Accumulator(shape, 1, registers("scores", shape.registers))
        self.values = Accumulator(out_shape, 1, registers("values", out_shape.registers))
        self.weights = registers("weights", shape.registers, dtype)
        # of the two rows of a thread; of each row, even and odd columns apart
        self.top, self.raised, self.base, self.fade = (
            registers(name, 2) for name in ("top", "raised", "base", "fade")
        )
        self.peak, self.total = registers("peak", 4), registers("total", 4)
        self.arrays = (
            self.weights, self.top, self.raised, self.base, self.fade, self.peak, self.total,
        )  # fmt: skip

    def _code(self, *stmts: Stmt) -> ThreadCode:
        func = PrimFunc("attention", (), 0, Seq(stmts))
        return ThreadCode(simplify(vectorize(func, _PAIRS)).body)

    def clear(self) -> ThreadCode:
        """Nothing is seen yet."""
        zero, low = const(0, self.softmax.dtype), const(-math.inf, self.softmax.dtype)
        count, values = self.values.shape.registers, self.values.buffer
        return self._code(
            _each("r", count, lambda r: Store(values, (r,), zero)),
            _each("i", 4, lambda i: Store(self.total, (i,), zero)),
            _each("half", 2, lambda half: Store(self.top, (half,), low)),
        )

    def soften(self, place: Place, first: Expr, masked: bool) -> list[Stmt]:
        """The weights of the tile of keys from `first` on, in place of their products."""
        masks = [self._code(self._mask(place, first))] if masked else []
        return [*masks, self._code(self._raise(), self._weigh())]

    def _mask(self, place: Place, first: Expr) -> Stmt:
        scores, softmax = self.scores.buffer, self.softmax
        (batch, head, row), pairs = place, softmax.keys % 2 == 0

        def one(group: Expr, half: Expr, lane: Expr) -> Stmt:
            register = _register(group, half, lane)
            i = row + fragment_row(self.thread, half * 2)
            j = first + group * 8 + self.thread % 4 * 2
            at = (batch, head, i, j if pairs else j + lane)
            score = softmax.score(_load(scores, register), at, lane if pairs else None)
            return Store(scores, (register,), score)

        return self._registers(self.keys, one, ForKind.VECTORIZED if pairs else None)

    def _raise(self) -> Stmt:
        """The largest scores, also of the other three threads of a row."""
        scores, peak, raised = self.scores.buffer, self.peak, self.raised

        def start(i: Expr) -> Stmt:
            return Store(peak, (i,), _load(scores, i))

        def add(group: Expr, half: Expr, lane: Expr) -> Stmt:
            at, score = half * 2 + lane, _load(scores, _register(group, half, lane))
            return Store(peak, (at,), binary(Op.MAX, _load(peak, at), score))

        def row(half: Expr) -> Stmt:
            both = binary(Op.MAX, _load(peak, half * 2), _load(peak, half * 2 + 1))
            first = Store(raised, (half,), binary(Op.MAX, both, _load(self.top, half)))
            return Seq((first, *self._across(Op.MAX, raised, half)))

        rest = self._registers(self.keys, add)
        return Seq((_each("i", 4, start), rest, _each("half", 2, row)))

    def _across(self, op: Op, target: Buffer, at: Expr) -> list[Stmt]:
        """Combine what the four threads of a row hold."""
        value, dtype = _load(target, at), target.dtype
        return [
            Store(target, (at,), binary(op, value, Call("shuffle_xor", (value, const(n)), dtype)))
            for n in (1, 2)
        ]

    def _weigh(self) -> Stmt:
        softmax, scores = self.softmax, self.scores.buffer

        def row(half: Expr) -> Stmt:
            raised, base = _load(self.raised, half), _load(self.base, half)
            fade = softmax.weight(_load(self.top, half), base)
            return Seq((
                Store(self.base, (half,), softmax.base(raised)), Store(self.fade, (half,), fade),
                Store(self.top, (half,), raised),
                _each("lane", 2, lambda lane: Store(
                    self.total, (half * 2 + lane,),
                    _load(self.total, half * 2 + lane) * _load(self.fade, half),
                )),
            ))  # fmt: skip

        def one(group: Expr, half: Expr, lane: Expr) -> Stmt:
            at, in_total = _register(group, half, lane), half * 2 + lane
            weight = softmax.weight(_load(scores, at), _load(self.base, half))
            total = _load(self.total, in_total) + _load(scores, at)
            return Seq((Store(scores, (at,), weight), Store(self.total, (in_total,), total)))

        return Seq((_each("half", 2, row), self._registers(self.keys, one)))

    def fade_values(self) -> ThreadCode:
        """What earlier tiles gave, relative to the new top."""
        values = self.values.buffer

        def one(group: Expr, half: Expr, lane: Expr) -> Stmt:
            at = _register(group, half, lane)
            return Store(values, (at,), _load(values, at) * _load(self.fade, half))

        return self._code(self._registers(self.v_depth, one))

    def pack(self) -> ThreadCode:
        """Weights as the left operand of the second product."""

        def one(group: Expr, half: Expr, lane: Expr) -> Stmt:
            at = _register(group, half, lane)
            return Store(
                self.weights, (at,), _load(self.scores.buffer, at).astype(self.weights.dtype)
            )

        return self._code(self._registers(self.keys, one, ForKind.VECTORIZED))

    def finish(self) -> ThreadCode:
        """The sums of the weights of both rows."""
        return self._code(_each("half", 2, self._finish_row))

    def _finish_row(self, half: Expr) -> Stmt:
        """The sum of the weights of a row, and its inverse in place of `fade`."""
        total, at, softmax = self.total, half * 2, self.softmax
        both = _load(total, at) + _load(total, at + 1)
        one = const(1, softmax.dtype)
        return Seq((
            Store(total, (at,), both), *self._across(Op.ADD, total, at),
            Store(self.fade, (half,), one / _load(total, at)),
        ))  # fmt: skip

    def _result(self, register: Expr, half: Expr, dtype: DType) -> Expr:
        value = _load(self.values.buffer, register) * _load(self.fade, half)
        value = self.softmax.unless_hidden(value, _load(self.top, half))
        return value.astype(dtype)

    def to_shared(self, tile: SharedTile, first: Expr) -> ThreadCode:
        """Results to the slots of a tile from `first` on, 128 bytes of 64 rows in each, swizzled as
        TMA expects them."""
        per_row = ROW_BYTES // 4  # pairs of 4 bytes, which stay aligned

        def one(group: Expr, half: Expr, lane: Expr) -> Stmt:
            row = fragment_row(self.thread, half * 2)
            column = group % 8 * 8 + self.thread % 4 * 2
            slot = first + group // 8
            pair = binary(Op.BIT_XOR, column // 2, row % 8 * 4)
            where = slot * (ROWS * per_row) + row * per_row + pair
            value = self._result(_register(group, half, lane), half, tile.dtype)
            return Store(tile.buffer, (where * 2 + lane,), value)

        return self._code(self._registers(self.v_depth, one, ForKind.VECTORIZED))

    def to_memory(self, out: Buffer, place: Place) -> ThreadCode:
        """Each thread stores what it holds where it belongs."""
        (batch, head, first), softmax = place, self.softmax
        queries, axes = softmax.queries, softmax.attrs.out_axes

        def one(group: Expr, half: Expr, lane: Expr) -> Stmt:
            row = first + fragment_row(self.thread, half * 2)
            at = (batch, head, row, group * 8 + self.thread % 4 * 2 + lane)
            value = self._result(_register(group, half, lane), half, out.dtype)
            store = Store(out, tuple(at[a] for a in axes), value)
            fits = queries % softmax.tile[0] == 0
            return store if fits else If(row < queries, store)

        return self._code(self._registers(self.v_depth, one, ForKind.VECTORIZED))

    def _registers(
        self, columns: int, body: Callable[[Expr, Expr, Expr], Stmt],
        lanes: ForKind | None = None,
    ) -> Stmt:  # fmt: skip
        """`body(group, half, lane)` for what a thread holds of a row of `columns`."""
        group, half, lane = Var("group"), Var("half"), Var("lane")
        stmt: Stmt = body(group, half, lane)
        stmt = For(lane, const(0), const(2), stmt, lanes or ForKind.UNROLLED)
        stmt = For(half, const(0), const(2), stmt, ForKind.UNROLLED)
        return For(group, const(0), const(columns // 8), stmt, ForKind.UNROLLED)


def _register(group: Expr, half: Expr, lane: Expr) -> Expr:
    return group * 4 + half * 2 + lane


def _load(buffer: Buffer, at: Expr) -> Expr:
    return Load(buffer, (at,), None)


def _each(name: str, count: int, body: Callable[[Expr], Stmt]) -> Stmt:
    var = Var(name)
    return For(var, const(0), const(count), body(var), ForKind.UNROLLED)
