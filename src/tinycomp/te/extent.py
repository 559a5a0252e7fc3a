"""Sizes that a user gives."""

from __future__ import annotations

from ..diagnostics import TinycompError
from ..dtype import DType
from ..ir.expr import Expr, ExprLike, as_expr


def as_extent(value: ExprLike, of: str) -> Expr:
    """A dimension or an end of a domain.

    Raises:
        TinycompError: it is not int64, such as a variable of another dtype or a float.
    """
    extent = as_expr(value)
    if extent.dtype is not DType.INT64:
        raise TinycompError(
            f"{of}: the size {extent} is {extent.dtype}, and sizes are int64",
            hint='make symbolic sizes by te.var("n"), and divide whole numbers by //',
        )
    return extent
