"""Scalar functions of tensor expressions, under TVM's names: `te.exp(A[i])`, `te.floordiv(i, 4)`.

Arguments are expressions, axes, elements of tensors or Python numbers; a number takes the dtype of
the other operand. Integer division by zero gives 0, shifts by the width or more give 0, and
`//`, `%` on expressions have floor semantics.

>>> from tinycomp import te
>>> A = te.placeholder((4,), name="A")
>>> te.compute((4,), lambda i: te.exp(te.maximum(A[i], 0.0)), name="B")
Tensor(B: float32[4])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..dtype import DType
from ..ir.expr import (
    BinaryOp,
    Expr,
    ExprLike,
    Var,
    as_expr,
    binary,
    call,
    cast,
    const,
    if_then_else,
    select,
)


def _float_function(name: str, meaning: str) -> Callable[[ExprLike], Expr]:
    def function(x: ExprLike) -> Expr:
        x = as_expr(x)
        if not x.dtype.is_float:
            raise TypeError(f"{name} takes a float, got {x.dtype}: {x}; cast it first")
        return call(name, x)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""{meaning} of a float.

    >>> from tinycomp import te
    >>> x = te.var("x", "float32")
    >>> te.{name}(x)
    {name}(x)
    """
    return function


def round_tf32(x: ExprLike) -> Expr:
    """A float32 rounded to the 10 bits of mantissa of tf32, halves away from zero.

    >>> from tinycomp.te.tensor import placeholder
    >>> A = placeholder((4,), name="A")
    >>> str(round_tf32(A[0]))
    'round_tf32(A[0])'
    """
    x = as_expr(x)
    if x.dtype is not DType.FLOAT32:
        raise TypeError(f"round_tf32 takes a float32, got {x.dtype}: {x}")
    return call("round_tf32", x)


def truncate_bf16(x: ExprLike) -> Expr:
    """A float32 cut to the 7 bits of mantissa of bfloat16, towards zero: never to infinity.

    A NaN whose set bits all lie below becomes an infinity.

    >>> from tinycomp.te.tensor import placeholder
    >>> A = placeholder((4,), name="A")
    >>> str(truncate_bf16(A[0]))
    'truncate_bf16(A[0])'
    """
    x = as_expr(x)
    if x.dtype is not DType.FLOAT32:
        raise TypeError(f"truncate_bf16 takes a float32, got {x.dtype}: {x}")
    return call("truncate_bf16", x)


def _function(name: str, meaning: str) -> Callable[[ExprLike], Expr]:
    def function(x: ExprLike) -> Expr:
        return call(name, as_expr(x))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""{meaning}.

    >>> from tinycomp import te
    >>> x = te.var("x", "float32")
    >>> te.{name}(x)
    {name}(x)
    """
    return function


exp = _float_function("exp", "The exponential")
exp2 = _float_function("exp2", "2 to the power")
expm1 = _float_function("expm1", "exp(x) - 1, exact near 0,")
log = _float_function("log", "The natural logarithm")
log2 = _float_function("log2", "The logarithm to base 2")
log10 = _float_function("log10", "The logarithm to base 10")
log1p = _float_function("log1p", "log(1 + x), exact near 0,")
sqrt = _float_function("sqrt", "The square root")
rsqrt = _float_function("rsqrt", "1 / sqrt(x)")
erf = _float_function("erf", "The error function")
sigmoid = _float_function("sigmoid", "1 / (1 + exp(-x))")
sin = _float_function("sin", "The sine")
cos = _float_function("cos", "The cosine")
tan = _float_function("tan", "The tangent")
asin = _float_function("asin", "The inverse sine")
acos = _float_function("acos", "The inverse cosine")
atan = _float_function("atan", "The inverse tangent")
sinh = _float_function("sinh", "The hyperbolic sine")
cosh = _float_function("cosh", "The hyperbolic cosine")
tanh = _float_function("tanh", "The hyperbolic tangent")
asinh = _float_function("asinh", "The inverse hyperbolic sine")
acosh = _float_function("acosh", "The inverse hyperbolic cosine")
atanh = _float_function("atanh", "The inverse hyperbolic tangent")
floor = _function("floor", "Round down")
ceil = _function("ceil", "Round up")
trunc = _function("trunc", "Round towards zero")
round = _function("round", "Round to nearest, halves to even")
nearbyint = _function("nearbyint", "Round to nearest, halves to even")
abs = _function("abs", "The absolute value")
sign = _function("sign", "-1, 0 or 1")
isnan = _function("isnan", "Whether a float is NaN")
isinf = _function("isinf", "Whether a float is infinite")
isfinite = _function("isfinite", "Whether a float is neither infinite nor NaN")


def exp10(x: ExprLike) -> Expr:
    """10 to the power of a float.

    >>> from tinycomp import te
    >>> x = te.var("x", "float32")
    >>> te.exp10(x)
    pow(10f32, x)
    """
    x = as_expr(x)
    return power(const(10.0, x.dtype), x)


def popcount(x: ExprLike) -> Expr:
    """The number of bits set in an integer.

    >>> from tinycomp import te
    >>> n = te.var("n", "int32")
    >>> te.popcount(n)
    popcount(n)
    """
    x = as_expr(x)
    if not x.dtype.is_int:
        raise TypeError(f"popcount takes an integer, got {x.dtype}: {x}")
    return call("popcount", x)


def power(x: ExprLike, y: ExprLike) -> Expr:
    """x to the power y; integers wrap, and a negative exponent truncates.

    >>> from tinycomp import te
    >>> x = te.var("x", "float32")
    >>> te.power(x, 2)
    pow(x, 2f32)
    """
    return call("pow", *_same("power", x, y))


pow = power


def atan2(y: ExprLike, x: ExprLike) -> Expr:
    """The angle of the point (x, y).

    >>> from tinycomp import te
    >>> x = te.var("x", "float32")
    >>> te.atan2(x, 1.0)
    atan2(x, 1f32)
    """
    return call("atan2", *_same("atan2", y, x))


def hypot(x: ExprLike, y: ExprLike) -> Expr:
    """sqrt(x * x + y * y), computed in just this way.

    >>> from tinycomp import te
    >>> x = te.var("x", "float32")
    >>> te.hypot(x, 2.0)
    sqrt(x * x + 2f32 * 2f32)
    """
    x, y = _same("hypot", x, y)
    return sqrt(x * x + y * y)


def fma(a: ExprLike, b: ExprLike, c: ExprLike) -> Expr:
    """a * b + c with one rounding.

    >>> from tinycomp import te
    >>> x = te.var("x", "float32")
    >>> te.fma(x, 2.0, 1.0)
    fma(x, 2f32, 1f32)
    """
    a, b = _same("fma", a, b)
    return call("fma", a, b, _same("fma", a, c)[1])


def _same(name: str, a: ExprLike, b: ExprLike) -> tuple[Expr, Expr]:
    """Both as expressions of one dtype; a Python number takes the other's."""
    if isinstance(a, Expr) or hasattr(a, "__expr__"):
        a = as_expr(a)
        b = as_expr(b, a.dtype)
    else:
        b = as_expr(b)
        a = as_expr(a, b.dtype)
    if a.dtype is not b.dtype:
        raise TypeError(f"{name} takes one dtype, got {a.dtype} and {b.dtype}; cast one of them")
    return a, b


def _operator(op: BinaryOp, name: str, meaning: str) -> Callable[[ExprLike, ExprLike], Expr]:
    def function(a: ExprLike, b: ExprLike) -> Expr:
        return binary(op, a, b)

    dtype = "bool" if name.startswith("logical") else "float32" if name == "fmod" else "int64"
    a, b = Var("a", DType(dtype)), Var("b", DType(dtype))
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""{meaning}.

    >>> from tinycomp import te
    >>> a, b = te.var("a", "{dtype}"), te.var("b", "{dtype}")
    >>> te.{name}(a, b)
    {binary(op, a, b)}
    """
    return function


add = _operator(BinaryOp.ADD, "add", "a + b")
subtract = _operator(BinaryOp.SUB, "subtract", "a - b")
multiply = _operator(BinaryOp.MUL, "multiply", "a * b")
floordiv = _operator(BinaryOp.FLOORDIV, "floordiv", "a / b of integers, rounded down")
floormod = _operator(BinaryOp.FLOORMOD, "floormod", "The rest of floordiv; has the sign of b")
indexdiv, indexmod = floordiv, floormod  # TVM's names where operands are known to be >= 0
truncdiv = _operator(BinaryOp.TRUNCDIV, "truncdiv", "a / b of integers, rounded towards zero")
truncmod = _operator(BinaryOp.TRUNCMOD, "truncmod", "The rest of truncdiv; has the sign of a")
fmod = _operator(BinaryOp.TRUNCMOD, "fmod", "C's fmod; has the sign of a")
minimum = _operator(BinaryOp.MIN, "minimum", "The smaller of two values; NaN if one is NaN")
maximum = _operator(BinaryOp.MAX, "maximum", "The larger of two values; NaN if one is NaN")
equal = _operator(BinaryOp.EQ, "equal", "a == b (which itself compares identity)")
not_equal = _operator(BinaryOp.NE, "not_equal", "a != b")
less = _operator(BinaryOp.LT, "less", "a < b")
less_equal = _operator(BinaryOp.LE, "less_equal", "a <= b")
bitwise_and = _operator(BinaryOp.BIT_AND, "bitwise_and", "The bits set in both")
bitwise_or = _operator(BinaryOp.BIT_OR, "bitwise_or", "The bits set in either")
bitwise_xor = _operator(BinaryOp.BIT_XOR, "bitwise_xor", "The bits set in just one")
left_shift = _operator(BinaryOp.SHL, "left_shift", "a << b; 0 if b is the width or more")
right_shift = _operator(BinaryOp.SHR, "right_shift", "a >> b, keeping the sign")
logical_and = _operator(BinaryOp.AND, "logical_and", "Both of two booleans")
logical_or = _operator(BinaryOp.OR, "logical_or", "Either of two booleans")
logical_xor = _operator(BinaryOp.NE, "logical_xor", "Just one of two booleans")


def greater(a: ExprLike, b: ExprLike) -> Expr:
    """a > b.

    >>> from tinycomp import te
    >>> i = te.var("i")
    >>> te.greater(i, 3)
    3 < i
    """
    return binary(BinaryOp.LT, b, a)


def greater_equal(a: ExprLike, b: ExprLike) -> Expr:
    """a >= b.

    >>> from tinycomp import te
    >>> i = te.var("i")
    >>> te.greater_equal(i, 3)
    3 <= i
    """
    return binary(BinaryOp.LE, b, a)


def div(a: ExprLike, b: ExprLike) -> Expr:
    """a / b: true division of floats, truncdiv of integers (as in C).

    >>> from tinycomp import te
    >>> i = te.var("i")
    >>> te.div(i, 4)
    truncdiv(i, 4)
    """
    a, b = _same("div", a, b)
    return binary(BinaryOp.DIV if a.dtype.is_float else BinaryOp.TRUNCDIV, a, b)


def ceildiv(a: ExprLike, b: ExprLike) -> Expr:
    """a / b of integers, rounded up, for positive b.

    >>> from tinycomp import te
    >>> i = te.var("i")
    >>> te.ceildiv(i, 4)
    (i + 3) // 4
    """
    a, b = _same("ceildiv", a, b)
    return (a + (b - 1)) // b


def logical_not(x: ExprLike) -> Expr:
    """The opposite of a boolean.

    >>> from tinycomp import te
    >>> i = te.var("i")
    >>> te.logical_not(i < 4)
    not(i < 4)
    """
    return call("not", _boolean(x))


def bitwise_not(x: ExprLike) -> Expr:
    """All bits of an integer flipped.

    >>> from tinycomp import te
    >>> i = te.var("i")
    >>> te.bitwise_not(i)
    bit_not(i)
    """
    return call("bit_not", as_expr(x))


def negative(x: ExprLike) -> Expr:
    """-x.

    >>> from tinycomp import te
    >>> x = te.var("x", "float32")
    >>> te.negative(x)
    neg(x)
    """
    return -as_expr(x)


def clip(x: ExprLike, low: ExprLike, high: ExprLike) -> Expr:
    """x, or the limit that it exceeds; NaN stays NaN.

    >>> from tinycomp import te
    >>> x = te.var("x", "float32")
    >>> te.clip(x, 0.0, 6.0)
    min(max(x, 0f32), 6f32)
    """
    return minimum(maximum(x, low), high)


def _boolean(x: ExprLike) -> Expr:
    x = as_expr(x)
    if x.dtype is not DType.BOOL:
        raise TypeError(f"expected a boolean, got {x.dtype}: {x}; compare it with something")
    return x


def min_value(dtype: str | DType) -> Expr:
    """The least finite value of a dtype.

    >>> from tinycomp import te
    >>> te.min_value("int8")
    int8(-128)
    """
    dtype = DType(dtype)
    if dtype.is_float:
        return const(float(_finite(dtype, "min")), dtype)
    return const(int(dtype.min_value), dtype)


def max_value(dtype: str | DType) -> Expr:
    """The greatest finite value of a dtype.

    >>> from tinycomp import te
    >>> te.max_value("uint8")
    uint8(255)
    """
    dtype = DType(dtype)
    if dtype.is_float:
        return const(float(_finite(dtype, "max")), dtype)
    return const(int(dtype.max_value), dtype)


def _finite(dtype: DType, which: str) -> Any:
    import ml_dtypes

    return getattr(ml_dtypes.finfo(dtype.numpy), which)


def infinity(dtype: str | DType = DType.FLOAT32) -> Expr:
    """Positive infinity.

    >>> from tinycomp import te
    >>> te.infinity()
    inff32
    """
    return const(float("inf"), dtype)


__all__ = [
    "abs",
    "acos",
    "acosh",
    "add",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "cast",
    "ceil",
    "ceildiv",
    "clip",
    "const",
    "cos",
    "cosh",
    "div",
    "equal",
    "erf",
    "exp",
    "exp2",
    "exp10",
    "expm1",
    "floor",
    "floordiv",
    "floormod",
    "fma",
    "fmod",
    "greater",
    "greater_equal",
    "hypot",
    "if_then_else",
    "indexdiv",
    "indexmod",
    "infinity",
    "isfinite",
    "isinf",
    "isnan",
    "left_shift",
    "less",
    "less_equal",
    "log",
    "log1p",
    "log2",
    "log10",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "max_value",
    "maximum",
    "min_value",
    "minimum",
    "multiply",
    "nearbyint",
    "negative",
    "not_equal",
    "popcount",
    "pow",
    "power",
    "right_shift",
    "round",
    "round_tf32",
    "rsqrt",
    "select",
    "sigmoid",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "subtract",
    "tan",
    "tanh",
    "trunc",
    "truncate_bf16",
    "truncdiv",
    "truncmod",
]  # fmt: skip
