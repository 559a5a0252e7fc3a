"""Loops that `pragma "auto_unroll_max_step"` lets be unrolled where they are short.

    for i in range(8):  # auto_unroll_max_step=16        for i in range(8):
        for j in range(4):                         -->       for j in unrolled(4):
            B[i, j] = A[i, j]                                    B[i, j] = A[i, j]

The number bounds the statements that one loop becomes, with all loops inside it (TVM's UnrollLoop).
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.expr import IntImm
from ..nodes import For, ForKind, PrimFunc, Stmt
from ..tree import statements
from .visit import Visit, drive, rebuild_stmt

MAX_STEP = "auto_unroll_max_step"


def auto_unroll(func: PrimFunc) -> PrimFunc:
    """Mark serial loops as unrolled that are at, or inside, a loop with the annotation `MAX_STEP`
    and become at most so many statements; inner loops first."""
    if not any(isinstance(s, For) and MAX_STEP in s.annotations for s in statements(func.body)):
        return func
    sizes: dict[Stmt, int] = {}  # statements after unrolling, at least 1

    def visit(stmt: Stmt, limit: int) -> Visit[Stmt]:
        if isinstance(stmt, For):
            limit = int(stmt.annotations.get(MAX_STEP, limit))
        children = []
        for child in stmt.children():
            if isinstance(child, Stmt):
                child = yield visit(child, limit)
            children.append(child)
        result = rebuild_stmt(stmt, children)
        size = max(1, sum(sizes[c] for c in children if isinstance(c, Stmt)))
        if isinstance(result, For) and isinstance(result.extent, IntImm):
            steps = size * result.extent.value
            if result.kind is ForKind.SERIAL and steps <= limit:
                result = replace(result, kind=ForKind.UNROLLED)
            if result.kind is ForKind.UNROLLED:
                size = max(1, steps)
        sizes[result] = size
        return result

    return replace(func, body=drive(visit(func.body, 0)))
