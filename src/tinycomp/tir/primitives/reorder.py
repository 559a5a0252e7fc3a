"""reorder: nested loops change places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...diagnostics import ScheduleError
from ...ir.expr import Var
from ..nodes import PrimFunc, Stmt
from ..tree import replace_stmt
from .common import chain


def reorder(func: PrimFunc, axes: Sequence[Var]) -> PrimFunc:
    """Put the given loops in this order; loops between them that are not named stay in place.

        for i: for j: for k: body    --reorder(k, i)-->    for k: for j: for i: body

    Reduction axes may move outside spatial ones: the block's initialisation follows them.
    """
    if len(set(axes)) != len(axes):
        raise ScheduleError(f"reorder({', '.join(a.name for a in axes)}): an axis is named twice")
    if len(axes) < 2:
        return func
    nest = chain(func, axes, "reorder")
    headers = {loop.var: loop for loop in nest}
    order = iter(axes)
    placed = [headers[next(order)] if loop.var in axes else loop for loop in nest]
    body: Stmt = nest[-1].body
    for loop in reversed(placed):
        body = replace(loop, body=body)
    return replace_stmt(func, nest[0], body)
