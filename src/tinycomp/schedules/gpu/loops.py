"""Building hand-written loops of a GPU kernel (`te.extern`), in scheduled form: loops over threads
follow each other, and each reads as a parallel loop that ends before the next begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ...ir.expr import Binary, BinaryOp, Expr, Var, const
from ...tir.nodes import Alloc, Buffer, For, ForKind, Stmt

Body = Callable[[Any], Stmt]


def loop(name: str, extent: Expr | int, body: Body, kind: ForKind = ForKind.SERIAL) -> For:
    """A loop whose body is made from its variable."""
    var = Var(name)
    extent = const(extent) if isinstance(extent, int) else extent
    return For(var, const(0), extent, body(var), kind)


def rolled(name: str, extent: int, body: Body) -> Stmt:
    """A loop that the CUDA compiler may not write out: its loads would fill the registers."""
    return replace(loop(name, extent, body), annotations={"unroll": 1})


def unrolled(name: str, extent: int, body: Body) -> Stmt:
    return body(const(0)) if extent == 1 else loop(name, extent, body, ForKind.UNROLLED)


def vector(name: str, extent: int, body: Body) -> Stmt:
    return body(const(0)) if extent == 1 else loop(name, extent, body, ForKind.VECTORIZED)


def threads(rows: int, columns: int, body: Callable[[Var, Var], Stmt]) -> Stmt:
    """All threads of a block: threadIdx.y and threadIdx.x."""
    y, x = Var("y"), Var("x")
    inner = For(x, const(0), const(columns), body(y, x), ForKind.THREAD, "threadIdx.x")
    return For(y, const(0), const(rows), inner, ForKind.THREAD, "threadIdx.y")


def rows_of(rows: int, body: Callable[[Var], Stmt]) -> Stmt:
    """What the threads of each threadIdx.y do together."""
    y = Var("y")
    return For(y, const(0), const(rows), body(y), ForKind.THREAD, "threadIdx.y")


def allocated(buffers: Sequence[Buffer], stmt: Stmt) -> Stmt:
    """`stmt` with scratch memory around it."""
    for buffer in reversed(buffers):
        stmt = Alloc(buffer, stmt)
    return stmt


def inside(place: Expr, count: int, fits: bool, step: int = 1) -> tuple[Expr, list[Expr]]:
    """`place`, or the last one of `count` where it lies outside; and the condition for that."""
    if fits:
        return place, []
    return Binary(BinaryOp.MIN, place, const(count - step)), [place < count]
