"""The largest or smallest elements of each line along an axis, in order: `topk`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import te
from ..diagnostics import TypeMismatch
from ..dtype import DType
from ..ir.expr import Expr, call, const
from ..relay.nodes import Atom
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor, compute, reduce_axis
from ..types import TensorType, TupleType
from .common import NUMBERS, normalize_axis, require_dtype, sample_array, tensors
from .index import checked
from .onnx_node import OnnxImport, OnnxNode
from .window import widen


@dataclass(frozen=True)
class TopkAttrs(Attrs):
    """`k` elements; the largest first or the smallest first."""

    k: int
    axis: int
    largest: bool = True
    sorted: bool = True


def _infer_topk(attrs: TopkAttrs, types: Any) -> TupleType:
    (x,) = tensors("topk", types, 1)
    require_dtype("topk", 0, x, NUMBERS)
    axis = normalize_axis("topk", attrs.axis, x.rank)
    extent = x.shape[axis]
    if isinstance(extent, int) and not 0 <= attrs.k <= extent:
        raise TypeMismatch(f"topk: k={attrs.k} is more than axis {axis} of {x} has")
    shape = (*x.shape[:axis], attrs.k, *x.shape[axis + 1 :])
    return TupleType((TensorType(shape, x.dtype), TensorType(shape, DType.INT64)))


def _compute_topk(attrs: TopkAttrs, inputs: Any, out: TupleType) -> list[Tensor]:
    """By rank: the number of elements that precede an element is its place in the result."""
    (x,) = inputs
    axis = attrs.axis % x.ndim
    shape = out.fields[0].shape  # type: ignore[union-attr]

    def at(i: Any, index: Expr) -> Any:
        return (*i[:axis], index, *i[axis + 1 :])

    def rank(*i: Expr) -> Expr:
        j = reduce_axis((0, x.shape[axis]), name="j")
        mine, other = x(*i), x(*at(i, j.var))
        before, after = (other, mine) if attrs.largest else (mine, other)
        no_number = call("isnan", mine), call("isnan", other)
        better = (before > after) | (call("isnan", before) & ~call("isnan", after))
        same = other.equal(mine) | (no_number[0] & no_number[1])
        return te.sum(const(1), axis=j, where=better | (same & (j.var < i[axis])))

    ranks = compute(x.shape, rank, name="topk_rank")

    def index(*i: Expr) -> Expr:
        j = reduce_axis((0, x.shape[axis]), name="j")
        return te.sum(j.var, axis=j, where=ranks(*at(i, j.var)).equal(i[axis]))

    indices = compute(shape, index, name="topk_index")
    values = compute(
        shape, lambda *i: x(*at(i, checked(indices(*i), x.shape[axis]))), name="topk_value"
    )
    return [values, indices]


def _np_topk(attrs: TopkAttrs, arrays: Any) -> tuple[np.ndarray, np.ndarray]:
    (x,) = arrays
    keys = widen(x)  # NumPy does not know where NaN of bfloat16 belongs
    if attrs.largest:  # a stable descending order: sort the reversed array, and reverse
        last = x.shape[attrs.axis] - 1
        order = last - np.argsort(np.flip(keys, attrs.axis), attrs.axis, kind="stable")
        order = np.flip(order, attrs.axis)
    else:
        order = np.argsort(keys, attrs.axis, kind="stable")
    order = np.ascontiguousarray(np.take(order, np.arange(attrs.k), attrs.axis)).astype(np.int64)
    return np.take_along_axis(x, order, attrs.axis), order


def _samples() -> tuple[Sample, ...]:
    special = np.array([1, np.nan, -0.0, 0.0, np.inf, np.nan, -np.inf, 1], np.float32)
    return (
        Sample((sample_array((3, 6)),), TopkAttrs(2, 1)),
        Sample((sample_array((6, 2), DType.INT32),), TopkAttrs(4, 0, False)),
        Sample((sample_array((9,), DType.INT32),), TopkAttrs(9, 0)),
        Sample((special,), TopkAttrs(8, 0)),
        Sample((special,), TopkAttrs(7, 0, False)),
    )


TOPK = Op(
    "topk",
    OpPattern.OPAQUE,
    _infer_topk,
    _compute_topk,
    _np_topk,
    TopkAttrs,
    _samples,
    doc="The k largest or smallest elements and their indices; equal ones keep their order, and "
    "NaN is larger than all numbers.",
)

OPS: tuple[Op, ...] = (TOPK,)


def _import_topk(node: OnnxNode) -> list[Atom]:
    return node.builder.call_many(
        "topk", node.input(0), k=int(node.scalar(1)), axis=node.axis(-1),
        largest=bool(node.attr("largest", 1)), sorted=bool(node.attr("sorted", 1)),
    )  # fmt: skip


ONNX: dict[str, OnnxImport] = {"TopK": _import_topk}
