"""Softmax of rows that no cluster of blocks can hold, in two readings instead of three.

    top, total = reduction of the pairs (x[k], 1) by
        (m, s) + (n, t) = (max(m, n), s * exp(m - max(m, n)) + t * exp(n - max(m, n)))
    softmax(x)[k] = exp(x[k] - top) / total

The maximum and the sum are found together, by all of the GPU if there are few rows, and an
elementwise launch writes the result. Keeping partial results of other blocks instead of reading
again would need all blocks of a row at once. (Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .... import te
from ....dtype import DType
from ....ir.expr import Binary, BinaryOp, Expr, as_int, const, select, substitute
from ....ops.window import accumulation_dtype
from ....te.tensor import ComputeOp, PlaceholderOp, Reduce, Tensor, is_reduction
from ....tir.from_te import load_buffers
from ....tir.lower_gpu import ACCESS
from ....tir.nodes import Buffer
from ....types import TensorType
from .plan import held_on_chip
from .tuple_reduction import Elements, ReductionShape, Values, each_into, reduce_tuples, unravel


def expand_softmax(
    name: str, attrs: Any, args: Sequence[Tensor], out: TensorType, arch: str
) -> list[Tensor] | None:
    """nn.softmax or nn.log_softmax of such rows; None for others."""
    (x,) = args
    shape = [as_int(d) for d in x.shape]
    inputs = [x] if isinstance(x.op, PlaceholderOp) else x.op.inputs
    if attrs.axis % x.ndim != x.ndim - 1 or is_reduction(x.op):
        return None
    if not all(isinstance(t.op, PlaceholderOp) for t in inputs) or not math.prod(shape):
        return None
    if held_on_chip(shape[-1], max(t.dtype.itemsize for t in inputs), arch):
        return None
    acc = accumulation_dtype(x.dtype)
    lanes = min(ACCESS.lanes(t.dtype) for t in inputs)
    while shape[-1] % lanes:
        lanes //= 2
    rows = ReductionShape(math.prod(shape[:-1]), shape[-1], True, lanes)
    top, total = reduce_tuples(
        _normaliser(acc), [acc, acc], rows, inputs,
        lambda ins: _elements(x, dict(zip(inputs, ins, strict=True)), acc), None,
        each_into, f"{name}_sums",
    )  # fmt: skip

    def value(*index: Any) -> Any:
        row: Any = const(0)
        for i, extent in zip(index[:-1], shape[:-1], strict=True):
            row = row * extent + i
        shifted = x(*index).astype(acc) - top(row)
        if name == "nn.log_softmax":
            return (shifted - te.call("log", total(row))).astype(out.dtype)
        return (te.call("exp", shifted) / total(row)).astype(out.dtype)

    return [te.compute(x.shape, value, name=name.removeprefix("nn."))]


def _normaliser(acc: DType) -> Any:
    """Combines maxima and the sums of exponentials below them."""
    low, zero = const(acc.min_value, acc), const(0, acc)

    def combine(a: Any, b: Any) -> tuple[Expr, Expr]:
        top = Binary(BinaryOp.MAX, a[0], b[0])
        base = select(top.equal(low), zero, top)  # nothing seen: exp(-inf - -inf) would be NaN
        below = [s * te.call("exp", m - base) for m, s in (a, b)]
        return top, below[0] + below[1]

    reducer = te.comm_reducer(combine, lambda *_: (low, zero), name="softmax_sums")
    reduce = reducer((low, zero), axis=te.reduce_axis((0, 1)))[0]
    assert isinstance(reduce, Reduce)
    return reduce.combiner


def _elements(x: Tensor, buffers: dict[Tensor, Buffer], acc: DType) -> Elements:
    """The pairs (x[row, k], 1)."""
    leading = [as_int(d) for d in x.shape[:-1]]

    def element(row: Expr, k: Expr) -> Values:
        at = (*unravel(row, leading), k)
        value = x(*at)
        if isinstance(x.op, ComputeOp):
            places = {axis.var: i for axis, i in zip(x.op.axis, at, strict=True)}
            value = substitute(x.op.body[0], places)
        return [load_buffers(value.astype(acc), buffers), const(1, acc)]

    return element
