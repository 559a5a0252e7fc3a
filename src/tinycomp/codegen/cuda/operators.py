"""Binary operators and casts as CUDA C++ text, with the semantics of `ir.expr`."""

from __future__ import annotations

from typing import Any

from ...dtype import DType
from ...ir.expr import Binary, BinaryOp, IntImm
from .types import UNSIGNED, VALUE, bare

_SYMBOLS = {
    BinaryOp.ADD: "+", BinaryOp.SUB: "-", BinaryOp.MUL: "*", BinaryOp.DIV: "/",
    BinaryOp.EQ: "==", BinaryOp.NE: "!=", BinaryOp.LT: "<", BinaryOp.LE: "<=",
    BinaryOp.AND: "&&", BinaryOp.OR: "||", BinaryOp.BIT_AND: "&", BinaryOp.BIT_OR: "|",
    BinaryOp.BIT_XOR: "^",
}  # fmt: skip
_DIVISIONS = {
    BinaryOp.FLOORDIV: "floor_div", BinaryOp.FLOORMOD: "floor_mod",
    BinaryOp.TRUNCDIV: "trunc_div", BinaryOp.TRUNCMOD: "trunc_mod",
}  # fmt: skip
_WRAPPING = (BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL)


def binary_text(
    out: Any, node: Binary, a: str, b: str, type_: str, non_negative: bool, is_index: bool
) -> str:
    """`a op b`.

    Args:
        out: collects the helpers that are used.
        type_: C type of the operands.
        non_negative: whether `a >= 0` is known.
        is_index: index arithmetic, which does not overflow.
    """
    op, dtype = node.op, node.a.dtype
    if op in (BinaryOp.MIN, BinaryOp.MAX):
        return _extreme(out, op, dtype, a, b, type_)
    if op in _DIVISIONS:
        if dtype.is_float:
            return _float_division(out, op, a, b)
        return _division(out, node, a, b, type_, non_negative)
    if op in (BinaryOp.SHL, BinaryOp.SHR):
        name = out.use("shift_left" if op is BinaryOp.SHL else "shift_right")
        return f"{name}<{type_}, {UNSIGNED[dtype.bits]}, {dtype.bits}>({a}, {b})"
    if op is BinaryOp.ADD and is_index and dtype.is_int:
        a, b = _term(a), _term(b)
    text = f"{a} {_SYMBOLS[op]} {b}"
    if dtype.is_int and op in _WRAPPING:
        if dtype.bits < 32:
            return f"({type_})({text})"
        if not dtype.is_unsigned and not is_index:
            unsigned = UNSIGNED[dtype.bits]
            return f"({type_})(({unsigned}){a} {_SYMBOLS[op]} ({unsigned}){b})"
    return f"({text})"


def _term(text: str) -> str:
    """An operand of a sum without its parentheses, if these say nothing."""
    plain = text.startswith("(") and not any(c in text for c in "?<>&|^=-~!")
    return bare(text) if plain else text


def _extreme(out: Any, op: BinaryOp, dtype: DType, a: str, b: str, type_: str) -> str:
    if dtype.is_float:
        return f"{out.use('nan_min' if op is BinaryOp.MIN else 'nan_max')}<{type_}>({a}, {b})"
    if dtype is DType.BOOL:
        return f"({a} {'&&' if op is BinaryOp.MIN else '||'} {b})"
    return f"({a} {'<' if op is BinaryOp.MIN else '>'} {b} ? {a} : {b})"


def _float_division(out: Any, op: BinaryOp, a: str, b: str) -> str:
    if op is BinaryOp.TRUNCMOD:
        return f"fmod({a}, {b})"
    if op is BinaryOp.FLOORMOD:
        return f"{out.use('float_mod')}({a}, {b})"
    return f"{'floor' if op is BinaryOp.FLOORDIV else 'trunc'}({a} / {b})"


def _division(out: Any, node: Binary, a: str, b: str, type_: str, non_negative: bool) -> str:
    """Division by a positive constant of what is not negative is the machine's own."""
    is_div = node.op in (BinaryOp.FLOORDIV, BinaryOp.TRUNCDIV)
    divisor = getattr(node.b, "value", node.b)
    divisor = getattr(divisor, "value", divisor)  # of a Broadcast
    plain = (isinstance(divisor, int) and divisor > 0) or isinstance(node.b, IntImm)
    if plain and isinstance(divisor, int) and divisor > 0:
        if non_negative or node.a.dtype.is_unsigned:
            return f"({a} {'/' if is_div else '%'} {b})"
        if node.op in (BinaryOp.TRUNCDIV, BinaryOp.TRUNCMOD):
            return f"(({type_})({a} {'/' if is_div else '%'} {b}))"
    return f"{out.use(_DIVISIONS[node.op])}<{type_}>({a}, {b})"


def cast_text(out: Any, x: str, source: DType, to: DType) -> str:
    """ONNX Cast between any two dtypes; see `ir.expr.Cast`."""
    if to is DType.BOOL:
        return f"({x} != 0)"
    if to in (DType.FLOAT16, DType.BFLOAT16):
        return _rounded(out, f"(float){x}" if source is not DType.FLOAT32 else x, to)
    if not source.is_float or to.is_float:
        return f"({VALUE[to]}){x}"
    if to is DType.UINT64:
        return f"{out.use('float_to_uint64')}({x})"
    if to in (DType.INT64, DType.UINT32):
        text = f"{out.use('float_to_int64')}({x})"
        return text if to is DType.INT64 else f"(unsigned int){text}"
    text = f"{out.use('float_to_int')}({x})"
    return text if to is DType.INT32 else f"({VALUE[to]}){text}"


def reinterpret_text(x: str, source: DType, to: DType) -> str:
    """The bits of a value of one dtype as another of the same size.

    >>> reinterpret_text("x", DType.FLOAT32, DType.INT32)
    '__float_as_int(x)'
    """
    names = {32: ("float", "int"), 64: ("double", "longlong")}
    if source.is_float:
        x = f"__{names[source.bits][0]}_as_{names[source.bits][1]}({x})"
    if to.is_float:
        return f"__{names[to.bits][1]}_as_{names[to.bits][0]}({x})"
    return x if source.is_float and not to.is_unsigned else f"({VALUE[to]}){x}"


def _rounded(out: Any, x: str, to: DType) -> str:
    """A float rounded to the precision of a 16-bit dtype, still held as float."""
    if to is DType.BFLOAT16:
        for name in ("bfloat16_to_float", "float_to_bfloat16"):
            out.use(name)
        return f"{out.use('round_bfloat16')}({x})"
    return f"{out.use('half_to_float')}({out.use('float_to_half')}({x}))"
