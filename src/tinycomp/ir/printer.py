"""Expressions as Python-like text."""

from __future__ import annotations

from ..dtype import DType
from .expr import (
    Binary,
    BinaryOp,
    Broadcast,
    Call,
    Cast,
    Expr,
    FloatImm,
    IntImm,
    Load,
    Ramp,
    Select,
    Var,
)
from .instruction import InstructionCall, Reinterpret
from .node import fold

_SYMBOLS = {
    BinaryOp.ADD: ("+", 5), BinaryOp.SUB: ("-", 5), BinaryOp.MUL: ("*", 6), BinaryOp.DIV: ("/", 6),
    BinaryOp.FLOORDIV: ("//", 6), BinaryOp.FLOORMOD: ("%", 6),
    BinaryOp.EQ: ("==", 4), BinaryOp.NE: ("!=", 4), BinaryOp.LT: ("<", 4), BinaryOp.LE: ("<=", 4),
    BinaryOp.AND: ("and", 2), BinaryOp.OR: ("or", 1),
}  # fmt: skip
_SUFFIX = {DType.FLOAT32: "f32", DType.FLOAT64: "f64", DType.FLOAT16: "f16", DType.BFLOAT16: "bf16"}
_ATOM = 9


def _render(node: Expr, parts: list[tuple[str, int]]) -> tuple[str, int]:
    """Text and binding strength of one node, given those of its children."""
    texts = [text for text, _ in parts]
    match node:
        case Var():
            return node.name, _ATOM
        case IntImm():
            if node.dtype is DType.BOOL:
                return str(bool(node.value)), _ATOM
            text = str(node.value) if node.dtype is DType.INT64 else f"{node.dtype}({node.value})"
            return text, _ATOM if node.value >= 0 else 6
        case FloatImm():
            return f"{node.value:g}{_SUFFIX[node.dtype]}", _ATOM
        case Binary():
            if node.op not in _SYMBOLS:
                return f"{node.op}({texts[0]}, {texts[1]})", _ATOM
            symbol, strength = _SYMBOLS[node.op]
            left, right = parts
            a = left[0] if left[1] >= strength else f"({left[0]})"
            b = right[0] if right[1] > strength else f"({right[0]})"
            return f"{a} {symbol} {b}", strength
        case Cast():
            return f"{node.to}({texts[0]})", _ATOM
        case Select():
            return f"select({', '.join(texts)})", _ATOM
        case Call():
            return f"{node.name}({', '.join(texts)})", _ATOM
        case Load():
            count = len(node.indices)
            mask = f" if {texts[count]}" if node.predicate is not None else ""
            return f"{node.source.name}[{', '.join(texts[:count])}{mask}]", _ATOM
        case Ramp():
            return f"ramp({texts[0]}, {texts[1]}, {node.count})", _ATOM
        case Broadcast():
            return f"x{node.count}({texts[0]})", _ATOM
        case _:
            return f"{_name(node)}({', '.join(texts)})", _ATOM


def _name(node: Expr) -> str:
    """Of what is printed as a call."""
    match node:
        case InstructionCall():
            return node.instruction.name
        case Reinterpret():
            return f"reinterpret_{node.to}"
        case _:
            return type(node).__name__.lower()


def expr_text(expr: Expr) -> str:
    """`expr` as text with the fewest parentheses."""
    return fold(expr, _render)[0]
