"""compute_inline: a stage disappears into its readers."""

from __future__ import annotations

from dataclasses import replace

from ...diagnostics import ScheduleError
from ...ir.expr import Load, substitute
from ...ir.fold import refold
from ...ir.node import Node, fold
from ..nodes import PrimFunc, Store
from ..tree import block_of, replace_stmt
from .compute_at import own_nest


def compute_inline(func: PrimFunc, block_name: str) -> PrimFunc:
    """Replace every read of a stage by the expression that computes it.

        for i: B[i] = A[i] * 2
        for i: C[i] = B[i] + 1      -->     for i: C[i] = A[i] * 2 + 1

    Raises:
        ScheduleError: the stage is a reduction, an output, or several statements.
    """
    block = block_of(func, block_name)
    store = block.body
    if not isinstance(store, Store) or block.init is not None:
        raise ScheduleError(
            f"compute_inline({block_name}): a reduction cannot be inlined, each read would repeat it",
            hint="use compute_at to compute it where it is needed",
        )
    if store.buffer in func.params:
        raise ScheduleError(f"compute_inline({block_name}): it is an output of {func.name}")
    axes = [v.var for v in block.iter_vars]

    def step(node: Node, children: list) -> Node:
        node = refold(node, children)
        if isinstance(node, Load) and node.source is store.buffer:
            return substitute(store.value, dict(zip(axes, node.indices, strict=True)))
        return node

    func = replace_stmt(func, own_nest(func, block), None)
    allocs = tuple(b for b in func.allocs if b is not store.buffer)
    return replace(func, body=fold(func.body, step), allocs=allocs)
