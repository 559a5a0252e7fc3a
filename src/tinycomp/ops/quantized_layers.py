"""ONNX importers of convolutions and elementwise work on quantised data.

Sums of products are integers, exactly; everything else is dequantised, computed in float32 and
quantised again, as ONNX Runtime defines its operators of the domain com.microsoft.
"""

from __future__ import annotations

from collections.abc import Callable

from ..dtype import DType
from ..relay.nodes import Atom
from ..types import TensorType
from .common import normalize_axis
from .conv import add_channel_bias, import_convolution
from .layout import reshape, transpose
from .onnx_node import OnnxImport, OnnxNode
from .pool import pool
from .quantize import dynamic_quantize, quantize
from .quantized_matmul import optional, shifted
from .unary import cast_to


def _real(node: OnnxNode, x: int, scale: int, zero: int) -> Atom:
    """Input `x` as float32, by the scale and the optional zero point among the inputs."""
    value = cast_to(node, node.input(x), DType.FLOAT32)
    if node.has(zero):
        shift = cast_to(node, _scalar(node, zero), DType.FLOAT32)
        value = node.builder.call("subtract", value, shift)
    return node.builder.call("multiply", value, _scalar(node, scale))


def _scalar(node: OnnxNode, index: int) -> Atom:
    """A scale or zero point of the whole tensor."""
    size = node.type(index).size
    if size != 1:
        raise node.unsupported(f"input {index} of {size} numbers, where one is for the tensor")
    return reshape(node, node.input(index), ())


def _quantized(node: OnnxNode, real: Atom, scale: int, zero: int, default: DType) -> Atom:
    """`real` by the scale and the optional zero point among the inputs."""
    if not node.has(zero):
        return quantize(node, real, _scalar(node, scale), None, default)
    shift = cast_to(node, _scalar(node, zero), DType.FLOAT32)
    return quantize(node, real, _scalar(node, scale), shift, node.type(zero).dtype)


# -- convolutions and products --------------------------------------------------------------------


def _per_channel(node: OnnxNode, parameter: Atom, rank: int) -> Atom:
    """A parameter of the tensor, or of each output channel of a weight of this rank."""
    assert isinstance(parameter.type, TensorType)
    size = parameter.type.size
    return reshape(node, parameter, () if size == 1 else (size, *(1,) * (rank - 1)))


def _integer_convolution(
    node: OnnxNode, x: Atom, x_zero: Atom | None, w: Atom, w_zero: Atom | None
) -> Atom:
    """The convolution of what lies above the zero points, in int32; padding is at the zero."""
    assert isinstance(w.type, TensorType)
    if w_zero is not None:
        w_zero = _per_channel(node, w_zero, w.type.rank)
    data = shifted(node, x, None if x_zero is None else reshape(node, x_zero, ()), rows=False)
    return import_convolution(node, data, shifted(node, w, w_zero, rows=False))


def _import_conv_integer(node: OnnxNode) -> Atom:
    zeros = optional(node, 2), optional(node, 3)
    return _integer_convolution(node, node.input(0), zeros[0], node.input(1), zeros[1])


def _import_qlinear_conv(node: OnnxNode) -> Atom:
    """saturate(round((x - x_zero) * (w - w_zero) + bias) * x_scale * w_scale / y_scale) + y_zero"""
    call, rank = node.builder.call, node.type(3).rank
    out = _integer_convolution(node, node.input(0), node.input(2), node.input(3), node.input(5))
    if node.has(8):
        out = add_channel_bias(node, out, node.input(8))
    scales = call("multiply", node.input(1), _per_channel(node, node.input(4), rank - 1))
    real = call("multiply", call("cast", out, dtype=DType.FLOAT32), scales)
    return _quantized(node, real, 6, 7, DType.UINT8)


def _import_qgemm(node: OnnxNode) -> Atom:
    """alpha (A - a_zero) @ (B - b_zero) + C; float32 without an output scale."""
    call = node.builder.call
    a = shifted(node, node.input(0), optional(node, 2), rows=True)
    a = transpose(node, a, (1, 0)) if node.attr("transA", 0) else a
    right = node.input(3)
    right = transpose(node, right, (1, 0)) if node.attr("transB", 0) else right
    product = call("nn.matmul", a, shifted(node, right, optional(node, 5), rows=False))
    if node.has(6):
        product = call("add", product, node.input(6))
    alpha = node.builder.const(float(node.attr("alpha", 1.0)), DType.FLOAT32)
    scale = call("multiply", call("multiply", node.input(1), node.input(4)), alpha)
    real = call("multiply", call("cast", product, dtype=DType.FLOAT32), scale)
    return _quantized(node, real, 7, 8, DType.UINT8) if node.has(7) else real


def _import_matmul_integer_to_float(node: OnnxNode) -> Atom:
    """(A - a_zero) @ (B - b_zero) * a_scale * b_scale + bias."""
    a = shifted(node, node.input(0), optional(node, 4), rows=True)
    b = shifted(node, node.input(1), optional(node, 5), rows=False)
    return _real_product(node, a, b, (node.input(2), node.input(3)), 6)


def _import_dynamic_quantize_matmul(node: OnnxNode) -> Atom:
    """The same with A float32, which is quantised over the range of its data."""
    x, scale, zero = dynamic_quantize(node)
    a = shifted(node, x, zero, rows=True)
    b = shifted(node, node.input(1), optional(node, 3), rows=False)
    return _real_product(node, a, b, (scale, node.input(2)), 4)


def _real_product(node: OnnxNode, a: Atom, b: Atom, scales: tuple[Atom, Atom], bias: int) -> Atom:
    call = node.builder.call
    product = call("cast", call("nn.matmul", a, b), dtype=DType.FLOAT32)
    real = call("multiply", product, call("multiply", *scales))
    return call("add", real, node.input(bias)) if node.has(bias) else real


# -- elementwise, pooling, softmax ----------------------------------------------------------------


def _import_binary(op: str) -> OnnxImport:
    def convert(node: OnnxNode) -> Atom:
        result = node.builder.call(op, _real(node, 0, 1, 2), _real(node, 3, 4, 5))
        return _quantized(node, result, 6, 7, node.type(0).dtype)

    return convert


def _import_unary(function: Callable[[OnnxNode, Atom], Atom]) -> OnnxImport:
    def convert(node: OnnxNode) -> Atom:
        result = function(node, _real(node, 0, 1, 2))
        return _quantized(node, result, 3, 4, node.type(0).dtype)

    return convert


def _sigmoid(node: OnnxNode, x: Atom) -> Atom:
    return node.builder.call("sigmoid", x)


def _leaky_relu(node: OnnxNode, x: Atom) -> Atom:
    return node.builder.call("nn.leaky_relu", x, alpha=float(node.attr("alpha", 0.01)))


def _global_average(node: OnnxNode, x: Atom) -> Atom:
    rank = node.type(0).rank
    first = 1 if node.attr("channels_last", 0) else 2
    axes = tuple(range(first, first + rank - 2))
    return node.builder.call("mean", x, axis=axes, keepdims=True)


def _average(node: OnnxNode, x: Atom) -> Atom:
    if node.attr("channels_last", 0):
        raise node.unsupported("channels_last=1")
    return pool(node, "nn.avg_pool2d", x, tuple(node.attr("kernel_shape")))


def _softmax(node: OnnxNode, x: Atom) -> Atom:
    axis, rank = node.axis(-1), node.type(0).rank
    if node.attr("opset", 13) < 13 and axis != rank - 1:
        raise node.unsupported("softmax over several axes (opset below 13)")
    return node.builder.call("nn.softmax", x, axis=axis)


def _import_concat(node: OnnxNode) -> Atom:
    parts = [_real(node, i, i + 1, i + 2) for i in range(2, len(node.inputs), 3)]
    axis = normalize_axis(node.op_type, node.attr("axis", 0), node.type(2).rank)
    joined = node.builder.call("concatenate", *parts, axis=axis)
    return _quantized(node, joined, 0, 1, node.type(2).dtype)


ONNX: dict[str, OnnxImport] = {
    "ConvInteger": _import_conv_integer,
    "QLinearConv": _import_qlinear_conv,
    "com.microsoft::QGemm": _import_qgemm,
    "com.microsoft::MatMulIntegerToFloat": _import_matmul_integer_to_float,
    "com.microsoft::DynamicQuantizeMatMul": _import_dynamic_quantize_matmul,
    "com.microsoft::QLinearAdd": _import_binary("add"),
    "com.microsoft::QLinearMul": _import_binary("multiply"),
    "com.microsoft::QLinearSigmoid": _import_unary(_sigmoid),
    "com.microsoft::QLinearLeakyRelu": _import_unary(_leaky_relu),
    "com.microsoft::QLinearAveragePool": _import_unary(_average),
    "com.microsoft::QLinearGlobalAveragePool": _import_unary(_global_average),
    "com.microsoft::QLinearSoftmax": _import_unary(_softmax),
    "com.microsoft::QLinearConcat": _import_concat,
}
