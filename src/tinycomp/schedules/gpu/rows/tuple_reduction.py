"""Reductions of several values at once (argmax; maximum and sum of softmax) on a GPU: some threads
for each result.

Where the elements of a result lie side by side in memory, so do its threads; elsewhere the threads
side by side have neighbouring results. Each combines its elements in registers; then halves of the
threads combine what the other half has, in shared memory. Few results of much data are found in
parts, which a second launch combines. The combiner must be commutative, and combining with its
identity must change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .... import te
from ....dtype import DType
from ....ir.expr import Expr, Load, const, substitute
from ....te.tensor import Combiner, Tensor
from ....tir.nodes import Buffer, If, Scope, Seq, Stmt, Store
from ....tir.passes.bind_threads import WARP
from ..bind import THREADS
from ..loops import allocated, blocks, inside, loop, threads, unrolled, vector

_MULTIPROCESSORS = 132  # of a large GPU
_LONG = 2048  # elements that are worth a block
_SHORT = 64  # elements of a column that one thread combines
_ENOUGH = _MULTIPROCESSORS * 1024  # threads, more of which need no sharing
_LOADS = 4  # accesses of a thread before it waits
_STEPS = 16  # accesses of a thread that are worth a part of their own
_MUCH = 1 << 16  # elements that are worth a second launch

Values = list[Expr]
Elements = Callable[[Expr, Expr], Values]
Results = Callable[[Expr, Values], Stmt]


@dataclass(frozen=True)
class ReductionShape:
    """What one launch combines: `count` results of `length` elements.

    Attributes:
        along: whether the elements of a result lie side by side, else those of neighbouring
            results do.
        lanes: elements of one access.
    """

    count: int
    length: int
    along: bool
    lanes: int

    @property
    def sharers(self) -> int:
        """Threads of one result, a power of two."""
        if not self.along:
            most = THREADS // WARP if self.length >= _SHORT else 1
            while most > 1 and self.count * most >= 2 * _ENOUGH:
                most //= 2
            return most
        if self.length >= _LONG:
            return THREADS
        return min(WARP, 1 << (-(-self.length // self.lanes) - 1).bit_length())

    @property
    def parts(self) -> int:
        """Parts of each result, so that all of the GPU has work."""
        if self.count * self.length < _MUCH:
            return 1
        blocks = math.ceil(self.count * self.sharers / THREADS)
        steps = self.length // (self.sharers * self.lanes)
        return max(1, min(4 * _MULTIPROCESSORS // blocks, steps // _STEPS))


def reduce_tuples(
    combiner: Combiner,
    types: Sequence[DType],
    shape: ReductionShape,
    inputs: Sequence[Tensor],
    elements: Callable[[list[Buffer]], Elements],
    out: tuple[Sequence[int], DType] | None,
    into: Callable[[list[Buffer]], Results],
    name: str,
) -> list[Tensor]:
    """The reduction as hand-written loops, in one launch or two.

    Args:
        types: of the values.
        elements: of the buffers of the inputs, gives the values of element k of a result.
        out: shape and dtype of the one output; by default there is one [count] for each value.
        into: of the output buffers, stores the values of a result.
    """
    count, length = shape.count, shape.length
    unit = shape.sharers * shape.lanes
    size = math.ceil(length / (shape.parts * unit)) * unit
    parts = math.ceil(length / size)

    def made(source: Sequence[Tensor], make: Callable[..., Stmt], title: str) -> list[Tensor]:
        if out is None:
            return te.extern([(count,)] * len(types), source, make, title, types)
        return [te.extern(out[0], source, make, title, out[1])]

    def direct(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        return _Launch(combiner, types, shape, elements(ins), into(outs)).stmt()

    if parts == 1:
        return made(inputs, direct, name)

    def partial(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        element = elements(ins)
        piece = ReductionShape(count * parts, size, shape.along, shape.lanes)

        def of_part(row: Expr, k: Expr) -> Values:
            return element(row % count, row // count * size + k)

        def left(row: Expr) -> Expr:
            return length - row // count * size

        limit = None if length % size == 0 else left
        return _Launch(combiner, types, piece, of_part, each_into(outs), limit).stmt()

    def final(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        whole = ReductionShape(count, parts, False, 1)

        def found(row: Expr, part: Expr) -> Values:
            return [Load(b, (part * count + row,), None) for b in ins]

        return _Launch(combiner, types, whole, found, into(outs)).stmt()

    rows = [(count * parts,)] * len(types)
    return made(te.extern(rows, inputs, partial, f"{name}_parts", types), final, name)


def each_into(outs: Sequence[Buffer]) -> Results:
    """Stores every value of a result into a buffer of its own."""
    return lambda row, values: Seq(
        tuple(Store(b, (row,), v) for b, v in zip(outs, values, strict=True))
    )


class _Launch:
    """Builds the loops of one launch.

    Args:
        element: the values of element k of a result.
        store: writes the values of a result.
        limit: how many elements a result has, where that is not the length for all.
    """

    def __init__(
        self,
        combiner: Combiner,
        types: Sequence[Any],
        shape: ReductionShape,
        element: Callable[[Expr, Expr], Values],
        store: Callable[[Expr, Values], Stmt],
        limit: Callable[[Expr], Expr] | None = None,
    ) -> None:
        self.combiner, self.shape, self.element = combiner, shape, element
        self.store, self.limit = store, limit
        self.sharers = shape.sharers
        self.results = min(THREADS // self.sharers, -(-shape.count // WARP) * WARP)
        sides = (self.results, self.sharers) if shape.along else (self.sharers, self.results)
        self.rows, self.columns = sides

        def made(name: str, scope: Scope, *more: int) -> list[Buffer]:
            extents_ = tuple(const(n) for n in (*sides, *more))
            return [Buffer(f"{name}{i}", extents_, d, scope) for i, d in enumerate(types)]

        self.best, self.new = made("best", Scope.LOCAL), made("new", Scope.LOCAL)
        self.next = made("next", Scope.LOCAL, shape.lanes)
        self.shared = made("shared", Scope.SHARED) if self.sharers > 1 else []

    def stmt(self) -> Stmt:
        count, buffers = self.shape.count, [*self.best, *self.new, *self.next, *self.shared]

        def body(block: Expr) -> Stmt:
            steps = [self._threads(lambda *at: self._own(block * self.results, at))]
            half = self.sharers // 2
            while half:
                steps.append(self._threads(self._halve(half)))
                half //= 2
            steps.append(self._threads(lambda *at: self._write(block * self.results, at)))
            return Seq(tuple(steps))

        return allocated(buffers, blocks(math.ceil(count / self.results), body))

    def _threads(self, body: Callable[[Any, Any], Stmt]) -> Stmt:
        return threads(self.rows, self.columns, body)

    def _places(self, at: tuple[Expr, Expr]) -> tuple[Expr, Expr]:
        """The result of a thread within the block, and its number among those that share it."""
        return at if self.shape.along else (at[1], at[0])

    def _combine(self, at: tuple[Expr, Expr], into: Sequence[Buffer], other: Values) -> Stmt:
        """`into[at]` combined with other values, all at once."""
        old = (Load(b, at, None) for b in into)
        known = {
            **dict(zip(self.combiner.lhs, old, strict=True)),
            **dict(zip(self.combiner.rhs, other, strict=True)),
        }
        results = [substitute(r, known) for r in self.combiner.results]
        first = [Store(b, at, r) for b, r in zip(self.new, results, strict=True)]
        then = [Store(b, at, Load(n, at, None)) for b, n in zip(into, self.new, strict=True)]
        return Seq((*first, *then))

    def _own(self, first: Expr, at: tuple[Expr, Expr]) -> Stmt:
        """What one thread combines, in registers; then in shared memory, if others share it."""
        result, sharer = self._places(at)
        count, length, lanes = self.shape.count, self.shape.length, self.shape.lanes
        row, _ = inside(first + result, count, count % self.results == 0)
        step = self.sharers * lanes  # elements that all sharers take together

        def access(number: Expr, whole: bool) -> Stmt:
            k = number * step + sharer * lanes
            stmt = self._access(at, row, k)
            limit = const(length) if self.limit is None else self.limit(row)
            return stmt if whole and self.limit is None else If(k < limit, stmt)

        together = 2 * _LOADS // min(lanes, 2)
        groups, rest = divmod(length // step, together)
        start = [Store(b, at, e) for b, e in zip(self.best, self.combiner.identity, strict=True)]
        stmts: list[Stmt] = [*start]
        if groups:
            stmts.append(
                loop("group", groups, lambda g: unrolled(
                    "step", together, lambda s: access(g * together + s, True)))
            )  # fmt: skip
        for s in range(rest):
            stmts.append(access(const(groups * together + s), True))
        if length % step:
            stmts.append(access(const(length // step), False))
        stmts += self._share(at)
        return Seq(tuple(stmts))

    def _access(self, at: tuple[Expr, Expr], row: Expr, k: Expr) -> Stmt:
        """Read neighbouring elements at once, then combine one after the other."""
        lanes = self.shape.lanes

        def read(lane: Expr) -> Stmt:
            values = zip(self.next, self.element(row, k + lane), strict=True)
            return Seq(tuple(Store(b, (*at, lane), v) for b, v in values))

        def combine(lane: Expr) -> Stmt:
            return self._combine(at, self.best, [Load(b, (*at, lane), None) for b in self.next])

        return Seq((vector("lane", lanes, read), unrolled("lane", lanes, combine)))

    def _share(self, at: tuple[Expr, Expr]) -> list[Stmt]:
        pairs = zip(self.shared, self.best, strict=False)
        return [Store(b, at, Load(own, at, None)) for b, own in pairs]

    def _halve(self, half: int) -> Callable[[Any, Any], Stmt]:
        """The first threads combine what as many others have."""

        def thread(y: Expr, x: Expr) -> Stmt:
            _, sharer = self._places((y, x))
            other = (y, x + half) if self.shape.along else (y + half, x)
            combined = self._combine((y, x), self.best, [Load(b, other, None) for b in self.shared])
            return If(sharer < half, Seq((combined, *self._share((y, x)))))

        return thread

    def _write(self, first: Expr, at: tuple[Expr, Expr]) -> Stmt:
        result, sharer = self._places(at)
        store = self.store(first + result, [Load(b, at, None) for b in self.best])
        conditions = [sharer.equal(0)] * (self.sharers > 1)
        conditions += [first + result < self.shape.count] * bool(self.shape.count % self.results)
        for condition in conditions:
            store = If(condition, store)
        return store


def unravel(flat: Expr, shape: Sequence[int]) -> list[Expr]:
    index: list[Expr] = []
    for extent in reversed(shape[1:]):
        index.insert(0, flat % extent)
        flat = flat // extent
    return [flat, *index] if shape else []
