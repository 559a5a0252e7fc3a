"""Where a kernel keeps its intermediate buffers: on the stack, or at offsets in a workspace.

The sizes of buffers may be symbolic. Then offsets and totals are expressions over the function's
sizes; the kernel computes them, and its caller provides as much memory as they come to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..ir.expr import Expr, IntImm, as_int
from ..te.simplify import Analyzer
from ..tir.nodes import Alloc, Buffer, For, ForKind, Scope, Stmt

STACK_LIMIT = 256 * 1024
"""Bytes up to which a LOCAL buffer is put on the stack, later into registers if it can be."""

Bytes = int | Expr
"""A number of bytes, or how it follows from the sizes of a function."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Byte offsets of the buffers that a kernel keeps in memory, shared or one copy per thread."""

    shared: Mapping[Buffer, Bytes]
    private: Mapping[Buffer, Bytes]
    shared_bytes: Bytes
    private_bytes: Bytes

    @property
    def is_empty(self) -> bool:
        return self.shared_bytes == 0 and self.private_bytes == 0


def is_symbolic(buffer: Buffer) -> bool:
    """Whether the shape of a buffer is known only in a call."""
    return not all(isinstance(d, IntImm) for d in buffer.shape)


def num_elements(buffer: Buffer) -> int:
    """The elements of a buffer of known size."""
    return math.prod(as_int(d) for d in buffer.shape)


def buffer_bytes(buffer: Buffer) -> int:
    return num_elements(buffer) * buffer.dtype.itemsize


def buffer_end(buffer: Buffer, alignment: int) -> Bytes:
    """The bytes of a buffer, rounded up; equal symbolic numbers are the same object."""
    if not is_symbolic(buffer):
        return -(-buffer_bytes(buffer) // alignment) * alignment
    nbytes = math.prod(buffer.shape[1:], start=buffer.shape[0]) * buffer.dtype.itemsize
    return Analyzer().simplify((nbytes + (alignment - 1)) // alignment * alignment)


def on_stack(buffer: Buffer) -> bool:
    if buffer.scope is not Scope.LOCAL or is_symbolic(buffer):
        return False
    return buffer_bytes(buffer) <= STACK_LIMIT


def plan_workspace(body: Stmt) -> Workspace:
    """Offsets for every buffer that is not on the stack.

    Buffers that exist at the same time never overlap, so that accesses to different ones commute;
    those of statements that run one after the other take the same place.
    """
    together: tuple[dict[Buffer, set[Buffer]], dict[Buffer, set[Buffer]]] = ({}, {})
    work: list[tuple[Stmt, bool, tuple[Buffer, ...]]] = [(body, False, ())]
    while work:
        stmt, private, around = work.pop()
        if isinstance(stmt, Alloc) and not on_stack(stmt.buffer):
            together[private].setdefault(stmt.buffer, set()).update(around)
            around = (*around, stmt.buffer)
        private = private or (isinstance(stmt, For) and stmt.kind is ForKind.PARALLEL)
        work.extend((c, private, around) for c in reversed(stmt.children()) if isinstance(c, Stmt))
    shared, shared_bytes = _placed(together[False])
    private_, private_bytes = _placed(together[True])
    return Workspace(shared, private_, shared_bytes, private_bytes)


def _placed(together: dict[Buffer, set[Buffer]]) -> tuple[Mapping[Buffer, Bytes], Bytes]:
    """For each buffer the lowest offset at which it overlaps none that exists together with it,
    and the end of all. Those of symbolic size come last."""
    offsets: dict[Buffer, int] = {}
    for buffer, around in together.items():
        if is_symbolic(buffer):
            continue
        rivals = [b for b in offsets if b in around or buffer in together[b]]
        start, size = 0, _end({buffer: 0})
        for rival in sorted(rivals, key=lambda b: offsets[b]):
            if start + size <= offsets[rival]:
                break
            start = max(start, _end({rival: offsets[rival]}))
        offsets[buffer] = start
    symbolic, end = _placed_behind(_end(offsets), together)
    return {**offsets, **symbolic}, end


@dataclass(slots=True)
class _Slot:
    """A place for buffers of one symbolic size that never exist together."""

    offset: Bytes
    size: Bytes
    buffers: list[Buffer] = field(default_factory=list)


def _placed_behind(
    start: int, together: dict[Buffer, set[Buffer]]
) -> tuple[dict[Buffer, Bytes], Bytes]:
    """Offsets of the buffers of symbolic size from `start` on, and their end."""
    slots: list[_Slot] = []
    offsets: dict[Buffer, Bytes] = {}
    end: Bytes = start
    for buffer in filter(is_symbolic, together):
        size = buffer_end(buffer, 64)
        free = (
            slot
            for slot in slots
            if slot.size is size
            and not any(b in together[buffer] or buffer in together[b] for b in slot.buffers)
        )
        slot = next(free, None)
        if slot is None:
            slot = _Slot(end, size)
            slots.append(slot)
            end = end + size
        slot.buffers.append(buffer)
        offsets[buffer] = slot.offset
    return offsets, end


def _end(offsets: dict[Buffer, int]) -> int:
    """The first byte after all buffers, a multiple of 64."""
    return max((at + -(-buffer_bytes(b) // 64) * 64 for b, at in offsets.items()), default=0)
