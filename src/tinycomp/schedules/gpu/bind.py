"""Binding loops to threads: flat for a stage, and by default for what nothing else bound."""

from __future__ import annotations

from dataclasses import replace

from ...diagnostics import ScheduleError
from ...ir.expr import Var, variables
from ...tir.nodes import For, PrimFunc, Scope, Seq, Stmt
from ...tir.primitives.annotate import bind
from ...tir.primitives.common import require_spatial
from ...tir.primitives.fuse import fuse
from ...tir.primitives.split import split
from ...tir.schedule import Stage
from ...tir.tree import blocks_in, loop_of, statements, written_buffers

THREADS = 256
"""Threads of a block without cooperation: enough warps to hide latency, few enough that several
blocks fit on a multiprocessor."""


def bind_flat(stage: Stage, axes: list[Var], threads: int = THREADS) -> Var:
    """Spread nested loops over all threads; returns the loop over the threads of a block."""
    fused = stage.fuse(*axes)
    block, thread = stage.split(fused, factor=threads)
    stage.bind(block, "blockIdx.x")
    stage.bind(thread, "threadIdx.x")
    return thread


def bind_unbound(func: PrimFunc) -> PrimFunc:
    """Bind the outer loops of every nest at the root that has no thread axis.

    Loops are taken as far as their iterations are independent of each other; a nest without such
    loops runs in one thread.
    """
    count = len(func.body.stmts) if isinstance(func.body, Seq) else 1
    for index in range(count):
        root = func.body.stmts[index] if isinstance(func.body, Seq) else func.body
        if not any(isinstance(s, For) and s.thread for s in statements(root)):
            func = _bind_nest(func, root)
    return func


def _bind_nest(func: PrimFunc, root: Stmt) -> PrimFunc:
    axes: list[Var] = []
    stmt = root
    while isinstance(stmt, For) and set(variables(stmt.extent)) <= set(func.sizes):
        try:
            require_spatial(func, stmt.var)
        except ScheduleError:
            break
        axes.append(stmt.var)
        stmt = stmt.body
    if not axes:
        return func
    func = _serial(func, axes)
    fused = axes[0]
    for axis in axes[1:]:
        func, fused = fuse(func, fused, axis)
    if _shares(func, fused):  # iterations with a tile each: a block for every one
        return bind(func, fused, "blockIdx.x")
    func, (block, thread) = split(func, fused, [None, THREADS])
    func = bind(func, block, "blockIdx.x")
    return bind(func, thread, "threadIdx.x")


def _shares(func: PrimFunc, axis: Var) -> bool:
    """Whether something inside the loop is computed in shared memory."""
    blocks = blocks_in(loop_of(func, axis).body)
    return any(b.scope is Scope.SHARED for block in blocks for b in written_buffers(block))


def _serial(func: PrimFunc, axes: list[Var]) -> PrimFunc:
    """Loops that were made parallel or unrolled, as plain ones."""
    from ...tir.nodes import ForKind
    from ...tir.tree import replace_stmt

    for axis in axes:
        loop = loop_of(func, axis)
        if loop.kind is not ForKind.SERIAL:
            func = replace_stmt(func, loop, replace(loop, kind=ForKind.SERIAL))
    return func
