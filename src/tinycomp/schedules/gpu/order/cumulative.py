"""Running sums and products on a GPU.

Rows (the axis is the last) belong to a warp or a block each, which goes along them tile by tile: a
thread sums up its neighbouring elements, warps scan the sums of their threads by exchanging
registers, and what the warps before have comes through shared memory. (Harris, Sengupta and Owens,
"Parallel Prefix Sum (Scan) with CUDA", GPU Gems 3, 2007.) Columns belong to a thread each. Where
lines are few and long they are cut into chunks: one launch for the totals of the chunks, and one in
which each chunk starts with the totals before it, added in a fixed order. (Reduce-then-scan:
Merrill and Grimshaw, "Parallel Scan for Stream Architectures", 2009.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .... import te
from ....ir.expr import Binary, BinaryOp, Call, Expr, Load, const, select
from ....ops.shape import unravel
from ....ops.window import accumulation_dtype
from ....te.tensor import Tensor
from ....tir.lower_gpu import ACCESS
from ....tir.nodes import Buffer, If, Scope, Seq, Stmt, Store
from ....tir.passes.bind_threads import WARP
from ....types import TensorType
from ...cumulative import IDENTITY
from ...loops import around_axis
from ..loops import allocated, blocks, inside, loop, rolled, threads, unrolled, vector

_THREADS = 256  # of a block
_BLOCKS = 264  # two for each multiprocessor of a large GPU
_SHORT = 8  # accesses of each lane of a warp that are not worth a block
_TILES = 4  # of a block that are worth a chunk
_COLUMN = 64  # elements of a column that are worth a chunk
_COLUMNS = 32 * 1024  # threads that keep a GPU busy


def expand_cumulative(
    op: BinaryOp, attrs: Any, args: Sequence[Tensor], out: TensorType
) -> list[Tensor] | None:
    """cumsum or cumprod as hand-written loops; None for an empty tensor."""
    if not out.size:
        return None
    shape = out.static_shape
    axis = attrs.axis % len(shape)
    outer, n, inner = (math.prod(s) for s in (shape[:axis], shape[axis : axis + 1],
                                              shape[axis + 1 :]))  # fmt: skip
    line = _Line(op, attrs.exclusive, attrs.reverse, outer, n, inner, out.dtype)

    def make(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        builder = _Rows if inner == 1 else _Columns
        return builder(line, around_axis(shape, axis), ins[0], outs[0]).kernel()

    return [te.extern(shape, args, make, f"{args[0].name}_{op.name.lower()}", out.dtype)]


@dataclass(frozen=True)
class _Line:
    """What is computed: `outer` x `inner` lines of `n` elements."""

    op: BinaryOp
    exclusive: bool
    reverse: bool
    outer: int
    n: int
    inner: int
    dtype: Any

    @property
    def acc(self) -> Any:
        return accumulation_dtype(self.dtype)

    @property
    def identity(self) -> Expr:
        return const(IDENTITY[self.op], self.acc)

    def combine(self, a: Expr, b: Expr) -> Expr:
        return Binary(self.op, a, b)

    def at(self, p: Expr) -> Expr:
        """Where the element that comes as number `p` stands."""
        return self.n - 1 - p if self.reverse else p


@dataclass
class _Rows:
    """A row, or a chunk of it, for `width` threads."""

    line: _Line
    place: Callable[..., tuple[Expr, ...]]
    x: Buffer
    out: Buffer

    def __post_init__(self) -> None:
        line = self.line
        self.lanes = ACCESS.lanes(line.dtype)
        while line.n % self.lanes:
            self.lanes //= 2
        self.width = WARP if line.n <= WARP * self.lanes * _SHORT else _THREADS
        self.rows = _THREADS // self.width
        tiles = math.ceil(line.n / (self.width * self.lanes))
        wanted = min(math.ceil(_BLOCKS / line.outer), tiles // _TILES, self.width)
        self.tiles = math.ceil(tiles / wanted) if wanted > 1 and self.rows == 1 else tiles
        self.chunks = math.ceil(tiles / self.tiles)
        self.length = self.tiles * self.width * self.lanes

        chunks = (const(line.outer), const(self.chunks))
        self.totals = Buffer("totals", chunks, line.acc)
        self.scratch: list[Buffer] = []

    def kernel(self) -> Stmt:
        if self.chunks == 1:
            stmt = self._launch(self._scan_row)
            return allocated(self.scratch, stmt)
        stmt = Seq((self._launch(self._sum_row), self._launch(self._scan_row)))
        return allocated([*self.scratch, self.totals], stmt)

    def _declare(self) -> None:
        """The registers and the shared memory of a launch."""

        def own(name: str, *more: int) -> Buffer:
            extents = tuple(const(e) for e in (self.rows, self.width, *more))
            return Buffer(name, extents, self.line.acc, Scope.LOCAL)

        self.value = own("value", self.lanes)
        self.total, self.before, self.other, self.carry = own_sums = [
            own(name) for name in ("total", "before", "other", "carry")
        ]
        warps = (const(self.rows), const(self.width // WARP))
        self.warps = Buffer("warps", warps, self.line.acc, Scope.SHARED)
        self.scratch += [self.value, *own_sums, self.warps]

    def _launch(self, body: Callable[[Expr, Expr], list[Stmt]]) -> Stmt:
        """`body(first row, chunk)` for each block."""
        self._declare()

        def block(number: Expr) -> Stmt:
            return Seq(tuple(body(number // self.chunks * self.rows, number % self.chunks)))

        return blocks(math.ceil(self.line.outer / self.rows) * self.chunks, block)

    def _threads(self, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        return threads(self.rows, self.width, body)

    # -- the two launches -----------------------------------------------------------------------

    def _sum_row(self, row: Expr, chunk: Expr) -> list[Stmt]:
        """The total of a chunk; that of the last one is not needed."""

        def tile(t: Expr) -> Stmt:
            def thread(y: Expr, x: Expr) -> Stmt:
                def add(lane: Expr) -> Stmt:
                    more = Load(self.value, (y, x, lane), None)
                    total = self.line.combine(Load(self.total, (y, x), None), more)
                    return Store(self.total, (y, x), total)

                adds = unrolled("lane", self.lanes, add)
                return Seq((self._read(row + y, chunk, t, (y, x)), adds))

            return self._threads(thread)

        write = self._threads(lambda y, x: If(
            x.equal(0), Store(self.totals, (row + y, chunk), Load(self.carry, (y, x), None))
        ))  # fmt: skip
        first = self._threads(lambda y, x: Seq((
            Store(self.total, (y, x), self.line.identity),
            Store(self.carry, (y, x), self.line.identity),
        )))  # fmt: skip
        return [first, rolled("tile", self.tiles, tile), *self._across(), write]

    def _scan_row(self, row: Expr, chunk: Expr) -> list[Stmt]:
        def tile(t: Expr) -> Stmt:
            def begin(y: Expr, x: Expr) -> Stmt:
                return Seq((self._read(row + y, chunk, t, (y, x)), self._scan_own((y, x))))

            def end(y: Expr, x: Expr) -> Stmt:
                return self._write(row + y, chunk, t, (y, x))

            return Seq((self._threads(begin), *self._across(), self._threads(end)))

        body = tile(const(0)) if self.tiles == 1 else rolled("tile", self.tiles, tile)
        return [*self._start(row, chunk), body]

    def _start(self, row: Expr, chunk: Expr) -> list[Stmt]:
        """`carry` of every thread: all before this chunk."""

        def thread(y: Expr, x: Expr) -> Stmt:
            clear = Store(self.carry, (y, x), self.line.identity)
            if self.chunks == 1:
                return clear
            at, _ = inside(x, self.chunks, self.width == self.chunks)
            total = select(x < chunk, Load(self.totals, (row + y, at), None), self.line.identity)
            return Seq((clear, Store(self.total, (y, x), total)))

        return [self._threads(thread), *(self._across() if self.chunks > 1 else [])]

    # -- what a thread does for itself ----------------------------------------------------------

    def _element(self, chunk: Expr, t: Expr, x: Expr, lane: Expr) -> Expr:
        return chunk * self.length + (t * self.width + x) * self.lanes + lane

    def _read(self, row: Expr, chunk: Expr, t: Expr, own: tuple[Expr, Expr]) -> Stmt:
        """The elements of a thread, and neutral ones behind the end."""
        line = self.line
        row, _ = inside(row, line.outer, line.outer % self.rows == 0)
        whole = self.chunks * self.length == line.n
        first, conditions = inside(self._element(chunk, t, own[1], const(0)), line.n, whole,
                                   self.lanes)  # fmt: skip

        def read(lane: Expr) -> Stmt:
            at = self.place(row, line.at(first + lane), const(0))
            value: Expr = Load(self.x, at, None).astype(line.acc)
            for condition in conditions:
                value = select(condition, value, line.identity)
            return Store(self.value, (*own, lane), value)

        return vector("lane", self.lanes, read)

    def _scan_own(self, own: tuple[Expr, Expr]) -> Stmt:
        """`value` as running sums of the thread, `total` as their last."""
        total = Load(self.total, own, None)

        def step(lane: Expr) -> Stmt:
            value = Load(self.value, (*own, lane), None)
            more = self.line.combine(total, value)
            if not self.line.exclusive:
                return Seq((Store(self.total, own, more), Store(self.value, (*own, lane), total)))
            return Seq((
                Store(self.other, own, more), Store(self.value, (*own, lane), total),
                Store(self.total, own, Load(self.other, own, None)),
            ))  # fmt: skip

        clear = Store(self.total, own, self.line.identity)
        return Seq((clear, unrolled("lane", self.lanes, step)))

    def _write(self, row: Expr, chunk: Expr, t: Expr, own: tuple[Expr, Expr]) -> Stmt:
        line = self.line
        first = self._element(chunk, t, own[1], const(0))
        start = Load(self.before, own, None)

        def write(lane: Expr) -> Stmt:
            value = line.combine(start, Load(self.value, (*own, lane), None))
            at = self.place(row, line.at(first + lane), const(0))
            return Store(self.out, at, value.astype(line.dtype))

        stmt = vector("lane", self.lanes, write)
        if self.chunks * self.length != line.n:
            stmt = If(first < line.n, stmt)
        return stmt if line.outer % self.rows == 0 else If(row < line.outer, stmt)

    # -- what threads do together ---------------------------------------------------------------

    def _across(self) -> list[Stmt]:
        """From each thread's `total`: `before`, all that comes before it in the row, and `carry`
        with the totals of all threads."""
        if self.width == WARP:
            return [self._threads(lambda y, x: Seq((*self._warp((y, x)), *self._advance((y, x)))))]

        def publish(y: Expr, x: Expr) -> Stmt:
            write = Store(self.warps, (y, x // WARP), Load(self.total, (y, x), None))
            return Seq((*self._warp((y, x)), If((x % WARP).equal(0), write)))

        def collect(y: Expr, x: Expr) -> Stmt:
            own, identity = (y, x), self.line.identity
            total, other = Load(self.total, own, None), Load(self.other, own, None)

            def warp(w: Expr) -> Stmt:
                theirs = Load(self.warps, (y, w), None)
                mine = select(w < x // WARP, theirs, identity)
                return Seq((
                    Store(self.other, own, self.line.combine(other, mine)),
                    Store(self.total, own, self.line.combine(total, theirs)),
                ))  # fmt: skip

            before = self.line.combine(other, Load(self.before, own, None))
            return Seq((
                Store(self.total, own, identity), Store(self.other, own, identity),
                unrolled("warp", self.width // WARP, warp), Store(self.before, own, before),
                *self._advance(own),
            ))  # fmt: skip

        return [self._threads(publish), self._threads(collect)]

    def _warp(self, own: tuple[Expr, Expr]) -> list[Stmt]:
        """`before` within the warp, and `total` of the warp: groups of 2, 4, 8... lanes."""
        total, other, before = (Load(b, own, None) for b in (self.total, self.other, self.before))
        steps: list[Stmt] = [Store(self.before, own, self.line.identity)]
        distance = 1
        while distance < WARP:
            second = own[1] % (2 * distance) >= distance
            more = select(second, self.line.combine(other, before), before)
            steps += [
                Store(self.other, own, Call("shuffle_xor", (total, const(distance)), total.dtype)),
                Store(self.before, own, more),
                Store(self.total, own, self.line.combine(total, other)),
            ]
            distance *= 2
        return steps

    def _advance(self, own: tuple[Expr, Expr]) -> list[Stmt]:
        carry = Load(self.carry, own, None)
        start = self.line.combine(carry, Load(self.before, own, None))
        then = self.line.combine(carry, Load(self.total, own, None))
        return [Store(self.before, own, start), Store(self.carry, own, then)]


@dataclass
class _Columns:
    """A column, or a chunk of it, for each thread."""

    line: _Line
    place: Callable[..., tuple[Expr, ...]]
    x: Buffer
    out: Buffer

    def __post_init__(self) -> None:
        line = self.line
        columns = line.outer * line.inner
        wanted = min(_COLUMNS // columns, line.n // _COLUMN, math.isqrt(line.n))
        self.length = math.ceil(line.n / max(1, wanted))
        self.chunks = math.ceil(line.n / self.length)
        extents = (line.outer, self.chunks, line.inner)
        self.totals = Buffer("totals", tuple(const(e) for e in extents), line.acc)
        self.scratch: list[Buffer] = []

    def kernel(self) -> Stmt:
        if self.chunks == 1:
            stmt = self._launch(self._scan)
            return allocated(self.scratch, stmt)
        stmt = Seq((self._launch(self._total), self._launch(self._scan)))
        return allocated([*self.scratch, self.totals], stmt)

    def _launch(self, body: Callable[..., Stmt]) -> Stmt:
        self.sum = Buffer("sum", (const(_THREADS),), self.line.acc, Scope.LOCAL)
        self.scratch.append(self.sum)
        extents = (self.line.outer, self.chunks, self.line.inner)
        count = math.prod(extents)

        def block(number: Expr) -> Stmt:
            def thread(_: Expr, x: Expr) -> Stmt:
                flat = number * _THREADS + x
                stmt = body(tuple(unravel(flat, extents)), (x,))
                return stmt if count % _THREADS == 0 else If(flat < count, stmt)

            return threads(1, _THREADS, thread)

        return blocks(math.ceil(count / _THREADS), block)

    def _along(self, place: tuple[Expr, ...], step: Callable[[Expr], Stmt]) -> Stmt:
        """`step(place on the axis)` for the elements of a chunk."""

        def element(t: Expr) -> Stmt:
            p = place[1] * self.length + t
            stmt = step(self.line.at(p))
            return stmt if self.chunks * self.length == self.line.n else If(p < self.line.n, stmt)

        return loop("t", self.length, element)

    def _add(self, own: tuple[Expr], value: Expr) -> Stmt:
        return Store(self.sum, own, self.line.combine(Load(self.sum, own, None), value))

    def _read(self, place: tuple[Expr, ...], p: Expr) -> Expr:
        return Load(self.x, self.place(place[0], p, place[2]), None).astype(self.line.acc)

    def _total(self, place: tuple[Expr, ...], own: tuple[Expr]) -> Stmt:
        return Seq((
            Store(self.sum, own, self.line.identity),
            self._along(place, lambda p: self._add(own, self._read(place, p))),
            Store(self.totals, place, Load(self.sum, own, None)),
        ))  # fmt: skip

    def _scan(self, place: tuple[Expr, ...], own: tuple[Expr]) -> Stmt:
        outer, chunk, inner = place

        def earlier(c: Expr) -> Stmt:
            return If(c < chunk, self._add(own, Load(self.totals, (outer, c, inner), None)))

        def step(p: Expr) -> Stmt:
            value = Load(self.sum, own, None).astype(self.line.dtype)
            write = Store(self.out, self.place(outer, p, inner), value)
            steps = (self._add(own, self._read(place, p)), write)
            return Seq(steps[::-1] if self.line.exclusive else steps)

        before = [loop("chunk", self.chunks, earlier)] if self.chunks > 1 else []
        clear = Store(self.sum, own, self.line.identity)
        return Seq((clear, *before, self._along(place, step)))
