"""Elementary functions on vectors of any lane count.

float32 functions are branch-free polynomials (`vecmath_f32`), emitted once per module and lane
count as functions that are always inlined. float64 functions call the C library lane by lane.
Every function is right at zeros of both signs, infinities, NaN, denormals and at the ends of its
range. float16 and bfloat16 are computed as float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..diagnostics import InternalError
from .builder import FunctionBuilder, Value, literal, vector
from .vecmath_f32 import FUNCTIONS, F

ULP_BOUNDS: Mapping[str, float] = {
    "exp": 1.5, "exp2": 1.5, "expm1": 2, "log": 1.5, "log2": 2, "log10": 2, "log1p": 2.5,
    "sin": 2, "cos": 2, "tan": 4, "asin": 2.5, "acos": 2.5, "atan": 2.5, "atan2": 3,
    "sinh": 3, "cosh": 2.5, "tanh": 3, "asinh": 4, "acosh": 4, "atanh": 4,
    "erf": 2, "sigmoid": 3, "pow": 1, "rsqrt": 1.5,
}  # fmt: skip
"""Largest error of the float32 functions in units in the last place, over all arguments."""

_LIBM = frozenset(
    ["exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos"]
    + ["atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "pow"]
)


def emit(b: FunctionBuilder, name: str, args: Sequence[Value]) -> Value:
    """`name(*args)` for float or double arguments of equal lane counts."""
    x = args[0]
    name = "exp2" if name == "exp2_approx" else name  # CPUs have nothing faster
    if x.element == "float" and name in FUNCTIONS:
        return _call_float32(b, name, args)
    one = literal(1.0, x.element, x.lanes)
    if name == "rsqrt":
        return b.op("fdiv", one, b.intrinsic("sqrt", x))
    if name == "sigmoid":
        negated = b.emit(f"fneg {x}", x.element, x.lanes)
        return b.op("fdiv", one, b.op("fadd", one, _libm(b, "exp", [negated])))
    if name in _LIBM:
        return _libm(b, name, args)
    raise InternalError(f"intrinsic {name} is not defined for {x.element}")


def _libm(b: FunctionBuilder, name: str, args: Sequence[Value]) -> Value:
    symbol = name if args[0].element == "double" else name + "f"
    element = args[0].element
    b.module.declare(symbol, element, [element] * len(args))
    lanes = range(args[0].lanes)
    return b.join([b.call(symbol, element, [b.extract(a, i) for a in args]) for i in lanes])


def _call_float32(b: FunctionBuilder, name: str, args: Sequence[Value]) -> Value:
    lanes = args[0].lanes
    symbol = f"math.{name}.{lanes}"
    if symbol not in b.module.helpers:
        b.module.helpers.add(symbol)
        names = ("x", "y")[: len(args)]
        type_ = vector("float", lanes)
        params = [(type_, n) for n in names]
        inner = FunctionBuilder(
            b.module, symbol, params, result=type_, linkage="internal", attributes="alwaysinline"
        )
        operands = [F(inner, Value(f"%{n}", "float", lanes)) for n in names]
        inner.ret(FUNCTIONS[name](*operands).value)
        inner.finish()
    return b.call(symbol, "float", args, lanes)
