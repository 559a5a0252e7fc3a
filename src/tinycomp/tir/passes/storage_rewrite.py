"""Intermediate buffers of disjoint lifetimes share memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...ir.expr import Expr, IntImm, Load, const
from ...ir.fold import refold
from ...ir.node import fold, postorder
from ..nodes import Alloc, Buffer, PrimFunc, Scope, Seq, Stmt, Store
from .visit import rebuild_stmt


@dataclass
class _Slot:
    """Memory that several buffers use one after the other."""

    buffers: list[Buffer]
    free_after: int  # the last statement that uses it

    @property
    def elements(self) -> int:
        return max(_elements(b) for b in self.buffers)

    def storage(self) -> Buffer:
        """The buffer in place of all: of their common shape, or one-dimensional."""
        first = self.buffers[0]
        if all(b.shape == first.shape for b in self.buffers):
            return first
        return replace(first, shape=(const(self.elements),))


def storage_rewrite(func: PrimFunc) -> PrimFunc:
    """Buffers in workspace that are allocated together share memory if they have one dtype and no
    statement of the sequence inside comes between the first and last use of both.

        alloc B[8], C[4, 2], D[8] in:              alloc B[8] in:
          B = f(A)                                   B = f(A)
          C = g(B)                        -->        alloc C[4, 2] in:
          D = h(C)                                     C = g(B)
          out = D                                      B = h(C)
                                                       out = B

    Buffers of different shapes share one of one dimension, with row-major positions in it. Small
    local buffers are left to the code generator, which puts them into registers.
    """

    def step(node: Any, children: list[Any]) -> Any:
        if not isinstance(node, Stmt):
            return node
        if not isinstance(node, Alloc):  # else the outermost of the chain is yet to come
            children = [_shared_chain(c) if isinstance(c, Alloc) else c for c in children]
        return rebuild_stmt(node, children)

    body = fold(func.body, step)
    body = _shared_chain(body) if isinstance(body, Alloc) else body
    return func if body is func.body else replace(func, body=body)


def _shared_chain(outermost: Alloc) -> Stmt:
    """Allocs directly inside each other, fewer where buffers share. Only what is inside changes:
    a copy of the loops around may allocate the same buffers, and use them in another way."""
    chain = _chain(outermost)
    shared = _sharing(chain)
    if not shared:
        return outermost
    body = _moved(chain[-1].body, shared)
    for alloc in reversed(chain):
        body = _without(alloc.buffer, body, shared)
    return body


def _chain(alloc: Alloc) -> list[Alloc]:
    """An Alloc and those directly inside."""
    chain = [alloc]
    while isinstance(chain[-1].body, Alloc):
        chain.append(chain[-1].body)
    return chain


def _sharing(chain: Sequence[Alloc]) -> dict[Buffer, Buffer]:
    """The storage of each buffer that shares it, by first fit in the order of first uses."""
    body = chain[-1].body
    wanted = [a.buffer for a in chain if _can_share(a.buffer)]
    if not isinstance(body, Seq) or len(wanted) < 2:
        return {}
    spans = _spans(body, set(wanted))
    slots: list[_Slot] = []
    for buffer in sorted(spans, key=lambda b: spans[b][0]):
        first, last = spans[buffer]
        free = [
            s
            for s in slots
            if s.free_after < first
            and s.buffers[0].dtype is buffer.dtype
            and s.buffers[0].scope is buffer.scope
        ]
        if free:
            best = min(free, key=lambda s: abs(s.elements - _elements(buffer)))
            best.buffers.append(buffer)
            best.free_after = last
        else:
            slots.append(_Slot([buffer], last))
    shared: dict[Buffer, Buffer] = {}
    for slot in slots:
        if len(slot.buffers) > 1:
            shared.update(dict.fromkeys(slot.buffers, slot.storage()))
    return shared


def _can_share(buffer: Buffer) -> bool:
    return buffer.scope is Scope.GLOBAL and all(isinstance(d, IntImm) for d in buffer.shape)


def _elements(buffer: Buffer) -> int:
    count = 1
    for extent in buffer.shape:
        count *= extent.value  # type: ignore[attr-defined]
    return count


def _spans(body: Seq, wanted: set[Buffer]) -> dict[Buffer, tuple[int, int]]:
    """The first and last statement of the sequence that uses each buffer."""
    spans: dict[Buffer, tuple[int, int]] = {}
    for position, stmt in enumerate(body.stmts):
        for node in postorder(stmt):
            buffer = node.source if isinstance(node, Load) else getattr(node, "buffer", None)
            if buffer in wanted:
                spans[buffer] = spans.get(buffer, (position, 0))[0], position
    return spans


def _without(buffer: Buffer, body: Stmt, shared: Mapping[Buffer, Buffer]) -> Stmt:
    """The Alloc of a buffer, unless another Alloc brings its storage."""
    storage = shared.get(buffer)
    if storage is None:
        return Alloc(buffer, body)
    owner = next(b for b, s in shared.items() if s is storage)
    return Alloc(storage, body) if owner is buffer else body


def _moved(root: Stmt, shared: Mapping[Buffer, Buffer]) -> Stmt:
    def step(node: Any, children: list[Any]) -> Any:
        if not isinstance(node, Stmt):
            result = refold(node, children)
            if isinstance(result, Load) and result.source in shared:
                storage = shared[result.source]
                place = _place(result.source, storage, result.indices)
                return Load(storage, place, result.predicate)
            return result
        stmt = rebuild_stmt(node, children)
        if isinstance(stmt, Store) and stmt.buffer in shared:
            storage = shared[stmt.buffer]
            place = _place(stmt.buffer, storage, stmt.indices)
            return replace(stmt, buffer=storage, indices=place)
        return stmt

    return fold(root, step)


def _place(buffer: Buffer, storage: Buffer, indices: tuple[Expr, ...]) -> tuple[Expr, ...]:
    if storage.shape == buffer.shape:
        return indices
    position: Expr = const(0)
    for index, extent in zip(indices, buffer.shape, strict=True):
        position = position * extent + index
    return (position,)
