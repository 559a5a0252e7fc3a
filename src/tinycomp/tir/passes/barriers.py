"""Barriers between statements of a block that depend on each other through memory.

S[t] = A[t]                 S[t] = A[t]
B[t] = S[7 - t]     -->     barrier()
                            B[t] = S[7 - t]

Memory that the blocks of a cluster share needs barriers of the whole cluster. Besides, a block may
reach for the memory of another only while that one runs: after all have begun, of which each tells
the others right at its start, and until all have met after the last such access.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ...diagnostics import ScheduleError
from ...dtype import DType
from ...ir.expr import Call, Load, Var
from ...ir.node import postorder
from ..nodes import (
    Alloc,
    Buffer,
    Collective,
    Evaluate,
    For,
    If,
    PrimFunc,
    Scope,
    Seq,
    Stmt,
    Store,
)
from ..primitives.annotate import CLUSTER
from ..tree import loads_in, statements, stores_in
from .visit import Visit, drive, make_if, rebuilt

BARRIER = Evaluate(Call("barrier", (), DType.BOOL))
CLUSTER_ARRIVE = Evaluate(Call("cluster_arrive", (), DType.BOOL))
CLUSTER_WAIT = Evaluate(Call("cluster_wait", (), DType.BOOL))
CLUSTER_BARRIER = (CLUSTER_ARRIVE, CLUSTER_WAIT)
"""What all threads of a cluster did before they arrived can be seen after they have waited."""
_COMMON = (Scope.SHARED, Scope.CLUSTER, Scope.GLOBAL)
SYNCHRONIZED = "synchronized"  # annotation of a loop: buffers for which it has its own barriers


@dataclass
class _Pending:
    """Buffers touched since the last barrier."""

    read: set[Buffer] = field(default_factory=set)
    written: set[Buffer] = field(default_factory=set)

    def conflicts(self, other: _Pending) -> bool:
        return bool(other.read & self.written or other.written & (self.written | self.read))

    def add(self, other: _Pending) -> None:
        self.read |= other.read
        self.written |= other.written

    def clear(self) -> None:
        """All threads of the cluster have met."""
        self.read, self.written = set(), set()

    def clear_block(self) -> None:
        """The threads of a block have met."""
        self.read = {b for b in self.read if b.scope is Scope.CLUSTER}
        self.written = {b for b in self.written if b.scope is Scope.CLUSTER}

    def in_cluster(self) -> _Pending:
        """The part that is in memory of the cluster."""
        return _Pending(
            {b for b in self.read if b.scope is Scope.CLUSTER},
            {b for b in self.written if b.scope is Scope.CLUSTER},
        )


def is_barrier(stmt: Stmt) -> bool:
    return (
        isinstance(stmt, Evaluate) and isinstance(stmt.value, Call) and stmt.value.name == "barrier"
    )


def insert_barriers(func: PrimFunc) -> PrimFunc:
    """Put a barrier before every statement that depends on what other threads of the block did
    since the last one: reads what they wrote, or writes what they read or wrote.

    Memory is told apart by buffers, not by elements. A barrier stands where all threads pass: an
    `if` that depends on the thread is taken apart around it. Barriers that are there already
    count, and buffers of a loop that has all it needs (`SYNCHRONIZED`) get no more.

    Raises:
        ScheduleError: a dependence lies inside a loop whose length depends on the thread.
    """
    around: list[Alloc] = []
    body = func.body
    while isinstance(body, Alloc):
        around.append(body)
        body = body.body
    roots = body.stmts if isinstance(body, Seq) else (body,)
    done = tuple(_launch(func, root) for root in roots)
    result = Seq(done) if isinstance(body, Seq) else done[0]
    for alloc in reversed(around):
        result = replace(alloc, body=result)
    return replace(func, body=result)


def _launch(func: PrimFunc, root: Stmt) -> Stmt:
    """One launch, after which everything is visible to the next."""
    inserter = _Inserter(func, root)
    if not inserter.threads:
        return root
    result = drive(inserter.visit(root))
    return inserter.within_lifetimes(result) if inserter.begun else result


class _Inserter:
    def __init__(self, func: PrimFunc, root: Stmt) -> None:
        self.func = func
        self.pending = _Pending()
        self.threads = {
            s.var
            for s in statements(root)
            if isinstance(s, For) and s.thread.startswith(("threadIdx", "cluster"))
        }
        written = {s.buffer for s in statements(root) if isinstance(s, Store)}
        loops = [s for s in statements(root) if isinstance(s, For)]
        done = {b for loop in loops for b in loop.annotations.get(SYNCHRONIZED, ())}
        self.common = {b for b in written - done if b.scope in _COMMON}
        self.memo: dict[Stmt, _Pending] = {}
        self.rank = next((s.var for s in loops if s.thread == CLUSTER), None)
        self.begun = False  # whether all blocks of the cluster have
        self.reaching = False  # whether they touched each other's memory since they met

    def visit(self, stmt: Stmt) -> Visit[Stmt]:
        straight = isinstance(stmt, Seq | Alloc) or (isinstance(stmt, For) and stmt.thread)
        if not straight and not self.begun and self.in_cluster(stmt):
            self.begun = True
            return Seq((CLUSTER_WAIT, *_flat((yield self.visit(stmt)))))
        if isinstance(stmt, For) and not stmt.thread:
            return (yield self.loop(stmt))
        if isinstance(stmt, Seq):
            parts = []
            for child in stmt.stmts:
                parts.append((yield self.visit(child)))
            return Seq(tuple(p for part in parts for p in _flat(part)))
        if isinstance(stmt, If):
            return (yield self.branch(stmt))
        if isinstance(stmt, Store | Evaluate | Collective):
            return self.leaf(stmt)
        return (yield rebuilt(stmt, self.visit))

    def leaf(self, stmt: Stmt) -> Stmt:
        if is_barrier(stmt):
            self.pending.clear_block()
            return stmt
        uses = self.uses(stmt)
        barrier: tuple[Stmt, ...] = ()
        if self.pending.in_cluster().conflicts(uses.in_cluster()):
            barrier = CLUSTER_BARRIER
            self.pending.clear()
            self.reaching = False
        elif self.pending.conflicts(uses):
            barrier = (BARRIER,)
            self.pending.clear_block()
        self.pending.add(uses)
        self.reaching |= any(block is not self.rank for block in self.in_cluster(stmt))
        return Seq((*barrier, stmt)) if barrier else stmt

    def in_cluster(self, stmt: Stmt) -> list[Any]:
        """The blocks whose shared memory a statement touches as that of a cluster."""
        if self.rank is None:
            return []
        places = [(s.buffer, s.indices) for s in stores_in(stmt)]
        places += [(load.source, load.indices) for load in loads_in(stmt)]
        return [at[0] for buffer, at in places if buffer.scope is Scope.CLUSTER]

    def within_lifetimes(self, root: Stmt) -> Stmt:
        """Let blocks live as long as others may reach for their memory."""
        axes: list[For] = []
        while isinstance(root, For) and root.thread:
            axes.append(root)
            root = root.body
        end = CLUSTER_BARRIER if self.reaching else ()
        result: Stmt = Seq((CLUSTER_ARRIVE, *_flat(root), *end))
        for axis in reversed(axes):
            result = replace(axis, body=result)
        return result

    def uses(self, stmt: Stmt) -> _Pending:
        """What a statement reads and writes of the memory that threads share."""
        if stmt not in self.memo:
            found = _Pending()
            for inner in statements(stmt):
                if isinstance(inner, Store) and inner.buffer in self.common:
                    found.written.add(inner.buffer)
                own = [c for c in inner.children() if not isinstance(c, Stmt)]
                for node in postorder(own):
                    if isinstance(node, Load) and node.source in self.common:
                        found.read.add(node.source)
            self.memo[stmt] = found
        return self.memo[stmt]

    def conflicts_inside(self, stmt: Stmt) -> bool:
        """Whether statements inside depend on each other, in one run or from one iteration of a
        loop to the next."""
        uses = self.uses(stmt)
        if not uses.written:
            return False
        leaves = sum(
            1
            for s in statements(stmt)
            if isinstance(s, Store | Evaluate) and (self.uses(s).read or self.uses(s).written)
        )
        return leaves > 1 and bool(uses.written & uses.read)

    def loop(self, stmt: For) -> Visit[Stmt]:
        """A loop runs after itself: what the end of its body leaves meets its beginning."""
        if not self.conflicts_inside(stmt):
            return self.leaf(stmt)
        if not self.is_uniform(stmt.min) or not self.is_uniform(stmt.extent):
            raise ScheduleError(
                f"{self.func.name}: threads depend on each other inside the loop over "
                f"{stmt.var.name!r}, whose length differs between them",
                hint="bind a loop of constant extent",
                span=self.func.span,
            )
        before = _Pending(set(self.pending.read), set(self.pending.written))
        yield self.visit(stmt.body)
        self.pending.add(before)
        body = yield self.visit(stmt.body)
        return replace(stmt, body=body)

    def branch(self, stmt: If) -> Visit[Stmt]:
        if not self.conflicts_inside(stmt):
            return self.leaf(stmt)
        if self.is_uniform(stmt.condition):
            then = yield self.visit(stmt.then)
            otherwise = None
            if stmt.otherwise is not None:
                otherwise = yield self.visit(stmt.otherwise)
            return make_if(stmt.condition, then, otherwise)
        # All threads must reach the barriers inside: the condition moves down to the leaves.
        if stmt.otherwise is not None or _reads_written(stmt):
            raise ScheduleError(
                f"{self.func.name}: threads depend on each other under a condition that differs "
                "between them",
                excerpt="\n".join(str(stmt).splitlines()[:17]),
                span=self.func.span,
            )
        return (yield self.visit(_sink(stmt)))

    def is_uniform(self, expr: Any) -> bool:
        """Whether all threads of a block see the same value."""
        return not any(
            isinstance(n, Load) or (isinstance(n, Var) and n in self.threads)
            for n in postorder(expr)
        )


def _reads_written(stmt: If) -> bool:
    written = {s.buffer for s in statements(stmt.then) if isinstance(s, Store)}
    return any(isinstance(n, Load) and n.source in written for n in postorder(stmt.condition))


def _sink(stmt: If) -> Stmt:
    """`if c: {a; b}` as `if c: a; if c: b`, and into loops and allocations."""
    body = stmt.then
    if isinstance(body, Seq):
        return Seq(tuple(If(stmt.condition, s) for s in body.stmts))
    if isinstance(body, For | Alloc):
        return replace(body, body=If(stmt.condition, body.body))
    if isinstance(body, If) and body.otherwise is None:
        return If(stmt.condition & body.condition, body.then)
    return stmt


def _flat(stmt: Stmt) -> tuple[Stmt, ...]:
    return stmt.stmts if isinstance(stmt, Seq) else (stmt,)


__all__ = ["BARRIER", "insert_barriers", "is_barrier"]
