"""ONNX importers of matrix products with quantised operands."""

from __future__ import annotations

import numpy as np

from ..dtype import DType
from ..relay.nodes import Atom
from ..types import TensorType
from .layout import reshape
from .onnx_node import OnnxImport, OnnxNode
from .quantize import quantize
from .unary import cast_to


def shifted(node: OnnxNode, x: Atom, zero: Atom | None, rows: bool) -> Atom:
    """`x - zero` as int32; a zero point per row (of A) or column (of B) broadcasts."""
    value = cast_to(node, x, DType.INT32)
    if zero is None:
        return value
    shift = cast_to(node, zero, DType.INT32)
    assert isinstance(shift.type, TensorType)
    if shift.type.rank == 1:
        count = shift.type.shape[0]
        shift = reshape(node, shift, (count, 1) if rows and count != 1 else (count,))
    return node.builder.call("subtract", value, shift)


def optional(node: OnnxNode, index: int) -> Atom | None:
    return node.input(index) if node.has(index) else None


def _import_matmul_integer(node: OnnxNode) -> Atom:
    """(A - a_zero) @ (B - b_zero) in int32."""
    a = shifted(node, node.input(0), optional(node, 2), rows=True)
    b = shifted(node, node.input(1), optional(node, 3), rows=False)
    return node.builder.call("nn.matmul", a, b)


def _import_qlinear_matmul(node: OnnxNode) -> Atom:
    """saturate(round((A - a_zero) @ (B - b_zero) * a_scale * b_scale / y_scale) + y_zero)."""
    call = node.builder.call
    a = shifted(node, node.input(0), node.input(2), rows=True)
    b = shifted(node, node.input(3), node.input(5), rows=False)
    product = call("cast", call("nn.matmul", a, b), dtype=DType.FLOAT32)
    scales = [cast_to(node, node.input(i), DType.FLOAT32) for i in (1, 4, 6)]
    real = call("multiply", product, call("multiply", scales[0], scales[1]))
    zero = cast_to(node, node.input(7), DType.FLOAT32)
    return quantize(node, real, scales[2], zero, node.type(7).dtype)


def unpack_bits(packed: np.ndarray, bits: int) -> np.ndarray:
    """The unsigned `bits`-wide numbers in bytes, low bits first, along the last axis.

    >>> unpack_bits(np.array([0x21, 0x43], np.uint8), 4).tolist()
    [1, 2, 3, 4]
    """
    flat = np.unpackbits(packed.view(np.uint8), axis=-1, bitorder="little")
    groups = flat.reshape(*packed.shape[:-1], -1, bits)
    return (groups * (1 << np.arange(bits))).sum(-1).astype(np.uint8)


def _import_matmul_nbits(node: OnnxNode) -> Atom:
    """A @ dequantized(B)^T, B packed in blocks along K; the weight is unpacked while compiling."""
    columns, depth = node.attr("N"), node.attr("K")
    bits, block = node.attr("bits", 4), node.attr("block_size")
    blocks = -(-depth // block)
    if node.has(4) and node.const(4).size:
        raise node.unsupported("the input g_idx")
    numbers = unpack_bits(node.const(1).reshape(columns, blocks, -1), bits)[..., :block]
    scales = node.const(2).reshape(columns, blocks, 1)
    zero: np.ndarray = np.asarray(1 << (bits - 1), scales.dtype)
    if node.has(3):
        given = node.const(3).reshape(columns, -1)
        packed = given.dtype == np.uint8
        given = unpack_bits(given, bits)[:, :blocks] if packed else given
        zero = given.reshape(columns, blocks, 1).astype(scales.dtype)
    weight = ((numbers.astype(scales.dtype) - zero) * scales).reshape(columns, -1)[:, :depth]
    constant = node.builder.const(np.ascontiguousarray(weight.T))
    result = node.builder.call("nn.matmul", node.input(0), constant)
    return node.builder.call("add", result, node.input(5)) if node.has(5) else result


ONNX: dict[str, OnnxImport] = {
    "MatMulInteger": _import_matmul_integer,
    "QLinearMatMul": _import_qlinear_matmul,
    "com.microsoft::MatMulNBits": _import_matmul_nbits,
}
