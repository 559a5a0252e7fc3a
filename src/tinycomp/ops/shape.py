"""Operators that move elements: `reshape transpose broadcast_to concatenate strided_slice tile`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diagnostics import TypeMismatch
from ..dtype import DType
from ..ir.expr import Expr, as_expr, as_int, const, if_then_else, is_const
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor, compute
from ..types import Dim, TensorType
from .common import (
    broadcast_shapes,
    normalize_axis,
    read_broadcast,
    require_same_dtype,
    sample_array,
    tensors,
)  # fmt: skip


@dataclass(frozen=True)
class ReshapeAttrs(Attrs):
    """The new shape, without -1 or 0 placeholders."""

    newshape: tuple[Dim, ...]


@dataclass(frozen=True)
class TransposeAttrs(Attrs):
    axes: tuple[int, ...]


@dataclass(frozen=True)
class BroadcastToAttrs(Attrs):
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class ConcatenateAttrs(Attrs):
    axis: int


@dataclass(frozen=True)
class StridedSliceAttrs(Attrs):
    """Per axis the elements of `range(begin, end, stride)`; -1 ends a negative stride after 0."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class TileAttrs(Attrs):
    reps: tuple[int, ...]


def ravel(indices: Sequence[Expr], shape: Sequence[Dim]) -> Expr:
    """The row-major position of `indices` in `shape`."""
    position: Expr = const(0)
    for index, extent in zip(indices, shape, strict=True):
        position = position * as_expr(extent) + index
    return position


def unravel(position: Expr, shape: Sequence[Dim]) -> list[Expr]:
    """The indices of a row-major position in `shape`; the inverse of `ravel`."""
    indices: list[Expr] = []
    first = next((d for d, extent in enumerate(shape) if not is_const(as_expr(extent), 1)), -1)
    for d in range(len(shape) - 1, -1, -1):
        extent = as_expr(shape[d])
        if is_const(extent, 1):
            indices.append(const(0))
            continue
        indices.append(position if d == first else position % extent)
        position = position // extent
    return indices[::-1]


def _groups(old: Sequence[Dim], new: Sequence[Dim]) -> list[tuple[int, int, int, int]] | None:
    """Splits a reshape into the shortest runs of axes with equal sizes.

    Runs are (old begin, old end, new begin, new end). Working run by run keeps untouched axes out
    of divisions. None if a dimension is symbolic.
    """
    if not all(isinstance(d, int) for d in (*old, *new)) or 0 in (*old, *new):
        return None
    runs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        i0, j0, left, right = i, j, 1, 1
        while (i == i0 and i < len(old)) or (j == j0 and j < len(new)) or left != right:
            if i < len(old) and (left <= right or j >= len(new)) and not (left == right and i > i0):
                left *= old[i]  # type: ignore[operator]
                i += 1
            else:
                right *= new[j]  # type: ignore[operator]
                j += 1
        runs.append((i0, i, j0, j))
    return runs


def reshape_indices(indices: Sequence[Expr], new: Sequence[Dim], old: Sequence[Dim]) -> list[Expr]:
    """Where the element at `indices` of shape `new` is in an array of shape `old`."""
    runs = _groups(old, new)
    if runs is None:
        return unravel(ravel(indices, new), old)
    result: list[Expr] = []
    for i0, i, j0, j in runs:
        result += unravel(ravel(indices[j0:j], new[j0:j]), old[i0:i])
    return result


def _infer_reshape(attrs: ReshapeAttrs, types: Any) -> TensorType:
    (x,) = tensors("reshape", types, 1)
    out = TensorType(tuple(attrs.newshape), x.dtype)
    if x.is_static and out.is_static and x.size != out.size:
        raise TypeMismatch(
            f"reshape: {x} has {x.size} elements, the new shape {out} has {out.size}"
        )
    return out


def _compute_reshape(attrs: ReshapeAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    (x,) = inputs
    old = tuple(as_int(d) if is_const(d) else d for d in x.shape)
    return [compute(out.shape, lambda *i: x(*reshape_indices(i, out.shape, old)), name="reshape")]


RESHAPE = Op(
    "reshape",
    OpPattern.INJECTIVE,
    _infer_reshape,
    _compute_reshape,
    lambda attrs, arrays: arrays[0].reshape(attrs.newshape),
    ReshapeAttrs,
    lambda: (
        Sample((sample_array((2, 3, 4)),), ReshapeAttrs((6, 4))),
        Sample((sample_array((2, 6)),), ReshapeAttrs((2, 1, 3, 2))),
        Sample((sample_array((4, 6)),), ReshapeAttrs((3, 8))),
        Sample((sample_array((1, 1)),), ReshapeAttrs(())),
        Sample((sample_array((0, 3)),), ReshapeAttrs((3, 0))),
    ),
    view=lambda attrs, x: 0,
    doc="The same elements in row-major order under another shape.",
)


def _infer_transpose(attrs: TransposeAttrs, types: Any) -> TensorType:
    (x,) = tensors("transpose", types, 1)
    if sorted(attrs.axes) != list(range(x.rank)):
        raise TypeMismatch(f"transpose: axes {attrs.axes} are not a permutation of the axes of {x}")
    return TensorType(tuple(x.shape[a] for a in attrs.axes), x.dtype)


def _compute_transpose(attrs: TransposeAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    (x,) = inputs
    position = {axis: d for d, axis in enumerate(attrs.axes)}
    return [
        compute(out.shape, lambda *i: x(*(i[position[d]] for d in range(x.ndim))), name="transpose")
    ]


TRANSPOSE = Op(
    "transpose",
    OpPattern.INJECTIVE,
    _infer_transpose,
    _compute_transpose,
    lambda attrs, arrays: np.ascontiguousarray(arrays[0].transpose(attrs.axes)),
    TransposeAttrs,
    lambda: (
        Sample((sample_array((2, 3, 4)),), TransposeAttrs((2, 0, 1))),
        Sample((sample_array((3, 5), DType.INT8),), TransposeAttrs((1, 0))),
    ),
    doc="Axes in another order.",
)


def _infer_broadcast_to(attrs: BroadcastToAttrs, types: Any) -> TensorType:
    (x,) = tensors("broadcast_to", types, 1)
    if broadcast_shapes("broadcast_to", (x.shape, attrs.shape)) != tuple(attrs.shape):
        raise TypeMismatch(f"broadcast_to: {x} does not broadcast to {list(attrs.shape)}")
    return TensorType(tuple(attrs.shape), x.dtype)


def _compute_broadcast_to(attrs: BroadcastToAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    (x,) = inputs
    return [compute(out.shape, lambda *i: read_broadcast(x, i, out.shape), name="broadcast_to")]


BROADCAST_TO = Op(
    "broadcast_to",
    OpPattern.BROADCAST,
    _infer_broadcast_to,
    _compute_broadcast_to,
    lambda attrs, arrays: np.ascontiguousarray(np.broadcast_to(arrays[0], attrs.shape)),
    BroadcastToAttrs,
    lambda: (
        Sample((sample_array((3, 1)),), BroadcastToAttrs((2, 3, 4))),
        Sample((sample_array(()),), BroadcastToAttrs((5,))),
    ),
    doc="Repeats axes of size 1, and adds axes in front (ONNX Expand).",
)


def _infer_concatenate(attrs: ConcatenateAttrs, types: Any) -> TensorType:
    xs = tensors("concatenate", types)
    if not xs:
        raise TypeMismatch("concatenate: expected at least one argument")
    dtype = require_same_dtype("concatenate", xs)
    axis = normalize_axis("concatenate", attrs.axis, xs[0].rank)
    for t in xs:
        if t.rank != xs[0].rank:
            raise TypeMismatch(f"concatenate: {xs[0]} and {t} differ in rank")
    rest = {(*t.shape[:axis], *t.shape[axis + 1 :]) for t in xs}
    if len(rest) != 1:
        shown = ", ".join(map(str, xs[:8]))
        raise TypeMismatch(f"concatenate: shapes may differ only on axis {axis}, got {shown}")
    extent: Any = xs[0].shape[axis]
    for t in xs[1:]:
        extent = extent + t.shape[axis]
    return TensorType((*xs[0].shape[:axis], extent, *xs[0].shape[axis + 1 :]), dtype)


def _compute_concatenate(attrs: ConcatenateAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    """A balanced tree of tests on the axis, so that its depth is the logarithm of the inputs."""
    axis = attrs.axis % out.rank
    starts: list[Expr] = [const(0)]
    for x in inputs:
        starts.append(starts[-1] + x.shape[axis])

    def element(*i: Expr) -> Expr:
        leaves = [
            x(*i[:axis], i[axis] - start, *i[axis + 1 :])
            for x, start in zip(inputs, starts, strict=False)
        ]
        # Bottom-up: after each round, leaf n covers twice as many inputs, from starts[n * width].
        width = 1
        while len(leaves) > 1:
            leaves = [
                if_then_else(i[axis] < starts[(n + 1) * width], leaves[n], leaves[n + 1])
                if n + 1 < len(leaves)
                else leaves[n]
                for n in range(0, len(leaves), 2)
            ]
            width *= 2
        return leaves[0]

    return [compute(out.shape, element, name="concatenate")]


def _concatenate_samples() -> Iterable[Sample]:
    for count, axis in ((2, 0), (3, 1), (21, 1)):
        shapes = [(2, 1 + n % 3) if axis == 1 else (1 + n, 3) for n in range(count)]
        yield Sample(
            tuple(sample_array(s, seed=n) for n, s in enumerate(shapes)), ConcatenateAttrs(axis)
        )


CONCATENATE = Op(
    "concatenate",
    OpPattern.INJECTIVE,
    _infer_concatenate,
    _compute_concatenate,
    lambda attrs, arrays: np.concatenate(arrays, attrs.axis),
    ConcatenateAttrs,
    _concatenate_samples,
    doc="Arrays one after the other along an axis; any number of arguments.",
)


def _infer_strided_slice(attrs: StridedSliceAttrs, types: Any) -> TensorType:
    (x,) = tensors("strided_slice", types, 1)
    if not len(attrs.begin) == len(attrs.end) == len(attrs.strides) == x.rank:
        raise TypeMismatch(f"strided_slice: begin, end and strides need one entry per axis of {x}")
    shape = []
    for d, (begin, end, stride) in enumerate(
        zip(attrs.begin, attrs.end, attrs.strides, strict=True)
    ):
        extent = len(range(begin, end, stride))
        last = begin + (extent - 1) * stride
        dim = x.shape[d]
        if extent and (min(begin, last) < 0 or (isinstance(dim, int) and max(begin, last) >= dim)):
            raise TypeMismatch(
                f"strided_slice: axis {d} of {x}: {begin}:{end}:{stride} is out of range"
            )
        shape.append(extent)
    return TensorType(tuple(shape), x.dtype)


def _compute_strided_slice(attrs: StridedSliceAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    (x,) = inputs

    def element(*i: Expr) -> Expr:
        return x(*(v * s + b for v, b, s in zip(i, attrs.begin, attrs.strides, strict=True)))

    return [compute(out.shape, element, name="strided_slice")]


def _np_strided_slice(attrs: StridedSliceAttrs, arrays: Any) -> np.ndarray:
    slices = tuple(
        slice(b, e if e >= 0 else None, s)
        for b, e, s in zip(attrs.begin, attrs.end, attrs.strides, strict=True)
    )
    return np.ascontiguousarray(arrays[0][slices]).reshape(
        [len(range(*t)) for t in zip(attrs.begin, attrs.end, attrs.strides, strict=True)]
    )


def _slice_offset(attrs: StridedSliceAttrs, x: TensorType) -> int | None:
    """The slice is one piece of memory if it is whole along all axes behind one, and takes one
    element of each axis before that."""
    if not x.is_static or 0 in x.shape:
        return None
    position, step = 0, x.size
    piece = False  # whether the axes so far have more than one element
    for begin, end, stride, dim in zip(
        attrs.begin, attrs.end, attrs.strides, x.static_shape, strict=True
    ):
        extent = len(range(begin, end, stride))
        if extent == 0 or (piece and extent < dim) or (extent > 1 and stride != 1):
            return None
        step //= dim
        position += begin * step
        piece |= extent > 1
    return position * x.dtype.itemsize


STRIDED_SLICE = Op(
    "strided_slice",
    OpPattern.INJECTIVE,
    _infer_strided_slice,
    _compute_strided_slice,
    _np_strided_slice,
    StridedSliceAttrs,
    lambda: (
        Sample((sample_array((5, 6)),), StridedSliceAttrs((1, 0), (4, 6), (1, 2))),
        Sample((sample_array((5, 6)),), StridedSliceAttrs((4, 5), (-1, 1), (-1, -2))),
        Sample((sample_array((5, 6)),), StridedSliceAttrs((2, 0), (2, 6), (1, 1))),
    ),
    view=_slice_offset,
    doc="Every stride-th element of each axis.",
)


def _infer_tile(attrs: TileAttrs, types: Any) -> TensorType:
    (x,) = tensors("tile", types, 1)
    if len(attrs.reps) != x.rank:
        raise TypeMismatch(f"tile: {len(attrs.reps)} repetitions given for {x}")
    return TensorType(tuple(d * r for d, r in zip(x.shape, attrs.reps, strict=True)), x.dtype)


def _compute_tile(attrs: TileAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    (x,) = inputs

    def element(*i: Expr) -> Expr:
        return x(*(v % d if r != 1 else v for v, d, r in zip(i, x.shape, attrs.reps, strict=True)))

    return [compute(out.shape, element, name="tile")]


TILE = Op(
    "tile",
    OpPattern.INJECTIVE,
    _infer_tile,
    _compute_tile,
    lambda attrs, arrays: np.tile(arrays[0], attrs.reps).reshape(
        [d * r for d, r in zip(arrays[0].shape, attrs.reps, strict=True)]
    ),
    TileAttrs,
    lambda: (
        Sample((sample_array((2, 3)),), TileAttrs((2, 1))),
        Sample((sample_array((1, 3)),), TileAttrs((4, 2))),
    ),
    doc="The whole array repeated along each axis.",
)

OPS: tuple[Op, ...] = (RESHAPE, TRANSPOSE, BROADCAST_TO, CONCATENATE, STRIDED_SLICE, TILE)
