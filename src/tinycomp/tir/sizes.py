"""Symbolic sizes of a function: which there are, and their values in a call.

`PrimFunc.sizes` are its scalar parameters of type int64: the variables that shapes and loops are
expressed in. A caller need not pass them where the shapes of its arrays say what they are.

>>> from tinycomp.ir.expr import Var
>>> n, m = Var("n"), Var("m")
>>> sizes = bind_sizes([(n * 16, 48), (m + 1, 8), (n + m, 10)])
>>> sizes[n], sizes[m]
(3, 7)
>>> evaluate((n + 7) // 8 * m, sizes)
7
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..diagnostics import InputError, VerifyError
from ..ir.expr import Expr, IntImm, Var, as_int, const, substitute, variables
from .nodes import Buffer, For, PrimFunc
from .tree import statements


def evaluate(expr: Expr, sizes: Mapping[Var, int]) -> int:
    """The value of an expression over sizes that are all known."""
    return as_int(at(expr, sizes))


def at(expr: Expr, sizes: Mapping[Var, int]) -> Expr:
    """`expr` with the sizes that are known in place of their variables."""
    if isinstance(expr, IntImm):
        return expr
    return substitute(expr, {v: const(n, v.dtype) for v, n in sizes.items()})


def shape_at(buffer: Buffer, sizes: Mapping[Var, int]) -> tuple[int, ...]:
    """The shape of a buffer in a call."""
    return tuple(evaluate(d, sizes) for d in buffer.shape)


def bind_sizes(
    dims: Iterable[tuple[Expr, int]], known: Mapping[Var, int] | None = None
) -> dict[Var, int]:
    """The variables that dimensions and their values determine, besides those known.

    A dimension that is a variable gives it; then those that are affine in a single unknown one
    (`n * 16`, `n + 2`) do. Contradictions are for the caller to find: the first value stays.
    """
    sizes = dict(known or {})
    open_: list[tuple[Expr, int]] = []
    for dim, value in dims:
        if isinstance(dim, Var):
            sizes.setdefault(dim, value)
        elif not isinstance(dim, IntImm):
            open_.append((dim, value))
    found = True
    while found:
        found = False
        for dim, value in open_:
            unknown = [v for v in variables(dim) if v not in sizes]
            solution = _solved(dim, unknown[0], value, sizes) if len(unknown) == 1 else None
            if solution is not None:
                sizes[unknown[0]], found = solution, True
    return sizes


def fit(
    func: PrimFunc, arrays: Sequence[np.ndarray], known: Mapping[Var, int] | None = None
) -> dict[Var, int]:
    """The values of the symbolic sizes, from the shapes of the arguments.

    Raises:
        InputError: the arrays do not fit the parameters.
        VerifyError: a size is not known from them.
    """
    if len(arrays) != len(func.params):
        raise InputError(f"{func.name} takes {len(func.params)} arrays, got {len(arrays)}")
    pairs = list(zip(func.params, arrays, strict=True))
    ranks_fit = all(len(b.shape) == a.ndim for b, a in pairs)
    dims = (d for b, a in pairs for d in zip(b.shape, a.shape, strict=True)) if ranks_fit else ()
    sizes = bind_sizes(dims, known)
    missing = [v.name for v in func.sizes if v not in sizes]
    if ranks_fit and missing:
        raise VerifyError(f"{func.name}: the sizes {missing} are not known from the arrays")
    for buffer, array in pairs:
        fits = ranks_fit and array.dtype == buffer.dtype.numpy
        if not fits or array.shape != shape_at(buffer, sizes):
            raise InputError(f"{buffer} does not fit an array {array.dtype}{list(array.shape)}")
    return sizes


def _solved(dim: Expr, unknown: Var, value: int, sizes: Mapping[Var, int]) -> int | None:
    """The value of the unknown that makes an affine dimension have its value."""
    first, second, third = (evaluate(dim, {**sizes, unknown: x}) for x in range(3))
    step = second - first
    if step == 0 or third - second != step or (value - first) % step:
        return None
    candidate = (value - first) // step
    return candidate if evaluate(dim, {**sizes, unknown: candidate}) == value else None


def find_sizes(func: PrimFunc) -> tuple[Var, ...]:
    """The variables in the shapes of buffers and the bounds of loops, without those of loops, each
    once, in order of appearance."""
    loops = [s for s in statements(func.body) if isinstance(s, For)]
    own = {loop.var for loop in loops}
    exprs = [d for b in (*func.params, *func.allocs) for d in b.shape]
    exprs += [e for loop in loops for e in (loop.min, loop.extent)]
    symbolic = [e for e in exprs if not isinstance(e, IntImm)]
    return tuple(dict.fromkeys(v for e in symbolic for v in variables(e) if v not in own))
