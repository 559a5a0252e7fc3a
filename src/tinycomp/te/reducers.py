"""Reductions: sum, prod, min, max, all, any, and user-defined ones.

>>> from tinycomp.te.tensor import compute, placeholder, reduce_axis
>>> A, k = placeholder((8, 16), name="A"), reduce_axis((0, 16), name="k")
>>> compute((8,), lambda i: max(A[i, k], axis=k), name="rowmax")
Tensor(rowmax: float32[8])
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

from ..dtype import DType
from ..ir.expr import TRUE, BinaryOp, Expr, Var, as_expr, binary, const
from .tensor import Combiner, IterKind, IterVar, Reduce


def comm_reducer(
    fcombine: Callable[[Any, Any], Any], fidentity: Callable[..., Any], name: str = "reduce"
) -> Callable[..., Any]:
    """A reduction from a combining function and the identity for given dtypes.

    >>> prod = comm_reducer(lambda a, b: a * b, lambda dtype: const(1, dtype), name="prod")
    """

    def reducer(expr: Any, axis: IterVar | Sequence[IterVar], where: Expr | None = None) -> Any:
        several = isinstance(expr, tuple | list)
        sources = tuple(as_expr(e) for e in (expr if several else (expr,)))
        lhs = tuple(Var(f"x{i}", s.dtype) for i, s in enumerate(sources))
        rhs = tuple(Var(f"y{i}", s.dtype) for i, s in enumerate(sources))
        results = fcombine(lhs, rhs) if several else fcombine(lhs[0], rhs[0])
        identity = fidentity(*(s.dtype for s in sources))
        combiner = Combiner(
            name, lhs, rhs,
            tuple(results) if several else (results,),
            tuple(as_expr(e) for e in identity) if several else (as_expr(identity),),
        )  # fmt: skip
        axes = (axis,) if isinstance(axis, IterVar) else tuple(axis)
        for a in axes:
            if not isinstance(a, IterVar) or a.kind is not IterKind.REDUCE:
                raise TypeError(f"{name}: the axis {a} is not a reduction axis; make one with "
                                "te.reduce_axis((0, n))")  # fmt: skip
        condition = TRUE if where is None else where
        out = tuple(Reduce(combiner, sources, axes, condition, i) for i in range(len(sources)))
        return out if several else out[0]

    reducer.__name__ = name
    return reducer


def _extreme(op: BinaryOp, limit: str) -> Callable[..., Any]:
    return comm_reducer(
        lambda a, b: binary(op, a, b), lambda t: const(getattr(DType(t), limit), t), name=str(op)
    )


sum = comm_reducer(lambda a, b: a + b, lambda t: const(0, t), name="sum")
prod = comm_reducer(lambda a, b: a * b, lambda t: const(1, t), name="prod")
min = _extreme(BinaryOp.MIN, "max_value")
max = _extreme(BinaryOp.MAX, "min_value")


def _document(reducer: Callable[..., Any], meaning: str) -> None:
    reducer.__doc__ = f"""{meaning} of an expression over one or several reduction axes.

    With `where`, only of the elements for which that condition holds.

    >>> from tinycomp import te
    >>> A, k = te.placeholder((4, 8), name="A"), te.reduce_axis((0, 8), name="k")
    >>> te.compute((4,), lambda i: te.{reducer.__name__}(A[i, k], axis=k, where=k <= i), name="B")
    Tensor(B: float32[4])
    """


_document(sum, "The sum")
_document(prod, "The product")
_document(min, "The smallest value, NaN if there is one,")
_document(max, "The largest value, NaN if there is one,")

_all = comm_reducer(lambda a, b: a & b, lambda t: const(1, t), name="all")
_any = comm_reducer(lambda a, b: a | b, lambda t: const(0, t), name="any")


def _logical(name: str, op: BinaryOp, reducer: Callable[..., Any], meaning: str) -> Any:
    def function(*args: Any, axis: Any = None, where: Expr | None = None) -> Any:
        if axis is None and len(args) > 1 and _is_axis(args[1]):
            args, axis, where = args[:1], args[1], args[2] if len(args) > 2 else where
        if axis is not None:
            return reducer(*args, axis, where)
        conditions = [as_expr(a) for a in args]
        if not conditions:
            raise TypeError(f"{name} needs at least one condition")
        result = conditions[0]
        for condition in conditions[1:]:
            result = binary(op, result, condition)
        return result

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""{meaning}: `{name}(c, axis=k)` along an axis, `{name}(a, b, ...)` of
    several conditions.

    >>> from tinycomp import te
    >>> i = te.var("i")
    >>> te.{name}(i >= 1, i < 4)
    1 <= i {"and" if name == "all" else "or"} i < 4
    """
    return function


def _is_axis(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return builtins.all(isinstance(v, IterVar) for v in value)
    return isinstance(value, IterVar)


all = _logical("all", BinaryOp.AND, _all, "Whether all conditions hold")
any = _logical("any", BinaryOp.OR, _any, "Whether some condition holds")
