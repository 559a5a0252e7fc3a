"""Simplification of a function: every expression by what the loops around it say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...ir.expr import TRUE, Broadcast, Expr, IntImm, Load, all_of, const
from ...te.simplify import Analyzer
from ..nodes import For, If, PrimFunc, Stmt, Store
from .visit import (
    NOTHING,
    Visit,
    conjuncts,
    drive,
    is_nothing,
    make_if,
    rebuild_stmt,
    rewriter,
    substituter,
)


def simplify(func: PrimFunc) -> PrimFunc:
    """Bring expressions to normal form, resolve decided Ifs, drop loops of one or no iteration."""
    analyzer = Analyzer(func.sizes)
    values: dict[Any, Expr] = {}  # of the variables of loops with one iteration
    substitute = substituter(values)
    unmask = rewriter(_unmasked)

    def simple(expr: Any, facts: dict[Expr, Expr]) -> Any:
        result = unmask(analyzer.simplify(substitute(expr) if values else expr))
        return analyzer.simplify(substituter(facts)(result)) if facts else result

    def visit(stmt: Stmt, facts: dict[Expr, Expr]) -> Visit[Stmt]:
        if isinstance(stmt, For):
            return (yield loop(stmt, facts))
        if isinstance(stmt, If):
            condition = all_of(simple(c, facts) for c in conjuncts(stmt.condition))
            if isinstance(condition, IntImm):
                kept = stmt.then if condition.value else stmt.otherwise
                return NOTHING if kept is None else (yield visit(kept, facts))
            inside = facts | dict.fromkeys(conjuncts(condition), TRUE)
            then = yield visit(stmt.then, inside)
            otherwise = None if stmt.otherwise is None else (yield visit(stmt.otherwise, facts))
            if condition is stmt.condition and then is stmt.then and otherwise is stmt.otherwise:
                return stmt
            return make_if(condition, then, otherwise)
        children = []
        for child in stmt.children():
            if isinstance(child, Stmt):
                children.append((yield visit(child, facts)))
            else:
                children.append(simple(child, facts))
        return _unmasked(rebuild_stmt(stmt, children))

    def loop(stmt: For, facts: dict[Expr, Expr]) -> Visit[Stmt]:
        low, extent = simple(stmt.min, facts), simple(stmt.extent, facts)
        if isinstance(extent, IntImm) and extent.value <= 0:
            return NOTHING
        if isinstance(extent, IntImm) and extent.value == 1 and not stmt.thread:
            values[stmt.var] = low
            return (yield visit(stmt.body, facts))
        analyzer.bind(stmt.var, low, extent)
        body = yield visit(stmt.body, facts)
        return NOTHING if is_nothing(body) else rebuild_stmt(stmt, [low, extent, body])

    body = drive(visit(func.body, {}))
    return func if body is func.body else replace(func, body=body)


def _unmasked(node: Any) -> Any:
    """A load or store without a predicate that is the same in all lanes."""
    if not isinstance(node, Load | Store) or node.predicate is None:
        return node
    mask = node.predicate.value if isinstance(node.predicate, Broadcast) else node.predicate
    if not isinstance(mask, IntImm):
        return node
    if isinstance(node, Store):
        return replace(node, predicate=None) if mask.value else NOTHING
    if mask.value:
        return Load(node.source, node.indices, None)
    zero = const(0, node.dtype)
    return Broadcast(zero, node.lanes) if node.lanes > 1 else zero
