"""storage_align, double_buffer, pipeline, prefetch: hints.

They are checked here and recorded, and results never depend on them: placing a buffer aligns its
strides, and on GPUs `passes.pipeline` gives double-buffered stages their second copy.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((8, 16), name="A")
>>> B = te.compute((8, 16), lambda i, j: A[i, j] + 1.0, name="B")
>>> s = create_schedule(B, [A])
>>> AS = s.cache_read(A, "shared", [B])
>>> s[AS].compute_at(s[B], "i")
>>> print(s.func.body)
for i in range(8):
    for i0 in range(1):
        for i1 in range(16):
            with block("A.shared"): i0 = i + i0, i1 = i1
                A.shared[i0, i1] = A[i0, i1]
    for j in range(16):
        with block("B"): i = i, j = j
            B[i, j] = A.shared[i, j] + 1f32
>>> s[AS].double_buffer()
>>> s[B].prefetch(A, "j", 2)
>>> print(s.func.body)
for i in range(8):
    for i0 in range(1):
        for i1 in range(16):
            with block("A.shared"): i0 = i + i0, i1 = i1  # double_buffer=True
                A.shared[i0, i1] = A[i0, i1]
    for j in range(16):  # prefetch=('A', 2)
        with block("B"): i = i, j = j
            B[i, j] = A.shared[i, j] + 1f32
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...diagnostics import ScheduleError
from ...ir.expr import Var, variables
from ...te.tensor import IterKind
from ..nodes import Block, ForKind, PrimFunc
from ..tree import block_of, replace_stmt
from .annotate import annotate_loop
from .common import result_buffers
from .compute_at import exchange_buffers
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule

MAX_DEPTH = 16


@dataclass(frozen=True)
class StorageAlign(Step):
    NAME = "storage_align"
    axis: str
    factor: int
    offset: int

    def apply(self, schedule: Schedule) -> None:
        """The stride of the dimension of `axis` shall be `offset` modulo `factor` elements.

        The axis must run along one dimension of the stage, as before it was fused with others.
        """
        _require_intermediate(schedule.func, self.stage)
        known = type(self.factor) is int and type(self.offset) is int
        if not known or self.factor < 1 or not 0 <= self.offset < self.factor:
            raise ScheduleError(
                f"factor {self.factor} and offset {self.offset} do not say a stride",
                hint="give a factor of at least 1 and an offset below it",
            )
        axis = schedule.loop(self.stage, self.axis).var
        block = block_of(schedule.func, self.stage)
        (dimension,) = self._dimensions(block, axis)
        aligned = (dimension, self.factor, self.offset)
        value = (self.axis, self.factor, self.offset)
        schedule.func = annotate_block(schedule.func, self.stage, self.NAME, value)
        moved = {b: replace(b, aligned=aligned) for b in result_buffers(block)}
        schedule.func = exchange_buffers(schedule.func, moved)

    def _dimensions(self, block: Block, axis: Var) -> list[int]:
        spatial = [
            binding
            for v, binding in zip(block.iter_vars, block.bindings, strict=True)
            if v.kind is IterKind.SPATIAL
        ]
        found = [d for d, binding in enumerate(spatial) if axis in variables(binding)]
        if len(found) != 1:
            raise ScheduleError(
                f"axis {axis.name!r} runs along {len(found)} dimensions of {self.stage!r}",
                hint="align before axes are fused; give an axis of one dimension",
            )
        return found


@dataclass(frozen=True)
class DoubleBuffer(Step):
    NAME = "double_buffer"

    def apply(self, schedule: Schedule) -> None:
        """Two copies of the stage's buffer take turns: one is filled while one is read."""
        _require_intermediate(schedule.func, self.stage)
        schedule.func = annotate_block(schedule.func, self.stage, self.NAME, True)


@dataclass(frozen=True)
class Pipeline(Step):
    NAME = "pipeline"
    axis: str
    depth: int = 2

    def apply(self, schedule: Schedule) -> None:
        """Fill the shared buffers of later iterations of a loop while one is computed.

        `depth` iterations are under way: the buffers that stages computed at the loop copy from
        memory get as many versions.
        """
        loop = schedule.loop(self.stage, self.axis)
        if type(self.depth) is not int or not 2 <= self.depth <= MAX_DEPTH:
            raise ScheduleError(
                f"a pipeline has 2 to {MAX_DEPTH} iterations under way, not {self.depth!r}",
                hint="each needs a copy of the buffers",
            )
        if loop.kind is not ForKind.SERIAL:
            raise ScheduleError(f"loop {self.axis!r} is {loop.kind}", hint="pipeline a serial loop")
        schedule.func = annotate_loop(schedule.func, loop.var, self.NAME, self.depth)


@dataclass(frozen=True)
class Prefetch(Step):
    """`tensor` is the name of a buffer."""

    NAME = "prefetch"
    tensor: str
    axis: str
    offset: int = 1

    def apply(self, schedule: Schedule) -> None:
        """Fetch what vector loads of the buffer will need `offset` iterations later."""
        loop = schedule.loop(self.stage, self.axis)
        schedule.buffer(self.tensor)
        if type(self.offset) is not int or self.offset < 1:
            raise ScheduleError(
                f"the offset must be an integer of at least 1, got {self.offset!r}",
                hint="the number of iterations to fetch ahead",
            )
        value = (self.tensor, self.offset)
        schedule.func = annotate_loop(schedule.func, loop.var, self.NAME, value)


def annotate_block(func: PrimFunc, block_name: str, key: str, value: Any) -> PrimFunc:
    """Attach a hint to a stage."""
    block = block_of(func, block_name)
    annotations = {**block.annotations, key: value}
    return replace_stmt(func, block, replace(block, annotations=annotations))


def _require_intermediate(func: PrimFunc, block_name: str) -> None:
    block = block_of(func, block_name)
    if any(b in func.params for b in result_buffers(block)):
        raise ScheduleError(
            f"stage {block_name!r} is an output of {func.name!r}: its memory is the caller's",
            hint=f's.cache_write("{block_name}", "local") makes an intermediate stage',
        )
