"""Reductions of several values at once (argmax, argmin) on a CPU, in vectors of partial results.

Lanes are neighbouring results where the last axis is kept, else neighbouring elements, whose
partial results are combined at the end; where results are few, pieces of the data are shared among
threads first. The combiner must be commutative, as that of argmax is: among equal values it
chooses by the index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import te
from ..ir.expr import Expr, Load, as_int, const, substitute
from ..ops import default_ops
from ..ops.shape import unravel
from ..target import Target
from ..te.tensor import ComputeOp, Reduce, Tensor
from ..tir.from_te import load_buffers
from ..tir.nodes import Buffer, ForKind, If, Scope, Seq, Stmt, Store
from ..types import TensorType
from .common import PARALLEL_CYCLES, extents, reduces_last_axis
from .loops import allocated, loop, vector

_VECTORS = 4  # of partial results: hides the latency of a comparison and a choice
_PIECES = 64
_FEW = 16  # results that do not keep threads busy
_MIN_PIECE = 1024


def expand_arg_reduction(
    name: str, target: Target, attrs: Any, args: Sequence[Tensor], out: TensorType
) -> list[Tensor] | None:
    """The operator `name` as hand-written loops; None for an empty result."""
    compute = default_ops()[name].compute
    assert compute is not None
    (result,) = compute(attrs, args, out)
    op = result.op
    assert isinstance(op, ComputeOp)
    if not out.size:
        return None
    lanes = target.lanes(args[0].dtype)

    def make(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        return _ArgReduction(op, dict(zip(args, ins, strict=True)), outs[0], lanes).kernel()

    return [te.extern(out.static_shape, args, make, name, out.dtype)]


class _ArgReduction:
    """Builds the loops: `width` partial results at once, in each of `pieces` of the data."""

    def __init__(
        self, op: ComputeOp, buffers: dict[Tensor, Buffer], out: Buffer, lanes: int
    ) -> None:
        self.op, self.out = op, out
        reduce = op.body[0]
        assert isinstance(reduce, Reduce)
        self.combiner = reduce.combiner
        self.sources = [load_buffers(source, buffers) for source in reduce.sources]
        self.shape = extents(op)
        self.lengths = [as_int(a.extent) for a in op.reduce_axis]
        self.total = math.prod(self.lengths)
        neighbours = bool(self.shape) and self.shape[-1] >= lanes
        self.side_by_side = neighbours and not reduces_last_axis(op)
        most = self.shape[-1] if self.side_by_side else self.total
        self.width = min(_VECTORS * lanes, most)
        tasks = math.prod(self.shape) // (self.width if self.side_by_side else 1)
        few = tasks < _FEW and self.total >= _PIECES * _MIN_PIECE
        self.pieces = _PIECES if few else 1
        self.best = self._partial("best", self.width)
        self.new = self._partial("new", self.width)
        self.parts = self._partial("part", *self.shape, self.pieces, scope=Scope.GLOBAL)
        self.one, self.next = self._partial("one", 1), self._partial("next", 1)

    def _partial(self, name: str, *shape: int, scope: Scope = Scope.LOCAL) -> list[Buffer]:
        return [Buffer(name, tuple(map(const, shape)), s.dtype, scope) for s in self.sources]

    def kernel(self) -> Stmt:
        groups = self._side_by_side() if self.side_by_side else [self._by_elements()]
        scratch = [*self.best, *self.new, *self.one, *self.next]
        if self.pieces == 1:
            return allocated(scratch, Seq(tuple(groups)))
        finish = loop("i", math.prod(self.shape), lambda i: self._finish(unravel(i, self.shape)))
        return allocated([*scratch, *self.parts], Seq((*groups, finish)))

    # -- pieces ---------------------------------------------------------------------------------

    def _side_by_side(self) -> list[Stmt]:
        """Neighbouring results; whole vectors first, then those that remain."""
        *outer, last = self.shape
        whole = last // self.width
        parts = [(whole, self.width, 0), (1, last % self.width, whole * self.width)]

        def group(count: int, width: int, first: int) -> Stmt:
            def results(number: Expr) -> Stmt:
                *place, block, piece = unravel(number, (*outer, count, self.pieces))

                def index(u: Expr) -> list[Expr]:
                    return [*place, first + block * width + u]

                def step(t: Expr) -> Stmt:
                    k, inside = self._element(piece, t, self._piece_length)
                    stmt = vector("u", width, lambda u: self._take(u, index(u), k))
                    return stmt if inside is None else If(inside, stmt)

                return Seq((
                    self._clear(self.best, width), loop("t", self._piece_length, step),
                    vector("u", width, lambda u: self._store(index(u), piece, self.best, u)),
                ))  # fmt: skip

            return self._each(math.prod(outer) * count * self.pieces, width, results)

        return [group(*part) for part in parts if part[1]]

    @property
    def _piece_length(self) -> int:
        return math.ceil(self.total / self.pieces)

    def _by_elements(self) -> Stmt:
        """One result at a time, of lanes that each have every `width`-th element of a piece."""
        steps = math.ceil(self._piece_length / self.width)

        def result(number: Expr) -> Stmt:
            *place, piece = unravel(number, (*self.shape, self.pieces))

            def step(t: Expr) -> Stmt:
                def lane(u: Expr) -> Stmt:
                    k, inside = self._element(piece, t * self.width + u, steps * self.width)
                    stmt = self._take(u, place, k)
                    return stmt if inside is None else If(inside, stmt)

                return vector("u", self.width, lane)

            def join(u: Expr) -> Stmt:
                return self._combine(self.one, self.next, const(0), self._load(self.best, u))

            return Seq((
                self._clear(self.best, self.width), loop("t", steps, step),
                self._clear(self.one, 1), loop("u", self.width, join),
                self._store(place, piece, self.one, const(0)),
            ))  # fmt: skip

        return self._each(math.prod(self.shape) * self.pieces, 1, result)

    def _element(self, piece: Expr, t: Expr, length: int) -> tuple[Expr, Expr | None]:
        """The number of an element of a piece, and the condition that there is one."""
        k = piece * length + t
        return k, None if length * self.pieces == self.total else k < self.total

    def _finish(self, place: list[Expr]) -> Stmt:
        def join(piece: Expr) -> Stmt:
            part = [Load(b, (*place, piece), None) for b in self.parts]
            return self._combine(self.one, self.next, const(0), part)

        write = Store(self.out, tuple(place), Load(self.one[0], (const(0),), None))
        return Seq((self._clear(self.one, 1), loop("piece", self.pieces, join), write))

    # -- what a lane does -----------------------------------------------------------------------

    def _each(self, count: int, width: int, body: Any) -> Stmt:
        worth = count > 1 and count * width * self._piece_length >= PARALLEL_CYCLES
        return loop("task", count, body, ForKind.PARALLEL if worth else ForKind.SERIAL)

    def _load(self, buffers: Sequence[Buffer], u: Expr) -> list[Expr]:
        return [Load(b, (u,), None) for b in buffers]

    def _clear(self, buffers: Sequence[Buffer], width: int) -> Stmt:
        starts = list(zip(buffers, self.combiner.identity, strict=True))
        return vector("u", width, lambda u: Seq(tuple(Store(b, (u,), e) for b, e in starts)))

    def _take(self, u: Expr, place: Sequence[Expr], k: Expr) -> Stmt:
        """Element `k` of a result, into lane `u`."""
        kept = zip(self.op.axis, place, strict=True)
        reduced = zip(self.op.reduce_axis, unravel(k, self.lengths), strict=True)
        here = {axis.var: index for axis, index in (*kept, *reduced)}
        return self._combine(self.best, self.new, u, [substitute(e, here) for e in self.sources])

    def _combine(
        self, into: Sequence[Buffer], scratch: Sequence[Buffer], u: Expr, other: Sequence[Expr]
    ) -> Stmt:
        """`into[u]` combined with other values, all at once."""
        known = {
            **dict(zip(self.combiner.lhs, self._load(into, u), strict=True)),
            **dict(zip(self.combiner.rhs, other, strict=True)),
        }
        results = zip(scratch, self.combiner.results, strict=True)
        first = [Store(b, (u,), substitute(r, known)) for b, r in results]
        then = [Store(b, (u,), n) for b, n in zip(into, self._load(scratch, u), strict=True)]
        return Seq((*first, *then))

    def _store(
        self, place: Sequence[Expr], piece: Expr, buffers: Sequence[Buffer], u: Expr
    ) -> Stmt:
        values = self._load(buffers, u)
        if self.pieces == 1:
            return Store(self.out, tuple(place), values[0])
        stores = zip(self.parts, values, strict=True)
        return Seq(tuple(Store(b, (*place, piece), v) for b, v in stores))
