"""Loops shortened to the iterations that their guard admits."""

from __future__ import annotations

from dataclasses import replace

from ...ir.expr import Expr, IntImm, all_of, const
from ...te.simplify import Analyzer
from ..nodes import For, If, PrimFunc, Stmt
from .guards import guard_of, is_comparison
from .visit import NOTHING, Visit, conjuncts, drive, make_if, rebuilt


def trim_loops(func: PrimFunc) -> PrimFunc:
    """Loops of any kind over `if i < 5: body` run 5 iterations without the guard.

    The guard must be the whole body, compare with constants only, and have no else branch.
    """
    analyzer = Analyzer(func.sizes)

    def visit(stmt: Stmt) -> Visit[Stmt]:
        if isinstance(stmt, For):
            analyzer.bind(stmt.var, stmt.min, stmt.extent)
        result = yield rebuilt(stmt, visit)
        return _trimmed(result, analyzer) if isinstance(result, For) else result

    body = drive(visit(func.body))
    return func if body is func.body else replace(func, body=body)


def _trimmed(loop: For, analyzer: Analyzer) -> Stmt:
    guard = loop.body
    if not isinstance(guard, If) or guard.otherwise is not None or loop.thread:
        return loop
    if not isinstance(loop.min, IntImm) or not isinstance(loop.extent, IntImm):
        return loop
    start, stop = loop.min.value, loop.min.value + loop.extent.value
    kept: list[Expr] = []
    for condition in conjuncts(guard.condition):
        found = None
        if is_comparison(condition):
            found = guard_of(condition, loop.var, set(), analyzer)
        if found is None or found.rest is not None:
            kept.append(condition)
        elif found.coefficient > 0:
            start = max(start, found.boundaries()[0])
        else:
            stop = min(stop, found.boundaries()[0])
    if len(kept) == len(conjuncts(guard.condition)):
        return loop
    if start >= stop:
        return NOTHING
    body = make_if(all_of(kept), guard.then)
    return replace(loop, min=const(start), extent=const(stop - start), body=body)
