"""float32 elementary functions as formulas over `F`, a value with Python's operators.

Each function reduces its argument to a small interval and evaluates a minimax polynomial there
(coefficients fitted with mpmath for the weight of the final relative error). Reductions by
constants use two- or three-part constants with fused multiply-adds (Cody and Waite). The formulas
for erf, sin and cos follow N. Juffa's published single-precision implementations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .builder import FunctionBuilder, Value, literal

LN2_HI, LN2_LO = 0.693145751953125, 1.428606765330187e-06
LOG2E_HI, LOG2E_LO = 1.4426950216293335, 1.925963033500011e-08
LOG10_2_HI, LOG10_2_LO = 0.301025390625, 4.605039066518657e-06
LOG10E_HI, LOG10E_LO = 0.4342944920063019, -1.0103049952192578e-08
PIO2_HI, PIO2_MID, PIO2_LO = 1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15

EXP = (0.0013947238912805915, 0.008369794115424156, 0.04166625440120697, 0.16666510701179504, 0.5)
EXPM1 = (
    0.00019900444021914154, 0.0013934544986113906, 0.008333297446370125, 0.04166645556688309,
    0.1666666716337204, 0.5,
)  # fmt: skip
LOG = (
    -0.12858518958091736, 0.14011335372924805, -0.12192539870738983, 0.13999655842781067,
    -0.16679824888706207, 0.20010854303836823, -0.24999813735485077, 0.3333320617675781,
)  # fmt: skip
ASIN = (0.04213757812976837, 0.024195009842514992, 0.04546773061156273, 0.0749531164765358,
        0.16666752099990845)  # fmt: skip
ATAN = (
    -0.0017782517243176699, 0.010844776406884193, -0.03104547969996929, 0.057822078466415405,
    -0.08395350724458694, 0.10949338227510452, -0.14263679087162018, 0.19998493790626526,
    -0.33333298563957214,
)  # fmt: skip
SIN = (2.7174492061021738e-06, -0.0001983924157684669, 0.008333329111337662, -0.1666666716337204)
COS = (-2.7201463126402814e-07, 2.479941031197086e-05, -0.0013888883404433727, 0.0416666679084301)
ERF_SMALL = (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1,
             1.28379166e-1)  # fmt: skip


@dataclass(frozen=True, slots=True)
class F:
    """A value being computed; Python numbers stand for constants in every lane."""

    b: FunctionBuilder
    value: Value

    def const(self, number: float) -> F:
        return F(self.b, literal(number, self.value.element, self.value.lanes))

    def lift(self, other: F | float) -> F:
        return other if isinstance(other, F) else self.const(other)

    def op(self, opcode: str, other: F | float) -> F:
        return F(self.b, self.b.op(opcode, self.value, self.lift(other).value))

    def __add__(self, other: F | float) -> F:
        return self.op("fadd" if self.is_float else "add", other)

    def __sub__(self, other: F | float) -> F:
        return self.op("fsub" if self.is_float else "sub", other)

    def __mul__(self, other: F | float) -> F:
        return self.op("fmul" if self.is_float else "mul", other)

    def __truediv__(self, other: F | float) -> F:
        return self.op("fdiv", other)

    def __radd__(self, other: float) -> F:
        return self + other

    def __rmul__(self, other: float) -> F:
        return self * other

    def __rsub__(self, other: float) -> F:
        return self.const(other) - self

    def __rtruediv__(self, other: float) -> F:
        return self.const(other) / self

    def __neg__(self) -> F:
        v = self.value
        return F(self.b, self.b.emit(f"fneg {v}", v.element, v.lanes))

    def __and__(self, other: F | float) -> F:
        return self.op("and", other)

    def __or__(self, other: F | float) -> F:
        return self.op("or", other)

    def __lshift__(self, other: int) -> F:
        return self.op("shl", other)

    def __rshift__(self, other: int) -> F:
        return self.op("ashr", other)

    def __lt__(self, other: F | float) -> F:
        return self.compare("olt" if self.is_float else "slt", other)

    def __gt__(self, other: F | float) -> F:
        return self.compare("ogt" if self.is_float else "sgt", other)

    def equals(self, other: F | float) -> F:
        return self.compare("oeq" if self.is_float else "eq", other)

    def compare(self, predicate: str, other: F | float) -> F:
        kind = "fcmp" if self.is_float else "icmp"
        return F(self.b, self.b.compare(f"{kind} {predicate}", self.value, self.lift(other).value))

    @property
    def is_float(self) -> bool:
        return self.value.element in ("float", "double")

    def call(self, name: str, *others: F | float) -> F:
        """An LLVM intrinsic with this value as its first argument."""
        values = [self.lift(o).value for o in others]
        return F(self.b, self.b.intrinsic(name, self.value, *values))

    def fma(self, factor: F | float, addend: F | float) -> F:
        """self * factor + addend, rounded once where the CPU can."""
        return self.call("fma" if self.b.module.has_fma else "fmuladd", factor, addend)

    def abs(self) -> F:
        return self.call("fabs")

    def round(self) -> F:
        return self.call("roundeven")

    def sqrt(self) -> F:
        return self.call("sqrt")

    def with_sign_of(self, other: F) -> F:
        return self.call("copysign", other)

    def where(self, condition: F, otherwise: F | float) -> F:
        """self where the condition holds."""
        return F(self.b, self.b.select(condition.value, self.value, self.lift(otherwise).value))

    def at_most(self, limit: float) -> F:
        """min(self, limit); NaN stays."""
        return self.const(limit).where(self > limit, self)

    def at_least(self, limit: float) -> F:
        return self.const(limit).where(self < limit, self)

    def poly(self, coefficients: tuple[float, ...]) -> F:
        """Horner's rule, highest power first."""
        result = self.const(coefficients[0])
        for c in coefficients[1:]:
            result = result.fma(self, c)
        return result

    def bits(self) -> F:
        return self.convert("bitcast", "i32")

    def convert(self, opcode: str, element: str) -> F:
        return F(self.b, self.b.convert(opcode, self.value, element))


def _power_of_two(n: F) -> F:
    """2**n for an integer-valued i32 n in [-126, 127]."""
    return ((n + 127) << 23).convert("bitcast", "float")


def _scale(y: F, n: F) -> F:
    """y * 2**n for an integral float n in [-252, 254], in two steps so that denormal results and
    those near the largest float come out right."""
    lanes = y.value.lanes
    if y.b.module.has_scalef and lanes == 16:
        name, vector = "llvm.x86.avx512.mask.scalef.ps.512", "<16 x float>"
        y.b.module.declare(name, vector, [vector, vector, vector, "i16", "i32"])
        text = (
            f"call {vector} @{name}({y.value}, {n.value}, {vector} zeroinitializer, i16 -1, i32 4)"
        )
        return F(y.b, y.b.emit(text, "float", lanes))
    # n can only be NaN when y is; fptosi of NaN would be poison
    number = n.where(n.equals(n), 0.0).convert("fptosi", "i32")
    half = number >> 1
    return y * _power_of_two(half) * _power_of_two(number - half)


def _reduce_exp(x: F) -> tuple[F, F]:
    """n and r with x = n ln 2 + r, |r| <= ln 2 / 2."""
    n = (x * LOG2E_HI).round()
    return n, n.fma(-LN2_LO, n.fma(-LN2_HI, x))


def _exp_scaled(x: F, shift: int) -> F:
    """exp(x) * 2**shift, without overflow before the shift."""
    n, r = _reduce_exp(x.at_most(90.0).at_least(-105.0))
    y = (r * r).fma(r.poly(EXP), r) + 1.0
    return _scale(y, n + shift if shift else n)


def exp(x: F) -> F:
    return _exp_scaled(x, 0)


def exp2(x: F) -> F:
    x = x.at_most(130.0).at_least(-151.0)
    n = x.round()
    r = (x - n) * math.log(2.0)
    return _scale((r * r).fma(r.poly(EXPM1), r) + 1.0, n)


def _expm1_core(x: F) -> F:
    """expm1 for x in [-25, 90]; the sign of a zero is lost."""
    n, r = _reduce_exp(x)
    p = (r * r).fma(r.poly(EXPM1), r)
    number = n.where(n.equals(n), 0.0).convert("fptosi", "i32")
    half_scale = _power_of_two(number - 1)
    return half_scale.fma(p, half_scale - 0.5) * 2.0


def expm1(x: F) -> F:
    return _expm1_core(x.at_most(89.0).at_least(-25.0)).where(x.abs() > 1e-8, x)


def tanh(x: F) -> F:
    """expm1(2|x|) / (expm1(2|x|) + 2) with the sign of x."""
    e = _expm1_core((x + x).abs().at_most(20.0))
    return (e / (e + 2.0)).where(x.abs() > 1e-8, x).with_sign_of(x)


def sigmoid(x: F) -> F:
    e = exp(-x.abs())
    y = 1.0 / (e + 1.0)
    return (e * y).where(x < 0.0, y)


def erf(x: F) -> F:
    t, s = x.abs(), x * x
    t = t.at_most(4.0)
    u = t * t
    r = t.fma(-1.72853470e-5, 3.83197126e-4)
    r = r.fma(u, t.fma(-3.88396438e-3, 2.42546219e-2))
    r = r.fma(t, -1.06777877e-1).fma(t, -6.34846687e-1).fma(t, -1.28717512e-1)
    large = (1.0 - exp(r.fma(t, -t))).with_sign_of(x)
    small = s.poly(ERF_SMALL).fma(x, x)
    # x + x * p keeps the sign of zero and, below the smallest normal, the value
    return large.where(x.abs() > 0.921875, small)


def _reduce_log(x: F) -> tuple[F, F]:
    """e and f with x = 2**e (1 + f), 1 + f in [2/3, 4/3], for positive finite x."""
    tiny = x < 1.1754943508222875e-38
    x = (x * 8388608.0).where(tiny, x)
    bits = x.bits()
    exponent = (bits - 0x3F2AAAAB) & -0x800000
    f = (bits - exponent).convert("bitcast", "float") - 1.0
    e = (exponent >> 23).convert("sitofp", "float")
    return e + (x.const(-23.0).where(tiny, 0.0)), f


def _log1p_tail(f: F) -> F:
    """log(1 + f) - f for f in [-1/3, 1/3]."""
    return (f * f) * (f.fma(f.poly(LOG), -0.5))


def _log_ends(x: F, y: F) -> F:
    """y, but log's values at 0, infinity, NaN and below 0."""
    y = x.const(-math.inf).where(x.equals(0.0), y)
    y = x.where(x.equals(math.inf), y)
    return y.where(x.compare("oge", 0.0), math.nan)


def log(x: F) -> F:
    e, f = _reduce_log(x)
    return _log_ends(x, e.fma(LN2_HI, e.fma(LN2_LO, _log1p_tail(f)) + f))


def log2(x: F) -> F:
    e, f = _reduce_log(x)
    tail = _log1p_tail(f)
    low = (f + tail).fma(LOG2E_LO, tail * LOG2E_HI)
    return _log_ends(x, e + f.fma(LOG2E_HI, low))


def log10(x: F) -> F:
    e, f = _reduce_log(x)
    tail = _log1p_tail(f)
    low = (f + tail).fma(LOG10E_LO, e.fma(LOG10_2_LO, tail * LOG10E_HI))
    return _log_ends(x, e.fma(LOG10_2_HI, f.fma(LOG10E_HI, low)))


def log1p(x: F) -> F:
    """log(u) with u = 1 + x rounded, corrected by the rounding error of u over u."""
    u = x + 1.0
    error = (x - (u - 1.0)).where(x.abs() < 1.0, 1.0 - (u - x))
    y = log(u) + error / u
    y = y.where(x.abs() > 1e-8, x)
    y = x.where(x.equals(math.inf), y)
    return x.const(-math.inf).where(x.equals(-1.0), y)


def _reduce_angle(x: F) -> tuple[F, F]:
    """Quadrant q (i32) and r with x = q pi/2 + r, for |x| below 70000."""
    n = (x * (2.0 / math.pi)).round()
    r = n.fma(-PIO2_LO, n.fma(-PIO2_MID, n.fma(-PIO2_HI, x)))
    return n.convert("fptosi", "i32"), r


def _sin_poly(r: F) -> F:
    s = r * r
    return (s * r).fma(s.poly(SIN), r)


def _cos_poly(r: F) -> F:
    s = r * r
    return (s * s).fma(s.poly(COS), s.fma(-0.5, 1.0))


def _flip(y: F, condition: F) -> F:
    return (-y).where(condition, y)


def sin(x: F) -> F:
    def core(x: F) -> F:
        q, r = _reduce_angle(x)
        y = _cos_poly(r).where((q & 1).equals(1), _sin_poly(r))
        return _flip(y, (q & 2).equals(2))

    return _with_fallback(x, "sinf", core).where(x.abs() > 1e-8, x)


def cos(x: F) -> F:
    def core(x: F) -> F:
        q, r = _reduce_angle(x)
        y = _sin_poly(r).where((q & 1).equals(1), _cos_poly(r))
        return _flip(y, ((q + 1) & 2).equals(2))

    return _with_fallback(x, "cosf", core)


def tan(x: F) -> F:
    def core(x: F) -> F:
        q, r = _reduce_angle(x)
        s, c, odd = _sin_poly(r), _cos_poly(r), (q & 1).equals(1)
        return (-c).where(odd, s) / s.where(odd, c)

    return _with_fallback(x, "tanf", core).where(x.abs() > 1e-8, x)


def _with_fallback(x: F, symbol: str, core: Callable[[F], F]) -> F:
    """core(x) where |x| < 70000; if any lane is larger, or not finite, the C library's function."""
    b, lanes = x.b, x.value.lanes
    inside = x.abs() < 70000.0
    fast = core(x.where(inside, 0.0))
    outside = b.op("xor", inside.value, literal(1, "i1", lanes))
    before, slow, done = b.block, b.fresh("slow"), b.fresh("done")
    b.cond_br(b.reduce("or", outside), slow, done)
    b.start(slow)
    b.module.declare(symbol, "float", ["float"])
    exact = b.join([b.call(symbol, "float", [b.extract(x.value, i)]) for i in range(lanes)])
    mixed = b.select(inside.value, fast.value, exact)
    b.br(done)
    b.start(done)
    return F(b, b.phi("float", lanes, [(fast.value, before), (mixed, slow)]))


def _asin_core(t: F) -> tuple[F, F, F]:
    """For t = |x| in [0, 1]: whether t > 1/2, and s, p with asin(t) = s + s p, or for t > 1/2
    asin(t) = pi/2 - 2 (s + s p)."""
    large = t > 0.5
    square = t.fma(-0.5, 0.5).where(large, t * t)
    s = square.sqrt().where(large, t)
    return large, s, square * square.poly(ASIN)


def asin(x: F) -> F:
    large, s, p = _asin_core(x.abs())
    a = s.fma(p, s)
    return a.fma(-2.0, PIO2_HI).where(large, a).with_sign_of(x).where(x.equals(x), x)


def acos(x: F) -> F:
    large, s, p = _asin_core(x.abs())
    a = s.fma(p, s)
    signed = a.with_sign_of(x)
    small = PIO2_HI - (signed - PIO2_MID)
    beyond = a.fma(-2.0, 2.0 * PIO2_MID) + 2.0 * PIO2_HI
    return (a + a).where(x > 0.0, beyond).where(large, small)


def _atan_unit(z: F) -> F:
    """atan(z) for z in [0, 1]."""
    s = z * z
    return (s * z).fma(s.poly(ATAN), z)


def atan(x: F) -> F:
    t = x.abs()
    large = t > 1.0
    a = _atan_unit((1.0 / t).where(large, t))
    return (PIO2_HI - (a - PIO2_MID)).where(large, a).with_sign_of(x)


def atan2(y: F, x: F) -> F:
    ay, ax = y.abs(), x.abs()
    swap = ay > ax
    low, high = ax.where(swap, ay), ay.where(swap, ax)
    ratio = (low / high).where(high > 0.0, 0.0)
    ratio = x.const(1.0).where(low.equals(math.inf), ratio)
    a = _atan_unit(ratio)
    a = (PIO2_HI - (a - PIO2_MID)).where(swap, a)
    negative = x.bits() < 0
    a = (2.0 * PIO2_HI - (a - 2.0 * PIO2_MID)).where(negative, a).with_sign_of(y)
    return a.where(x.compare("ord", y), math.nan)


def sinh(x: F) -> F:
    t = x.abs()
    e = _expm1_core(t.at_most(1.0))
    small = (e + e / (e + 1.0)) * 0.5
    h = _exp_scaled(t, -1)
    large = h - 0.25 / h
    return small.where(t < 1.0, large).where(t > 1e-8, x).with_sign_of(x)


def cosh(x: F) -> F:
    h = _exp_scaled(x.abs(), -1)
    return h + 0.25 / h


def asinh(x: F) -> F:
    t = x.abs()
    s = t.at_most(1e9)
    root = s.fma(s, 1.0).sqrt()
    small = log1p(s + s * s / (root + 1.0))
    return (log(t) + math.log(2.0)).where(t > 1e9, small).with_sign_of(x)


def acosh(x: F) -> F:
    t = x.at_most(1e9) - 1.0
    small = log1p(t + t.fma(t, t + t).sqrt())
    y = (log(x) + math.log(2.0)).where(x > 1e9, small)
    return y.where(x.compare("oge", 1.0), math.nan)


def atanh(x: F) -> F:
    t = x.abs()
    return (log1p((t + t) / (1.0 - t)) * 0.5).with_sign_of(x).where(x.equals(x), x)


def rsqrt(x: F) -> F:
    return 1.0 / x.sqrt()


def pow_(x: F, y: F) -> F:
    """exp2(y log2|x|) in double precision, which makes the rounded result almost always exact."""
    t = x.abs()
    z = _exp2_double(_log2_double(t) * y.convert("fpext", "double")).convert("fptrunc", "float")
    truncated = y.call("trunc")
    is_integer = y.equals(truncated)
    half = truncated * 0.5
    odd = is_integer & half.compare("one", half.call("trunc")) & (y.abs() < 2.0**24)
    negative = x.bits() < 0
    z = _flip(z, negative & odd)
    bad = (x < 0.0) & y.compare("one", truncated) & (t < math.inf)
    z = x.const(math.nan).where(bad, z)
    z = x.const(1.0).where(t.equals(1.0) & y.abs().equals(math.inf), z)
    one = x.equals(1.0) | y.equals(0.0)
    return x.const(1.0).where(one, z.where(x.compare("ord", y), math.nan))


def _log2_double(t: F) -> F:
    """log2 of a non-negative float32, in double: 2 atanh(s) / ln 2 with s = (m - 1) / (m + 1)."""
    x = t.convert("fpext", "double")
    bits = x.convert("bitcast", "i64")
    exponent = (bits - 0x3FE6A09E667F3BCD) & -(1 << 52)
    m = (bits - exponent).convert("bitcast", "double")
    s = (m - 1.0) / (m + 1.0)
    u = s * s
    series = u.poly(tuple(2.0 / math.log(2.0) / k for k in (17, 15, 13, 11, 9, 7, 5, 3, 1)))
    y = s.fma(series, (exponent >> 52).convert("sitofp", "double"))
    y = x.const(-math.inf).where(x.equals(0.0), y)
    return x.where(x.compare("ueq", math.inf), y)


def _exp2_double(x: F) -> F:
    """2**x for any double, with results beyond float32's range going to 0 or infinity."""
    x = x.at_most(200.0).at_least(-200.0)
    n = x.round()
    r = (x - n) * math.log(2.0)
    p = r.poly(tuple(1.0 / math.factorial(k) for k in range(11, -1, -1)))
    number = n.where(n.equals(n), 0.0).convert("fptosi", "i64")
    return p * ((number + 1023) << 52).convert("bitcast", "double")


FUNCTIONS: Mapping[str, Callable[..., F]] = {
    "exp": exp, "exp2": exp2, "expm1": expm1, "log": log, "log2": log2, "log10": log10,
    "log1p": log1p, "sin": sin, "cos": cos, "tan": tan, "asin": asin, "acos": acos, "atan": atan,
    "atan2": atan2, "sinh": sinh, "cosh": cosh, "tanh": tanh, "asinh": asinh, "acosh": acosh,
    "atanh": atanh, "erf": erf, "sigmoid": sigmoid, "pow": pow_, "rsqrt": rsqrt,
}  # fmt: skip
