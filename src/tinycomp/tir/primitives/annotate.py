"""vectorize, unroll, parallel, bind and pragma: how a loop runs.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((4, 8), name="A")
>>> B = te.compute((4, 8), lambda i, j: A[i, j] + 1.0, name="B")
>>> s = create_schedule(B, [A])
>>> s[B].parallel("i")
>>> s[B].vectorize("j")
>>> print(s.func.body)
for i in parallel(4):
    for j in vectorized(8):
        with block("B"): i = i, j = j
            B[i, j] = A[i, j] + 1f32

>>> s = create_schedule(B, [A])
>>> s[B].bind("i", "blockIdx.x")
>>> s[B].bind("j", "threadIdx.x")
>>> print(s.func.body)
for i in thread(4, "blockIdx.x"):
    for j in thread(8, "threadIdx.x"):
        with block("B"): i = i, j = j
            B[i, j] = A[i, j] + 1f32
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...diagnostics import ScheduleError
from ...ir.expr import Var, variables
from ..nodes import For, ForKind, PrimFunc, Scope
from ..tree import (
    blocks_in,
    loop_of,
    loops_above,
    read_buffers,
    replace_stmt,
    written_buffers,
)
from .common import loops_in, own_nest, require_spatial, root_of
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule

_THREAD = re.compile(r"(blockIdx|threadIdx)\.[xyz]|vthread(\.[xyz])?")


@dataclass(frozen=True)
class _Mark(Step):
    KIND: ClassVar[ForKind] = ForKind.SERIAL
    axis: str

    def apply(self, schedule: Schedule) -> None:
        axis = schedule.loop(self.stage, self.axis).var
        schedule.func = set_kind(schedule.func, axis, self.KIND)


@dataclass(frozen=True)
class Vectorize(_Mark):
    NAME, KIND = "vectorize", ForKind.VECTORIZED


@dataclass(frozen=True)
class Unroll(_Mark):
    NAME, KIND = "unroll", ForKind.UNROLLED


@dataclass(frozen=True)
class Parallel(_Mark):
    NAME, KIND = "parallel", ForKind.PARALLEL


@dataclass(frozen=True)
class Bind(Step):
    NAME = "bind"
    axis: str
    thread: str

    def apply(self, schedule: Schedule) -> None:
        axis = schedule.loop(self.stage, self.axis).var
        schedule.func = bind(schedule.func, axis, self.thread)


@dataclass(frozen=True)
class Pragma(Step):
    NAME = "pragma"
    axis: str
    key: str
    value: Any = True

    def apply(self, schedule: Schedule) -> None:
        axis = schedule.loop(self.stage, self.axis).var
        schedule.func = annotate_loop(schedule.func, axis, self.key, self.value)


def set_kind(func: PrimFunc, axis: Var, kind: ForKind) -> PrimFunc:
    """Mark a loop as vectorized, parallel or unrolled; the first two must not be reductions."""
    loop = loop_of(func, axis)
    if kind is not ForKind.UNROLLED:
        require_spatial(func, axis)
    if loop.kind not in (ForKind.SERIAL, kind):
        raise ScheduleError(
            f"loop {axis.name!r} is already {loop.kind}", hint="split it to have both"
        )
    if kind is ForKind.PARALLEL:
        others = [l for l in (*loops_above(func, loop), *loops_in(loop.body))]
        nested = next((l for l in others if l.kind is ForKind.PARALLEL), None)
        if nested is not None:
            raise ScheduleError(
                f"loop {axis.name!r} and the parallel loop {nested.var.name!r} are nested",
                hint="fuse the two loops and make the fused one parallel",
            )
    return replace_stmt(func, loop, replace(loop, kind=kind))


def bind(func: PrimFunc, axis: Var, thread: str) -> PrimFunc:
    """Run a loop over a GPU thread axis such as "blockIdx.x", "threadIdx.x" or "vthread".

    Loops of one kernel that share a thread axis must be of one extent. They may be nested only
    where the inner one computes a shared buffer that does not depend on the outer one: then the
    threads compute it together, each its iteration of the inner loop.
    """
    require_thread_name(thread)
    require_spatial(func, axis)
    loop = loop_of(func, axis)
    if loop.kind is not ForKind.SERIAL:
        raise ScheduleError(f"loop {axis.name!r} is already {loop.kind}", hint="split it first")
    if not thread.startswith("vthread"):
        _check_thread(func, loop, thread)
    return replace_stmt(func, loop, replace(loop, kind=ForKind.THREAD, thread=thread))


def require_thread_name(thread: str) -> None:
    """ScheduleError unless this is a thread axis."""
    if not _THREAD.fullmatch(thread):
        raise ScheduleError(
            f"{thread!r} is not a thread axis",
            hint="one of blockIdx.x/y/z, threadIdx.x/y/z, vthread, vthread.x/y/z",
        )


def _check_thread(func: PrimFunc, loop: For, thread: str) -> None:
    name = loop.var.name
    around = (*loops_above(func, loop), *loops_in(loop.body))
    nested = next((l for l in around if l.thread == thread), None)
    if nested is not None and not _is_cooperative(func, loop, thread):
        raise ScheduleError(
            f"loop {name!r} and {nested.var.name!r} are nested, and the latter is bound to "
            f"{thread} already",
            hint="fuse the two loops, or bind one to another dimension; a stage that the threads "
            'compute together needs set_scope(..., "shared") before it is computed there',
        )
    for other in loops_in(root_of(func, loop)):
        if other.thread == thread and other.extent is not loop.extent:
            raise ScheduleError(
                f"{thread} has extent {other.extent} at loop {other.var.name!r} of the same "
                f"kernel, but {name!r} has extent {loop.extent}",
                hint="split one of them so that the extents agree",
            )


def _is_cooperative(func: PrimFunc, loop: For, thread: str) -> bool:
    """Whether every iteration of the loops over threads around `loop` computes the same values of
    shared buffers in it, so that each may do a part for all."""
    nest = own_nest(func, blocks_in(loop.body)[0])
    above = [*loops_above(func, nest)]
    around = [l for l in above if l.thread.startswith(("threadIdx", "vthread"))]
    if not any(l.thread == thread for l in around):
        return False
    varying = {l.var for l in around}
    own = {b for block in blocks_in(around[0].body) for b in written_buffers(block)}
    for block in blocks_in(loop.body):
        if any(b.scope is not Scope.SHARED for b in written_buffers(block)):
            return False
        if any(b in own and b.scope is not Scope.SHARED for b in read_buffers(block)):
            return False
        parts = (*block.bindings, block.predicate)
        if any(v in varying for part in parts for v in variables(part)):
            return False
    return True


def annotate_loop(func: PrimFunc, axis: Var, key: str, value: Any) -> PrimFunc:
    """Attach a hint to a loop."""
    loop = loop_of(func, axis)
    return replace_stmt(func, loop, replace(loop, annotations={**loop.annotations, key: value}))
