"""pad: an axis of an intermediate stage grows to a multiple, so that tiles divide it.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((6,), name="A")
>>> B = te.compute((6,), lambda i: A[i] * 2.0, name="B")
>>> C = te.compute((6,), lambda i: B[i] + 1.0, name="C")
>>> s = create_schedule(C, [A])
>>> print(s.func.body)
for i in range(6):
    with block("B"): i = i
        B[i] = A[i] * 2f32
for i in range(6):
    with block("C"): i = i
        C[i] = B[i] + 1f32
>>> s[B].pad("i", 4)
>>> print(s.func.body)
for i in range(8):
    with block("B"): i = i
        B[i] = if_then_else(i < 6, A[i] * 2f32, 0f32)
for i in range(6):
    with block("C"): i = i
        C[i] = B[i] + 1f32
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import Expr, IntImm, Load, Var, const, if_then_else
from ...te.tensor import IterKind, IterVar
from ..nodes import Block, For, ForKind, PrimFunc, Store
from ..tree import replace_stmt
from .common import only_writer, own_loops, require_plain_store
from .compute_at import exchange_buffers
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class Pad(Step):
    NAME = "pad"
    axis: str
    multiple: int

    def apply(self, schedule: Schedule) -> None:
        axis = schedule.loop(self.stage, self.axis).var
        schedule.func = pad(schedule.func, self.stage, axis, self.multiple)


def pad(func: PrimFunc, block_name: str, axis: Var, multiple: int) -> PrimFunc:
    """Round the extent of a loop, which must be a whole axis of the stage, up to a multiple.

    Along a spatial axis the buffer grows, and holds zeros (the identity, for a reduction) in its
    new part; along a reduction axis the new iterations contribute nothing.
    """
    block = only_writer(func, block_name)
    if type(multiple) is not int or multiple < 1:
        raise ScheduleError(
            f"the multiple must be an integer of at least 1, got {multiple!r}", hint="8, say"
        )
    iter_var = next(
        (v for v, b in zip(block.iter_vars, block.bindings, strict=True) if b is axis), None
    )
    loop = next((l for l in own_loops(func, block) if l.var is axis), None)
    if iter_var is None or loop is None or iter_var.extent is not loop.extent:
        raise ScheduleError(
            f"loop {axis.name!r} is not a whole axis of {block_name!r}",
            hint="pad before split, fuse and compute_at",
        )
    if not isinstance(loop.extent, IntImm) or loop.kind is not ForKind.SERIAL:
        raise ScheduleError(
            f"loop {axis.name!r} has extent {loop.extent} and is {loop.kind}",
            hint="pad serial loops of known extent",
        )
    store = block.body
    if not isinstance(store, Store):
        raise ScheduleError(
            f"stage {block_name!r} is more than one assignment", hint="pad its producer instead"
        )
    require_plain_store(block)
    size = const(-(-loop.extent.value // multiple) * multiple)
    if size is loop.extent:
        return func
    spatial = iter_var.kind is IterKind.SPATIAL
    if spatial and store.buffer in func.params:
        raise ScheduleError(
            f"{block_name!r} is an output: its shape is the caller's",
            hint=f's.cache_write("{block_name}", "local") makes an intermediate stage',
        )
    func = _padded(func, block, loop, iter_var, size)
    if not spatial:
        return func
    axes = [v for v in block.iter_vars if v.kind is not IterKind.REDUCE]
    dims = tuple(
        size if v is iter_var else d for v, d in zip(axes, store.buffer.shape, strict=True)
    )
    return exchange_buffers(func, {store.buffer: replace(store.buffer, shape=dims)})


def _padded(func: PrimFunc, block: Block, loop: For, iter_var: IterVar, size: Expr) -> PrimFunc:
    store = block.body
    assert isinstance(store, Store)
    outside: Expr = const(0, store.buffer.dtype)
    if block.init is not None or iter_var.kind is IterKind.REDUCE:
        outside = Load(store.buffer, store.indices, None)  # what was accumulated so far
    inside = iter_var.var < iter_var.min + iter_var.extent
    value = if_then_else(inside, store.value, outside)
    larger = replace(iter_var, extent=size)
    new = replace(
        block,
        iter_vars=tuple(larger if v is iter_var else v for v in block.iter_vars),
        body=replace(store, value=value),
    )
    func = replace_stmt(func, block, new)
    changed = next(l for l in own_loops(func, new) if l.var is loop.var)
    return replace_stmt(func, changed, replace(changed, extent=size))
