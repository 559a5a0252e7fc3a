"""One place in shared memory for buffers that are not needed at the same time.

alloc a: shared                        a at 0, c at 0
alloc c: shared                        for k: ... a ...
  for k: ... a ...               -->   barrier
  c = ...                              c = ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ...ir.expr import Expr, Load, as_int
from ..nodes import Alloc, Buffer, For, PrimFunc, Scope, Seq, Stmt, Store
from ..tree import loads_in, stores_in
from .barriers import BARRIER, SYNCHRONIZED, is_barrier
from .visit import rewriter

ALIGNMENT = 128  # bytes: a row of the banks
IN_BLOCK = (Scope.SHARED, Scope.CLUSTER)
"""Scopes of what is in the shared memory of blocks."""


def share_memory(func: PrimFunc) -> PrimFunc:
    """Give the shared buffers of every launch offsets, after each other or in the same place.

    Buffers live from the first to the last statement of the threads' program that touches them.
    Before a statement that takes memory over, all threads meet.
    """
    around: list[Alloc] = []
    body = func.body
    while isinstance(body, Alloc) and body.buffer.scope is Scope.GLOBAL:  # between launches
        around.append(body)
        body = body.body
    result = Seq(tuple(map(_launch, body.stmts))) if isinstance(body, Seq) else _launch(body)
    for alloc in reversed(around):
        result = replace(alloc, body=result)
    return replace(func, body=result)


def size_of(buffer: Buffer) -> int:
    """Bytes of a buffer of known shape in one block, rounded up to whole vectors."""
    shape = shape_in_block(buffer)
    return -(-math.prod(as_int(d) for d in shape) * buffer.dtype.itemsize // 16) * 16


def shape_in_block(buffer: Buffer) -> tuple[Expr, ...]:
    """The shape of the part that one block has."""
    return buffer.shape[1:] if buffer.scope is Scope.CLUSTER else buffer.shape


def shared_bytes(buffers: Iterable[Buffer]) -> int:
    """Bytes of shared memory for all these buffers of one launch."""
    end = apart = 0
    for buffer in buffers:
        if buffer.offset is None:
            apart += size_of(buffer)
        else:
            end = max(end, buffer.offset + size_of(buffer))
    return end + apart


@dataclass
class _Life:
    """A buffer, and the statements between which it is in use."""

    buffer: Buffer
    first: int
    last: int
    offset: int = 0

    def meets(self, other: _Life) -> bool:
        return self.first <= other.last and other.first <= self.last

    def overlaps(self, other: _Life) -> bool:
        end, other_end = (one.offset + size_of(one.buffer) for one in (self, other))
        return self.offset < other_end and other.offset < end


def _launch(root: Stmt) -> Stmt:
    program = root
    while isinstance(program, Alloc) or (isinstance(program, For) and program.thread):
        program = program.body
    if not isinstance(program, Seq):
        return root
    lives = _lives(program)
    if len(lives) < 2:
        return root
    _place(lives)
    stmts = _with_barriers(program, lives)
    moved = {one.buffer: replace(one.buffer, offset=one.offset) for one in lives}

    def change(node: Any) -> Any:
        if isinstance(node, Load) and node.source in moved:
            return Load(moved[node.source], node.indices, node.predicate)
        if isinstance(node, Store | Alloc) and node.buffer in moved:
            return replace(node, buffer=moved[node.buffer])
        if isinstance(node, For) and SYNCHRONIZED in node.annotations:
            own = tuple(moved.get(b, b) for b in node.annotations[SYNCHRONIZED])
            return replace(node, annotations={**node.annotations, SYNCHRONIZED: own})
        return node

    def around(stmt: Stmt) -> Stmt:
        """The nest of threads and allocations, with the new program inside."""
        outer: list[Any] = []
        while stmt is not program:
            outer.append(stmt)
            stmt = stmt.body  # type: ignore[attr-defined]
        result: Stmt = Seq(stmts)
        for one in reversed(outer):
            result = replace(one, body=result)
        return result

    return rewriter(change)(around(root))


def _lives(program: Seq) -> list[_Life]:
    found: dict[Buffer, _Life] = {}
    for position, stmt in enumerate(program.stmts):
        touched = {s.buffer for s in stores_in(stmt)} | {load.source for load in loads_in(stmt)}
        for buffer in touched:
            if buffer.scope is Scope.SHARED:
                life = found.setdefault(buffer, _Life(buffer, position, position))
                life.last = position
    return list(found.values())


def _place(lives: list[_Life]) -> None:
    """The lowest free offset for each, the largest first."""
    placed: list[_Life] = []
    for one in sorted(lives, key=lambda life: (-size_of(life.buffer), life.first)):
        near = sorted((p for p in placed if p.meets(one)), key=lambda p: p.offset)
        one.offset = 0
        for other in near:
            if one.overlaps(other):
                end = other.offset + size_of(other.buffer)
                one.offset = -(-end // ALIGNMENT) * ALIGNMENT
        placed.append(one)


def _with_barriers(program: Seq, lives: list[_Life]) -> tuple[Stmt, ...]:
    before: set[int] = set()
    for one in lives:
        for other in lives:
            if other.last < one.first and one.overlaps(other):
                between = program.stmts[other.last + 1 : one.first]
                if not any(is_barrier(s) for s in between):
                    before.add(one.first)
    stmts: list[Stmt] = []
    for position, stmt in enumerate(program.stmts):
        stmts += [BARRIER, stmt] if position in before else [stmt]
    return tuple(stmts)


__all__ = ["IN_BLOCK", "shape_in_block", "share_memory", "shared_bytes", "size_of"]
