"""Software pipelines: shared buffers are filled for later iterations while one is computed.

A loop with `pipeline` = d, whose iterations first copy to shared buffers and then compute, keeps d
versions of these buffers. Copies of 4, 8 or 16 bytes as they are run beside the threads
(cp.async, PTX ISA); what needs registers on the way is loaded before the computation and stored
after it:

    for k in range(n):            S: d versions
      S = A[k]                    for s in range(d - 1): async S[s] = A[s]; commit
      compute(S)          -->     for k in range(n):
                                    wait(d - 2); barrier
                                    if k + d - 1 < n: async S[(k + d - 1) % d] = A[k + d - 1]
                                    commit
                                    compute(S[k % d])

One barrier is enough: after it every thread has seen its copies for iteration k arrive, and has
finished iteration k - 1, whose version is written next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...diagnostics import ScheduleError
from ...dtype import DType
from ...ir.expr import Call, Expr, Load, Var, as_int, const, is_const
from ...ir.node import postorder
from ...te.simplify import Analyzer
from ..nodes import (
    Alloc,
    Async,
    Block,
    Buffer,
    Evaluate,
    For,
    ForKind,
    PrimFunc,
    Scope,
    Seq,
    Stmt,
    Store,
)
from ..tree import (
    blocks_in,
    loads_in,
    loop_of,
    path_to,
    replace_stmt,
    statements,
    stores_in,
    written_buffers,
)
from .barriers import BARRIER, SYNCHRONIZED
from .visit import Visit, copy, drive, make_if, rebuilt, rewriter, seq, substituter, uses

PIPELINE = "pipeline"  # annotation of a loop: versions of its buffers
ONLY = "pipeline_buffers"  # annotation beside it: their names, if not all
COMMIT = Evaluate(Call("async_commit", (), DType.BOOL))
_COPIES = (4, 8, 16)  # bytes of an asynchronous copy


def wait(groups: int) -> Stmt:
    """Wait until at most the latest `groups` groups of copies are under way."""
    return Evaluate(Call("async_wait", (const(groups),), DType.BOOL))


def mark_double_buffers(func: PrimFunc) -> PrimFunc:
    """Give the loop in which a `double_buffer` stage is filled and read a pipeline of depth 2."""
    marked: dict[Stmt, tuple[str, ...]] = {}
    for block in blocks_in(func.body):
        if not block.annotations.get("double_buffer"):
            continue
        own = set(written_buffers(block))
        loop = _common_loop(func, block, own)
        if loop is not None and PIPELINE not in loop.annotations:
            marked[loop] = (*marked.get(loop, ()), *(b.name for b in own))

    for loop, names in marked.items():
        assert isinstance(loop, For)
        current = loop_of(func, loop.var)
        notes = {**current.annotations, PIPELINE: 2, ONLY: names}
        func = replace_stmt(func, current, replace(current, annotations=notes))
    return func


def _common_loop(func: PrimFunc, block: Block, buffers: set[Buffer]) -> For | None:
    """The innermost serial loop around a stage and all that reads it."""
    common = path_to(func.body, lambda s: s is block) or []
    for reader in blocks_in(func.body):
        if any(load.source in buffers for load in loads_in(reader)):
            path = path_to(func.body, lambda s, reader=reader: s is reader) or []
            same = sum(1 for a, b in zip(common, path, strict=False) if a is b)
            common = common[:same] if reader is not block else common
    loops = [s for s in common if isinstance(s, For) and s.kind is ForKind.SERIAL]
    return loops[-1] if loops else None


def pipeline(func: PrimFunc) -> PrimFunc:
    """Carry out the pipelines that loops are marked with; after buffers have been placed.

    Raises:
        ScheduleError: no statement of such a loop fills a shared buffer from other memory.
    """
    if not any(PIPELINE in s.annotations for s in statements(func.body) if isinstance(s, For)):
        return func
    analyzer = Analyzer(func.sizes)
    for stmt in statements(func.body):
        if isinstance(stmt, For):
            analyzer.bind(stmt.var, stmt.min, stmt.extent)

    def visit(stmt: Stmt, repeated: bool) -> Visit[Stmt]:
        serial = isinstance(stmt, For) and not stmt.thread
        result = yield rebuilt(stmt, lambda child: visit(child, repeated or serial))
        if isinstance(result, For) and PIPELINE in result.annotations:
            return _Loop(func, result, analyzer).pipelined(repeated)
        return result

    return replace(func, body=drive(visit(func.body, False)))


@dataclass(frozen=True)
class _Copy:
    """A statement that fills shared buffers."""

    stmt: Stmt
    is_async: bool


class _Loop:
    def __init__(self, func: PrimFunc, loop: For, analyzer: Analyzer) -> None:
        self.func, self.loop, self.analyzer = func, loop, analyzer
        self.depth: int = loop.annotations[PIPELINE]
        self.allocs: list[Buffer] = []
        body = loop.body
        while isinstance(body, Alloc):
            self.allocs.append(body.buffer)
            body = body.body
        stmts = body.stmts if isinstance(body, Seq) else (body,)
        self.buffers = self._filled(stmts)
        self.copies = [s for s in stmts if self.buffers & set(written_buffers(s))]
        self.rest = seq(s for s in stmts if s not in self.copies)
        if not self.copies:
            raise ScheduleError(
                f"{func.name}: nothing in the loop over {loop.var.name!r} fills a shared buffer "
                "from other memory",
                hint="compute stages in shared memory at the loop that is pipelined",
                span=func.span,
            )
        self.versions = {
            b: replace(b, shape=(const(self.depth), *b.shape)) for b in self.allocs
            if b in self.buffers
        }  # fmt: skip

    def _filled(self, stmts: Sequence[Stmt]) -> set[Buffer]:
        """Shared buffers that only copies from elsewhere write."""
        wanted = {b for b in self.allocs if b.scope is Scope.SHARED}
        names = self.loop.annotations.get(ONLY)
        if names is not None:
            wanted = {b for b in wanted if b.name in names}
        written = {b for s in stmts for b in written_buffers(s)}
        for stmt in stmts:
            own = set(written_buffers(stmt))
            if not own <= wanted or any(load.source in written for load in loads_in(stmt)):
                wanted -= own
        return wanted

    def pipelined(self, repeated: bool) -> Stmt:
        loop, ahead = self.loop, self.depth - 1
        copies = [_Copy(s, self._is_async(s)) for s in self.copies]
        k = loop.var
        stage = (k - loop.min) % self.depth
        end = loop.min + loop.extent
        has_async = any(c.is_async for c in copies)
        parts: list[Stmt] = [BARRIER] if repeated else []
        for step in range(ahead):
            filled = [self._fill(c, loop.min + step, const(step)) for c in copies]
            parts.append(make_if(self._simple(loop.min + step < end), seq(filled)))
            parts += [COMMIT] * has_async
        later, target = k + ahead, (k - loop.min + ahead) % self.depth
        more = later < end
        body: list[Stmt] = [wait(self.depth - 2)] * has_async + [BARRIER]
        after: list[Stmt] = []
        spaces: list[Buffer] = []
        for one in copies:
            if one.is_async:
                body.append(make_if(more, self._fill(one, later, target)))
            else:
                space, load, store = self._through_registers(one.stmt, later, target)
                spaces.append(space)
                body.append(make_if(more, load))
                after.append(make_if(more, store))
        body += [COMMIT] * has_async
        stmt = seq([*body, self._versioned(self.rest, stage), *after])
        for space in spaces:
            stmt = Alloc(space, stmt)
        for buffer in reversed(self.allocs):
            stmt = stmt if buffer in self.versions else Alloc(buffer, stmt)
        notes = {n: v for n, v in loop.annotations.items() if n not in (PIPELINE, ONLY)}
        notes[SYNCHRONIZED] = tuple(self.versions.values())
        result = seq([*parts, replace(loop, body=stmt, annotations=notes)])
        for version in self.versions.values():
            result = Alloc(version, result)
        return result

    def _simple(self, expr: Expr) -> Expr:
        return self.analyzer.simplify(expr)

    def _versioned(self, stmt: Stmt, stage: Expr) -> Stmt:
        """`stmt` on one version of the buffers."""

        def change(node: Any) -> Any:
            if isinstance(node, Load) and node.source in self.versions:
                return Load(self.versions[node.source], (stage, *node.indices), node.predicate)
            if isinstance(node, Store) and node.buffer in self.versions:
                return replace(
                    node, buffer=self.versions[node.buffer], indices=(stage, *node.indices)
                )
            return node

        return rewriter(change)(stmt)

    def _fill(self, one: _Copy, iteration: Expr, stage: Expr) -> Stmt:
        """The copies of an iteration, to one version."""
        stmt = substituter({self.loop.var: iteration})(copy(one.stmt))
        stmt = self._versioned(stmt, self._simple(stage))
        return Async(stmt) if one.is_async else stmt

    def _through_registers(
        self, stmt: Stmt, iteration: Expr, stage: Expr
    ) -> tuple[Buffer, Stmt, Stmt]:
        """A copy in two halves: into registers of the thread, and from there."""
        (store,) = stores_in(stmt)
        loops = [s for s in statements(stmt) if isinstance(s, For)]
        shape = tuple(loop.extent for loop in loops)
        space = Buffer(f"{store.buffer.name}.next", shape, store.buffer.dtype, Scope.LOCAL)
        place = tuple(loop.var - loop.min for loop in loops)

        def change(new: Store) -> Any:
            written = substituter({store: new})(_written_out(stmt))
            return substituter({self.loop.var: iteration})(copy(written))

        into = replace(store, buffer=space, indices=place)
        out = replace(store, value=Load(space, place, None))
        return space, change(into), self._versioned(change(out), stage)

    # -- what can be copied asynchronously -----------------------------------------------------

    def _is_async(self, stmt: Stmt) -> bool:
        return all(self._copies(stmt, store) for store in stores_in(stmt))

    def _copies(self, stmt: Stmt, store: Store) -> bool:
        """Whether a store moves 4, 8 or 16 aligned bytes as they are, or zeros in their place."""
        value, conditions = store.value, []
        while (
            isinstance(value, Call) and value.name == "if_then_else" and is_const(value.args[2], 0)
        ):
            conditions.append(value.args[0])
            value = value.args[1]
        if not isinstance(value, Load) or value.dtype is not store.buffer.dtype:
            return False
        if value.source.scope is not Scope.GLOBAL or any(_reads(c) for c in conditions):
            return False
        lanes = [
            s for s in statements(stmt)
            if isinstance(s, For) and s.kind is ForKind.VECTORIZED and uses(store, [s.var])
        ]  # fmt: skip
        count = math.prod(as_int(s.extent) for s in lanes)
        if count * value.dtype.itemsize not in _COPIES or len(lanes) > 1:
            return False
        if not lanes:
            return True
        var = lanes[0].var
        return not uses(conditions, [var]) and all(
            self._is_run(buffer, indices, var, count)
            for buffer, indices in (
                (value.source, value.indices), (store.buffer, store.indices)
            )
        )  # fmt: skip

    def _is_run(self, buffer: Buffer, indices: Sequence[Expr], lane: Var, count: int) -> bool:
        """Whether the lanes are neighbours, from a multiple of their number on."""
        flat: Expr = const(0)
        for index, extent in zip(indices, buffer.shape, strict=True):
            flat = flat * extent + index
        first = substituter({lane: const(0)})(flat)
        step = self._simple(flat - first - lane)
        return is_const(step, 0) and self.analyzer.proves((first % count).equal(0))


def _written_out(stmt: Stmt) -> Stmt:
    """Loops over registers are unrolled, so that their indices are known."""

    def change(node: Any) -> Any:
        serial = isinstance(node, For) and node.kind is ForKind.SERIAL
        return replace(node, kind=ForKind.UNROLLED) if serial else node

    return rewriter(change)(stmt)


def _reads(expr: Expr) -> bool:
    return any(isinstance(n, Load) for n in postorder(expr))


__all__ = ["COMMIT", "PIPELINE", "mark_double_buffers", "pipeline", "wait"]
