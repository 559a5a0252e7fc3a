"""Reading at computed places: `take gather gather_nd reverse_sequence`.

Indices may be negative once; beyond that they are an error when the model runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diagnostics import ExecutionError, ModelError, TypeMismatch
from ..dtype import DType
from ..ir.expr import Expr, as_expr, call, cast, select
from ..relay.nodes import Atom, Constant
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor, compute
from ..types import Dim, TensorType
from .common import INTS, normalize_axis, require_dtype, sample_array, tensors
from .onnx_node import OnnxImport, OnnxNode


@dataclass(frozen=True)
class AxisAttrs(Attrs):
    axis: int


@dataclass(frozen=True)
class GatherNdAttrs(Attrs):
    batch_dims: int = 0


@dataclass(frozen=True)
class ReverseSequenceAttrs(Attrs):
    seq_axis: int
    batch_axis: int


def checked(index: Expr, extent: Any) -> Expr:
    """`index` as int64 in [0, extent), negative ones counted from the end; checked at run time."""
    return call("checked_index", cast(index, DType.INT64), as_expr(extent))


def np_checked(indices: np.ndarray, extent: int, op: str) -> np.ndarray:
    """The same for arrays."""
    indices = indices.astype(np.int64)
    if indices.size and (indices.min() < -extent or indices.max() >= extent):
        raise ExecutionError(f"{op}: an index is out of range for an axis of size {extent}")
    return np.where(indices < 0, indices + extent, indices)


def _infer_take(attrs: AxisAttrs, types: Any) -> TensorType:
    x, indices = tensors("take", types, 2)
    require_dtype("take", 1, indices, INTS)
    axis = normalize_axis("take", attrs.axis, x.rank)
    return TensorType((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)


def _compute_take(attrs: AxisAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    x, indices = inputs
    axis = attrs.axis % x.ndim
    end = axis + indices.ndim

    def element(*i: Expr) -> Expr:
        return x(*i[:axis], checked(indices(*i[axis:end]), x.shape[axis]), *i[end:])

    return [compute(out.shape, element, name="take")]


TAKE = Op(
    "take",
    OpPattern.INJECTIVE,
    _infer_take,
    _compute_take,
    lambda attrs, arrays: np.take(
        arrays[0], np_checked(arrays[1], arrays[0].shape[attrs.axis], "take"), attrs.axis
    ),
    AxisAttrs,
    lambda: (
        Sample((sample_array((4, 3)), np.array([[0, -1], [2, 2]])), AxisAttrs(0)),
        Sample((sample_array((4, 3)), np.array(1, np.int32)), AxisAttrs(1)),
    ),
    doc="(data, indices): slices of data along an axis (ONNX Gather).",
)


def _infer_gather(attrs: AxisAttrs, types: Any) -> TensorType:
    x, indices = tensors("gather", types, 2)
    require_dtype("gather", 1, indices, INTS)
    normalize_axis("gather", attrs.axis, x.rank)
    if x.rank != indices.rank:
        raise TypeMismatch(f"gather: data {x} and indices {indices} must have one rank")
    return TensorType(indices.shape, x.dtype)


def _compute_gather(attrs: AxisAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    x, indices = inputs
    axis = attrs.axis % x.ndim

    def element(*i: Expr) -> Expr:
        return x(*i[:axis], checked(indices(*i), x.shape[axis]), *i[axis + 1 :])

    return [compute(out.shape, element, name="gather")]


def _np_gather(attrs: AxisAttrs, arrays: Any) -> np.ndarray:
    x, indices = arrays
    axis = attrs.axis % x.ndim
    where = list(np.indices(indices.shape, sparse=True))
    where[axis] = np_checked(indices, x.shape[axis], "gather")
    return x[tuple(where)]


GATHER = Op(
    "gather",
    OpPattern.INJECTIVE,
    _infer_gather,
    _compute_gather,
    _np_gather,
    AxisAttrs,
    lambda: (Sample((sample_array((4, 3)), np.array([[0, -1, 1], [2, 2, 0]])), AxisAttrs(0)),),
    doc="(data, indices): one element per index along an axis (ONNX GatherElements).",
)


def _infer_gather_nd(attrs: GatherNdAttrs, types: Any) -> TensorType:
    x, indices = tensors("gather_nd", types, 2)
    require_dtype("gather_nd", 1, indices, INTS)
    batch = attrs.batch_dims
    depth = indices.shape[-1] if indices.rank else 0
    if not isinstance(depth, int) or not 0 < depth <= x.rank - batch or indices.rank <= batch:
        raise TypeMismatch(f"gather_nd: indices {indices} do not fit {x} with batch_dims={batch}")
    if x.shape[:batch] != indices.shape[:batch]:
        raise TypeMismatch(f"gather_nd: the first {batch} axes of {x} and {indices} must be equal")
    return TensorType((*indices.shape[:-1], *x.shape[batch + depth :]), x.dtype)


def _compute_gather_nd(attrs: GatherNdAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    x, indices = inputs
    batch, outer = attrs.batch_dims, indices.ndim - 1
    depth = out.rank - outer
    depth = x.ndim - batch - depth

    def element(*i: Expr) -> Expr:
        index = [checked(indices(*i[:outer], d), x.shape[batch + d]) for d in range(depth)]
        return x(*i[:batch], *index, *i[outer:])

    return [compute(out.shape, element, name="gather_nd")]


def _np_gather_nd(attrs: GatherNdAttrs, arrays: Any) -> np.ndarray:
    x, indices = arrays
    batch = attrs.batch_dims
    where: list[Any] = [
        np.arange(n).reshape([-1 if d == b else 1 for d in range(indices.ndim - 1)])
        for b, n in enumerate(x.shape[:batch])
    ]
    for d in range(indices.shape[-1]):
        where.append(np_checked(indices[..., d], x.shape[batch + d], "gather_nd"))
    return x[tuple(where)]


GATHER_ND = Op(
    "gather_nd",
    OpPattern.INJECTIVE,
    _infer_gather_nd,
    _compute_gather_nd,
    _np_gather_nd,
    GatherNdAttrs,
    lambda: (
        Sample((sample_array((4, 3, 2)), np.array([[0, 1], [-1, 2]])), GatherNdAttrs()),
        Sample((sample_array((2, 3, 4)), np.array([[[1]], [[2]]])), GatherNdAttrs(1)),
        Sample((sample_array((2, 3)), np.array([[[0, 1]], [[1, 0]]])), GatherNdAttrs()),
    ),
    doc="(data, indices): the last axis of indices holds places on several axes (GatherND).",
)


def _infer_reverse_sequence(attrs: ReverseSequenceAttrs, types: Any) -> TensorType:
    x, lengths = tensors("reverse_sequence", types, 2)
    for axis in (attrs.seq_axis, attrs.batch_axis):
        normalize_axis("reverse_sequence", axis, x.rank)
    require_dtype("reverse_sequence", 1, lengths, INTS)
    if x.rank < 2 or lengths.shape != (x.shape[attrs.batch_axis],):
        raise TypeMismatch(f"reverse_sequence: lengths {lengths} do not fit {x}")
    return x


def _compute_reverse_sequence(attrs: ReverseSequenceAttrs, inputs: Any, out: TensorType) -> Any:
    x, lengths = inputs
    seq, batch = attrs.seq_axis, attrs.batch_axis

    def element(*i: Expr) -> Expr:
        length = cast(lengths(i[batch]), DType.INT64)
        at = checked(select(i[seq] < length, length - 1 - i[seq], i[seq]), x.shape[seq])
        return x(*(at if d == seq else v for d, v in enumerate(i)))

    return [compute(out.shape, element, name="reverse_sequence")]


def _np_reverse_sequence(attrs: ReverseSequenceAttrs, arrays: Any) -> np.ndarray:
    x, lengths = arrays
    where = list(np.indices(x.shape, sparse=True))
    seq = where[attrs.seq_axis]
    length = lengths.astype(np.int64)[where[attrs.batch_axis]]
    where[attrs.seq_axis] = np.where(seq < length, length - 1 - seq, seq)
    return x[tuple(where)]


REVERSE_SEQUENCE = Op(
    "reverse_sequence",
    OpPattern.INJECTIVE,
    _infer_reverse_sequence,
    _compute_reverse_sequence,
    _np_reverse_sequence,
    ReverseSequenceAttrs,
    lambda: (
        Sample((sample_array((4, 3)), np.array([4, 1, 2])), ReverseSequenceAttrs(0, 1)),
        Sample((sample_array((2, 5, 2)), np.array([3, 5])), ReverseSequenceAttrs(1, 0)),
    ),
    doc="(data, lengths): the first lengths[b] elements of each sequence in reverse.",
)


OPS: tuple[Op, ...] = (TAKE, GATHER, GATHER_ND, REVERSE_SEQUENCE)


def _axis(node: OnnxNode, default: int = 0) -> int:
    return normalize_axis(node.op_type, node.attr("axis", default), node.type(0).rank)


def check_constant(node: OnnxNode, index: int, extents: Sequence[Dim]) -> None:
    """Refuse constant indices that can only fail; column k of the last axis is for extents[k].

    Raises:
        ModelError: an index is out of range.
    """
    indices = node.input(index)
    if (
        not isinstance(indices, Constant)
        or not DType.of(indices.data.dtype).is_int
        or not indices.data.size
        or not extents
        or indices.data.size % len(extents)
    ):
        return  # what is wrong besides is for the type relation to say
    columns = indices.data.reshape(-1, len(extents))
    for column, extent in zip(columns.T, extents, strict=True):
        low, high = int(column.min()), int(column.max())
        if isinstance(extent, int) and (low < -extent or high >= extent):
            bad = low if low < -extent else high
            raise ModelError(
                f"{node.op_type}: the constant index {bad} is out of range for an axis of size "
                f"{extent}",
                span=node.span,
            )


def _import_gather(node: OnnxNode) -> Atom:
    check_constant(node, 1, [node.type(0).shape[_axis(node)]])
    return node.builder.call("take", node.input(0), node.input(1), axis=_axis(node))


def _import_gather_elements(node: OnnxNode) -> Atom:
    check_constant(node, 1, [node.type(0).shape[_axis(node)]])
    return node.builder.call("gather", node.input(0), node.input(1), axis=_axis(node))


def _import_gather_nd(node: OnnxNode) -> Atom:
    batch, width = node.attr("batch_dims", 0), node.type(1).shape[-1:]
    if width and isinstance(width[0], int):
        check_constant(node, 1, node.type(0).shape[batch : batch + width[0]])
    return node.builder.call("gather_nd", node.input(0), node.input(1), batch_dims=batch)


def _import_reverse_sequence(node: OnnxNode) -> Atom:
    return node.builder.call(
        "reverse_sequence", node.input(0), node.input(1),
        seq_axis=node.attr("time_axis", 0), batch_axis=node.attr("batch_axis", 1),
    )  # fmt: skip


ONNX: dict[str, OnnxImport] = {
    "Gather": _import_gather,
    "GatherElements": _import_gather_elements,
    "GatherND": _import_gather_nd,
    "ReverseSequence": _import_reverse_sequence,
}
