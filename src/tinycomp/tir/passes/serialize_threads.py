"""Loops over GPU thread axes as ordinary loops, for targets without such threads."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

from ...ir.node import rewrite
from ..nodes import Collective, For, ForKind, PrimFunc, Stmt
from ..tree import statements


def serialize_threads(func: PrimFunc) -> PrimFunc:
    """Blocks and threads run one after the other; `inject_virtual_threads` sees to virtual ones.

        for i in thread(8, "threadIdx.x"): body    -->    for i in range(8): body

    Cooperative loading stays correct: a copy by threads is a loop of its own, which ends before
    the loop over the threads that read it starts. What a warp does together becomes the loops
    that say what it computes.
    """

    def step(node: Stmt) -> Stmt:
        if isinstance(node, Collective):
            return node.body
        return replace(node, kind=ForKind.SERIAL, thread="") if _is_thread(node) else node

    if not any(_is_thread(s) or isinstance(s, Collective) for s in statements(func.body)):
        return func
    return replace(func, body=rewrite(func.body, step))


def _is_thread(stmt: Stmt) -> TypeGuard[For]:
    if not isinstance(stmt, For) or stmt.kind is not ForKind.THREAD:
        return False
    return not stmt.thread.startswith("vthread")
