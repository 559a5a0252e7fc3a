"""Which intermediate buffers each thread can keep for itself, and which the block must share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...diagnostics import ScheduleError
from ...ir.expr import Call, Expr, Load, Var, const
from ...ir.node import postorder, rewrite
from ...te.simplify import Analyzer
from ..nodes import (
    ONCE,
    ONCE_PER_CLUSTER,
    Alloc,
    Buffer,
    For,
    If,
    PrimFunc,
    Scope,
    Seq,
    Stmt,
    Store,
)
from ..primitives.annotate import CLUSTER
from ..region import Interval, interval, union
from ..tree import child_statements, map_buffers, statements
from .lower_blocks import CARRIES
from .visit import seq, substituter

MAX_LOCAL = 1024
"""Elements of a buffer that one thread may hold; more would overflow the registers anyway."""


_WITHIN_GRID = ("cluster", "threadIdx")
# Marks of what one thread, or block, does for all; and the memory of which each has its own.
_SEEN_BY_ALL = {ONCE: (Scope.LOCAL,), ONCE_PER_CLUSTER: (Scope.LOCAL, Scope.SHARED)}


@dataclass
class _Accesses:
    loads: list[tuple[Expr, ...]] = field(default_factory=list)
    stores: list[tuple[Expr, ...]] = field(default_factory=list)
    roots: set[Stmt] = field(default_factory=set)


def place_buffers(func: PrimFunc) -> PrimFunc:
    """Choose the scope of every intermediate buffer, after `bind_threads`.

    A buffer that several launches use is in global memory. One of which each thread reads only
    what it wrote itself is LOCAL; any other is SHARED, also where the schedule said local. What
    the schedule keeps in the registers of a warp stays there.

    Raises:
        ScheduleError: a warp reads registers of another, or a block of a cluster what is in the
            shared memory of another.
    """
    roots = func.body.stmts if isinstance(func.body, Seq) else (func.body,)
    found: defaultdict[Buffer, _Accesses] = defaultdict(_Accesses)
    analyzer = Analyzer(func.sizes)
    axes: dict[Var, For] = {}
    for root in roots:
        _collect(root, set(func.allocs), found, analyzer, axes)
    threads = set(axes)
    moved: dict[Buffer, Buffer] = {}
    inner = _intervals(func.body)
    for buffer in func.allocs:
        accesses = found[buffer]
        if buffer.scope is Scope.SHARED:
            _require_one_launch(func, buffer, accesses)
        if buffer.scope is Scope.SHARED:
            _require_own_block(func, buffer, accesses, inner, axes, analyzer)
        if buffer.scope in (Scope.SHARED, Scope.CLUSTER) or not accesses.roots:
            continue
        scope = Scope.GLOBAL
        if len(accesses.roots) == 1:
            private = _is_private(accesses, inner, threads, analyzer)
            if buffer.scope is Scope.WARP:
                _require_private(func, buffer, private)
                continue
            scope = Scope.LOCAL if private else Scope.SHARED
            if not private:
                _require_own_block(func, buffer, accesses, inner, axes, analyzer)
        if scope is not buffer.scope:
            moved[buffer] = replace(buffer, scope=scope)
    allocs = tuple(moved.get(b, b) for b in func.allocs)
    body = map_buffers(func.body, moved) if moved else func.body

    def step(node: Any) -> Any:
        if isinstance(node, For) and CARRIES in node.annotations:
            carried = tuple(moved.get(b, b) for b in node.annotations[CARRIES])
            return replace(node, annotations={**node.annotations, CARRIES: carried})
        return _decide_once(node)

    return replace(func, body=rewrite(body, step), allocs=allocs)


def _require_private(func: PrimFunc, buffer: Buffer, private: bool) -> None:
    if not private:
        raise ScheduleError(
            f"{func.name}: a warp reads parts of {buffer.name!r} that another warp wrote, but they "
            "are in registers",
            hint="let the stages that write and read it divide it among warps in the same way",
            span=func.span,
        )


def _require_own_block(
    func: PrimFunc,
    buffer: Buffer,
    accesses: _Accesses,
    inner: dict[Var, Interval],
    axes: Mapping[Var, For],
    analyzer: Analyzer,
) -> None:
    """The blocks of a cluster may read only their own parts of what is in shared memory."""
    blocks = {var for var, axis in axes.items() if axis.thread == CLUSTER}
    threads = {v: (a.min, a.min + a.extent - 1) for v, a in axes.items() if v not in blocks}
    if blocks and not _is_private(accesses, {**inner, **threads}, blocks, analyzer):
        raise ScheduleError(
            f"{func.name}: a block of a cluster reads parts of {buffer.name!r} that another one "
            "wrote to its own shared memory",
            hint=f"let the stages that write and read it divide it along {CLUSTER} in the same way",
            span=func.span,
        )


def _require_one_launch(func: PrimFunc, buffer: Buffer, accesses: _Accesses) -> None:
    if len(accesses.roots) > 1:
        raise ScheduleError(
            f"{func.name}: {buffer.name!r} is in the shared memory of a block, but "
            f"{len(accesses.roots)} nests at the root use it, which are kernels of their own",
            hint="compute_at places it inside the loops over blocks of the nest that reads it; "
            'set_scope(..., "global") keeps it between kernels',
            span=func.span,
        )


def _decide_once(node: Any) -> Any:
    """What one thread was to do for all is done by each of them for memory of its own."""
    if not isinstance(node, If) or not isinstance(node.condition, Call):
        return node
    if node.condition.name not in _SEEN_BY_ALL:
        return node
    separate = _SEEN_BY_ALL[node.condition.name]
    condition = node.condition.args[0]
    own = {s.buffer for s in statements(node.then) if isinstance(s, Alloc)}

    def is_private(stmt: Stmt) -> bool:
        if not isinstance(stmt, Store) or stmt.buffer in own:
            return False
        return stmt.buffer.scope in separate

    def guarded(stmt: Any) -> Any:
        return If(condition, stmt) if isinstance(stmt, Store) and not is_private(stmt) else stmt

    parts = node.then.stmts if isinstance(node.then, Seq) else (node.then,)
    return seq(
        rewrite(s, guarded) if any(map(is_private, statements(s))) else If(condition, s)
        for s in parts
    )


def _collect(
    root: Stmt,
    wanted: set[Buffer],
    found: defaultdict[Buffer, _Accesses],
    analyzer: Analyzer,
    axes: dict[Var, For],
) -> None:
    for stmt in statements(root):
        if isinstance(stmt, For):
            analyzer.bind(stmt.var, stmt.min, stmt.extent)
            if stmt.thread.startswith(_WITHIN_GRID):
                axes[stmt.var] = stmt
        if isinstance(stmt, Store) and stmt.buffer in wanted:
            found[stmt.buffer].stores.append(stmt.indices)
            found[stmt.buffer].roots.add(root)
        inside = set(child_statements(stmt))
        for node in postorder([c for c in stmt.children() if c not in inside]):
            if isinstance(node, Load) and node.source in wanted:
                found[node.source].loads.append(node.indices)
                found[node.source].roots.add(root)


def _intervals(body: Stmt) -> dict[Var, Interval]:
    """The ranges of the loops of one thread: what is not a thread axis."""
    return {
        s.var: (s.min, s.min + s.extent - 1)
        for s in statements(body)
        if isinstance(s, For) and not s.thread.startswith(("blockIdx", *_WITHIN_GRID))
    }


def _is_private(
    accesses: _Accesses, inner: dict[Var, Interval], threads: set[Var], analyzer: Analyzer
) -> bool:
    """Whether each thread loads only elements that it stored itself.

    In every dimension all stores must have the same part that depends on the thread, and loads
    the same too, over no wider a range; a dimension that no store divides among threads is whole
    in every thread, and may be read at any place.
    """
    zero = substituter({v: const(0) for v in threads})
    rank = len(accesses.stores[0]) if accesses.stores else 0
    for d in range(rank):
        stores = [i[d] for i in accesses.stores]
        loads = [i[d] for i in accesses.loads]
        own = {analyzer.simplify(s - zero(s)) for s in stores}
        if len(own) != 1:
            return False
        part = own.pop()
        divided = any(isinstance(n, Var) for n in postorder(part))
        if not divided:
            continue
        if any(analyzer.simplify(x - zero(x)) is not part for x in loads):
            return False
        written = _range([zero(s) for s in stores], inner, analyzer)
        read = _range([zero(x) for x in loads], inner, analyzer)
        if written is None or read is None:
            return bool(not loads)
        if not (analyzer.proves(written[0] <= read[0]) and analyzer.proves(read[1] <= written[1])):
            return False
    return True


def _range(
    exprs: Iterable[Expr], inner: dict[Var, Interval], analyzer: Analyzer
) -> Interval | None:
    bounds: Interval | None = None
    for expr in exprs:
        found = interval(expr, inner, analyzer)
        if found is None:
            return None
        bounds = found if bounds is None else union(bounds, found, analyzer)
    return bounds
