"""Derivatives of scalar functions, and reverse mode over one scalar expression."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..ir.expr import (
    TRUE,
    Binary,
    BinaryOp,
    Call,
    Cast,
    Expr,
    Load,
    Select,
    binary,
    call,
    cast,
    const,
    if_then_else,
    select,
)
from ..ir.node import postorder


def _reciprocal(x: Expr) -> Expr:
    return 1.0 / x


_UNARY: Mapping[str, Callable[[Expr, Expr], Expr]] = {  # (x, y = f(x)) -> dy/dx
    "neg": lambda x, y: const(-1.0, x.dtype),
    "abs": lambda x, y: call("sign", x),
    "exp": lambda x, y: y,
    "exp2": lambda x, y: y * math.log(2),
    "expm1": lambda x, y: y + 1.0,
    "log": lambda x, y: _reciprocal(x),
    "log2": lambda x, y: _reciprocal(x * math.log(2)),
    "log10": lambda x, y: _reciprocal(x * math.log(10)),
    "log1p": lambda x, y: _reciprocal(x + 1.0),
    "sqrt": lambda x, y: 0.5 / y,
    "rsqrt": lambda x, y: y / x * -0.5,
    "sin": lambda x, y: call("cos", x),
    "cos": lambda x, y: -call("sin", x),
    "tan": lambda x, y: y * y + 1.0,
    "asin": lambda x, y: call("rsqrt", 1.0 - x * x),
    "acos": lambda x, y: -call("rsqrt", 1.0 - x * x),
    "atan": lambda x, y: _reciprocal(x * x + 1.0),
    "sinh": lambda x, y: call("cosh", x),
    "cosh": lambda x, y: call("sinh", x),
    "tanh": lambda x, y: 1.0 - y * y,
    "asinh": lambda x, y: call("rsqrt", x * x + 1.0),
    "acosh": lambda x, y: call("rsqrt", x * x - 1.0),
    "atanh": lambda x, y: _reciprocal(1.0 - x * x),
    "erf": lambda x, y: call("exp", -(x * x)) * (2 / math.sqrt(math.pi)),
    "sigmoid": lambda x, y: y * (1.0 - y),
    "likely": lambda x, y: const(1.0, x.dtype),
}
_STEPS = ("floor", "ceil", "trunc", "round", "nearbyint", "sign", "isnan", "isinf", "isfinite")


def _binary_partials(node: Binary) -> tuple[Expr | None, Expr | None]:
    a, b, one = node.a, node.b, const(1.0, node.dtype)
    zero = const(0.0, node.dtype)
    match node.op:
        case BinaryOp.ADD:
            return one, one
        case BinaryOp.SUB:
            return one, -one
        case BinaryOp.MUL:
            return b, a
        case BinaryOp.DIV:
            return 1.0 / b, -(node / b)
        case BinaryOp.MIN:
            first = a <= b
        case BinaryOp.MAX:
            first = a >= b
        case BinaryOp.TRUNCMOD:
            return one, -call("trunc", a / b)
        case _:
            return None, None
    return select(first, one, zero), select(first, zero, one)


def _call_partials(node: Call) -> tuple[Expr | None, ...]:
    args = node.args
    if node.name in _UNARY:
        return (_UNARY[node.name](args[0], node),)
    if node.name == "fma":
        return args[1], args[0], const(1.0, node.dtype)
    if node.name == "atan2":
        y, x = args
        square = x * x + y * y
        return x / square, -(y / square)
    if node.name == "pow":
        x, y = args
        logarithm = select(x > 0.0, call("log", x), const(0.0, node.dtype))
        return y * call("pow", x, y - 1.0), logarithm * node
    if node.name in _STEPS:
        return tuple(None for _ in args)
    raise TypeError(f"te.gradient: {node.name} has no derivative")


def _edges(node: Expr, guard: Expr) -> list[tuple[Expr, Expr | None, Expr]]:
    """(operand, derivative of the node by it or None, condition under which it is used)."""
    match node:
        case Binary():
            da, db = _binary_partials(node)
            return [(node.a, da, guard), (node.b, db, guard)]
        case Cast() if node.value.dtype.is_float:
            return [(node.value, const(1.0, node.dtype), guard)]
        case Select():
            one, zero = const(1.0, node.dtype), const(0.0, node.dtype)
            return [
                (node.a, select(node.condition, one, zero), guard),
                (node.b, select(node.condition, zero, one), guard),
            ]
        case Call(name="if_then_else"):
            one = const(1.0, node.dtype)
            condition, a, b = node.args
            return [(a, one, guard & condition), (b, one, guard & ~condition)]
        case Call():
            return [(c, p, guard) for c, p in zip(node.args, _call_partials(node), strict=True)]
    return []


def load_adjoints(body: Expr, seed: Expr) -> list[tuple[Load, Expr, Expr]]:
    """Reverse mode: for each float element that `body` reads, (load, guard, adjoint).

    The adjoint is `seed` times the derivative of `body` by that element; it may be evaluated
    only where the guard holds, because other operands may be out of bounds elsewhere.
    """
    terms: dict[Expr, list[tuple[Expr, Expr]]] = {body: [(TRUE, seed)]}  # (guard, adjoint)
    found: list[tuple[Load, Expr, Expr]] = []
    for node in reversed(postorder(body)):
        if node not in terms or not isinstance(node, Expr):
            continue
        guard, adjoint = _total(terms[node])
        if isinstance(node, Load):
            found.append((node, guard, adjoint))
            continue
        for operand, partial, condition in _edges(node, guard):
            if partial is None or not operand.dtype.is_float:
                continue
            term = cast(adjoint * partial, operand.dtype)
            terms.setdefault(operand, []).append((condition, term))
    return found


def _total(terms: list[tuple[Expr, Expr]]) -> tuple[Expr, Expr]:
    """The union of the guards and, where it holds, the sum of the terms."""
    guard = terms[0][0]
    for other, _ in terms[1:]:
        guard = guard if other is guard else binary(BinaryOp.OR, guard, other)
    total: Expr | None = None
    for condition, term in terms:
        if condition is not guard:
            term = if_then_else(condition, term, 0.0)
        total = term if total is None else total + term
    assert total is not None
    return guard, total
