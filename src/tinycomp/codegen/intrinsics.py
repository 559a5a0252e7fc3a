"""The intrinsics of `ir.expr.INTRINSICS` that are not control flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..diagnostics import InternalError
from ..dtype import DType
from . import vecmath
from .builder import FunctionBuilder, Value, literal

_ROUNDING = {
    "floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "roundeven",
    "nearbyint": "roundeven", "sqrt": "sqrt",
}  # fmt: skip


def emit(b: FunctionBuilder, name: str, dtype: DType, args: Sequence[Value]) -> Value:
    """The call `name(*args)`; `dtype` is the first argument's, all have the same lanes."""
    x = args[0]
    if name == "likely":
        return x
    if name in ("not", "bit_not"):
        return b.op("xor", x, literal(1 if dtype is DType.BOOL else -1, x.element, x.lanes))
    if name == "popcount":
        return b.intrinsic("ctpop", x)
    if not dtype.is_float:
        return _integer(b, name, dtype, args)
    if name in _ROUNDING:
        return b.intrinsic(_ROUNDING[name], x)
    if name in _FLOAT:
        return _FLOAT[name](b, *args)
    return vecmath.emit(b, name, args)


def _integer(b: FunctionBuilder, name: str, dtype: DType, args: Sequence[Value]) -> Value:
    x = args[0]
    zero = literal(0, x.element, x.lanes)
    unsigned = dtype.is_unsigned or dtype is DType.BOOL
    if name in _ROUNDING and name != "sqrt":
        return x
    if name in ("isnan", "isinf", "isfinite"):
        return literal(name == "isfinite", "i1", x.lanes)
    if name == "neg":
        return b.op("sub", zero, x)
    if name == "abs":
        return x if unsigned else b.intrinsic("abs", x, extra="i1 false")
    if name == "sign":
        positive = b.convert(
            "zext", b.compare("icmp ne" if unsigned else "icmp sgt", x, zero), x.element
        )
        if unsigned:
            return positive
        return b.op("sub", positive, b.convert("zext", b.compare("icmp slt", x, zero), x.element))
    if name == "fma":
        return b.op("add", b.op("mul", x, args[1]), args[2])
    if name == "pow":
        return b.join(
            [_power(b, b.extract(x, i), b.extract(args[1], i), unsigned) for i in range(x.lanes)]
        )
    raise InternalError(f"intrinsic {name} is not defined for {dtype}")


def _power(b: FunctionBuilder, base: Value, exponent: Value, unsigned: bool) -> Value:
    """Integer power by repeated squaring, wrapping; a negative exponent gives the truncated
    quotient: 0 unless the base is 1 or -1."""
    element = base.element
    zero, one = literal(0, element), literal(1, element)
    if not unsigned:
        magnitude = b.intrinsic("abs", exponent, extra="i1 false")
        unit = b.op(
            "or", b.compare("icmp eq", base, one), b.compare("icmp eq", base, literal(-1, element))
        )
        vanishes = b.op(
            "and", b.compare("icmp slt", exponent, zero), b.op("xor", unit, literal(1, "i1"))
        )
        exponent, base = magnitude, b.select(vanishes, zero, base)
    before, loop, done = b.block, b.fresh("power"), b.fresh("powered")
    result, square, rest = (Value("%" + b.fresh("p"), element) for _ in range(3))
    b.br(loop)
    b.start(loop)
    next_result, next_square, next_rest = (Value("%" + b.fresh("q"), element) for _ in range(3))
    for phi, first, following in (
        (result, one, next_result), (square, base, next_square), (rest, exponent, next_rest)
    ):  # fmt: skip
        b.line(
            f"{phi.text} = phi {element} [ {first.text}, %{before} ], [ {following.text}, %{loop} ]"
        )
    odd = b.convert("trunc", rest, "i1")
    b.line(f"{next_result.text} = select {odd}, {b.op('mul', result, square)}, {result}")
    b.line(f"{next_square.text} = mul {square}, {square.text}")
    b.line(f"{next_rest.text} = lshr {rest}, 1")
    b.cond_br(b.compare("icmp eq", next_rest, zero), done, loop)
    b.start(done)
    return next_result


def _neg(b: FunctionBuilder, x: Value) -> Value:
    return b.emit(f"fneg {x}", x.element, x.lanes)


def _sign(b: FunctionBuilder, x: Value) -> Value:
    """x itself where it is 0 or NaN, else 1 with the sign of x."""
    nonzero = b.compare("fcmp one", x, literal(0.0, x.element, x.lanes))
    return b.select(nonzero, b.intrinsic("copysign", literal(1.0, x.element, x.lanes), x), x)


def _round_tf32(b: FunctionBuilder, x: Value) -> Value:
    """To 10 bits of mantissa, halves away from zero."""
    bits = b.convert("bitcast", x, "i32")
    bits = b.op("add", bits, literal(0x1000, "i32", x.lanes))
    bits = b.op("and", bits, literal(-0x2000, "i32", x.lanes))
    rounded = b.convert("bitcast", bits, "float")
    return b.select(b.compare("fcmp uno", x, x), x, rounded)


def _truncate_bf16(b: FunctionBuilder, x: Value) -> Value:
    bits = b.op("and", b.convert("bitcast", x, "i32"), literal(-0x10000, "i32", x.lanes))
    return b.convert("bitcast", bits, "float")


def _infinity(b: FunctionBuilder, x: Value, predicate: str) -> Value:
    return b.compare(predicate, b.intrinsic("fabs", x), literal(float("inf"), x.element, x.lanes))


_FLOAT: dict[str, Callable[..., Value]] = {
    "neg": _neg,
    "abs": lambda b, x: b.intrinsic("fabs", x),
    "sign": _sign,
    "round_tf32": _round_tf32,
    "truncate_bf16": _truncate_bf16,
    "fma": lambda b, x, y, z: b.intrinsic("fma", x, y, z),
    "isnan": lambda b, x: b.compare("fcmp uno", x, x),
    "isinf": lambda b, x: _infinity(b, x, "fcmp oeq"),
    "isfinite": lambda b, x: _infinity(b, x, "fcmp olt"),
}
