"""Constant folding and neutral elements, applied whenever an expression is built.

Only rules that are exact for every value are here (for floats: constants and x * 1). What needs
ranges of variables is in `tinycomp.te.simplify`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..dtype import DType
from .expr import (
    COMPARISONS,
    FALSE,
    TRUE,
    Binary,
    BinaryOp,
    Broadcast,
    Call,
    Cast,
    Expr,
    FloatImm,
    IntImm,
    Ramp,
    Select,
    binary,
    const,
    if_then_else,
    select,
)

_INT_RULES = {
    BinaryOp.ADD: lambda a, b: a + b,
    BinaryOp.SUB: lambda a, b: a - b,
    BinaryOp.MUL: lambda a, b: a * b,
    BinaryOp.FLOORDIV: lambda a, b: a // b if b else 0,
    BinaryOp.FLOORMOD: lambda a, b: a % b if b else 0,
    BinaryOp.TRUNCDIV: lambda a, b: (
        (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else 0
    ),
    BinaryOp.TRUNCMOD: lambda a, b: int(math.copysign(abs(a) % abs(b), a)) if b else 0,
    BinaryOp.MIN: min,
    BinaryOp.MAX: max,
    BinaryOp.EQ: lambda a, b: a == b,
    BinaryOp.NE: lambda a, b: a != b,
    BinaryOp.LT: lambda a, b: a < b,
    BinaryOp.LE: lambda a, b: a <= b,
    BinaryOp.AND: lambda a, b: bool(a and b),
    BinaryOp.OR: lambda a, b: bool(a or b),
    BinaryOp.BIT_AND: lambda a, b: a & b,
    BinaryOp.BIT_OR: lambda a, b: a | b,
    BinaryOp.BIT_XOR: lambda a, b: a ^ b,
}


_TWO_63 = 1 << 63


def wrap(value: int, dtype: DType) -> int:
    """`value` reduced to the range of an integer dtype, as two's complement hardware does."""
    if dtype is DType.INT64 and -_TWO_63 <= value < _TWO_63:
        return value  # the usual case
    if dtype is DType.BOOL:
        return int(bool(value))
    value &= (1 << dtype.bits) - 1
    if not dtype.is_unsigned and value >> (dtype.bits - 1):
        value -= 1 << dtype.bits
    return value


def fold_binary(op: BinaryOp, a: Expr, b: Expr) -> Expr:
    """`a op b`, simplified where that needs nothing but the operands themselves."""
    if isinstance(a, IntImm) and isinstance(b, IntImm) and op in _INT_RULES:
        value = _INT_RULES[op](a.value, b.value)
        dtype = DType.BOOL if op in COMPARISONS else a.dtype
        return const(wrap(int(value), dtype), dtype)
    if a.dtype.is_float:
        if isinstance(b, FloatImm) and b.value == 1.0 and op in (BinaryOp.MUL, BinaryOp.DIV):
            return a
        if isinstance(a, FloatImm) and a.value == 1.0 and op is BinaryOp.MUL:
            return b
        return Binary(op, a, b)
    if a.dtype is DType.BOOL:
        return _fold_bool(op, a, b)
    return _fold_int(op, a, b)


def _fold_bool(op: BinaryOp, a: Expr, b: Expr) -> Expr:
    for x, y in ((a, b), (b, a)):
        if op is BinaryOp.AND and isinstance(x, IntImm):
            return y if x.value else FALSE
        if op is BinaryOp.OR and isinstance(x, IntImm):
            return TRUE if x.value else y
    if a is b and op in (BinaryOp.AND, BinaryOp.OR):
        return a
    return Binary(op, a, b)


def _fold_int(op: BinaryOp, a: Expr, b: Expr) -> Expr:
    if a.lanes > 1:
        return _fold_vector(op, a, b)
    if isinstance(a, IntImm) and op in (BinaryOp.ADD, BinaryOp.MUL):
        a, b = b, a  # constants to the right
    folded = None
    if isinstance(b, IntImm):
        folded = _fold_constant_right(op, a, b)
    elif a is b:
        folded = _SAME_OPERANDS.get(op, lambda _: None)(a)
    elif is_zero(a) and op in (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD):
        folded = a
    return Binary(op, a, b) if folded is None else folded


_SAME_OPERANDS = {
    BinaryOp.SUB: lambda a: const(0, a.dtype),
    BinaryOp.MIN: lambda a: a,
    BinaryOp.MAX: lambda a: a,
    BinaryOp.EQ: lambda a: TRUE,
    BinaryOp.LE: lambda a: TRUE,
    BinaryOp.NE: lambda a: FALSE,
    BinaryOp.LT: lambda a: FALSE,
}


def is_zero(expr: Expr) -> bool:
    return isinstance(expr, IntImm) and expr.value == 0


def _fold_constant_right(op: BinaryOp, a: Expr, b: IntImm) -> Expr | None:
    """Neutral and absorbing constants, and (x + 2) + 3 -> x + 5."""
    if b.value == 0 and op in (BinaryOp.ADD, BinaryOp.SUB):
        return a
    if b.value == 0 and op is BinaryOp.MUL:
        return b
    if b.value == 1 and op in (BinaryOp.MUL, BinaryOp.FLOORDIV, BinaryOp.TRUNCDIV):
        return a
    if b.value == 1 and op in (BinaryOp.FLOORMOD, BinaryOp.TRUNCMOD):
        return const(0, a.dtype)
    if isinstance(a, Binary) and a.op is op is BinaryOp.ADD and isinstance(a.b, IntImm):
        return binary(op, a.a, const(wrap(a.b.value + b.value, a.dtype), a.dtype))
    if is_zero(a) and op in (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD):
        return a
    return None


def _fold_vector(op: BinaryOp, a: Expr, b: Expr) -> Expr:
    """Keep index vectors in the form Ramp(base, stride), which codegen turns into wide loads."""
    if op not in (BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL):
        return Binary(op, a, b)
    if isinstance(a, Broadcast) and isinstance(b, Broadcast):
        return Broadcast(binary(op, a.value, b.value), a.lanes)
    if isinstance(a, Ramp) and isinstance(b, Broadcast):
        base = binary(op, a.base, b.value)
        stride = a.stride if op is not BinaryOp.MUL else binary(op, a.stride, b.value)
        return Ramp(base, stride, a.lanes)
    if isinstance(a, Broadcast) and isinstance(b, Ramp) and op is not BinaryOp.SUB:
        return _fold_vector(op, b, a)
    if isinstance(a, Ramp) and isinstance(b, Ramp) and op is not BinaryOp.MUL:
        return Ramp(binary(op, a.base, b.base), binary(op, a.stride, b.stride), a.lanes)
    return Binary(op, a, b)


def fold_cast(value: Expr, dtype: DType) -> Expr:
    """`value` as `dtype`; constants are converted by NumPy, whose rules Cast follows."""
    if value.dtype is dtype:
        return value
    if isinstance(value, IntImm):
        return (
            const(value.value, dtype) if dtype.is_float else const(wrap(value.value, dtype), dtype)
        )
    if isinstance(value, FloatImm) and dtype.is_float:
        return FloatImm(float(np.asarray(value.value).astype(dtype.numpy)), dtype)
    if isinstance(value, FloatImm) and dtype is not DType.BOOL and math.isfinite(value.value):
        return const(wrap(int(value.value), dtype), dtype)
    if isinstance(value, Broadcast):
        return Broadcast(fold_cast(value.value, dtype), value.lanes)
    return Cast(dtype, value)


def refold(node: Any, children: list[Any]) -> Any:
    """`node` with these children, built through the folding builders if a child changed."""
    if node.children() == tuple(children):  # nodes compare by identity
        return node
    if isinstance(node, Binary):
        return binary(node.op, *children)
    if isinstance(node, Cast):
        return fold_cast(children[0], node.to)
    if isinstance(node, Select):
        return select(*children)
    if isinstance(node, Call):
        if node.name == "if_then_else":
            return if_then_else(*children)
        if node.name in ("not", "likely") and isinstance(children[0], IntImm):
            return (
                children[0] if node.name == "likely" else const(not children[0].value, DType.BOOL)
            )
    return node.with_children(children)
