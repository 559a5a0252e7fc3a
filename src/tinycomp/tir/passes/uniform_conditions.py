"""Conditions that are the same in all lanes of a vector, written so that this shows.

for v in vectorized(4):                        for v in vectorized(4):
  if t * 4 + v < 512: S[t * 4 + v] = 0   -->     if t < 128: S[t * 4 + v] = 0
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeGuard

from ...dtype import DType
from ...ir.expr import Binary, BinaryOp, Expr, IntImm, Var, const
from ...ir.node import postorder
from ...te.simplify import Analyzer
from ..nodes import For, ForKind, PrimFunc, Stmt
from .visit import Visit, drive, rebuilt, substituter, uses

_CONNECTIVES = (BinaryOp.AND, BinaryOp.OR)
_MAX_LANES = 64


def uniform_conditions(func: PrimFunc) -> PrimFunc:
    """Replace comparisons that agree in all iterations of a VECTORIZED loop by that of the first.

    A vector whose guards do not depend on the lane is loaded and stored whole. Comparisons are
    proved equal by simplification: 4 t + 3 < 512 is t < 128, as is 4 t < 512.
    """
    analyzer = Analyzer(func.sizes)

    def visit(stmt: Stmt) -> Visit[Stmt]:
        if isinstance(stmt, For):
            analyzer.bind(stmt.var, stmt.min, stmt.extent)
        result = yield rebuilt(stmt, visit)
        if isinstance(result, For) and result.kind is ForKind.VECTORIZED:
            return _uniform(result, analyzer)
        return result

    body = drive(visit(func.body))
    return func if body is func.body else replace(func, body=body)


def is_condition(node: Any) -> TypeGuard[Expr]:
    """Whether an expression is a comparison."""
    return isinstance(node, Binary) and node.dtype is DType.BOOL and node.op not in _CONNECTIVES


def _uniform(loop: For, analyzer: Analyzer) -> For:
    if not isinstance(loop.extent, IntImm) or loop.extent.value > _MAX_LANES:
        return loop
    first: dict[Any, Any] = {}
    for node in postorder(loop.body):
        if is_condition(node) and uses(node, [loop.var]):
            same = _in_every_lane(node, loop.var, loop.min, loop.extent.value, analyzer)
            if same is not None:
                first[node] = same
    return replace(loop, body=substituter(first)(loop.body)) if first else loop


def _in_every_lane(node: Expr, var: Var, low: Expr, lanes: int, analyzer: Analyzer) -> Expr | None:
    """What the comparison is in each lane, if that is the same."""
    first: Expr | None = None
    for lane in reversed(range(lanes)):  # the last lane is the likeliest to differ
        value = analyzer.simplify(substituter({var: low + const(lane, var.dtype)})(node))
        if first is None:
            first = value
        elif value is not first:
            return None
    return first
