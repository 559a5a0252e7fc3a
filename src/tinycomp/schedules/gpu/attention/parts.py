"""Attention whose keys are shared among blocks: their results become one."""

from __future__ import annotations

import math
from typing import Any

from .... import te
from ....ir.expr import Binary, BinaryOp, Expr, Load, as_int, const
from ....te.tensor import Tensor
from ....tir.nodes import Buffer, For, ForKind, If, Scope, Seq, Stmt, Store
from ....types import TensorType
from ..loops import allocated, loop, threads
from .online_softmax import OnlineSoftmax

_THREADS = 128


def combine_parts(values: Tensor, notes: Tensor, softmax: OnlineSoftmax, out: TensorType) -> Tensor:
    """The result from `values` [parts, batch, heads, n, depth], weighted sums of the values that
    each part saw, and `notes` [parts, batch, heads, n, 2], its largest score and its sum of
    weights. The parts are added up in order, by one thread for each element.
    """

    def make(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        return _combine(ins[0], ins[1], outs[0], softmax)

    return te.extern(out.static_shape, [values, notes], make, "attention", out.dtype)


def _combine(values: Buffer, notes: Buffer, out: Buffer, softmax: OnlineSoftmax) -> Stmt:
    parts, *shape = (as_int(d) for d in values.shape)
    total, acc = math.prod(shape), values.dtype
    names = ("top", "sum", "weighted", "weight")
    made = [Buffer(n, (const(_THREADS),), acc, Scope.LOCAL) for n in names]
    top, weights, weighted, weight = made
    low, zero = const(-math.inf, acc), const(0, acc)

    def thread(block: Expr, x: Expr) -> Stmt:
        flat, own = block * _THREADS + x, (x,)
        place = _unravel(flat, shape)

        def note(part: Expr, which: int) -> Expr:
            return Load(notes, (part, *place[:3], const(which)), None)

        def mine(buffer: Buffer) -> Expr:
            return Load(buffer, own, None)

        def raise_top(part: Expr) -> Stmt:
            return Store(top, own, Binary(BinaryOp.MAX, mine(top), note(part, 0)))

        def add(part: Expr) -> Stmt:
            share = softmax.weight(note(part, 0), softmax.base(mine(top)))
            value = Load(values, (part, *place), None)
            return Seq((
                Store(weight, own, share),
                Store(weights, own, mine(weights) + mine(weight) * note(part, 1)),
                Store(weighted, own, mine(weighted) + mine(weight) * value),
            ))  # fmt: skip

        result = softmax.result(mine(weighted), mine(weights), mine(top))
        target = tuple(place[a] for a in softmax.attrs.out_axes)
        stmt = Seq((
            Store(top, own, low), Store(weights, own, zero), Store(weighted, own, zero),
            loop("part", parts, raise_top), loop("part", parts, add),
            Store(out, target, result.astype(out.dtype)),
        ))  # fmt: skip
        return stmt if total % _THREADS == 0 else If(flat < total, stmt)

    def block(number: Any) -> Stmt:
        return threads(1, _THREADS, lambda _, x: thread(number, x))

    grid = loop("block", math.ceil(total / _THREADS), block)
    return allocated(made, For(grid.var, grid.min, grid.extent, grid.body, ForKind.THREAD,
                               "blockIdx.x"))  # fmt: skip


def _unravel(flat: Expr, shape: list[int]) -> list[Expr]:
    index: list[Expr] = []
    for extent in reversed(shape[1:]):
        index.insert(0, flat % extent)
        flat = flat // extent
    return [flat, *index]
