"""The first elements of each line in sorted order on a CPU, a line after the other per thread.

Few of them are kept in a sorted list while the line goes by; a new one is inserted if it comes
before the last of the list. More are found by sorting the line digit by digit, which takes linear
time and is stable. (Knuth, The Art of Computer Programming 3, 5.2.1 and 5.2.5.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .. import te
from ..dtype import DType
from ..ir.expr import Expr, Load, as_int, const
from ..ops.shape import unravel
from ..te.tensor import Tensor
from ..tir.nodes import Buffer, ForKind, If, Scope, Seq, Stmt, Store
from ..types import TupleType
from .common import PARALLEL_CYCLES
from .loops import allocated, around_axis, loop, unrolled
from .sort_records import Fields, Records

_LISTED = 16  # of a longer line; insertion takes a step for each of them
_SHORT = 32  # elements of a line that is sorted by insertion
_BITS = 8  # of a digit
_CYCLES = 20  # for each element


def expand_topk(attrs: Any, args: Sequence[Tensor], out: TupleType) -> list[Tensor] | None:
    """topk as hand-written loops; None for an empty result."""
    (x,) = args
    values, indices = (t.static_shape for t in out.fields)  # type: ignore[union-attr]
    if not math.prod(values):
        return None
    shape = tuple(as_int(d) for d in x.shape)

    def make(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        return _Topk(attrs.axis % x.ndim, attrs.k, attrs.largest, shape, ins[0], *outs).kernel()

    return te.extern([values, indices], [x], make, "topk", [x.dtype, DType.INT64])


@dataclass
class _Topk:
    """Builds the loops."""

    axis: int
    k: int
    largest: bool
    shape: tuple[int, ...]
    x: Buffer
    values: Buffer
    indices: Buffer

    def __post_init__(self) -> None:
        shape, axis = self.shape, self.axis
        self.n = shape[axis]
        self.lines = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        self.source = around_axis(shape, axis)
        self.target = around_axis((*shape[:axis], self.k, *shape[axis + 1 :]), axis)
        self.records = Records(self.x.dtype, self.largest)
        self.by_digits = self.k > _LISTED and self.n > _SHORT
        self.size = self.n if self.by_digits else self.k
        self.digits = self.records.key_bits // _BITS

    def kernel(self) -> Stmt:
        lines = math.prod(self.lines)
        worth = lines > 1 and lines * self.n * _CYCLES >= PARALLEL_CYCLES
        kind = ForKind.PARALLEL if worth else ForKind.SERIAL
        scratch = [*self.sorted, *self.new, *([self.counts, self.at] if self.by_digits else [])]
        return allocated(scratch, loop("line", lines, self._line, kind))

    def _line(self, line: Expr) -> Stmt:
        o, i = unravel(line, self.lines)
        steps = self._by_digits(o, i) if self.by_digits else self._by_insertion(o, i)
        half = self.digits % 2 if self.by_digits else 0
        return Seq((*steps, loop("p", self.k, lambda p: self._write(o, i, p, half))))

    def _write(self, o: Expr, i: Expr, p: Expr, half: int) -> Stmt:
        place = self.records.place(self._load(self.sorted, const(half), p))
        value = Load(self.x, self.source(o, place, i), None)
        at = self.target(o, p, i)
        return Seq((Store(self.values, at, value), Store(self.indices, at, place)))

    # -- records in memory ----------------------------------------------------------------------

    def _fields(self, name: str, *shape: int) -> list[Buffer]:
        extents = tuple(map(const, shape))
        return [Buffer(name, extents, dtype, Scope.LOCAL) for dtype in self.records.fields]

    @cached_property
    def sorted(self) -> list[Buffer]:
        """The list of the first, or the line before and after sorting by a digit."""
        return self._fields("sorted", 2 if self.by_digits else 1, self.size)

    @cached_property
    def new(self) -> list[Buffer]:
        return self._fields("new", 1)

    def _load(self, buffers: list[Buffer], *index: Expr) -> Fields:
        return tuple(Load(b, index, None) for b in buffers)

    def _store(self, buffers: list[Buffer], record: Fields, *index: Expr) -> list[Stmt]:
        return [Store(b, index, f) for b, f in zip(buffers, record, strict=True)]

    def _record(self, o: Expr, t: Expr, i: Expr) -> list[Stmt]:
        """`new` of element `t`."""
        value = Load(self.x, self.source(o, t, i), None)
        return self._store(self.new, self.records.record(value, t), const(0))

    # -- insertion ------------------------------------------------------------------------------

    def _by_insertion(self, o: Expr, i: Expr) -> list[Stmt]:
        zero, before = const(0), self.records.before
        new = self._load(self.new, zero)

        def put(record: Fields, p: Expr) -> Stmt:
            return Seq(tuple(self._store(self.sorted, record, zero, p)))

        def shift(step: Expr) -> Stmt:
            """Place p gets its left neighbour, the new record, or stays."""
            p = self.k - 1 - step
            left, mine = (self._load(self.sorted, zero, q) for q in (p - 1, p))
            return If(before(new, left), put(left, p), If(before(new, mine), put(new, p)))

        head = If(before(new, self._load(self.sorted, zero, zero)), put(new, zero))
        steps = [unrolled("step", self.k - 1, shift)] if self.k > 1 else []
        insert = Seq((*steps, head))

        def element(t: Expr) -> Stmt:
            last = self._load(self.sorted, zero, const(self.k - 1))
            return Seq((*self._record(o, t, i), If(before(new, last), insert)))

        clear = loop("p", self.k, lambda p: put(self.records.last, p))
        return [clear, loop("t", self.n, element)]

    # -- digits ---------------------------------------------------------------------------------

    @cached_property
    def counts(self) -> Buffer:
        """How many records have a digit; then, where the next one of them goes."""
        shape = (const(self.digits), const(1 << _BITS))
        return Buffer("counts", shape, DType.INT64, Scope.LOCAL)

    @cached_property
    def at(self) -> Buffer:
        return Buffer("at", (const(2),), DType.INT64, Scope.LOCAL)

    def _by_digits(self, o: Expr, i: Expr) -> list[Stmt]:
        def clear(d: Expr) -> Stmt:
            return loop("b", 1 << _BITS, lambda b: Store(self.counts, (d, b), const(0)))

        def count(number: int) -> Stmt:
            at = (const(number), self.records.digit(self._load(self.new, const(0)), number, _BITS))
            return Store(self.counts, at, Load(self.counts, at, None) + 1)

        def read(t: Expr) -> Stmt:
            keep = self._store(self.sorted, self._load(self.new, const(0)), const(0), t)
            return Seq((*self._record(o, t, i), *keep, *map(count, range(self.digits))))

        passes = [s for number in range(self.digits) for s in self._pass(number)]
        return [loop("d", self.digits, clear), loop("t", self.n, read), *passes]

    def _pass(self, number: int) -> list[Stmt]:
        """Sort by one digit, from one half of `sorted` to the other."""
        total, place = (const(0),), (const(1),)
        d = const(number)

        def start(b: Expr) -> Stmt:
            count = Load(self.counts, (d, b), None)
            return Seq((
                Store(self.at, place, count),
                Store(self.counts, (d, b), Load(self.at, total, None)),
                Store(self.at, total, Load(self.at, total, None) + Load(self.at, place, None)),
            ))  # fmt: skip

        def move(t: Expr) -> Stmt:
            record = self._load(self.sorted, const(number % 2), t)
            own = (d, self.records.digit(record, number, _BITS))
            target = Load(self.at, place, None)
            return Seq((
                Store(self.at, place, Load(self.counts, own, None)),
                Store(self.counts, own, target + 1),
                *self._store(self.sorted, record, const(1 - number % 2), target),
            ))  # fmt: skip

        return [
            Store(self.at, total, const(0)),
            loop("b", 1 << _BITS, start),
            loop("t", self.n, move),
        ]
