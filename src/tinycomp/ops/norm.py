"""Normalisations: nn.layer_norm, nn.batch_norm, nn.lrn; the other ONNX ones are composed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import te
from ..ir.expr import product
from ..relay.nodes import Atom
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor
from ..types import Dim, TensorType, Type
from .activation import Emit
from .onnx_node import OnnxImport, OnnxNode
from .unary import cast_to
from .window import accumulation_dtype, dims_agree, expect, tensor_arg, widen


@dataclass(frozen=True)
class LayerNormAttrs(Attrs):
    axis: int = -1  # first of the normalised, trailing axes
    epsilon: float = 1e-5


@dataclass(frozen=True)
class BatchNormAttrs(Attrs):
    epsilon: float = 1e-5


@dataclass(frozen=True)
class LrnAttrs(Attrs):
    """out = x / (bias + alpha / size * sum of x^2 over `size` neighbouring channels) ** beta"""

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0
    axis: int = 1


def _infer_layer_norm(attrs: LayerNormAttrs, types: Sequence[Type]) -> TensorType:
    x = tensor_arg(types, 0, "nn.layer_norm")
    expect(-x.rank <= attrs.axis < x.rank, f"nn.layer_norm: axis {attrs.axis} is outside {x}")
    normalized = x.shape[attrs.axis % x.rank :]
    for index in (1, 2):
        p = tensor_arg(types, index, "nn.layer_norm")
        fits = p.rank == len(normalized) and all(map(dims_agree, p.shape, normalized))
        expect(fits, f"nn.layer_norm: argument {index} is {p}, the normalised axes {normalized}")
        expect(p.dtype is x.dtype, f"nn.layer_norm: argument {index} is {p}, the data {x}")
    return x


def _row_sum(shape: Sequence[Any], axis: int, value: Any, name: str) -> Tensor:
    """Sum of `value(index)` over the axes from `axis` on."""
    axes = [te.reduce_axis((0, d), name=f"k{a}") for a, d in enumerate(shape[axis:])]
    return te.compute(
        shape[:axis],
        lambda *row: te.sum(value([*row, *axes]), axis=axes),
        name=name,
        tag=name,
        attrs={"axis": axis},
    )


def _compute_layer_norm(
    attrs: LayerNormAttrs, args: Sequence[Tensor], out: TensorType
) -> list[Tensor]:
    x, gamma, beta = args
    axis, acc = attrs.axis % x.ndim, accumulation_dtype(x.dtype)
    shape = list(x.shape)
    count = product(shape[axis:]).astype(acc)
    total = _row_sum(shape, axis, lambda i: x(*i).astype(acc), "layer_norm_sum")
    mean = te.compute(shape[:axis], lambda *r: total(*r) / count, "layer_norm_mean")
    centered = lambda i: x(*i).astype(acc) - mean(*i[:axis])  # noqa: E731
    squares = _row_sum(shape, axis, lambda i: centered(i) * centered(i), "layer_norm_var")
    scale = te.compute(
        shape[:axis],
        lambda *r: te.call("rsqrt", squares(*r) / count + attrs.epsilon),
        "layer_norm_scale",
    )

    def body(*i: Any) -> Any:
        normal = centered(i) * scale(*i[:axis])
        affine = normal * gamma(*i[axis:]).astype(acc) + beta(*i[axis:]).astype(acc)
        return affine.astype(out.dtype)

    return [te.compute(shape, body, name="layer_norm", tag="layer_norm", attrs={"axis": axis})]


def _reference_layer_norm(attrs: LayerNormAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    x, gamma, beta = (widen(a) for a in arrays)
    axes = tuple(range(attrs.axis % x.ndim, x.ndim))
    centered = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centered).mean(axis=axes, keepdims=True)
    normal = centered / np.sqrt(variance + x.dtype.type(attrs.epsilon))
    return (normal * gamma + beta).astype(arrays[0].dtype, copy=False)


def _infer_batch_norm(attrs: BatchNormAttrs, types: Sequence[Type]) -> TensorType:
    x = tensor_arg(types, 0, "nn.batch_norm")
    expect(x.rank >= 2, f"nn.batch_norm: {x} has no channel axis")
    for index in range(1, 5):
        p = tensor_arg(types, index, "nn.batch_norm", 1)
        fits = dims_agree(p.shape[0], x.shape[1])
        expect(fits, f"nn.batch_norm: argument {index} is {p}, but {x} has {x.shape[1]} channels")
        expect(p.dtype.is_float, f"nn.batch_norm: argument {index} is {p}")
    return x


def _compute_batch_norm(
    attrs: BatchNormAttrs, args: Sequence[Tensor], out: TensorType
) -> list[Tensor]:
    x, *parameters = args
    acc = accumulation_dtype(x.dtype)

    def body(*i: Any) -> Any:
        gamma, beta, mean, variance = (p(i[1]).astype(acc) for p in parameters)
        scale = gamma * te.call("rsqrt", variance + attrs.epsilon)
        return ((x(*i).astype(acc) - mean) * scale + beta).astype(out.dtype)

    return [te.compute(x.shape, body, name="batch_norm")]


def _reference_batch_norm(attrs: BatchNormAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    x = widen(arrays[0])
    column = (-1,) + (1,) * (x.ndim - 2)
    gamma, beta, mean, variance = (a.astype(x.dtype).reshape(column) for a in arrays[1:])
    scale = gamma / np.sqrt(variance + x.dtype.type(attrs.epsilon))
    return ((x - mean) * scale + beta).astype(arrays[0].dtype, copy=False)


def _infer_lrn(attrs: LrnAttrs, types: Sequence[Type]) -> TensorType:
    x = tensor_arg(types, 0, "nn.lrn")
    expect(x.rank >= 2 and x.dtype.is_float, f"nn.lrn: {x} has no channels of floats")
    return x


def _compute_lrn(attrs: LrnAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    (x,) = args
    acc, before = accumulation_dtype(x.dtype), (attrs.size - 1) // 2
    k = te.reduce_axis((0, attrs.size), name="k")
    axis = attrs.axis % x.ndim
    channels = x.shape[axis]

    def square(*i: Any) -> Any:
        c = i[axis] + k - before
        value = x(*i[:axis], c, *i[axis + 1 :]).astype(acc)
        inside = (c >= 0) & (c < channels)
        return te.sum(te.if_then_else(inside, value * value, te.const(0, acc)), axis=k)

    sums = te.compute(x.shape, square, name="lrn_sum")

    def body(*i: Any) -> Any:
        base = sums(*i) * (attrs.alpha / attrs.size) + attrs.bias
        return (x(*i).astype(acc) / _raised(base, attrs.beta)).astype(out.dtype)

    return [te.compute(x.shape, body, name="lrn")]


def _raised(base: Any, exponent: float) -> Any:
    """base ** exponent; the usual 0.75 by square roots, which are much faster and as exact."""
    if exponent == 0.75:
        root = te.call("sqrt", base)
        return root * te.call("sqrt", root)
    return te.call("pow", base, exponent)


def _reference_lrn(attrs: LrnAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    x = np.moveaxis(widen(arrays[0]), attrs.axis, 0)
    before = (attrs.size - 1) // 2
    width = [(before, attrs.size - 1 - before), *[(0, 0)] * (x.ndim - 1)]
    squares = np.pad(np.square(x), width)
    total = sum(squares[k : k + x.shape[0]] for k in range(attrs.size))
    base = np.asarray(total) * x.dtype.type(attrs.alpha / attrs.size) + x.dtype.type(attrs.bias)
    result = np.moveaxis(x / base ** x.dtype.type(attrs.beta), 0, attrs.axis)
    return np.ascontiguousarray(result).astype(arrays[0].dtype, copy=False)


def _f32(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _samples_layer_norm() -> Iterable[Sample]:
    x = _f32(0, 2, 3, 8)
    yield Sample((x, _f32(1, 8), _f32(2, 8)), LayerNormAttrs(), atol=1e-5)
    yield Sample((x, _f32(3, 3, 8), _f32(4, 3, 8)), LayerNormAttrs(1, 1e-3), atol=1e-5)


def _samples_batch_norm() -> Iterable[Sample]:
    for shape in ((2, 3, 4, 5), (4, 3)):
        parameters = (_f32(1, 3), _f32(2, 3), _f32(3, 3), np.square(_f32(4, 3)) + 0.5)
        yield Sample((_f32(0, *shape), *parameters), BatchNormAttrs(1e-3), atol=1e-5)


def _samples_lrn() -> Iterable[Sample]:
    yield Sample((_f32(0, 1, 6, 3, 3),), LrnAttrs(5, 0.1, 0.75, 2.0))
    yield Sample((_f32(1, 1, 4, 2),), LrnAttrs(4, 0.5, 0.5, 1.0))
    yield Sample((_f32(2, 2, 3, 35),), LrnAttrs(3, 0.5, 0.75, 1.0, axis=2), atol=1e-6)


OPS: tuple[Op, ...] = (
    Op(
        "nn.layer_norm",
        OpPattern.OPAQUE,
        _infer_layer_norm,
        _compute_layer_norm,
        _reference_layer_norm,
        LayerNormAttrs,
        _samples_layer_norm,
        stitchable=True,
        doc="(x - mean) / sqrt(variance + epsilon) * gamma + beta over the trailing axes.",
    ),
    Op(
        "nn.batch_norm",
        OpPattern.BROADCAST,
        _infer_batch_norm,
        _compute_batch_norm,
        _reference_batch_norm,
        BatchNormAttrs,
        _samples_batch_norm,
        stitchable=True,
        doc="Normalisation of channel axis 1 by given (gamma, beta, mean, variance).",
    ),
    Op(
        "nn.lrn",
        OpPattern.OPAQUE,
        _infer_lrn,
        _compute_lrn,
        _reference_lrn,
        LrnAttrs,
        _samples_lrn,
        doc="Local response normalisation across channels, which lie along `axis`.",
    ),
)


def _moments(emit: Emit, x: Atom, axes: tuple[int, ...], epsilon: float) -> tuple[Atom, Atom, Atom]:
    """(x - mean, mean, 1 / standard deviation) over `axes`, which stay as ones."""
    mean = emit("mean", x, axis=axes, keepdims=True)
    centered = emit("subtract", x, mean)
    variance = emit("mean", emit("multiply", centered, centered), axis=axes, keepdims=True)
    return centered, mean, emit("rsqrt", emit("add", variance, float(epsilon)))


def computed_in_float32(node: OnnxNode, x: Atom) -> Atom:
    """`x` in its accumulation dtype."""
    assert isinstance(x.type, TensorType)
    dtype = accumulation_dtype(x.type.dtype)
    return x if dtype is x.type.dtype else node.builder.call("cast", x, dtype=dtype)


def _import_batch_norm(node: OnnxNode) -> Atom:
    if node.attr("training_mode", 0):
        raise node.unsupported("training_mode=1", "export the model for inference")
    inputs = [node.input(i) for i in range(5)]
    return node.builder.call("nn.batch_norm", *inputs, epsilon=node.attr("epsilon", 1e-5))


def _shaped(node: OnnxNode, index: int, shape: tuple[Dim, ...], default: float) -> Atom:
    """Input `index` broadcast to `shape`; constant where it is absent."""
    b = node.builder
    if not node.has(index):
        return b.call("broadcast_to", b.const(default, node.type(0).dtype), shape=shape)
    atom, type_ = node.input(index), node.type(index)
    if type_.dtype is not node.type(0).dtype:
        atom = b.call("cast", atom, dtype=node.type(0).dtype)
    return atom if type_.shape == shape else b.call("broadcast_to", atom, shape=shape)


def _import_layer_norm(node: OnnxNode) -> Atom | list[Atom]:
    x, type_ = node.input(0), node.type(0)
    axis, epsilon = node.axis(-1), node.attr("epsilon", 1e-5)
    shape = type_.shape[axis:]
    gamma, beta = _shaped(node, 1, shape, 1.0), _shaped(node, 2, shape, 0.0)
    out = node.builder.call("nn.layer_norm", x, gamma, beta, axis=axis, epsilon=epsilon)
    if node.num_outputs == 1:
        return out
    axes = tuple(range(axis, type_.rank))
    _, mean, scale = _moments(Emit(node), computed_in_float32(node, x), axes, epsilon)
    return [out, mean, scale][: node.num_outputs]


def rms_norm(node: OnnxNode, x: Atom, gamma: Atom, axes: tuple[int, ...], epsilon: float) -> Atom:
    """x / sqrt(mean(x^2) + epsilon) * gamma, computed in float32."""
    assert isinstance(x.type, TensorType)
    emit, wide = Emit(node), computed_in_float32(node, x)
    squares = emit("mean", emit("multiply", wide, wide), axis=axes, keepdims=True)
    scale = emit("rsqrt", emit("add", squares, float(epsilon)))
    normal = cast_to(node, emit("multiply", wide, scale), x.type.dtype)
    return emit("multiply", normal, gamma)


def _import_rms_norm(node: OnnxNode) -> Atom:
    rank = node.type(0).rank
    axes = tuple(range(node.axis(-1), rank))
    return rms_norm(node, node.input(0), node.input(1), axes, node.attr("epsilon", 1e-5))


def _import_instance_norm(node: OnnxNode) -> Atom:
    emit, rank = Emit(node), node.type(0).rank
    x = computed_in_float32(node, node.input(0))
    centered, _, scale = _moments(emit, x, tuple(range(2, rank)), node.attr("epsilon", 1e-5))
    return _affine(node, emit("multiply", centered, scale), rank)


def _affine(node: OnnxNode, normal: Atom, rank: int) -> Atom:
    """`normal` scaled and shifted per channel by inputs 1 and 2, in the dtype of input 0."""
    emit, column = Emit(node), (node.rank(1, 1).shape[0],) + (1,) * (rank - 2)
    gamma, beta = (
        computed_in_float32(node, emit("reshape", node.input(i), newshape=column)) for i in (1, 2)
    )
    out = emit("add", emit("multiply", normal, gamma), beta)
    return cast_to(node, out, node.type(0).dtype)


def _import_group_norm(node: OnnxNode) -> Atom:
    emit, type_, groups = Emit(node), node.type(0), node.attr("num_groups")
    node.expect(type_.rank > 1, f"{type_} has no channels")
    n, c, *spatial = type_.shape
    divides = groups > 0 and (not isinstance(c, int) or c % groups == 0)
    node.expect(divides, f"{groups} groups do not divide the channels of {type_}")
    x = emit("reshape", node.input(0), newshape=(n, groups, c // groups, *spatial))
    axes = tuple(range(2, type_.rank + 1))
    wide = computed_in_float32(node, x)
    centered, _, scale = _moments(emit, wide, axes, node.attr("epsilon", 1e-5))
    normal = emit("reshape", emit("multiply", centered, scale), newshape=type_.shape)
    return _affine(node, normal, type_.rank)


def _import_lp_norm(node: OnnxNode) -> Atom:
    emit, x = Emit(node), node.input(0)
    axis = (node.axis(-1),)
    if node.attr("p", 2) == 1:
        length = emit("sum", emit("abs", x), axis=axis, keepdims=True)
    else:
        length = emit("sqrt", emit("sum", emit("multiply", x, x), axis=axis, keepdims=True))
    zero = emit("equal", length, 0.0)
    one = node.builder.const(1.0, node.type(0).dtype)
    return emit("divide", x, node.builder.call("where", zero, one, length))


def _import_mvn(node: OnnxNode) -> Atom:
    rank = node.type(0).rank
    given = node.attr("axes", (0, 2, 3))
    node.expect(all(-rank <= a < rank for a in given), f"axes {list(given)} of rank {rank}")
    axes = tuple(a % rank for a in given)
    emit = Emit(node)
    mean = emit("mean", node.input(0), axis=axes, keepdims=True)
    centered = emit("subtract", node.input(0), mean)
    variance = emit("mean", emit("multiply", centered, centered), axis=axes, keepdims=True)
    return emit("divide", centered, emit("add", emit("sqrt", variance), 1e-9))


def _import_lrn(node: OnnxNode) -> Atom:
    return node.builder.call(
        "nn.lrn", node.input(0), size=node.attr("size"), alpha=node.attr("alpha", 1e-4),
        beta=node.attr("beta", 0.75), bias=node.attr("bias", 1.0),
    )  # fmt: skip


def _import_skip_norm(simplified: bool) -> OnnxImport:
    """com.microsoft::Skip(Simplified)LayerNormalization: normalisation of input + skip + bias."""

    def convert(node: OnnxNode) -> list[Atom]:
        total = node.builder.call("add", node.input(0), node.input(1))
        bias = 3 if simplified else 4
        if node.has(bias):
            total = node.builder.call("add", total, node.input(bias))
        shape = node.type(0).shape
        axis, epsilon = len(shape) - 1, node.attr("epsilon", 1e-12)
        if simplified:
            out = rms_norm(node, total, node.input(2), (axis,), epsilon)
        else:
            beta = _shaped(node, 3, shape[axis:], 0.0)
            out = node.builder.call(
                "nn.layer_norm", total, node.input(2), beta, axis=axis, epsilon=epsilon
            )
        if node.num_outputs in (2, 3):
            raise node.unsupported("the outputs mean and inv_std_var")
        return [out] if node.num_outputs == 1 else [out, out, out, total]

    return convert


ONNX: dict[str, OnnxImport] = {
    "BatchNormalization": _import_batch_norm,
    "LayerNormalization": _import_layer_norm,
    "RMSNormalization": _import_rms_norm,
    "SimplifiedLayerNormalization": _import_rms_norm,
    "com.microsoft::SimplifiedLayerNormalization": _import_rms_norm,
    "InstanceNormalization": _import_instance_norm,
    "GroupNormalization": _import_group_norm,
    "LpNormalization": _import_lp_norm,
    "MeanVarianceNormalization": _import_mvn,
    "LRN": _import_lrn,
    "com.microsoft::SkipLayerNormalization": _import_skip_norm(simplified=False),
    "com.microsoft::SkipSimplifiedLayerNormalization": _import_skip_norm(simplified=True),
}
