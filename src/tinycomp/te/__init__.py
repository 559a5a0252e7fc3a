"""Tensor expressions: `from tinycomp import te`.

The names are TVM's. `sum`, `min`, `max`, `all` and `any` here are reductions.
"""

from ..ir.expr import Expr, Var, call, cast, const, if_then_else, select
from .reducers import all, any, comm_reducer, max, min, prod, sum  # noqa: A004
from .tensor import (
    ComputeOp,
    ExternOp,
    IterKind,
    IterVar,
    PlaceholderOp,
    Reduce,
    ScanOp,
    Tensor,
    compute,
    extern,
    placeholder,
    reduce_axis,
    scan,
    topological,
    var,
)

__all__ = [
    "ComputeOp", "Expr", "ExternOp", "IterKind", "IterVar", "PlaceholderOp", "Reduce", "ScanOp",
    "Tensor", "Var", "all", "any", "call", "cast", "comm_reducer", "compute", "const", "extern",
    "if_then_else", "max", "min", "placeholder", "prod", "reduce_axis", "scan", "select", "sum",
    "topological", "var",
]  # fmt: skip
