"""cache_read, cache_write and set_scope: stage a buffer through another memory.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((8,), name="A")
>>> B = te.compute((8,), lambda i: A[i] + 1.0, name="B")
>>> s = create_schedule(B, [A])
>>> print(s.func.body)
for i in range(8):
    with block("B"): i = i
        B[i] = A[i] + 1f32
>>> AL = s.cache_read(A, "local", [B])
>>> BL = s.cache_write(B, "local")
>>> print(s.func.body)
for i0 in range(8):
    with block("A.local"): i0 = i0
        A.local[i0] = A[i0]
for i in range(8):
    with block("B.local"): i = i
        B.local[i] = A.local[i] + 1f32
for i in range(8):
    with block("B"): i = i
        B[i] = B.local[i]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...diagnostics import ScheduleError
from ...ir.expr import Load, Var, const, variables
from ...te.tensor import IterKind, IterVar
from ..nodes import Block, Buffer, For, PrimFunc, Scope, Seq, Stmt, Store
from ..tree import (
    block_of,
    blocks_in,
    loops_above,
    map_buffers,
    path_to,
    read_buffers,
    replace_at,
    replace_stmt,
    written_buffers,
)
from .common import (
    fresh_buffer_name,
    only_writer,
    own_loops,
    require_plain_store,
    result_buffers,
    root_of,
    unique,
    written_extents,
)
from .compute_at import exchange_buffers
from .step import Step

if TYPE_CHECKING:
    from ..schedule import CachedTensor, Schedule


@dataclass(frozen=True)
class CacheWrite(Step):
    NAME, OF_SCHEDULE = "cache_write", True
    scope: str = "local"

    def apply(self, schedule: Schedule) -> CachedTensor | list[CachedTensor]:
        scope = scope_of(self.scope)
        schedule.func, buffers = cache_write(schedule.func, self.stage, scope)
        handles = schedule.new_stages(buffers)
        return handles if len(handles) > 1 else handles[0]


@dataclass(frozen=True)
class CacheRead(Step):
    """`stage` is the name of the buffer that is read, which may be an input."""

    NAME, OF_SCHEDULE = "cache_read", True
    scope: str
    readers: tuple[str, ...]

    def apply(self, schedule: Schedule) -> CachedTensor:
        scope = scope_of(self.scope)
        buffer = schedule.buffer(self.stage)
        schedule.func, cached = cache_read(schedule.func, buffer, scope, self.readers)
        return schedule.new_stage(cached)


@dataclass(frozen=True)
class SetScope(Step):
    """`stage` is the name of the buffer."""

    NAME, OF_SCHEDULE = "set_scope", True
    scope: str

    def apply(self, schedule: Schedule) -> None:
        buffer = schedule.buffer(self.stage)
        schedule.func = set_scope(schedule.func, buffer, scope_of(self.scope))


def scope_of(name: str) -> Scope:
    """The scope of that name; ScheduleError if there is none."""
    if name not in set(Scope):
        raise ScheduleError(f"{name!r} is not a memory scope", hint=f"one of {', '.join(Scope)}")
    return Scope(name)


def copy_nest(
    sources: Sequence[Buffer], targets: Sequence[Buffer], name: str, axes: Sequence[str]
) -> Stmt:
    """Loops that copy each whole target, which have one shape, from its source."""
    names: list[str] = []
    for axis in axes:
        names.append(unique(axis, names))
    own = [Var(n) for n in names]
    shape = targets[0].shape
    iter_vars = tuple(IterVar(v, const(0), e) for v, e in zip(own, shape, strict=True))
    loops = [Var(n) for n in names]
    stores = [
        Store(target, tuple(own), Load(source, tuple(own), None))
        for source, target in zip(sources, targets, strict=True)
    ]
    body = stores[0] if len(stores) == 1 else Seq(tuple(stores))
    stmt: Stmt = Block(name, iter_vars, tuple(loops), body)
    for var, extent in zip(reversed(loops), reversed(shape), strict=True):
        stmt = For(var, const(0), extent, stmt)
    return stmt


def cache_write(func: PrimFunc, block_name: str, scope: Scope) -> tuple[PrimFunc, list[Buffer]]:
    """Compute a stage into buffers in `scope` first, one per output, then copy them out.

    Returns:
        The function and the new buffers. The block that now computes has the first one's name;
        the copying block keeps the name of the stage, and gets new loops over its axes.
    """
    block = only_writer(func, block_name)
    buffers = result_buffers(block)
    if any(v.kind is IterKind.ORDERED for v in block.iter_vars):
        raise ScheduleError(
            f"stage {block_name!r} is computed at each time of a scan",
            hint="only stages outside of scans have cached copies",
        )
    require_plain_store(block)
    root = root_of(func, block)
    for other in blocks_in(root):
        if other is not block and any(b in read_buffers(other) for b in buffers):
            raise ScheduleError(
                f"stage {block_name!r} is computed inside the loops of {other.name!r}",
                hint="call cache_write before compute_at",
            )
    # Not as large as the old ones, which may have been enlarged for a tile that reaches past.
    shape = tuple(v.extent for v in block.iter_vars if v.kind is IterKind.SPATIAL)
    cached = [
        Buffer(fresh_buffer_name(func, f"{old.name}.{scope}"), shape, old.dtype, scope)
        for old in buffers
    ]
    path = path_to(root, lambda s: s is block)
    assert path is not None
    moved: Any = map_buffers(block, dict(zip(buffers, cached, strict=True)))
    computing = replace_at(path, replace(moved, name=cached[0].name))
    axes = [v.name for v in block.iter_vars if v.kind is IterKind.SPATIAL]
    whole = [replace(old, shape=shape) for old in buffers]
    copying = copy_nest(cached, whole, block_name, axes)
    copying = map_buffers(copying, dict(zip(whole, buffers, strict=True)))
    func = replace_stmt(func, root, Seq((computing, copying)))
    return replace(func, allocs=(*func.allocs, *cached)), cached


def cache_read(
    func: PrimFunc, buffer: Buffer, scope: Scope, readers: Sequence[str]
) -> tuple[PrimFunc, Buffer]:
    """Copy a buffer into `scope` first and let the named blocks read the copy.

    Returns:
        The function and the new buffer; the copying block has its name.
    """
    if not readers:
        raise ScheduleError("no readers are given", hint="name the stages that read the copy")
    blocks = [block_of(func, name) for name in dict.fromkeys(readers)]
    for block in blocks:
        if buffer in written_buffers(block):
            raise ScheduleError(
                f"stage {block.name!r} computes {buffer.name!r} itself",
                hint="name stages that read it",
            )
        if buffer not in read_buffers(block):
            raise ScheduleError(
                f"stage {block.name!r} does not read {buffer.name!r}",
                hint=f"it reads {', '.join(b.name for b in read_buffers(block))}",
            )
    order = func.body.stmts if isinstance(func.body, Seq) else (func.body,)
    places = [next(i for i, s in enumerate(order) if s is root_of(func, b)) for b in blocks]
    first = min(places)
    if any(buffer in written_buffers(s) for s in order[first:]):
        raise ScheduleError(
            f"{buffer.name!r} is computed inside the loops of its readers",
            hint="call cache_read before compute_at",
        )
    writers = [w for w in blocks_in(func.body) if buffer in result_buffers(w)]
    for writer in writers:
        require_plain_store(writer)
    shape = written_extents(func, buffer) or buffer.shape
    name = fresh_buffer_name(func, f"{buffer.name}.{scope}")
    cached = replace(buffer, name=name, shape=shape, scope=scope, aligned=None)
    for block in blocks:
        func = replace_stmt(func, block, map_buffers(block, {buffer: cached}))
    axes = [f"i{d}" for d in range(len(buffer.shape))]
    nest = copy_nest([buffer], [cached], cached.name, axes)
    order = func.body.stmts if isinstance(func.body, Seq) else (func.body,)
    body = Seq((*order[:first], nest, *order[first:]))
    return replace(func, body=body, allocs=(*func.allocs, cached)), cached


def set_scope(func: PrimFunc, buffer: Buffer, scope: Scope) -> PrimFunc:
    """Move an intermediate buffer to another memory."""
    if buffer in func.params:
        raise ScheduleError(
            f"{buffer.name!r} is a parameter of {func.name!r}, its memory is the caller's",
            hint=f's.cache_write("{buffer.name}", "{scope}") computes it elsewhere first',
        )
    if scope is Scope.SHARED:
        for block in blocks_in(func.body):
            own = own_loops(func, block)
            around = [l for l in loops_above(func, block) if l not in own]
            threads = {l.var for l in around if l.thread.startswith("threadIdx")}
            parts = (*block.bindings, block.predicate)
            if buffer in written_buffers(block) and threads & {
                v for p in parts for v in variables(p)
            }:
                raise ScheduleError(
                    f"each thread computes its part of {buffer.name!r} at stage {block.name!r}",
                    hint="set the scope before compute_at: the stage then holds what all threads "
                    "read",
                )
    return exchange_buffers(func, {buffer: replace(buffer, scope=scope)})
