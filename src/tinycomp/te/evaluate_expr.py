"""The NumPy meaning of scalar operators: one definition for both interpreters.

Every function takes NumPy arrays or scalars of one dtype and keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..diagnostics import ExecutionError
from ..dtype import DType
from ..ir.expr import BinaryOp


def _floor_divide(a: Any, b: Any) -> Any:
    """Rounds down; by zero gives 0."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b else 0
    return np.floor_divide(a, b)


def _floor_mod(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return a % b if b else 0
    return np.mod(a, b)


def _trunc_divide(a: Any, b: Any) -> Any:
    """Rounds towards zero; by zero gives 0."""
    if isinstance(a, int) and isinstance(b, int):
        return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else 0
    quotient = np.floor_divide(a, b)
    inexact = (quotient * b != a) & ((a < 0) != (b < 0)) & (b != 0)
    return np.where(inexact, quotient + 1, quotient).astype(quotient.dtype)[()]


def _trunc_mod(a: Any, b: Any) -> Any:
    """Has the sign of the dividend, as C's % and fmod."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b * _trunc_divide(a, b) if b else 0
    return np.fmod(a, b)


def _shift(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def shift(a: Any, b: Any) -> Any:
        a = np.asarray(a)
        inside = (np.asarray(b) >= 0) & (np.asarray(b) < a.dtype.itemsize * 8)
        shifted = function(a, np.where(inside, b, 0).astype(a.dtype))
        return np.where(inside, shifted, 0).astype(a.dtype)[()]

    return shift


BINARY: Mapping[BinaryOp, Callable[[Any, Any], Any]] = {
    BinaryOp.ADD: np.add,
    BinaryOp.SUB: np.subtract,
    BinaryOp.MUL: np.multiply,
    BinaryOp.DIV: np.divide,
    BinaryOp.FLOORDIV: _floor_divide,
    BinaryOp.FLOORMOD: _floor_mod,
    BinaryOp.TRUNCDIV: _trunc_divide,
    BinaryOp.TRUNCMOD: _trunc_mod,
    BinaryOp.MIN: np.minimum,
    BinaryOp.MAX: np.maximum,
    BinaryOp.EQ: np.equal,
    BinaryOp.NE: np.not_equal,
    BinaryOp.LT: np.less,
    BinaryOp.LE: np.less_equal,
    BinaryOp.AND: np.logical_and,
    BinaryOp.OR: np.logical_or,
    BinaryOp.BIT_AND: np.bitwise_and,
    BinaryOp.BIT_OR: np.bitwise_or,
    BinaryOp.BIT_XOR: np.bitwise_xor,
    BinaryOp.SHL: _shift(np.left_shift),
    BinaryOp.SHR: _shift(np.right_shift),
}


def _wide(function: Callable[..., Any]) -> Callable[..., Any]:
    """Computed in float64 and rounded once, so that the result is within half an ulp."""

    def apply(x: Any, *more: Any) -> Any:
        x = np.asarray(x)
        wide = function(x.astype(np.float64), *(np.asarray(m).astype(np.float64) for m in more))
        return wide.astype(x.dtype)[()]

    return apply


def _power(x: Any, y: Any) -> Any:
    if np.asarray(x).dtype.kind == "f" or DType.of(np.asarray(x).dtype).is_float:
        return _wide(np.power)(x, y)
    x, y = np.asarray(x), np.asarray(y)
    positive = np.power(x, np.maximum(y, 0).astype(x.dtype))
    inverse = np.where(x == 1, 1, np.where(x == -1, np.where(y % 2 == 0, 1, -1), 0))
    return np.where(y >= 0, positive, inverse).astype(x.dtype)[()]


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _popcount(x: Any) -> Any:
    x = np.asarray(x)
    bits = x.view(f"u{x.dtype.itemsize}") if x.dtype.kind == "i" else x  # NumPy counts those of |x|
    return np.bitwise_count(bits).astype(x.dtype)[()]


def _round_tf32(x: Any) -> Any:
    """To 10 bits of mantissa, halves away from zero (cvt.rna.tf32)."""
    x = np.asarray(x, np.float32)
    rounded = (x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))[()]


def _truncate_bf16(x: Any) -> Any:
    bits = np.asarray(x, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)[()]


def checked_index(index: Any, extent: Any) -> Any:
    """A negative index counts from the end; one that is still outside is an ExecutionError."""
    wrapped = np.where(np.asarray(index) < 0, index + extent, index)
    outside = (wrapped < 0) | (wrapped >= extent)
    if np.any(outside):
        bad = np.broadcast_to(index, outside.shape)[outside].flat[0]
        raise ExecutionError(f"index {bad} is outside a dimension of extent {np.max(extent)}")
    return wrapped[()]


_erf = np.vectorize(math.erf, otypes=[np.float64])
_DOUBLE_PRECISION = {
    name: getattr(np, numpy_name)
    for name, numpy_name in {
        "exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log", "log2": "log2",
        "log10": "log10", "log1p": "log1p", "sqrt": "sqrt", "sin": "sin", "cos": "cos",
        "tan": "tan", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "sinh": "sinh",
        "cosh": "cosh", "tanh": "tanh", "asinh": "arcsinh", "acosh": "arccosh",
        "atanh": "arctanh", "floor": "floor", "ceil": "ceil", "trunc": "trunc",
        "nearbyint": "rint", "atan2": "arctan2",
    }.items()
}  # fmt: skip
INTRINSIC: Mapping[str, Callable[..., Any]] = {
    **{name: _wide(function) for name, function in _DOUBLE_PRECISION.items()},
    "exp2_approx": _wide(np.exp2),
    "rsqrt": _wide(lambda x: 1 / np.sqrt(x)),
    "erf": _wide(lambda x: _erf(x) if x.size else x),
    "sigmoid": _wide(_sigmoid),
    "round": _wide(np.rint),  # halves to even, as ONNX
    "fma": _wide(lambda a, b, c: a * b + c),
    "pow": _power,
    "neg": np.negative,
    "not": np.logical_not,
    "bit_not": np.invert,
    "abs": np.abs,
    "sign": np.sign,
    "popcount": _popcount,
    "round_tf32": _round_tf32,
    "truncate_bf16": _truncate_bf16,
    "likely": lambda c: c,
    "once": lambda c: c,
    "checked_index": checked_index,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "if_then_else": np.where,
}


def cast(value: Any, to: DType) -> Any:
    """Conversion as `ir.expr.Cast` defines it: as x86 and ONNX Runtime do."""
    value = np.asarray(value)
    if to is DType.BOOL:
        return (value != 0)[()]
    if not to.is_int or value.dtype.kind in "iub":
        return value.astype(to.numpy)[()]
    wide = np.trunc(value.astype(np.float64))
    if to is DType.UINT64:
        upper = wide >= 2.0**63
        low = _in_range(np.where(upper, wide - 2.0**63, wide), DType.INT64).astype(np.uint64)
        return (low ^ np.where(upper, np.uint64(2**63), np.uint64(0)))[()]
    through = DType.INT64 if to.bits == 64 or to is DType.UINT32 else DType.INT32
    return _in_range(wide, through).astype(to.numpy)[()]


def _in_range(wide: np.ndarray, to: DType) -> np.ndarray:
    """NaN and values that do not fit become the most negative integer."""
    limit = 2.0 ** (to.bits - 1)
    fits = (wide >= -limit) & (wide < limit)
    return np.where(fits, wide, -limit).astype(to.numpy)
