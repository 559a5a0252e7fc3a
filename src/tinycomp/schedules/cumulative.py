"""Running sums and products on a CPU: one pass along the axis, several lines at once.

A line is what an element of the result sums up: `n` elements along the axis, for each place
before and behind it. Lines beside each other in memory are the lanes of vectors; others are
written out side by side, so that the additions of one do not wait for those of another. Where
lines are few and long they are cut into chunks: the totals of the chunks first, then the running
sums of the totals, with which the chunks start. (Blelloch, "Prefix Sums and Their Applications",
1990.) The chunks depend on the shape only, so results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .. import te
from ..ir.expr import Binary, BinaryOp, Expr, Load, as_int, const
from ..ops.shape import unravel
from ..ops.window import accumulation_dtype
from ..target import Target
from ..te.tensor import Tensor
from ..tir.nodes import Buffer, ForKind, If, Scope, Seq, Stmt, Store
from ..types import TensorType
from .common import PARALLEL_CYCLES
from .loops import allocated, around_axis, loop, unrolled, vector

IDENTITY = {BinaryOp.ADD: 0, BinaryOp.MUL: 1}

_SIDE_BY_SIDE = 8  # lines that hide the latency of an addition
_ENOUGH_LINES = 128  # for 16 threads with as many lines each
_MIN_CHUNK = 512  # elements along the axis
_VECTORS = 4  # neighbouring vectors of lines


def expand_cumulative(
    op: BinaryOp, target: Target, attrs: Any, args: Sequence[Tensor], out: TensorType
) -> list[Tensor] | None:
    """cumsum or cumprod as hand-written loops; None for an empty tensor."""
    (x,) = args
    shape = out.static_shape
    if not out.size:
        return None
    axis = attrs.axis % len(shape)
    sizes = (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
    lanes = target.lanes(accumulation_dtype(out.dtype))

    def make(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        return _Cumulative(op, attrs, sizes, lanes, ins[0], outs[0]).kernel()

    return [te.extern(shape, [x], make, x.name + "_" + op.name.lower(), out.dtype)]


def choose_chunks(lines: int, length: int) -> int:
    """Into how many chunks lines of this length are cut.

    >>> choose_chunks(1, 1 << 20), choose_chunks(1, 3000), choose_chunks(1000, 1 << 20)
    (128, 5, 1)
    """
    return max(1, min(-(-_ENOUGH_LINES // lines), length // _MIN_CHUNK))


Line = tuple[Expr, Expr, Expr]  # place before the axis, chunk, place behind the axis


@dataclass(frozen=True)
class _Group:
    """`count` groups of `width` lines that one thread computes together."""

    count: int
    width: int
    line: Callable[[Expr, Expr], Line]
    lanes: Callable[..., Stmt]


@dataclass
class _Cumulative:
    """Builds the loops. `sizes` are the extents before, on and behind the axis."""

    op: BinaryOp
    attrs: Any
    sizes: tuple[int, int, int]
    lanes: int
    x: Buffer
    out: Buffer

    def __post_init__(self) -> None:
        outer, n, inner = self.sizes
        self.acc = accumulation_dtype(self.out.dtype)
        self.chunks = choose_chunks(outer * inner, n)
        self.length = math.ceil(n / self.chunks)
        self.identity = const(IDENTITY[self.op], self.acc)
        axis = self.attrs.axis % len(self.out.shape)
        self.place = around_axis([as_int(d) for d in self.out.shape], axis)
        small = [const(d) for d in (outer, self.chunks, inner)]
        self.totals = Buffer("totals", tuple(small), self.acc)
        self.starts = Buffer("starts", tuple(small), self.acc)

    def kernel(self) -> Stmt:
        if self.chunks == 1:
            return allocated(self._sums, Seq(tuple(map(self._scan, self.groups))))
        steps = (*map(self._total, self.groups), self._carry(), *map(self._scan, self.groups))
        return allocated([self.totals, self.starts, self._carried, *self._sums], Seq(steps))

    # -- which lines are computed together ------------------------------------------------------

    @cached_property
    def groups(self) -> list[_Group]:
        """Whole groups, and one of what remains."""
        outer, _, inner = self.sizes
        neighbours = inner >= self.lanes
        lines, most = (
            (inner, _VECTORS * self.lanes)
            if neighbours
            else (outer * self.chunks * inner, _SIDE_BY_SIDE)
        )
        width = min(lines, most)
        parts = [(lines // width, width, 0), (1, lines % width, lines // width * width)]
        return [self._group(*part, neighbours) for part in parts if part[1]]

    def _group(self, count: int, width: int, first: int, neighbours: bool) -> _Group:
        outer, _, inner = self.sizes

        def column(g: Expr, u: Expr) -> Line:
            o, c, block = unravel(g, (outer, self.chunks, count))
            return o, c, first + block * width + u

        def any_line(g: Expr, u: Expr) -> Line:
            o, c, i = unravel(first + g * width + u, (outer, self.chunks, inner))
            return o, c, i

        if neighbours:
            return _Group(outer * self.chunks * count, width, column, vector)
        return _Group(count, width, any_line, unrolled)

    @cached_property
    def _sums(self) -> list[Buffer]:
        return [Buffer("sum", (const(g.width),), self.acc, Scope.LOCAL) for g in self.groups]

    def _each(self, group: _Group, body: Callable[[Expr], Stmt]) -> Stmt:
        """A loop over groups, on threads if there is enough to do."""
        steps = group.count * group.width * self.length
        worth = group.count > 1 and steps / min(group.width, self.lanes) >= PARALLEL_CYCLES
        return loop("group", group.count, body, ForKind.PARALLEL if worth else ForKind.SERIAL)

    # -- the passes -----------------------------------------------------------------------------

    def _along(
        self, group: _Group, g: Expr, start: Callable[[Line], Expr], step: Callable[..., Stmt]
    ) -> list[Stmt]:
        """`sum = start`, then `step(sum, line, place on the axis, u)` along the lines."""
        total = self._sums[self.groups.index(group)]
        n, whole = self.sizes[1], self.length * self.chunks == self.sizes[1]

        def at(t: Expr) -> Stmt:
            def lane(u: Expr) -> Stmt:
                line = group.line(g, u)
                p = line[1] * self.length + t
                stmt = step(total, line, n - 1 - p if self.attrs.reverse else p, u)
                return stmt if whole else If(p < n, stmt)

            return group.lanes("u", group.width, lane)

        first = group.lanes("u", group.width, lambda u: Store(total, (u,), start(group.line(g, u))))
        return [first, loop("t", self.length, at)]

    def _add(self, total: Buffer, line: Line, p: Expr, u: Expr) -> Stmt:
        value = Load(self.x, self.place(line[0], p, line[2]), None).astype(self.acc)
        return Store(total, (u,), Binary(self.op, Load(total, (u,), None), value))

    def _total(self, group: _Group) -> Stmt:
        total = self._sums[self.groups.index(group)]

        def body(g: Expr) -> Stmt:
            done = group.lanes(
                "u",
                group.width,
                lambda u: Store(self.totals, group.line(g, u), Load(total, (u,), None)),
            )
            return Seq((*self._along(group, g, lambda _: self.identity, self._add), done))

        return self._each(group, body)

    @cached_property
    def _carried(self) -> Buffer:
        return Buffer("carried", (const(1),), self.acc, Scope.LOCAL)

    def _carry(self) -> Stmt:
        """What each chunk starts with: the chunks before it."""
        outer, _, inner = self.sizes
        zero = (const(0),)
        carried = Load(self._carried, zero, None)

        def chunk(line: Expr, c: Expr) -> Stmt:
            o, i = unravel(line, (outer, inner))
            more = Binary(self.op, carried, Load(self.totals, (o, c, i), None))
            return Seq((Store(self.starts, (o, c, i), carried), Store(self._carried, zero, more)))

        return loop("line", outer * inner, lambda line: Seq((
            Store(self._carried, zero, self.identity),
            loop("c", self.chunks, lambda c: chunk(line, c)),
        )))  # fmt: skip

    def _scan(self, group: _Group) -> Stmt:
        def start(line: Line) -> Expr:
            return self.identity if self.chunks == 1 else Load(self.starts, line, None)

        def step(total: Buffer, line: Line, p: Expr, u: Expr) -> Stmt:
            value = Load(total, (u,), None).astype(self.out.dtype)
            write = Store(self.out, self.place(line[0], p, line[2]), value)
            steps = (self._add(total, line, p, u), write)
            return Seq(steps[::-1] if self.attrs.exclusive else steps)

        return self._each(group, lambda g: Seq(tuple(self._along(group, g, start, step))))
