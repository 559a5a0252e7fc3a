"""Loops over GPU thread axes as ordinary loops, for targets without such threads."""

from __future__ import annotations

from dataclasses import replace

from ...ir.expr import IntImm
from ...ir.node import rewrite
from ..nodes import Collective, For, ForKind, PrimFunc, Stmt
from ..tree import statements

_MOST_UNROLLED = 8  # iterations of a virtual thread axis that are written out


def serialize_threads(func: PrimFunc) -> PrimFunc:
    """Blocks and threads run one after the other; short virtual thread axes are unrolled.

        for i in thread(8, "threadIdx.x"): body    -->    for i in range(8): body

    Cooperative loading stays correct: a copy by threads is a loop of its own, which ends before
    the loop over the threads that read it starts. What a warp does together becomes the loops
    that say what it computes.
    """

    def step(node: Stmt) -> Stmt:
        if isinstance(node, Collective):
            return node.body
        if not isinstance(node, For) or node.kind is not ForKind.THREAD:
            return node
        short = isinstance(node.extent, IntImm) and node.extent.value <= _MOST_UNROLLED
        unrolled = node.thread.startswith("vthread") and short
        kind = ForKind.UNROLLED if unrolled else ForKind.SERIAL
        return replace(node, kind=kind, thread="")

    if not any(isinstance(s, For) and s.kind is ForKind.THREAD for s in statements(func.body)):
        return func
    return replace(func, body=rewrite(func.body, step))
