"""What the default schedules share: inlining, vectorising the last axis, spreading over threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.expr import Call, Load, Var, as_int, variables
from ..ir.node import postorder
from ..target import Target
from ..te.tensor import ComputeOp, Tensor, is_reduction, topological
from ..tir.nodes import Buffer
from ..tir.schedule import CachedTensor, Schedule, Stage

PARALLEL_CYCLES = 15_000
"""Estimated cycles below which sharing work costs more than it saves: waking threads and waiting
for the last of them takes a few microseconds."""

_COSTLY_CYCLES = 20  # of a vector through exp, tanh and the like
_CHEAP = ("if_then_else", "neg", "not", "abs", "likely", "fma", "sqrt", "floor", "ceil", "round")


@dataclass(frozen=True)
class Kernel:
    """A computation to schedule: its stages, outputs and target."""

    schedule: Schedule
    outputs: list[Tensor]
    target: Target

    @property
    def stages(self) -> list[ComputeOp]:
        """All compute stages, producers first."""
        return [op for op in topological(self.outputs) if isinstance(op, ComputeOp)]

    @property
    def reductions(self) -> list[ComputeOp]:
        return [op for op in self.stages if is_reduction(op)]

    def is_output(self, op: ComputeOp) -> bool:
        return any(t.op is op for t in self.outputs)

    def buffer(self, tensor: Tensor) -> Buffer:
        """The buffer that holds an input of the kernel."""
        func = self.schedule.func
        return next(b for b in func.params if b.name == tensor.name)

    def stage(self, op: ComputeOp) -> Stage:
        return self.schedule[op.output(0)]


def inline_injective(kernel: Kernel, keep: Sequence[ComputeOp] = ()) -> None:
    """Let every elementwise or injective stage that is no output disappear into its readers."""
    for op in kernel.stages:
        if not is_reduction(op) and op not in keep and not kernel.is_output(op):
            kernel.stage(op).compute_inline()


def extent_of(stage: Stage, axis: Var) -> int:
    """The constant extent of a stage's loop."""
    from ..tir.tree import loop_of

    return as_int(loop_of(stage.schedule.func, axis).extent)


def extents(op: ComputeOp) -> list[int]:
    return [as_int(a.extent) for a in op.axis]


def reduces_last_axis(op: ComputeOp) -> bool:
    """Whether the reduction runs along memory: its axis is in the last index of what it reads,
    and the last axis of the result is not."""
    reduced = {a.var for a in op.reduce_axis}
    last = op.axis[-1].var if op.axis else None
    for load in postorder(op.body):
        if isinstance(load, Load) and load.indices:
            found = set(variables(load.indices[-1]))
            if found & reduced and last not in found:
                return True
    return False


def vectorize_last(stage: Stage, axis: Var, lanes: int, unroll: int = 1) -> Var | None:
    """Split `axis` into vectors, `unroll` of them written out; returns the remaining outer loop."""
    extent = extent_of(stage, axis)
    if extent <= 1:
        return None
    if extent <= lanes:
        stage.vectorize(axis)
        return None
    if unroll > 1 and extent >= lanes * unroll:
        outer, inner = stage.split(axis, factor=lanes * unroll)
        parts, vector = stage.split(inner, factor=lanes)
        stage.unroll(parts)
    else:
        outer, vector = stage.split(axis, factor=lanes)
    stage.vectorize(vector)
    return outer


def cycles_of(op: ComputeOp, target: Target) -> float:
    """Estimated cycles of a stage on one core: a vector of its iteration space takes one, more
    if it moves data (caches) or evaluates elementary functions."""
    points = math.prod(as_int(a.extent) for a in (*op.axis, *op.reduce_axis))
    if op.tag in ("matmul_packed", "conv2d_nhwc"):
        per_vector = 0.6  # two fused multiply-adds per cycle, less what a tile loses
    else:
        calls = {n for n in postorder(op.body) if isinstance(n, Call) and n.name not in _CHEAP}
        per_vector = 3 + _COSTLY_CYCLES * len(calls)
    return points / target.lanes(op.output(0).dtype) * per_vector


def parallel_outer(stage: Stage, axes: Sequence[Var], cycles: float) -> Var | None:
    """Fuse the loops and spread them over threads, if the work is worth it."""
    if not axes:
        return None
    fused = stage.fuse(*axes)
    if cycles >= PARALLEL_CYCLES and extent_of(stage, fused) > 1:
        stage.parallel(fused)
    return fused


TensorLike = Tensor | CachedTensor
