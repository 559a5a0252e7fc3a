"""Operators that make arrays (`full`, `arange`, `one_hot`), mask them (`trilu`) and `nn.pad`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diagnostics import TypeMismatch
from ..dtype import DType
from ..ir.expr import BinaryOp as B
from ..ir.expr import Expr, all_of, binary, cast, const, if_then_else, is_const, select
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor, compute
from ..types import Dim, TensorType
from .common import INTS, normalize_axis, require_dtype, require_same_dtype, sample_array, tensors


@dataclass(frozen=True)
class FullAttrs(Attrs):
    shape: tuple[Dim, ...]
    dtype: DType
    value: float | int


@dataclass(frozen=True)
class ArangeAttrs(Attrs):
    """`start + i * step` for i in range(size)."""

    start: float | int
    step: float | int
    size: int
    dtype: DType


@dataclass(frozen=True)
class OneHotAttrs(Attrs):
    """`axis` is where the new axis of size `depth` goes."""

    depth: int
    axis: int


@dataclass(frozen=True)
class TriluAttrs(Attrs):
    upper: bool = True
    k: int = 0


@dataclass(frozen=True)
class PadAttrs(Attrs):
    """`pad_width` has (before, after) for every axis, none of them negative."""

    pad_width: tuple[tuple[int, int], ...]
    mode: str = "constant"
    value: float | int = 0


def _compute_full(attrs: FullAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    return [compute(out.shape, lambda *i: const(attrs.value, out.dtype), name="full")]


FULL = Op(
    "full",
    OpPattern.ELEMWISE,
    lambda attrs, types: TensorType(tuple(attrs.shape), attrs.dtype),
    _compute_full,
    lambda attrs, arrays: np.full(attrs.shape, attrs.value, attrs.dtype.numpy),
    FullAttrs,
    lambda: (Sample((), FullAttrs((2, 3), DType.FLOAT32, 1.5)),),
    stitchable=True,
    doc="An array with one value everywhere (ONNX ConstantOfShape).",
)


def _compute_arange(attrs: ArangeAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    def element(i: Expr) -> Expr:
        return cast(i, out.dtype) * const(attrs.step, out.dtype) + const(attrs.start, out.dtype)

    return [compute(out.shape, element, name="arange")]


def _np_arange(attrs: ArangeAttrs, arrays: Any) -> np.ndarray:
    dtype = attrs.dtype.numpy
    steps = np.arange(attrs.size).astype(dtype)
    return steps * np.asarray(attrs.step, dtype) + np.asarray(attrs.start, dtype)


ARANGE = Op(
    "arange",
    OpPattern.INJECTIVE,
    lambda attrs, types: TensorType((attrs.size,), attrs.dtype),
    _compute_arange,
    _np_arange,
    ArangeAttrs,
    lambda: (
        Sample((), ArangeAttrs(3, -2, 5, DType.INT64)),
        Sample((), ArangeAttrs(0.5, 0.25, 4, DType.FLOAT32)),
    ),
    doc="Numbers with a constant step (ONNX Range).",
)


def _infer_one_hot(attrs: OneHotAttrs, types: Any) -> TensorType:
    indices, on, off = tensors("one_hot", types, 3)
    require_dtype("one_hot", 0, indices, INTS)
    dtype = require_same_dtype("one_hot", (on, off))
    if on.rank or off.rank:
        raise TypeMismatch(f"one_hot: the values must be scalars, got {on} and {off}")
    axis = normalize_axis("one_hot", attrs.axis, indices.rank + 1)
    return TensorType((*indices.shape[:axis], attrs.depth, *indices.shape[axis:]), dtype)


def _compute_one_hot(attrs: OneHotAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    indices, on, off = inputs
    axis = attrs.axis % out.rank

    def element(*i: Expr) -> Expr:
        index = cast(indices(*i[:axis], *i[axis + 1 :]), DType.INT64)
        wrapped = select(index < 0, index + attrs.depth, index)
        return select(wrapped.equal(i[axis]), on(), off())

    return [compute(out.shape, element, name="one_hot")]


def _np_one_hot(attrs: OneHotAttrs, arrays: Any) -> np.ndarray:
    indices, on, off = arrays
    axis = attrs.axis % (indices.ndim + 1)
    index = indices.astype(np.int64)
    wrapped = np.expand_dims(np.where(index < 0, index + attrs.depth, index), axis)
    positions = np.arange(attrs.depth).reshape([-1] + [1] * (indices.ndim - axis))
    return np.where(wrapped == positions, on, off).astype(on.dtype)


ONE_HOT = Op(
    "one_hot",
    OpPattern.INJECTIVE,
    _infer_one_hot,
    _compute_one_hot,
    _np_one_hot,
    OneHotAttrs,
    lambda: (
        Sample(
            (np.array([1, -1, 7]), np.asarray(3, np.float32), np.asarray(-1, np.float32)),
            OneHotAttrs(5, -1),
        ),
        Sample(
            (np.array([[0, 2], [1, 0]]), np.asarray(1, np.int32), np.asarray(0, np.int32)),
            OneHotAttrs(3, 1),
        ),
    ),
    doc="(indices, on, off): `on` where the new axis' position is the index; others are all `off`.",
)


def _infer_trilu(attrs: TriluAttrs, types: Any) -> TensorType:
    (x,) = tensors("trilu", types, 1)
    if x.rank < 2:
        raise TypeMismatch(f"trilu: expected a matrix or a batch of them, got {x}")
    return x


def _compute_trilu(attrs: TriluAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    (x,) = inputs

    def element(*i: Expr) -> Expr:
        row, column = i[-2], i[-1]
        keep = column >= row + attrs.k if attrs.upper else column <= row + attrs.k
        return select(keep, x(*i), const(0, x.dtype))

    return [compute(out.shape, element, name="trilu")]


TRILU = Op(
    "trilu",
    OpPattern.INJECTIVE,  # not elementwise: the result depends on the position
    _infer_trilu,
    _compute_trilu,
    lambda attrs, arrays: (np.triu if attrs.upper else np.tril)(arrays[0], attrs.k),
    TriluAttrs,
    lambda: (
        Sample((sample_array((2, 4, 5)),), TriluAttrs()),
        Sample((sample_array((4, 5), DType.INT64),), TriluAttrs(False, -1)),
    ),
    doc="The upper or lower triangle of matrices, zero elsewhere.",
)


def _infer_pad(attrs: PadAttrs, types: Any) -> TensorType:
    (x,) = tensors("nn.pad", types, 1)
    if len(attrs.pad_width) != x.rank or any(p < 0 for pair in attrs.pad_width for p in pair):
        raise TypeMismatch(f"nn.pad: pad_width {attrs.pad_width} does not fit {x}")
    for d, (before, after) in enumerate(attrs.pad_width):
        extent = x.shape[d]
        limit = {"reflect": 1, "wrap": 0, "edge": 0}.get(attrs.mode)
        if limit is not None and isinstance(extent, int) and (before or after) and extent < 1:
            raise TypeMismatch(f"nn.pad: mode {attrs.mode} cannot pad the empty axis {d} of {x}")
    return TensorType(
        tuple(d + b + a for d, (b, a) in zip(x.shape, attrs.pad_width, strict=True)), x.dtype
    )


def pad_index(index: Expr, extent: Expr, mode: str) -> Expr:
    """The index in [0, extent) that `index`, possibly outside, reads under a padding mode."""
    if mode == "edge":
        return binary(B.MIN, binary(B.MAX, index, 0), extent - 1)
    if mode == "wrap":
        return index % extent
    if is_const(extent, 1):
        return const(0)
    period = (extent - 1) * 2
    phase = index % period
    return binary(B.MIN, phase, period - phase)


def _compute_pad(attrs: PadAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    (x,) = inputs

    def element(*i: Expr) -> Expr:
        inside: list[Expr] = []
        indices: list[Expr] = []
        for v, (before, after), extent in zip(i, attrs.pad_width, x.shape, strict=True):
            index = v - before
            if attrs.mode != "constant":
                indices.append(pad_index(index, extent, attrs.mode) if before or after else index)
                continue
            inside += [index >= 0] if before else []
            inside += [index < extent] if after else []
            indices.append(index)
        return if_then_else(all_of(inside), x(*indices), const(attrs.value, x.dtype))

    return [compute(out.shape, element, name="pad")]


def _np_pad(attrs: PadAttrs, arrays: Any) -> np.ndarray:
    if attrs.mode == "constant":
        return np.pad(arrays[0], attrs.pad_width, constant_values=attrs.value)
    return np.pad(arrays[0], attrs.pad_width, mode=attrs.mode)  # type: ignore[call-overload]


PAD = Op(
    "nn.pad",
    OpPattern.INJECTIVE,
    _infer_pad,
    _compute_pad,
    _np_pad,
    PadAttrs,
    lambda: (
        *(
            Sample((sample_array((3, 4)),), PadAttrs(((1, 2), (0, 5)), mode, 2))
            for mode in ("constant", "edge", "reflect", "wrap")
        ),
        Sample((sample_array((2, 3), DType.INT8),), PadAttrs(((0, 0), (1, 0)), value=-3)),
    ),
    doc="More elements around an array, by one of NumPy's modes constant, edge, reflect or wrap.",
)

OPS: tuple[Op, ...] = (FULL, ARANGE, ONE_HOT, TRILU, PAD)
