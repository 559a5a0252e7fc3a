"""Scalar expressions: indices, symbolic dimensions, and the arithmetic of kernels.

Expressions are interned: building the same expression twice gives the same object, so `is` is
structural equality, common subexpressions are shared, and analyses memoise by identity. Variables
(`Var`) are the exception: each is its own. Every level above (types, te, tir) uses these nodes.

Integer index arithmetic is exact (no overflow) and has floor semantics for `//` and `%`.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Protocol, TypeGuard, runtime_checkable

from ..dtype import DType
from .node import Node, dataclass, fold, postorder


class BinaryOp(StrEnum):
    """Two-operand operators. `gt` and `ge` do not exist: swap the operands of `lt` and `le`."""

    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"  # true division, floats only
    FLOORDIV = "floordiv"  # integers: floor; division by zero gives 0 in compiled code
    FLOORMOD = "floormod"  # integers: sign of the divisor; by zero gives 0
    TRUNCDIV = "truncdiv"  # integers: towards zero, as ONNX Div; by zero gives 0
    TRUNCMOD = "truncmod"  # sign of the dividend, as ONNX Mod with fmod=1 (C fmod for floats)
    MIN = "min"  # floats: NaN if either is NaN
    MAX = "max"
    EQ = "eq"
    NE = "ne"
    LT = "lt"
    LE = "le"
    AND = "and"  # of bools
    OR = "or"
    BIT_AND = "bit_and"
    BIT_OR = "bit_or"
    BIT_XOR = "bit_xor"
    SHL = "shl"  # shifting by the width or more gives 0
    SHR = "shr"

    @property
    def is_comparison(self) -> bool:
        return self in COMPARISONS


COMPARISONS = frozenset({BinaryOp.EQ, BinaryOp.NE, BinaryOp.LT, BinaryOp.LE})


@runtime_checkable
class Indexable(Protocol):
    """What a `Load` reads from: a te.Tensor before lowering, a tir.Buffer after."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def shape(self) -> tuple[Expr, ...]: ...


class Interned(type):
    """Metaclass that returns the existing node for equal arguments."""

    _pool: ClassVar[weakref.WeakValueDictionary[Any, Any]] = weakref.WeakValueDictionary()

    def __call__(cls, *args: Any) -> Any:
        # -0.0 == 0.0 and nan != nan, so a float (of FloatImm: the first field) is keyed by its bits
        if type(args[0]) is float:
            key = (cls, struct.pack("d", args[0]), *args[1:])
        else:
            key = (cls, *args)
        found = Interned._pool.get(key)
        if found is None:
            found = super().__call__(*args)
            Interned._pool[key] = found
        return found


class Expr(Node):
    """A scalar (or, after vectorisation, short-vector) expression."""

    # Operators hold their type: deriving it from the operands each time would walk (and recurse
    # over) the whole expression.
    __slots__ = ("_dtype", "_lanes")

    @property
    def dtype(self) -> DType:
        raise NotImplementedError

    @property
    def lanes(self) -> int:
        """1 for a scalar; vectors come only from the Vectorize lowering."""
        return 1

    def __add__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.ADD, self, other)

    def __radd__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.ADD, other, self)

    def __sub__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.SUB, self, other)

    def __rsub__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.SUB, other, self)

    def __mul__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.MUL, self, other)

    def __rmul__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.MUL, other, self)

    def __truediv__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.DIV, self, other)

    def __rtruediv__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.DIV, other, self)

    def __floordiv__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.FLOORDIV, self, other)

    def __rfloordiv__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.FLOORDIV, other, self)

    def __mod__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.FLOORMOD, self, other)

    def __rmod__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.FLOORMOD, other, self)

    def __neg__(self) -> Expr:
        return (
            binary(BinaryOp.SUB, const(0, self.dtype), self)
            if self.dtype.is_int
            else call("neg", self)
        )

    def __lt__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.LT, self, other)

    def __le__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.LE, self, other)

    def __gt__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.LT, other, self)

    def __ge__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.LE, other, self)

    def equal(self, other: ExprLike) -> Expr:
        """Elementwise comparison; `==` itself is identity, as for every IR node."""
        return binary(BinaryOp.EQ, self, other)

    def not_equal(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.NE, self, other)

    def __and__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.AND if self.dtype is DType.BOOL else BinaryOp.BIT_AND, self, other)

    def __or__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.OR if self.dtype is DType.BOOL else BinaryOp.BIT_OR, self, other)

    def __xor__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.NE if self.dtype is DType.BOOL else BinaryOp.BIT_XOR, self, other)

    def __invert__(self) -> Expr:
        return call("not" if self.dtype is DType.BOOL else "bit_not", self)

    def __lshift__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.SHL, self, other)

    def __rshift__(self, other: ExprLike) -> Expr:
        return binary(BinaryOp.SHR, self, other)

    def astype(self, dtype: str | DType) -> Expr:
        return cast(self, dtype)

    def __bool__(self) -> bool:
        if isinstance(self, IntImm):
            return bool(self.value)
        raise TypeError(f"the truth of the expression {self} is not known while compiling")

    def __str__(self) -> str:
        from .printer import expr_text  # the printer imports this module

        return expr_text(self)

    __repr__ = __str__


@runtime_checkable
class StandsForExpr(Protocol):
    """What may be written where an expression is expected: an axis, a slice of a tensor."""

    def __expr__(self) -> Expr: ...


ExprLike = Expr | StandsForExpr | int | float | bool


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Var(Expr):
    """A named scalar: a loop variable, an axis, or a symbolic dimension. Never interned."""

    name: str
    var_dtype: DType = DType.INT64

    @property
    def dtype(self) -> DType:
        return self.var_dtype


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class IntImm(Expr, metaclass=Interned):
    """An integer or boolean constant."""

    value: int
    imm_dtype: DType

    @property
    def dtype(self) -> DType:
        return self.imm_dtype


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FloatImm(Expr, metaclass=Interned):
    """A floating-point constant, held in double precision."""

    value: float
    imm_dtype: DType

    @property
    def dtype(self) -> DType:
        return self.imm_dtype


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Binary(Expr, metaclass=Interned):
    """`a op b`; both operands have one dtype. Build with operators or `binary`."""

    CHILDREN = ("a", "b")
    op: BinaryOp
    a: Expr
    b: Expr

    def __post_init__(self) -> None:
        object.__setattr__(self, "_dtype", DType.BOOL if self.op in COMPARISONS else self.a.dtype)
        object.__setattr__(self, "_lanes", self.a.lanes)

    @property
    def dtype(self) -> DType:
        return self._dtype

    @property
    def lanes(self) -> int:
        return self._lanes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Cast(Expr, metaclass=Interned):
    """Conversion as ONNX Cast: floats to integers truncate; NaN and out-of-range values give
    the most negative integer of 32 and 64 bits and wrap below that."""

    CHILDREN = ("value",)
    to: DType
    value: Expr

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lanes", self.value.lanes)

    @property
    def dtype(self) -> DType:
        return self.to

    @property
    def lanes(self) -> int:
        return self._lanes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Select(Expr, metaclass=Interned):
    """`condition ? a : b`. Both sides may be evaluated: loads in them must be in bounds.

    Use `if_then_else` (a Call) where the side not taken must not be evaluated.
    """

    CHILDREN = ("condition", "a", "b")
    condition: Expr
    a: Expr
    b: Expr

    def __post_init__(self) -> None:
        object.__setattr__(self, "_dtype", self.a.dtype)
        object.__setattr__(self, "_lanes", self.a.lanes)

    @property
    def dtype(self) -> DType:
        return self._dtype

    @property
    def lanes(self) -> int:
        return self._lanes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Call(Expr, metaclass=Interned):
    """An intrinsic: see `INTRINSICS` for the names."""

    CHILDREN = ("args",)
    name: str
    args: tuple[Expr, ...]
    result_dtype: DType

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lanes", max((a.lanes for a in self.args), default=1))

    @property
    def dtype(self) -> DType:
        return self.result_dtype

    @property
    def lanes(self) -> int:
        return self._lanes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Load(Expr, metaclass=Interned):
    """`source[indices]`. A lane whose `predicate` is false reads nothing and yields 0."""

    CHILDREN = ("indices", "predicate")
    source: Any  # te.Tensor or tir.Buffer (Indexable)
    indices: tuple[Expr, ...]
    predicate: Expr | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lanes", max((i.lanes for i in self.indices), default=1))

    @property
    def dtype(self) -> DType:
        return self.source.dtype

    @property
    def lanes(self) -> int:
        return self._lanes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ramp(Expr, metaclass=Interned):
    """The vector (base, base + stride, ..., base + (count - 1) * stride)."""

    CHILDREN = ("base", "stride")
    base: Expr
    stride: Expr
    count: int

    @property
    def dtype(self) -> DType:
        return self.base.dtype

    @property
    def lanes(self) -> int:
        return self.count


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Broadcast(Expr, metaclass=Interned):
    """One scalar in every lane."""

    CHILDREN = ("value",)
    value: Expr
    count: int

    @property
    def dtype(self) -> DType:
        return self.value.dtype

    @property
    def lanes(self) -> int:
        return self.count


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ReduceLanes(Expr, metaclass=Interned):
    """All lanes of a vector combined to one scalar, in a tree: halves first, then quarters..."""

    CHILDREN = ("value",)
    op: BinaryOp
    value: Expr

    @property
    def dtype(self) -> DType:
        return self.value.dtype


# Intrinsics with the dtype rule of their result: "same" as the first argument, or "bool".
# if_then_else(c, a, b) evaluates only the side taken. checked_index(i, extent) wraps a negative
# index once, and where it is still outside [0, extent) reports a runtime error and yields 0.
# fma(a, b, c) = a * b + c with one rounding. round_tf32(x) rounds float32 to 10 bits of mantissa;
# truncate_bf16(x) cuts float32 to 7 bits. exp2_approx is exp2 as fast as the machine has it: within
# 2 ulp, and results below normal may be 0.
# likely(c) marks a guard that loop partition removes, once(c) what is done once (tir.nodes.ONCE).
_SAME_DTYPE = """
    neg not bit_not abs exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan asin acos atan
    sinh cosh tanh asinh acosh atanh erf sigmoid floor ceil trunc round nearbyint sign pow atan2
    fma popcount checked_index likely once round_tf32 truncate_bf16 exp2_approx
"""
INTRINSICS: Mapping[str, str] = {
    **dict.fromkeys(
        _SAME_DTYPE.split(),
        "same",
    ),
    "isnan": "bool",
    "isinf": "bool",
    "isfinite": "bool",
    "if_then_else": "second",
}


def const(value: float | int | bool, dtype: str | DType = DType.INT64) -> Expr:
    """A constant of the given dtype.

    >>> const(2.5, "float32"), const(3)
    (2.5f32, 3)
    """
    if type(dtype) is not DType:
        dtype = DType(dtype)
    if dtype.is_float:
        return FloatImm(float(value), dtype)
    return IntImm(int(value), dtype)


TRUE = const(True, DType.BOOL)
FALSE = const(False, DType.BOOL)


def as_expr(value: ExprLike, dtype: DType | None = None) -> Expr:
    """`value` as an expression; a Python number takes `dtype`, or int64, float32 or bool.

    Objects that stand for an expression (an IterVar, a TE tensor slice) define `__expr__`.
    """
    if isinstance(value, Expr):
        return value
    if _stands_for_expr(value):
        return value.__expr__()
    if dtype is None:
        dtype = (
            DType.BOOL
            if isinstance(value, bool)
            else (DType.FLOAT32 if isinstance(value, float) else DType.INT64)
        )
    return const(value, dtype)  # type: ignore[arg-type]


def _stands_for_expr(value: ExprLike) -> TypeGuard[StandsForExpr]:
    """isinstance(value, StandsForExpr) without the cost of a protocol for plain numbers."""
    return type(value) not in _NUMBERS and isinstance(value, StandsForExpr)


_NUMBERS = (int, float, bool)


def binary(op: BinaryOp, a: ExprLike, b: ExprLike) -> Expr:
    """`a op b` with constants folded and neutral elements dropped.

    A Python number takes the dtype of the other operand.

    Raises:
        TypeError: the operands are of different dtypes; cast one of them.
    """
    x, y = _unify(a, b)
    if x.lanes != y.lanes:
        x = x if x.lanes > 1 else Broadcast(x, y.lanes)
        y = y if y.lanes > 1 else Broadcast(y, x.lanes)
    if x.dtype is not y.dtype:
        raise TypeError(
            f"operands of {op} have dtypes {x.dtype} and {y.dtype}; cast one of them: {x} and {y}"
        )
    return _folding.fold_binary(op, x, y)


def cast(value: ExprLike, dtype: str | DType) -> Expr:
    """`value` converted to `dtype`; constants are converted at once.

    >>> cast(Var("i"), "float32")
    float32(i)
    """
    return _folding.fold_cast(as_expr(value), DType(dtype))


def call(name: str, *args: ExprLike) -> Expr:
    """The intrinsic `name` of the arguments; numbers take the first expression's dtype.

    >>> call("exp", Var("x", DType.FLOAT32))
    exp(x)
    """
    rule = INTRINSICS[name]
    first = next((as_expr(a) for a in args if isinstance(a, Expr | StandsForExpr)), None)
    exprs = tuple(as_expr(a, first.dtype if first is not None else None) for a in args)
    dtype = {"same": exprs[0].dtype, "bool": DType.BOOL}.get(rule) or exprs[1].dtype
    return Call(name, exprs, dtype)


def select(condition: ExprLike, a: ExprLike, b: ExprLike) -> Expr:
    """`condition ? a : b`, both sides evaluated; folded when the condition is constant.

    >>> i = Var("i")
    >>> select(i < 4, i, 0)
    select(i < 4, i, 0)
    """
    condition, a, b = as_expr(condition), *_unify(a, b)
    if isinstance(condition, IntImm):
        return a if condition.value else b
    return a if a is b else Select(condition, a, b)


def if_then_else(condition: ExprLike, a: ExprLike, b: ExprLike) -> Expr:
    """`condition ? a : b`, only the side taken is evaluated, so loads in it may be out of bounds
    of the other side.

    >>> i = Var("i")
    >>> if_then_else(i < 4, i, 0)
    if_then_else(i < 4, i, 0)
    """
    condition, a, b = as_expr(condition), *_unify(a, b)
    if isinstance(condition, IntImm):
        return a if condition.value else b
    return Call("if_then_else", (condition, a, b), a.dtype)


def _unify(a: ExprLike, b: ExprLike) -> tuple[Expr, Expr]:
    """Both as expressions; a Python number takes the dtype of the other."""
    if isinstance(a, Expr) or _stands_for_expr(a):
        x = as_expr(a)
        return x, (b if isinstance(b, Expr) else as_expr(b, x.dtype))
    y = as_expr(b)
    return as_expr(a, y.dtype), y


def all_of(conditions: Iterable[Expr]) -> Expr:
    """The conjunction; TRUE when there is none."""
    result = TRUE
    for condition in conditions:
        result = binary(BinaryOp.AND, result, condition)
    return result


def substitute(expr: Expr, values: Mapping[Var, Expr]) -> Expr:
    """`expr` with variables replaced, and folded again on the way up."""
    return rebuild(expr, lambda node: values.get(node, node) if isinstance(node, Var) else node)


def rebuild(expr: Expr, handler: Callable[[Expr], Expr]) -> Expr:
    """Like `rewrite`, but parents of changed nodes are built anew through the folding builders."""

    def step(node: Any, children: list[Any]) -> Any:
        return handler(_folding.refold(node, children))

    return fold(expr, step)


def variables(expr: Expr) -> list[Var]:
    """The variables in `expr`, each once, in order of appearance."""

    return [node for node in postorder(expr) if isinstance(node, Var)]


def is_const(expr: ExprLike, value: int | float | None = None) -> bool:
    """Whether `expr` is a constant (of that value)."""
    if isinstance(expr, IntImm | FloatImm):
        return value is None or expr.value == value
    return not isinstance(expr, Expr) and (value is None or expr == value)


def as_int(expr: ExprLike) -> int:
    """The value of a constant integer expression; TypeError if it is symbolic."""
    if isinstance(expr, IntImm):
        return expr.value
    if isinstance(expr, int):
        return expr
    raise TypeError(f"expected a known integer, got the symbolic expression {expr}")


def product(values: Sequence[ExprLike]) -> Expr:
    result = const(1)
    for value in values:
        result = result * as_expr(value)
    return result


from . import fold as _folding  # noqa: E402 - folding builds expressions, and building folds
