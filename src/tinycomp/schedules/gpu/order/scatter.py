"""Writing at computed places on a GPU: a launch that copies the data, and launches that update it.

Several updates may go to one place, and then their order decides: the last one stays, and sums of
floats depend on it. So no two threads write one place. Where there is enough besides the indexed
axes, or there are few updates, each thread walks along all updates of its element. Elsewhere the
updates are sorted by where they go; the first of those that go to one place does all of them, in
their order. Either way results are those of one update after the other, which atomic operations
would not give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ....dtype import DType
from ....ir.expr import Binary, BinaryOp, Expr, Load, as_int, const
from ....ops.shape import ravel, unravel
from ....te.tensor import Tensor
from ....tir.lower_gpu import ACCESS
from ....tir.nodes import Buffer, If, Scope, Seq, Stmt, Store
from ....types import TensorType
from ...scatter import Updates, checked, combined, scatter_loops
from ...sort_records import Fields, Records
from ..loops import allocated, blocks, loop, threads, vector
from .sorting import buffers, load, sort_lines, store

_THREADS = 256  # of a block
_FEW = 64  # updates that a thread walks along in any case
_BUSY = 16 * 1024  # threads that are worth walking along all updates


def expand_scatter(
    describe: Callable[..., Updates], attrs: Any, args: Sequence[Tensor], out: TensorType
) -> list[Tensor] | None:
    """scatter_elements or scatter_nd as hand-written loops; None for an empty result."""
    updates = describe(attrs, args)

    def update(copied: Stmt, ins: list[Buffer], result: Buffer) -> Stmt:
        loops = _Scatter(updates, attrs.reduction, ins[1], ins[2], result)
        walk = updates.count <= _FEW or updates.size // updates.count >= _BUSY
        return Seq((copied, loops.walk() if walk else loops.sorted()))

    return scatter_loops(updates, args, out, _copy, update)


def flat(count: int, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
    """A launch of a thread for each number below `count`: `body(number, threadIdx.x)`."""

    def block(number: Expr) -> Stmt:
        def thread(_: Expr, x: Expr) -> Stmt:
            stmt = body(number * _THREADS + x, x)
            return stmt if count % _THREADS == 0 else If(number * _THREADS + x < count, stmt)

        return threads(1, _THREADS, thread)

    return blocks(math.ceil(count / _THREADS), block)


def _copy(x: Buffer, out: Buffer) -> Stmt:
    shape = tuple(as_int(d) for d in x.shape)
    columns = shape[-1] if shape else 1
    lanes = ACCESS.lanes(x.dtype)
    while columns % lanes:
        lanes //= 2

    def thread(number: Expr, _: Expr) -> Stmt:
        row, first = number // (columns // lanes), number % (columns // lanes) * lanes

        def element(u: Expr) -> Stmt:
            at = (*unravel(row, shape[:-1]), first + u) if shape else ()
            return Store(out, at, Load(x, at, None))

        return vector("u", lanes, element)

    return flat(math.prod(shape) // lanes, thread)


@dataclass
class _Scatter:
    """Builds the launches of the updates."""

    updates: Updates
    reduction: str
    indices: Buffer
    values: Buffer
    out: Buffer

    def _update(self, line: Expr, at: Sequence[Expr], k: Expr, row: Expr, column: Expr) -> Stmt:
        place = self.updates.target(line, at, row, column)
        new = Load(self.values, self.updates.source(line, k, row, column), None)
        return Store(self.out, place, combined(self.reduction, Load(self.out, place, None), new))

    def _checked(self, line: Expr, k: Expr, row: Expr, column: Expr) -> list[Expr]:
        """The indices of an update."""
        index = self.updates.index
        return [
            checked(self.indices, index(line, k, row, column, const(d)), extent)
            for d, extent in enumerate(self.updates.extents)
        ]

    # -- a thread for each element off the indexed axes -----------------------------------------

    def walk(self) -> Stmt:
        own = self.updates
        depth = len(own.extents)
        extents = (const(_THREADS), const(max(depth, 1)))
        found = Buffer("at", extents, DType.INT64, Scope.LOCAL)

        def thread(number: Expr, x: Expr) -> Stmt:
            line, row, column = unravel(number, (own.lines, own.rows, own.columns))
            at = [Load(found, (x, const(d)), None) for d in range(depth)]

            def update(k: Expr) -> Stmt:
                places = enumerate(self._checked(line, k, row, column))
                find = (Store(found, (x, const(d)), place) for d, place in places)
                return Seq((*find, self._update(line, at, k, row, column)))

            return loop("k", own.count, update)

        return allocated([found], flat(own.size // own.count, thread))

    # -- sorted by where they go ----------------------------------------------------------------

    def sorted(self) -> Stmt:
        """Records of (place on the indexed axes, number of the update), sorted in each line; where
        elements have indices of their own, each of them has a line."""
        own = self.updates
        each = (own.lines, *((own.rows, own.columns) if own.by_element else (1, 1)))
        lines, places = math.prod(each), math.prod(own.extents)
        records = Records(DType.INT32 if places < 1 << 31 else DType.INT64)
        order = buffers(records, "order", (lines, own.count), Scope.GLOBAL)

        def source(number: Expr, k: Expr) -> Fields:
            at = self._checked(unravel(number, each)[0], k, *unravel(number, each)[1:])
            return records.record(ravel(at, own.extents).astype(records.dtype), k)

        def sink(number: Expr, p: Expr, record: Fields) -> Stmt:
            return store(order, record, number, p)

        sort = sort_lines(records, lines, own.count, own.count, source, sink)
        return allocated(order, Seq((sort, self._apply(records, order, each))))

    def _apply(self, records: Records, order: list[Buffer], each: tuple[int, ...]) -> Stmt:
        """A thread for each sorted update and element of it: those with the last (or, where all
        matter, the first) update of a place write it."""
        own, last = self.updates, self.updates.count - 1
        end = Buffer("end", (const(_THREADS), const(2)), DType.INT64, Scope.LOCAL)

        def thread(flat_number: Expr, x: Expr) -> Stmt:
            line, p, row, column = unravel(
                flat_number, (own.lines, own.count, own.rows, own.columns)
            )
            number = ravel((line, row, column), each) if own.by_element else line

            def destination(q: Expr) -> Expr:
                return load(order, number, q)[0] >> (32 if len(order) == 1 else 0)

            mine = destination(p)
            at = unravel(mine, own.extents)

            def update(q: Expr) -> Stmt:
                k = records.place(load(order, number, q))
                return self._update(line, at, k, row, column)

            if self.reduction == "none":
                after = destination(Binary(BinaryOp.MIN, p + 1, const(last)))
                return If(p.equal(last) | mine.not_equal(after), update(p))
            before = destination(Binary(BinaryOp.MAX, p - 1, const(0)))
            steps = self._run(end, x, p, lambda q: destination(q).equal(mine), update)
            return If(p.equal(0) | mine.not_equal(before), steps)

        return allocated([end], flat(own.size, thread))

    def _run(
        self, end: Buffer, x: Expr, p: Expr,
        same: Callable[[Expr], Expr], update: Callable[[Expr], Stmt],
    ) -> Stmt:  # fmt: skip
        """All updates from `p` on that are the `same`; where they end is found by halving."""
        low, high = (x, const(0)), (x, const(1))
        i, j = Load(end, low, None), Load(end, high, None)
        count = self.updates.count
        halve = If(i < j, If(same((i + j) // 2), Store(end, low, (i + j) // 2 + 1),
                             Store(end, high, (i + j) // 2)))  # fmt: skip
        return Seq((
            Store(end, low, p + 1), Store(end, high, const(count)),
            loop("halving", count.bit_length(), lambda _: halve),
            loop("more", i - p, lambda n: update(p + n)),
        ))  # fmt: skip
