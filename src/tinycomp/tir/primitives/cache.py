"""cache_read and cache_write: stage a buffer through another memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...diagnostics import ScheduleError
from ...ir.expr import Load, Var, const
from ...te.tensor import IterVar
from ..nodes import Block, Buffer, For, PrimFunc, Scope, Seq, Stmt, Store
from ..tree import (
    block_of,
    blocks_in,
    map_buffers,
    path_to,
    read_buffers,
    replace_at,
    replace_stmt,
    written_buffers,
)
from .compute_at import own_nest


def copy_nest(source: Buffer, target: Buffer, name: str) -> Stmt:
    """Loops that copy a whole buffer."""
    own = [Var(f"i{d}") for d in range(len(source.shape))]
    iter_vars = tuple(IterVar(v, const(0), e) for v, e in zip(own, source.shape, strict=True))
    loops = [Var(f"{name}.i{d}") for d in range(len(own))]
    stmt: Stmt = Block(
        name, iter_vars, tuple(loops), Store(target, tuple(own), Load(source, tuple(own), None))
    )
    for var, extent in zip(reversed(loops), reversed(source.shape), strict=True):
        stmt = For(var, const(0), extent, stmt)
    return stmt


def cache_write(func: PrimFunc, block_name: str, scope: Scope) -> tuple[PrimFunc, str, Buffer]:
    """Compute a stage into a buffer in `scope` first, then copy it out.

        for i: C[i] = f(i)    -->    for i: C.local[i] = f(i)
                                     for i: C[i] = C.local[i]

    Returns:
        The function, the name of the block that now computes, and its buffer. The copying block
        keeps the name of the stage.
    """
    block = block_of(func, block_name)
    buffers = written_buffers(block)
    if len(buffers) != 1:
        raise ScheduleError(
            f"cache_write({block_name}): the stage has {len(buffers)} outputs, expected 1"
        )
    old = buffers[0]
    cached = Buffer(f"{old.name}.{scope}", old.shape, old.dtype, scope)
    nest = own_nest(func, block)
    computing = map_buffers(nest, {old: cached})
    inner = next(b for b in blocks_in(computing))
    path = path_to(computing, lambda s: s is inner)
    assert path is not None
    computing = replace_at(path, replace(inner, name=cached.name))
    copying = copy_nest(cached, old, block_name)
    func = replace_stmt(func, nest, Seq((computing, copying)))
    return replace(func, allocs=(*func.allocs, cached)), cached.name, cached


def cache_read(
    func: PrimFunc, buffer: Buffer, scope: Scope, readers: Sequence[str]
) -> tuple[PrimFunc, str, Buffer]:
    """Copy a buffer into `scope` first and let the named blocks read the copy.

    for i: C[i] = A[i] + 1    -->    for i: A.local[i] = A[i]
                                     for i: C[i] = A.local[i] + 1
    """
    cached = Buffer(f"{buffer.name}.{scope}", buffer.shape, buffer.dtype, scope)
    for name in readers:
        block = block_of(func, name)
        if buffer not in read_buffers(block):
            raise ScheduleError(f"cache_read({buffer.name}): block {name!r} does not read it")
        func = replace_stmt(func, block, map_buffers(block, {buffer: cached}))
    nest = copy_nest(buffer, cached, cached.name)
    first = own_nest(func, block_of(func, readers[0]))
    path = path_to(func.body, lambda s: s is first)
    assert path is not None
    top = path[1] if isinstance(path[0], Seq) and len(path) > 1 else path[0]
    func = replace_stmt(func, top, Seq((nest, top)))
    return replace(func, allocs=(*func.allocs, cached)), cached.name, cached


def set_scope(func: PrimFunc, buffer: Buffer, scope: Scope) -> tuple[PrimFunc, Buffer]:
    """Move an intermediate buffer to another memory."""
    if buffer in func.params:
        raise ScheduleError(
            f"set_scope({buffer.name}): it is a parameter, its memory is the caller's"
        )
    moved = replace(buffer, scope=scope)
    allocs = tuple(moved if b is buffer else b for b in func.allocs)
    return replace(func, body=map_buffers(func.body, {buffer: moved}), allocs=allocs), moved
