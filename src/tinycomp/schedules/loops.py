"""Building hand-written loops (`te.extern`), in scheduled form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..ir.expr import Binary, BinaryOp, Expr, Var, const
from ..ops.shape import unravel
from ..tir.nodes import Alloc, Buffer, For, ForKind, Stmt

Body = Callable[[Any], Stmt]
Place = Callable[..., tuple[Expr, ...]]
"""Indices of an element, from some coordinates."""


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


def around_axis(shape: Sequence[int], axis: int) -> Place:
    """Indices of an element of `shape` from its (row-major) place before the axis, its place on
    the axis and that behind the axis."""
    before, after = shape[:axis], shape[axis + 1 :]

    def place(outer: Expr, at: Expr, inner: Expr) -> tuple[Expr, ...]:
        return (*unravel(outer, before), at, *unravel(inner, after))

    return place
