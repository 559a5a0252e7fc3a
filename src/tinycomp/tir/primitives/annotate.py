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

A reduction axis may be bound to threadIdx.x where each iteration has one value: then the threads
combine these with each other (see `passes.bind_threads`). One around it may be bound to cluster.x:
then the blocks of a cluster combine what their threads have.

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
from ...ir.expr import IntImm, Var, variables
from ...te.tensor import IterKind
from ..nodes import Block, For, ForKind, PrimFunc, Scope, Seq
from ..tree import (
    blocks_in,
    loop_of,
    loops_above,
    read_buffers,
    replace_stmt,
    written_buffers,
)
from .common import (
    axis_kinds,
    kept_across,
    kept_marks,
    kinds_in,
    loops_in,
    own_loops,
    own_nest,
    require_nothing_kept,
    require_spatial,
    root_of,
    stores_at_axes,
)
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule

REDUCE_THREADS = "reduce_threads"
"""Annotation of a loop over threads that combines one value of each."""

CLUSTER = "cluster.x"
"""Thread axis of the blocks of a cluster, which run at the same time and reach each other's shared
memory (sm_90 and newer)."""

_THREAD = re.compile(r"(blockIdx|threadIdx)\.[xyz]|cluster\.x|vthread(\.[xyz])?")
_COMBINES = ("threadIdx", "cluster")


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
        if not isinstance(self.key, str) or not self.key:
            raise ScheduleError(f"{self.key!r} is no hint", hint='a text, such as "unroll"')
        parts = self.value if isinstance(self.value, tuple | list) else (self.value,)
        if not all(isinstance(part, str | int | float) for part in parts):
            raise ScheduleError(
                f"{self.value!r} is no value of a hint",
                hint="a number, a text, a bool, or several of these",
            )
        if self.key == REDUCE_THREADS and IterKind.REDUCE not in axis_kinds(schedule.func, axis):
            raise ScheduleError(
                f"{self.key} is for reduction loops, and {self.axis!r} is none of {self.stage!r}",
                hint="s.rfactor makes a loop that combines partial results",
            )
        schedule.func = annotate_loop(schedule.func, axis, self.key, self.value)


def set_kind(func: PrimFunc, axis: Var, kind: ForKind) -> PrimFunc:
    """Mark a loop as vectorized, parallel or unrolled; the first two must not be reductions."""
    loop = loop_of(func, axis)
    if kind is not ForKind.UNROLLED:
        require_spatial(func, axis)
        require_nothing_kept(func, loop)
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
    loop = loop_of(func, axis)
    combines = thread.startswith(_COMBINES) and IterKind.REDUCE in axis_kinds(func, axis)
    if combines:
        _require_combination(func, loop, thread)
    else:
        require_spatial(func, axis)
    if loop.kind is not ForKind.SERIAL:
        raise ScheduleError(f"loop {axis.name!r} is already {loop.kind}", hint="split it first")
    kept = kept_across(func, loop)
    if not thread.startswith("threadIdx") or any(kinds_in(b, axis) for b in kept):
        require_nothing_kept(func, loop)  # threads of a block see what one of them stores
    if thread.startswith("threadIdx"):
        _check_rolling(func, loop)
    if not thread.startswith("vthread"):
        _check_thread(func, loop, thread)
    notes = {**loop.annotations, REDUCE_THREADS: True} if combines else loop.annotations
    bound = replace(loop, kind=ForKind.THREAD, thread=thread, annotations=notes)
    return replace_stmt(func, loop, bound)


def _require_combination(func: PrimFunc, loop: For, thread: str) -> None:
    """ScheduleError unless each iteration of a reduction loop has one value to combine."""
    name = loop.var.name
    last = loop.body
    if thread == CLUSTER and isinstance(last, For) and last.annotations.get(REDUCE_THREADS):
        last = last.body  # the threads of each block combine their values before the blocks do
    last = last.stmts[-1] if isinstance(last, Seq) else last
    others = [b for b in blocks_in(loop) if b is not last]
    if not isinstance(last, Block) or any(IterKind.REDUCE in kinds_in(b, loop.var) for b in others):
        raise ScheduleError(
            f"threads combine one value each, but inside the reduction loop {name!r} there are "
            "further loops of the same stage",
            hint=f"split it by the number of threads, s.rfactor(tensor, inner), and bind the axis "
            f"that is then reduced to {thread}",
        )
    if thread not in ("threadIdx.x", CLUSTER):
        raise ScheduleError(
            f"threads of {thread} do not combine values",
            hint=f'bind it to "threadIdx.x" or "{CLUSTER}"',
        )
    if not isinstance(loop.extent, IntImm):
        raise ScheduleError(
            f"{name!r} has the extent {loop.extent}, which is not known",
            hint="split it by a constant, and rfactor the inner part",
        )
    extent = loop.extent.value
    if thread == CLUSTER:
        return
    if extent > 1024 or (extent % 32 and extent & (extent - 1)):
        raise ScheduleError(
            f"{extent} threads cannot combine their values",
            hint="as many as a power of two, or a multiple of 32, up to 1024",
        )


def require_thread_name(thread: str) -> None:
    """ScheduleError unless this is a thread axis."""
    if not _THREAD.fullmatch(thread):
        raise ScheduleError(
            f"{thread!r} is not a thread axis",
            hint="one of blockIdx.x/y/z, cluster.x, threadIdx.x/y/z, vthread, vthread.x/y/z",
        )


def _check_rolling(func: PrimFunc, loop: For) -> None:
    """Threads of a block would share a circular buffer that holds the window of one of them."""
    for block in blocks_in(loop):
        rolls = kept_marks(block) and not stores_at_axes(block)
        if rolls and kinds_in(block, loop.var) and loop not in own_loops(func, block):
            raise ScheduleError(
                f"stage {block.name!r} keeps a window that moves with {loop.var.name!r}",
                hint="bind before rolling_buffer, or leave this loop serial",
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
    if thread.startswith("threadIdx"):
        _require_shared_alike(func, loop)
    for other in loops_in(root_of(func, loop)):
        if other.thread == thread and other.extent is not loop.extent:
            raise ScheduleError(
                f"{thread} has extent {other.extent} at loop {other.var.name!r} of the same "
                f"kernel, but {name!r} has extent {loop.extent}",
                hint="split one of them so that the extents agree",
            )


def _require_shared_alike(func: PrimFunc, loop: For) -> None:
    """ScheduleError if iterations that become threads compute parts of a shared buffer, which
    may overlap."""
    for block in blocks_in(loop.body):
        shared = [b for b in written_buffers(block) if b.scope is Scope.SHARED]
        if not shared or any(l is loop for l in own_loops(func, block)):
            continue
        if any(loop.var in variables(part) for part in (*block.bindings, block.predicate)):
            raise ScheduleError(
                f"each iteration of {loop.var.name!r} computes its part of {shared[0].name!r}, "
                "which all threads share",
                hint=f"bind the loop first, then compute_at: {block.name!r} then holds what all "
                "threads read",
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
