"""Elementwise operators of two arguments with NumPy broadcasting, and `where`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

from ..dtype import DType
from ..ir.expr import BinaryOp, Expr, binary, call, const, select
from ..relay.nodes import Atom
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import compute
from ..types import TensorType
from .common import (
    ANY,
    BOOLS,
    FLOATS,
    INTS,
    NUMBERS,
    broadcast_shapes,
    in_working_precision,
    read_broadcast,
    require_dtype,
    require_same_dtype,
    sample_array,
    tensors,
)  # fmt: skip
from .onnx_node import OnnxImport, OnnxNode
from .unary import cast_to


@dataclass(frozen=True)
class BinaryRow:
    """A row of the table: the operator's element in NumPy and in te, and the dtypes it takes."""

    name: str
    numpy: Callable[[np.ndarray, np.ndarray], np.ndarray]
    element: Callable[[Expr, Expr], Expr]
    dtypes: frozenset[DType]
    to_bool: bool = False
    positive: bool = False  # samples stay in the domain (power, shifts)


def _te(op: BinaryOp) -> Callable[[Expr, Expr], Expr]:
    return lambda a, b: binary(op, a, b)


def divide(a: Expr, b: Expr) -> Expr:
    return binary(BinaryOp.DIV if a.dtype.is_float else BinaryOp.TRUNCDIV, a, b)


def np_trunc_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integer division towards zero; by zero gives 0."""
    if DType.of(a.dtype).is_float:
        return np.trunc(a / b)
    quotient = np.floor_divide(a, b)
    inexact = np.multiply(quotient, b) != a
    return np.where(inexact & ((a < 0) != (b < 0)) & (b != 0), quotient + 1, quotient).astype(
        a.dtype
    )


def _np_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b) if DType.of(a.dtype).is_float else np_trunc_divide(a, b)


def _trunc_divide(a: Expr, b: Expr) -> Expr:
    return call("trunc", a / b) if a.dtype.is_float else binary(BinaryOp.TRUNCDIV, a, b)


def _floor_divide(a: Expr, b: Expr) -> Expr:
    return call("floor", a / b) if a.dtype.is_float else binary(BinaryOp.FLOORDIV, a, b)


def _np_floor_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.floor(a / b) if DType.of(a.dtype).is_float else np.floor_divide(a, b)


def _np_fmod(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.fmod(a, b)


def _np_shift(left: bool, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Shifts by a negative amount or the width and more leave no bit, or copies of the sign."""
    bits = a.dtype.itemsize * 8
    if not left and a.dtype.kind == "i":
        return np.right_shift(a, np.where((b >= 0) & (b < bits), b, bits - 1).astype(a.dtype))
    valid = (b >= 0) & (b < bits)
    by = np.where(valid, b, 0).astype(a.dtype)
    return np.where(valid, np.left_shift(a, by) if left else np.right_shift(a, by), 0).astype(
        a.dtype
    )


def _right_shift(a: Expr, b: Expr) -> Expr:
    if a.dtype.is_unsigned:
        return binary(BinaryOp.SHR, a, b)
    last = const(a.dtype.bits - 1, a.dtype)
    return binary(BinaryOp.SHR, a, select((b < 0) | (b > last), last, b))


def _power(a: Expr, b: Expr) -> Expr:
    if a.dtype.is_float:
        return call("pow", a, b)
    return (call("pow", a.astype(DType.FLOAT64), b.astype(DType.FLOAT64))).astype(a.dtype)


def _np_power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if DType.of(a.dtype).is_float:
        return np.power(a, b)
    return np.power(a.astype(np.float64), b.astype(np.float64)).astype(a.dtype)


NUMBERS_AND_BOOL = NUMBERS | BOOLS
BINARY = (
    BinaryRow("add", np.add, _te(BinaryOp.ADD), NUMBERS),
    BinaryRow("subtract", np.subtract, _te(BinaryOp.SUB), NUMBERS),
    BinaryRow("multiply", np.multiply, _te(BinaryOp.MUL), NUMBERS),
    BinaryRow("divide", _np_divide, divide, NUMBERS),
    BinaryRow("floor_divide", _np_floor_divide, _floor_divide, NUMBERS),
    BinaryRow("trunc_divide", np_trunc_divide, _trunc_divide, NUMBERS),
    BinaryRow("mod", np.mod, _te(BinaryOp.FLOORMOD), NUMBERS),
    BinaryRow("fmod", _np_fmod, _te(BinaryOp.TRUNCMOD), NUMBERS),
    BinaryRow("power", _np_power, _power, NUMBERS, positive=True),
    BinaryRow("maximum", np.maximum, _te(BinaryOp.MAX), NUMBERS),
    BinaryRow("minimum", np.minimum, _te(BinaryOp.MIN), NUMBERS),
    BinaryRow("atan2", np.arctan2, lambda a, b: call("atan2", a, b), FLOATS),
    BinaryRow("equal", np.equal, _te(BinaryOp.EQ), ANY, to_bool=True),
    BinaryRow("not_equal", np.not_equal, _te(BinaryOp.NE), ANY, to_bool=True),
    BinaryRow("less", np.less, _te(BinaryOp.LT), NUMBERS, to_bool=True),
    BinaryRow("less_equal", np.less_equal, _te(BinaryOp.LE), NUMBERS, to_bool=True),
    BinaryRow("greater", np.greater, lambda a, b: a > b, NUMBERS, to_bool=True),
    BinaryRow("greater_equal", np.greater_equal, lambda a, b: a >= b, NUMBERS, to_bool=True),
    BinaryRow("logical_and", np.logical_and, _te(BinaryOp.AND), BOOLS),
    BinaryRow("logical_or", np.logical_or, _te(BinaryOp.OR), BOOLS),
    BinaryRow("logical_xor", np.logical_xor, _te(BinaryOp.NE), BOOLS),
    BinaryRow("bitwise_and", np.bitwise_and, _te(BinaryOp.BIT_AND), INTS),
    BinaryRow("bitwise_or", np.bitwise_or, _te(BinaryOp.BIT_OR), INTS),
    BinaryRow("bitwise_xor", np.bitwise_xor, _te(BinaryOp.BIT_XOR), INTS),
    BinaryRow("left_shift", partial(_np_shift, True), _te(BinaryOp.SHL), INTS, positive=True),
    BinaryRow("right_shift", partial(_np_shift, False), _right_shift, INTS, positive=True),
)


def _samples(row: BinaryRow) -> Iterable[Sample]:
    low = 0.5 if row.positive else -4.0
    dtypes = (DType.FLOAT32, DType.INT32, DType.UINT8, DType.BOOL)
    for dtype in (d for d in dtypes if d in row.dtypes):
        for left, right in (((3, 5), (3, 5)), ((2, 1, 4), (3, 1)), ((), (4,))):
            yield Sample(
                (sample_array(left, dtype, 1, low=low), sample_array(right, dtype, 2, low=low))
            )


def _binary_op(row: BinaryRow) -> Op:
    def infer(attrs: Attrs, types: Any) -> TensorType:
        a, b = tensors(row.name, types, 2)
        require_dtype(row.name, 0, a, row.dtypes)
        dtype = require_same_dtype(row.name, (a, b))
        shape = broadcast_shapes(row.name, (a.shape, b.shape))
        return TensorType(shape, DType.BOOL if row.to_bool else dtype)

    def build(attrs: Attrs, inputs: Any, out: TensorType) -> list[Any]:
        a, b = inputs

        def element(*i: Expr) -> Expr:
            return row.element(read_broadcast(a, i, out.shape), read_broadcast(b, i, out.shape))

        return [compute(out.shape, element, name=row.name)]

    reference = in_working_precision(row.numpy)
    return Op(
        row.name,
        OpPattern.BROADCAST,
        infer,
        build,
        lambda attrs, arrays: reference(*arrays),
        samples=partial(_samples, row),
        stitchable=True,
        doc=f"Elementwise {row.name} with NumPy broadcasting; integers divided by zero give 0.",
    )


def _infer_where(attrs: Attrs, types: Any) -> TensorType:
    condition, a, b = tensors("where", types, 3)
    require_dtype("where", 0, condition, BOOLS)
    dtype = require_same_dtype("where", (a, b))
    return TensorType(broadcast_shapes("where", (condition.shape, a.shape, b.shape)), dtype)


def _compute_where(attrs: Attrs, inputs: Any, out: TensorType) -> list[Any]:
    def element(*i: Expr) -> Expr:
        return select(*(read_broadcast(t, i, out.shape) for t in inputs))

    return [compute(out.shape, element, name="where")]


_CONDITION = np.array([True, False, True])
WHERE = Op(
    "where",
    OpPattern.BROADCAST,
    _infer_where,
    _compute_where,
    lambda attrs, arrays: np.where(*arrays).astype(arrays[1].dtype),
    samples=lambda: (
        Sample((_CONDITION[:, None], sample_array((3, 4)), sample_array((4,), seed=1))),
        Sample((_CONDITION, sample_array((), DType.INT64), sample_array((2, 3), DType.INT64))),
    ),
    stitchable=True,
    doc="a where the condition holds, b elsewhere, with broadcasting (ONNX Where).",
)

OPS: tuple[Op, ...] = (*(_binary_op(row) for row in BINARY), WHERE)

_ONNX_NAMES = {
    "Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide", "Equal": "equal",
    "Less": "less", "LessOrEqual": "less_equal", "Greater": "greater",
    "GreaterOrEqual": "greater_equal", "And": "logical_and", "Or": "logical_or",
    "Xor": "logical_xor", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
}  # fmt: skip


def _binary_importer(name: str) -> OnnxImport:
    return lambda node: node.builder.call(name, node.input(0), node.input(1))


def _variadic_importer(name: str) -> OnnxImport:
    def importer(node: OnnxNode) -> Atom:
        inputs = [node.input(i) for i in range(len(node.inputs))]
        return reduce(lambda a, b: node.builder.call(name, a, b), inputs)

    return importer


def _import_mean(node: OnnxNode) -> Atom:
    total = _variadic_importer("add")(node)
    assert not isinstance(total, Sequence)
    count = node.builder.const(len(node.inputs), node.type(0).dtype)
    return node.builder.call("divide", total, count)


def _import_pow(node: OnnxNode) -> Atom:
    """Pow: the exponent may have another dtype; the result has the base's."""
    x, y, b = node.input(0), node.input(1), node.builder
    base, exponent = node.type(0).dtype, node.type(1).dtype
    if base is exponent or base.is_float:
        return b.call("power", x, cast_to(node, y, base))
    wide = DType.FLOAT64
    return cast_to(node, b.call("power", cast_to(node, x, wide), cast_to(node, y, wide)), base)


def _import_mod(node: OnnxNode) -> Atom:
    return node.builder.call(
        "fmod" if node.attr("fmod", 0) else "mod", node.input(0), node.input(1)
    )


def _import_shift(node: OnnxNode) -> Atom:
    direction = node.choice("direction", "", ("LEFT", "RIGHT"))
    return node.builder.call(f"{direction.lower()}_shift", node.input(0), node.input(1))


ONNX: dict[str, OnnxImport] = {
    **{onnx: _binary_importer(name) for onnx, name in _ONNX_NAMES.items()},
    "Max": _variadic_importer("maximum"),
    "Min": _variadic_importer("minimum"),
    "Sum": _variadic_importer("add"),
    "Mean": _import_mean,
    "Pow": _import_pow,
    "Mod": _import_mod,
    "BitShift": _import_shift,
    "Where": lambda node: node.builder.call("where", *(node.input(i) for i in range(3))),
}
