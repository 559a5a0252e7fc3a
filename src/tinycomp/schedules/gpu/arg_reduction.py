"""Reductions of several values at once (argmax, argmin) on a GPU: some threads for each result.

Each thread combines every T-th element in registers; then halves of the threads combine what the
other half has, in shared memory. The combiner must be commutative, as that of argmax is: among
equal values it chooses by the index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ... import te
from ...ir.expr import Expr, Load, as_int, const, substitute
from ...ops import default_ops
from ...te.tensor import ComputeOp, Reduce, Tensor
from ...tir.from_te import load_buffers
from ...tir.nodes import Buffer, For, ForKind, If, Scope, Seq, Stmt, Store
from ...tir.passes.bind_threads import WARP
from ...types import TensorType
from ..common import extents
from .loops import allocated, inside, loop, rows_of, threads

_THREADS = 256  # of a block
_LONG = 2048  # elements that are worth a block
_SHORT = 64  # elements that one thread combines
_ENOUGH = 132 * 1024  # results, of which each is worth one thread only


def expand_arg_reduction(
    name: str, attrs: Any, args: Sequence[Tensor], out: TensorType
) -> list[Tensor] | None:
    """The operator `name` as hand-written loops; None where a thread for each result is better."""
    compute = default_ops()[name].compute
    assert compute is not None
    (result,) = compute(attrs, args, out)
    op = result.op
    assert isinstance(op, ComputeOp)
    length = math.prod(as_int(a.extent) for a in op.reduce_axis)
    if length < _SHORT or not 0 < math.prod(extents(op)) < _ENOUGH:
        return None
    width = _THREADS if length >= _LONG else WARP

    def make(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        return _ArgReduction(op, dict(zip(args, ins, strict=True)), outs[0], width).kernel()

    return [te.extern(out.static_shape, args, make, name, out.dtype)]


class _ArgReduction:
    """Builds the loops, with `width` threads for each result."""

    def __init__(
        self, op: ComputeOp, buffers: dict[Tensor, Buffer], out: Buffer, width: int
    ) -> None:
        self.op, self.out, self.width, self.rows = op, out, width, _THREADS // width
        reduce = op.body[0]
        assert isinstance(reduce, Reduce)
        self.combiner = reduce.combiner
        self.sources = [load_buffers(source, buffers) for source in reduce.sources]
        self.count = math.prod(extents(op))
        self.best, self.new, self.shared = (
            [
                Buffer(f"{name}{i}", (const(self.rows), const(width)), source.dtype, scope)
                for i, source in enumerate(self.sources)
            ]
            for name, scope in (
                ("best", Scope.LOCAL), ("new", Scope.LOCAL), ("shared", Scope.SHARED)
            )
        )  # fmt: skip

    def kernel(self) -> Stmt:
        steps: list[Stmt] = []

        def body(block: Expr) -> Stmt:
            steps.append(self._threads(lambda y, x: self._own(block * self.rows + y, y, x)))
            half = self.width // 2
            while half:
                steps.append(self._threads(self._halve(half)))
                half //= 2
            steps.append(rows_of(self.rows, lambda y: self._write(block * self.rows + y, y)))
            return Seq(tuple(steps))

        grid = loop("block", math.ceil(self.count / self.rows), body)
        bound = For(grid.var, grid.min, grid.extent, grid.body, ForKind.THREAD, "blockIdx.x")
        return allocated([*self.best, *self.new, *self.shared], bound)

    def _threads(self, body: Callable[[Any, Any], Stmt]) -> Stmt:
        return threads(self.rows, self.width, body)

    def _combine(
        self, at: tuple[Expr, Expr], into: Sequence[Buffer], other: Sequence[Expr]
    ) -> Stmt:
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

    def _own(self, row: Expr, y: Expr, x: Expr) -> Stmt:
        """What one thread combines, to registers and then to shared memory."""
        at = (y, x)
        lengths = [as_int(a.extent) for a in self.op.reduce_axis]
        total = math.prod(lengths)
        row, _ = inside(row, self.count, self.count % self.rows == 0)
        kept = zip(self.op.axis, _unravel(row, extents(self.op)), strict=True)
        place = {axis.var: index for axis, index in kept}

        def step(s: Expr) -> Stmt:
            k = s * self.width + x
            reduced = zip(self.op.reduce_axis, _unravel(k, lengths), strict=True)
            here = {**place, **{axis.var: index for axis, index in reduced}}
            stmt = self._combine(at, self.best, [substitute(e, here) for e in self.sources])
            return stmt if total % self.width == 0 else If(k < total, stmt)

        start = [Store(b, at, e) for b, e in zip(self.best, self.combiner.identity, strict=True)]
        done = [
            Store(b, at, Load(own, at, None)) for b, own in zip(self.shared, self.best, strict=True)
        ]
        return Seq((*start, loop("step", math.ceil(total / self.width), step), *done))

    def _halve(self, half: int) -> Callable[[Any, Any], Stmt]:
        """The first threads combine what as many others have."""

        def thread(y: Expr, x: Expr) -> Stmt:
            at = (y, x)
            other = [Load(b, (y, x + half), None) for b in self.shared]
            stmt = self._combine(at, self.best, other)
            done = (
                Store(b, at, Load(own, at, None))
                for b, own in zip(self.shared, self.best, strict=True)
            )
            return If(x < half, Seq((stmt, *done)))

        return thread

    def _write(self, row: Expr, y: Expr) -> Stmt:
        place = tuple(_unravel(row, extents(self.op)))
        store = Store(self.out, place, Load(self.shared[0], (y, const(0)), None))
        return store if self.count % self.rows == 0 else If(row < self.count, store)


def _unravel(flat: Expr, shape: Sequence[int]) -> list[Expr]:
    index: list[Expr] = []
    for extent in reversed(shape[1:]):
        index.insert(0, flat % extent)
        flat = flat // extent
    return [flat, *index] if shape else []
