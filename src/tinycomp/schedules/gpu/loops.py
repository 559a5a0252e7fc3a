"""Building hand-written loops of a GPU kernel (`te.extern`), in scheduled form: loops over threads
follow each other, and each reads as a parallel loop that ends before the next begins."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.expr import Var, const
from ...tir.nodes import For, ForKind, Stmt
from ..loops import allocated, inside, loop, rolled, unrolled, vector

__all__ = [
    "allocated",
    "blocks",
    "inside",
    "loop",
    "rolled",
    "rows_of",
    "threads",
    "unrolled",
    "vector",
]


def threads(rows: int, columns: int, body: Callable[[Var, Var], Stmt]) -> Stmt:
    """All threads of a block: threadIdx.y and threadIdx.x."""
    y, x = Var("y"), Var("x")
    inner = For(x, const(0), const(columns), body(y, x), ForKind.THREAD, "threadIdx.x")
    return For(y, const(0), const(rows), inner, ForKind.THREAD, "threadIdx.y")


def rows_of(rows: int, body: Callable[[Var], Stmt]) -> Stmt:
    """What the threads of each threadIdx.y do together."""
    y = Var("y")
    return For(y, const(0), const(rows), body(y), ForKind.THREAD, "threadIdx.y")


def blocks(count: int, body: Callable[[Var], Stmt]) -> Stmt:
    """A launch of `count` blocks."""
    block = Var("block")
    return For(block, const(0), const(count), body(block), ForKind.THREAD, "blockIdx.x")
