"""Loops that stream through memory fetch ahead of themselves."""

from __future__ import annotations

from dataclasses import replace

from ...dtype import DType
from ...ir.expr import Call, Expr, Load, Ramp, Var, const, substitute, variables
from ...ir.node import postorder, rewrite
from ..nodes import Evaluate, For, PrimFunc, Seq, Stmt


def prefetch(func: PrimFunc) -> PrimFunc:
    """Loops with `pragma "prefetch"`, a pair (buffer name, iterations ahead), get prefetches of
    the vectors that they will load from that buffer.

        for k in range(K):                     for k in range(K):
          C = C + A[k] * B[k, 0:16]    -->       prefetch(B[k + 40, 0])
                                                 C = C + A[k] * B[k, 0:16]

    Near the end of the loop this reaches past the row, into the next one: for packed operands that
    is what comes next in memory. Addresses past the buffer are harmless to fetch.
    """

    def step(node: Stmt) -> Stmt:
        if not isinstance(node, For) or "prefetch" not in node.annotations:
            return node
        name, ahead = node.annotations["prefetch"]
        fetches = tuple(
            Evaluate(Call("prefetch", (target,), target.dtype))
            for target in _streams(node, name, ahead)
        )
        kept = {k: v for k, v in node.annotations.items() if k != "prefetch"}
        return replace(node, body=Seq((*fetches, node.body)), annotations=kept)

    body = rewrite(func.body, step)
    return func if body is func.body else replace(func, body=body)


def _streams(loop: For, name: str, ahead: int) -> list[Load]:
    """The first elements of the loop's vector loads from a buffer, `ahead` iterations on."""
    assert isinstance(loop.var, Var)
    later: dict[Var, Expr] = {loop.var: loop.var + const(ahead, DType.INT64)}
    found: dict[Load, None] = {}
    for node in postorder(loop.body):
        if not isinstance(node, Load) or node.source.name != name or node.lanes == 1:
            continue
        if all(loop.var not in variables(i) for i in node.indices):
            continue
        first = tuple(i.base if isinstance(i, Ramp) else i for i in node.indices)
        if all(i.lanes == 1 for i in first):
            found[Load(node.source, tuple(substitute(i, later) for i in first), None)] = None
    return list(found)
