"""Index expressions as values: text in postfix order, which travels as JSON.

>>> i, j = Var("i0"), Var("i1")
>>> tokens = to_tokens(i // 4 + j)
>>> tokens
('i0', 4, '//', 'i1', '+')
>>> from_tokens(tokens, {"i0": i, "i1": j}), infix(tokens)
(i0 // 4 + i1, '((i0 // 4) + i1)')
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...diagnostics import ScheduleError
from ...ir.expr import Binary, BinaryOp, Expr, IntImm, Var, as_expr, binary
from ...ir.node import fold
from ...te.tensor import IterVar

Tokens = tuple[str | int, ...]

_SYMBOLS = {
    BinaryOp.ADD: "+", BinaryOp.SUB: "-", BinaryOp.MUL: "*", BinaryOp.FLOORDIV: "//",
    BinaryOp.FLOORMOD: "%", BinaryOp.LT: "<", BinaryOp.LE: "<=", BinaryOp.EQ: "==",
    BinaryOp.AND: "&",
}  # fmt: skip
_OPERATORS = {symbol: op for op, symbol in _SYMBOLS.items()}


def to_tokens(expr: Any) -> Tokens:
    """An expression of variables, integers and + - * // % < <= == & in postfix order.

    Raises:
        ScheduleError: it is or holds something else.
    """
    if not isinstance(expr, Expr | IterVar | int):
        raise ScheduleError(
            f"{expr!r} is not an index expression", hint="use axes, integers and + - * // % < <="
        )

    def step(node: Expr, parts: list[Tokens]) -> Tokens:
        if isinstance(node, Var):
            return (node.name,)
        if isinstance(node, IntImm):
            return (node.value,)
        if isinstance(node, Binary) and node.op in _SYMBOLS:
            return (*parts[0], *parts[1], _SYMBOLS[node.op])
        raise ScheduleError(
            f"{node} is not an index expression", hint="use axes, integers and + - * // % < <="
        )

    return fold(as_expr(expr), step)


def from_tokens(tokens: Tokens, variables: Mapping[str, Var]) -> Expr:
    """The inverse of `to_tokens`.

    Raises:
        ScheduleError: an unknown name, or no expression.
    """
    stack: list[Expr] = []
    for token in tokens:
        if isinstance(token, int):
            stack.append(as_expr(token))
        elif token in _OPERATORS and len(stack) > 1:
            b, a = stack.pop(), stack.pop()
            stack.append(binary(_OPERATORS[token], a, b))
        elif token in variables:
            stack.append(variables[token])
        else:
            raise ScheduleError(
                f"{token!r} is no axis here", hint=f"the axes are {', '.join(variables)}"
            )
    if len(stack) != 1:
        raise ScheduleError(f"{list(tokens)} is not one expression", hint="use postfix order")
    return stack[0]


def infix(tokens: Tokens) -> str:
    """The expression as Python text."""
    stack: list[str] = []
    for token in tokens:
        if isinstance(token, str) and token in _OPERATORS:
            b, a = stack.pop(), stack.pop()
            stack.append(f"({a} {token} {b})")
        else:
            stack.append(str(token))
    return stack[-1] if stack else ""
