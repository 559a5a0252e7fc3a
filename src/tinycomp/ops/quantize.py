"""ONNX importers of quantisation, composed of elementwise operators."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..dtype import DType
from ..relay.nodes import Atom, Constant
from .common import normalize_axis
from .layout import reshape
from .onnx_node import OnnxImport, OnnxNode
from .unary import cast_to


def _spread(node: OnnxNode, parameter: Atom, axis_default: int = 1) -> Atom:
    """A scale or zero point shaped to broadcast against input 0: per tensor, axis or block."""
    shape = node.type(0).static_shape
    own: Any = parameter.type
    dims = own.static_shape
    if math.prod(dims) == 1 and len(dims) <= 1:
        return reshape(node, parameter, ())
    axis = normalize_axis(node.op_type, node.attr("axis", axis_default), len(shape))
    if len(dims) == 1:
        return reshape(node, parameter, [dims[0] if d == axis else 1 for d in range(len(shape))])
    node.expect(len(dims) == len(shape) and 0 not in dims, f"{own} does not fit {node.type(0)}")
    block = node.attr("block_size", 0) or -(-shape[axis] // dims[axis])
    split = reshape(node, parameter, (*dims[: axis + 1], 1, *dims[axis + 1 :]))
    wide = (*dims[: axis + 1], block, *dims[axis + 1 :])
    repeated = node.builder.call("broadcast_to", split, shape=wide)
    merged = reshape(node, repeated, (*dims[:axis], dims[axis] * block, *dims[axis + 1 :]))
    if dims[axis] * block == shape[axis]:
        return merged
    return node.builder.call(
        "strided_slice", merged, begin=(0,) * len(shape), end=shape, strides=(1,) * len(shape)
    )


def _import_dequantize(node: OnnxNode) -> Atom:
    """(x - zero_point) * scale, in the scale's dtype."""
    b, dtype = node.builder, node.type(1).dtype
    x = cast_to(node, node.input(0), dtype)
    if node.has(2):
        zero = node.input(2)
        if not (isinstance(zero, Constant) and not zero.data.any()):
            x = b.call("subtract", x, _spread(node, cast_to(node, zero, dtype)))
    result = b.call("multiply", x, _spread(node, node.input(1)))
    return cast_to(node, result, node.attr("output_dtype") or dtype)


def _quantized_dtype(node: OnnxNode) -> DType:
    return node.type(2).dtype if node.has(2) else node.attr("output_dtype") or DType.UINT8


def quantize(node: OnnxNode, x: Atom, scale: Atom, zero: Atom | None, dtype: DType) -> Atom:
    """saturate(round(x / scale) + zero): all parameters floats that broadcast against x."""
    b = node.builder
    y = b.call("round", b.call("divide", x, scale))
    y = y if zero is None else b.call("add", y, zero)
    y = b.call("clip", y, a_min=float(dtype.min_value), a_max=float(dtype.max_value))
    return b.call("cast", y, dtype=dtype)


def _import_quantize(node: OnnxNode) -> Atom:
    x, working = node.input(0), DType.FLOAT32
    scale = _spread(node, cast_to(node, node.input(1), working))
    zero = _spread(node, cast_to(node, node.input(2), working)) if node.has(2) else None
    return quantize(node, cast_to(node, x, working), scale, zero, _quantized_dtype(node))


def dynamic_quantize(node: OnnxNode) -> list[Atom]:
    """Input 0 as uint8 over the range of its data, which always includes 0; its scale and zero
    point."""
    b, x = node.builder, node.input(0)
    axes = tuple(range(node.type(0).rank))
    zero = b.const(np.float32(0))
    low = b.call("minimum", b.call("min", x, axis=axes, keepdims=False), zero)
    high = b.call("maximum", b.call("max", x, axis=axes, keepdims=False), zero)
    span = b.call("divide", b.call("subtract", high, low), b.const(np.float32(255)))
    scale = b.call("where", b.call("equal", span, zero), b.const(np.float32(1)), span)
    offset = b.call("round", b.call("divide", b.call("negative", low), scale))
    offset = b.call("clip", offset, a_min=0.0, a_max=255.0)
    y = quantize(node, x, scale, offset, DType.UINT8)
    return [y, scale, b.call("cast", offset, dtype=DType.UINT8)]


ONNX: dict[str, OnnxImport] = {
    "DequantizeLinear": _import_dequantize,
    "QuantizeLinear": _import_quantize,
    "DynamicQuantizeLinear": dynamic_quantize,
}
