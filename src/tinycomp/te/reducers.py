"""Reductions: sum, prod, min, max, all, any, and user-defined ones.

>>> from tinycomp.te.tensor import compute, placeholder, reduce_axis
>>> A, k = placeholder((8, 16), name="A"), reduce_axis((0, 16), name="k")
>>> compute((8,), lambda i: max(A[i, k], axis=k), name="rowmax")
Tensor(rowmax: float32[8])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..dtype import DType
from ..ir.expr import TRUE, BinaryOp, Expr, Var, as_expr, binary, const
from .tensor import Combiner, IterVar, Reduce


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
        condition = TRUE if where is None else where
        out = tuple(Reduce(combiner, sources, axes, condition, i) for i in range(len(sources)))
        return out if several else out[0]

    reducer.__name__ = name
    return reducer


def _extreme(op: BinaryOp, limit: str) -> Callable[..., Any]:
    return comm_reducer(
        lambda a, b: binary(op, a, b), lambda t: const(getattr(DType(t), limit), t), name=str(op)
    )


sum = comm_reducer(lambda a, b: a + b, lambda t: const(0, t), name="sum")  # noqa: A001
prod = comm_reducer(lambda a, b: a * b, lambda t: const(1, t), name="prod")
min = _extreme(BinaryOp.MIN, "max_value")  # noqa: A001
max = _extreme(BinaryOp.MAX, "min_value")  # noqa: A001
all = comm_reducer(lambda a, b: a & b, lambda t: const(1, t), name="all")  # noqa: A001
any = comm_reducer(lambda a, b: a | b, lambda t: const(0, t), name="any")  # noqa: A001
