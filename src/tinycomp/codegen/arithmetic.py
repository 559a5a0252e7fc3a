"""Operators with the language's semantics where LLVM's would be undefined.

Every function appends to a `FunctionBuilder` and works on any lane count. Nothing here traps:
division by zero gives 0, INT_MIN / -1 wraps, shifts by the width or more give 0.
"""

from __future__ import annotations

from ..dtype import DType
from ..ir.expr import BinaryOp
from .builder import ELEMENT, FunctionBuilder, Value, literal

_FLOAT_OPS = {
    BinaryOp.ADD: "fadd",
    BinaryOp.SUB: "fsub",
    BinaryOp.MUL: "fmul",
    BinaryOp.DIV: "fdiv",
}
_INT_OPS = {
    BinaryOp.ADD: "add", BinaryOp.SUB: "sub", BinaryOp.MUL: "mul", BinaryOp.BIT_AND: "and",
    BinaryOp.BIT_OR: "or", BinaryOp.BIT_XOR: "xor", BinaryOp.AND: "and", BinaryOp.OR: "or",
}  # fmt: skip
_FLOAT_COMPARE = {BinaryOp.EQ: "oeq", BinaryOp.NE: "une", BinaryOp.LT: "olt", BinaryOp.LE: "ole"}
_INT_COMPARE = {BinaryOp.EQ: "eq", BinaryOp.NE: "ne", BinaryOp.LT: "lt", BinaryOp.LE: "le"}
_DIVISIONS = (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD, BinaryOp.TRUNCDIV, BinaryOp.TRUNCMOD)


def is_unsigned(dtype: DType) -> bool:
    return dtype.is_unsigned or dtype is DType.BOOL


def binary(b: FunctionBuilder, op: BinaryOp, dtype: DType, x: Value, y: Value) -> Value:
    """`x op y` for operands of `dtype`, except integer division (see `divide`)."""
    if dtype.is_float:
        return _float_binary(b, op, x, y)
    if op.is_comparison:
        sign = "" if op in (BinaryOp.EQ, BinaryOp.NE) else "u" if is_unsigned(dtype) else "s"
        return b.compare(f"icmp {sign}{_INT_COMPARE[op]}", x, y)
    if op in (BinaryOp.MIN, BinaryOp.MAX):
        if dtype is DType.BOOL:
            return b.op("and" if op is BinaryOp.MIN else "or", x, y)
        return b.intrinsic(("u" if is_unsigned(dtype) else "s") + op.value, x, y)
    if op in (BinaryOp.SHL, BinaryOp.SHR):
        return _shift(b, op, dtype, x, y)
    return b.op(_INT_OPS[op], x, y)


def _float_binary(b: FunctionBuilder, op: BinaryOp, x: Value, y: Value) -> Value:
    if op.is_comparison:
        return b.compare(f"fcmp {_FLOAT_COMPARE[op]}", x, y)
    if op in (BinaryOp.MIN, BinaryOp.MAX):
        return _float_extreme(b, "olt" if op is BinaryOp.MIN else "ogt", x, y)
    if op in _DIVISIONS:
        return _float_division(b, op, x, y)
    return b.op(_FLOAT_OPS[op], x, y)


def _float_extreme(b: FunctionBuilder, order: str, x: Value, y: Value) -> Value:
    """min or max that is NaN if either is: `x < y ? x : y` gives y when unordered (one vminps)."""
    for constant, other in ((x, y), (y, x)):
        if not constant.text.startswith("%") and "0x7FF8" not in constant.text:
            return b.select(b.compare(f"fcmp {order}", constant, other), constant, other)
    best = b.select(b.compare(f"fcmp {order}", x, y), x, y)
    return b.select(b.compare("fcmp uno", x, x), x, best)


def _float_division(b: FunctionBuilder, op: BinaryOp, x: Value, y: Value) -> Value:
    if op in (BinaryOp.FLOORDIV, BinaryOp.TRUNCDIV):
        return b.intrinsic("floor" if op is BinaryOp.FLOORDIV else "trunc", b.op("fdiv", x, y))
    remainder = b.op("frem", x, y)
    if op is BinaryOp.TRUNCMOD:
        return remainder
    zero = literal(0.0, x.element, x.lanes)
    nonzero = b.compare("fcmp one", remainder, zero)
    opposite = b.op("xor", b.compare("fcmp olt", remainder, zero), b.compare("fcmp olt", y, zero))
    return b.select(b.op("and", nonzero, opposite), b.op("fadd", remainder, y), remainder)


def _shift(b: FunctionBuilder, op: BinaryOp, dtype: DType, x: Value, y: Value) -> Value:
    fits = b.compare("icmp ult", y, literal(dtype.bits, x.element, x.lanes))
    zero = literal(0, x.element, x.lanes)
    amount = b.select(fits, y, zero)
    opcode = "shl" if op is BinaryOp.SHL else "lshr" if is_unsigned(dtype) else "ashr"
    return b.select(fits, b.op(opcode, x, amount), zero)


def divide_by_constant(
    b: FunctionBuilder, op: BinaryOp, dtype: DType, x: Value, divisor: int, non_negative: bool
) -> Value:
    """Integer `x op divisor`; `non_negative` says that x >= 0 is known."""
    y = literal(divisor, x.element, x.lanes)
    if divisor == 0:
        return y
    is_div = op in (BinaryOp.FLOORDIV, BinaryOp.TRUNCDIV)
    if is_unsigned(dtype) or (non_negative and divisor > 0):
        return b.op("udiv" if is_div else "urem", x, y)
    floors = op in (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD)
    if floors and divisor > 0 and divisor & (divisor - 1) == 0:
        if is_div:
            return b.op("ashr", x, literal(divisor.bit_length() - 1, x.element, x.lanes))
        return b.op("and", x, literal(divisor - 1, x.element, x.lanes))
    if divisor == -1:
        zero = literal(0, x.element, x.lanes)
        return b.op("sub", zero, x) if is_div else zero
    return _signed_division(b, op, x, y)


def _signed_division(b: FunctionBuilder, op: BinaryOp, x: Value, y: Value) -> Value:
    """Division by y, which is neither 0 nor -1."""
    if op is BinaryOp.TRUNCDIV:
        return b.op("sdiv", x, y)
    remainder = b.op("srem", x, y)
    if op is BinaryOp.TRUNCMOD:
        return remainder
    zero = literal(0, x.element, x.lanes)
    nonzero = b.compare("icmp ne", remainder, zero)
    opposite = b.compare("icmp slt", b.op("xor", remainder, y), zero)
    adjust = b.op("and", nonzero, opposite)
    if op is BinaryOp.FLOORMOD:
        return b.select(adjust, b.op("add", remainder, y), remainder)
    return b.op("add", b.op("sdiv", x, y), b.convert("sext", adjust, x.element))


def divide(b: FunctionBuilder, op: BinaryOp, dtype: DType, x: Value, y: Value) -> Value:
    """Integer division or remainder by any divisor."""
    zero, one = literal(0, x.element, x.lanes), literal(1, x.element, x.lanes)
    is_zero = b.compare("icmp eq", y, zero)
    if is_unsigned(dtype):
        is_div = op in (BinaryOp.FLOORDIV, BinaryOp.TRUNCDIV)
        result = b.op("udiv" if is_div else "urem", x, b.select(is_zero, one, y))
        return b.select(is_zero, zero, result)
    minus_one = b.compare("icmp eq", y, literal(-1, x.element, x.lanes))
    safe = b.select(b.op("or", is_zero, minus_one), one, y)
    result = _signed_division(b, op, x, safe)
    if op in (BinaryOp.FLOORDIV, BinaryOp.TRUNCDIV):  # the remainder by 1 is already 0
        result = b.select(minus_one, b.op("sub", zero, x), result)
    return b.select(is_zero, zero, result)


def cast(b: FunctionBuilder, x: Value, source: DType, target: DType) -> Value:
    """ONNX Cast between any two dtypes."""
    if target is DType.BOOL:
        zero = literal(0, x.element, x.lanes)
        return b.compare("fcmp une" if source.is_float else "icmp ne", x, zero)
    if source.is_float:
        return _cast_from_float(b, x, target)
    to = ELEMENT[target]
    if target.is_float:
        return _round_to_storage(
            b, b.convert("uitofp" if is_unsigned(source) else "sitofp", x, to), target
        )
    if source is DType.BOOL or target.bits > source.bits:
        return b.convert("zext" if is_unsigned(source) else "sext", x, to)
    return b.convert("trunc", x, to) if target.bits < source.bits else x


def _cast_from_float(b: FunctionBuilder, x: Value, target: DType) -> Value:
    if target.is_float:
        to = ELEMENT[target]
        if x.element != to:
            x = b.convert("fpext" if to == "double" else "fptrunc", x, to)
        return _round_to_storage(b, x, target)
    if target is DType.UINT64:
        return _float_to_uint64(b, x)
    wide = "i64" if target in (DType.INT64, DType.UINT32) else "i32"
    result = _float_to_signed(b, x, wide)
    return b.convert("trunc", result, ELEMENT[target]) if ELEMENT[target] != wide else result


def _round_to_storage(b: FunctionBuilder, x: Value, dtype: DType) -> Value:
    """A float rounded to the precision of a 16-bit dtype, still held as float."""
    if dtype is DType.FLOAT16:
        return b.convert("fpext", b.convert("fptrunc", x, "half"), "float")
    if dtype is DType.BFLOAT16:
        return from_bfloat16(b, to_bfloat16(b, x))
    return x


def _float_to_signed(b: FunctionBuilder, x: Value, wide: str) -> Value:
    """Truncation; NaN and what does not fit give the most negative integer."""
    limit = 2.0 ** (int(wide[1:]) - 1)
    truncated = b.intrinsic("trunc", x)
    fits = b.op(
        "and",
        b.compare("fcmp oge", truncated, literal(-limit, x.element, x.lanes)),
        b.compare("fcmp olt", truncated, literal(limit, x.element, x.lanes)),
    )
    safe = b.select(fits, truncated, literal(0.0, x.element, x.lanes))
    return b.select(fits, b.convert("fptosi", safe, wide), literal(-int(limit), wide, x.lanes))


def _float_to_uint64(b: FunctionBuilder, x: Value) -> Value:
    """As the conversion of x86 compilers: negative values wrap, NaN gives 2**63, too large 0."""
    high = b.compare("fcmp oge", x, literal(2.0**63, x.element, x.lanes))
    low = b.op("fsub", x, literal(2.0**63, x.element, x.lanes))
    signed = _float_to_signed(b, b.select(high, low, x), "i64")
    flipped = b.op("xor", signed, literal(-(2**63), "i64", x.lanes))
    return b.select(high, flipped, signed)


def to_bfloat16(b: FunctionBuilder, x: Value) -> Value:
    """The bits of a float rounded to bfloat16 (nearest even), as i16; NaN stays a quiet NaN.

    Integer arithmetic, because LLVM calls a library function where the CPU has no bfloat16.
    """
    bits = b.convert("bitcast", x, "i32")
    high = b.op("lshr", bits, literal(16, "i32", x.lanes))
    odd = b.op("and", high, literal(1, "i32", x.lanes))
    rounded = b.op("add", b.op("add", bits, literal(0x7FFF, "i32", x.lanes)), odd)
    rounded = b.op("lshr", rounded, literal(16, "i32", x.lanes))
    quiet = b.op("or", high, literal(0x40, "i32", x.lanes))
    is_nan = b.compare("fcmp uno", x, x)
    return b.convert("trunc", b.select(is_nan, quiet, rounded), "i16")


def from_bfloat16(b: FunctionBuilder, bits: Value) -> Value:
    """The float of bfloat16 bits."""
    wide = b.convert("zext", bits, "i32")
    return b.convert("bitcast", b.op("shl", wide, literal(16, "i32", bits.lanes)), "float")
