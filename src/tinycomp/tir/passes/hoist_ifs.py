"""Conditions that do not change in a loop move out of it."""

from __future__ import annotations

from dataclasses import replace

from ...ir.expr import all_of
from ..nodes import Alloc, For, If, PrimFunc, Stmt
from .visit import Visit, conjuncts, drive, make_if, reads_memory, rebuilt, uses


def hoist_ifs(func: PrimFunc) -> PrimFunc:
    """Move an If that is all of a loop's body (or of an Alloc's) outside, as far as it goes.

    Without an else branch, the conjuncts that do not mention the loop variable move alone.
    """

    def visit(stmt: Stmt) -> Visit[Stmt]:
        return _hoisted((yield rebuilt(stmt, visit)))

    body = drive(visit(func.body))
    return func if body is func.body else replace(func, body=body)


def _hoisted(stmt: Stmt) -> Stmt:
    if not isinstance(stmt, For | Alloc) or not isinstance(stmt.body, If):
        return stmt
    guard = stmt.body
    binder = [stmt.var] if isinstance(stmt, For) else []
    parts = conjuncts(guard.condition)
    free = [c for c in parts if not uses(c, binder) and not reads_memory(c)]
    if not free or (guard.otherwise is not None and len(free) < len(parts)):
        return stmt
    if guard.otherwise is not None:
        then, otherwise = replace(stmt, body=guard.then), replace(stmt, body=guard.otherwise)
        return make_if(guard.condition, then, otherwise)
    inside = make_if(all_of(c for c in parts if c not in free), guard.then)
    return make_if(all_of(free), replace(stmt, body=inside))
