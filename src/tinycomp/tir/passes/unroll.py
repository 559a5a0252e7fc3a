"""Unrolled loops written out."""

from __future__ import annotations

from dataclasses import replace

from ...ir.expr import IntImm
from ..nodes import For, ForKind, PrimFunc, Stmt
from .visit import Visit, drive, rebuild_stmt, seq, substituter

MAX_STATEMENTS = 2048  # of one loop written out; larger ones stay loops


def unroll(func: PrimFunc) -> PrimFunc:
    """Replace UNROLLED loops, and loops of one iteration, by their iterations.

    Inner loops first, so that the iterations of an outer one share rewritten subexpressions. A
    loop that would become too long, or whose length is not known, runs serially.
    """
    sizes: dict[Stmt, int] = {}  # statements inside, at least 1

    def visit(stmt: Stmt) -> Visit[Stmt]:
        children = []
        for child in stmt.children():
            if isinstance(child, Stmt):
                child = yield visit(child)
            children.append(child)
        result = rebuild_stmt(stmt, children)
        size = max(1, sum(sizes[c] for c in children if isinstance(c, Stmt)))
        if isinstance(result, For):
            result, times = _written_out(result, size)
            size *= times
        sizes[result] = size
        return result

    body = drive(visit(func.body))
    return func if body is func.body else replace(func, body=body)


def _written_out(loop: For, size: int) -> tuple[Stmt, int]:
    """The iterations of the loop and their number; the loop itself and 1 if it stays."""
    known = isinstance(loop.extent, IntImm)
    count = loop.extent.value if isinstance(loop.extent, IntImm) else 0
    if loop.kind is not ForKind.UNROLLED and not (known and count == 1 and not loop.thread):
        return loop, 1
    if not known or count * size > MAX_STATEMENTS:
        return replace(loop, kind=ForKind.SERIAL), 1
    return seq(substituter({loop.var: loop.min + i})(loop.body) for i in range(count)), count
