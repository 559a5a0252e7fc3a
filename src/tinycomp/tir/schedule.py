"""Schedules: how a computation runs, as a sequence of checked rewrites of its loops.

>>> from tinycomp import te
>>> A = te.placeholder((64, 64), name="A")
>>> B = te.compute((64, 64), lambda i, j: A[i, j] * 2.0, name="B")
>>> s = create_schedule(B, [A])
>>> outer, inner = s[B].split(s[B].axis("j"), factor=16)
>>> s[B].vectorize(inner)
>>> s[B].axis_names
('i', 'j.outer', 'j.inner')

Each call rewrites the loop IR at once and checks itself at once; `s.show()` prints the loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..diagnostics import ScheduleError
from ..dtype import DType
from ..ir.expr import Var
from ..te.tensor import IterVar, PlaceholderOp, ScanOp, Tensor, inputs_of
from .from_te import create_func
from .nodes import Block, Buffer, ForKind, PrimFunc, Scope
from .primitives import annotate, cache, compute_at, fuse, inline, reorder, rfactor, split
from .tree import block_of, blocks_in, loops_above

Axis = Var | IterVar | str


@dataclass(frozen=True)
class CachedTensor:
    """Handle of a stage made by cache_read, cache_write or rfactor."""

    name: str
    dtype: DType


class Schedule:
    """The loops of a computation and the steps that shaped them."""

    def __init__(self, func: PrimFunc, buffers: dict[Tensor, Buffer]) -> None:
        self.func = func
        self.steps: list[tuple[str, str, tuple[Any, ...]]] = []
        self._buffers: dict[Tensor | CachedTensor, Buffer] = dict(buffers)
        self._blocks: dict[Tensor | CachedTensor, str] = {
            t: buffers[t if isinstance(t.op, ScanOp) else t.op.output(0)].name
            for t in buffers
            if not isinstance(t.op, PlaceholderOp)
        }

    def __getitem__(self, tensor: Tensor | CachedTensor | str) -> Stage:
        """The stage that computes a tensor; a stage may also be named."""
        if isinstance(tensor, str):
            tensor = next((t for t in self._blocks if t.name == tensor), None) or _unknown(
                tensor, self
            )
        if tensor not in self._blocks:
            raise ScheduleError(f"{tensor.name!r} is an input or belongs to another schedule")
        return Stage(self, tensor)

    def rewrite(self, stage: str, step: str, arguments: tuple[Any, ...], func: PrimFunc) -> None:
        """Take over the function that a primitive returned, and record the step."""
        self.func = func
        self.steps.append((stage, step, arguments))

    def cache_write(self, tensor: Tensor | CachedTensor, scope: str = "local") -> CachedTensor:
        """Compute `tensor` into a buffer in `scope` first; returns the computing stage's tensor.

        The reduction axes now belong to the returned tensor's stage.
        """
        func, block, buffer = cache.cache_write(self.func, self._blocks[tensor], Scope(scope))
        return self._new_stage("cache_write", tensor, func, block, buffer)

    def cache_read(
        self, tensor: Tensor | CachedTensor, scope: str, readers: Sequence[Tensor | CachedTensor]
    ) -> CachedTensor:
        """Copy `tensor` into `scope` first and let `readers` read the copy."""
        names = [self._blocks[r] for r in readers]
        func, block, buffer = cache.cache_read(
            self.func, self._buffers[tensor], Scope(scope), names
        )
        return self._new_stage("cache_read", tensor, func, block, buffer)

    def rfactor(self, tensor: Tensor | CachedTensor, axis: Axis) -> CachedTensor:
        """Partial results per iteration of a reduction axis; returns the tensor of these."""
        stage = self[tensor]
        func, block, buffer = rfactor.rfactor(self.func, stage.block_name, stage.axis(axis))
        return self._new_stage("rfactor", tensor, func, block, buffer)

    def _new_stage(
        self, step: str, tensor: Tensor | CachedTensor, func: PrimFunc, block: str, buffer: Buffer
    ) -> CachedTensor:
        handle = CachedTensor(buffer.name, buffer.dtype)
        self.rewrite(tensor.name, step, (buffer.name,), func)
        self._blocks[handle] = block
        self._buffers[handle] = buffer
        return handle

    def set_scope(self, tensor: Tensor | CachedTensor, scope: str) -> None:
        """Keep an intermediate tensor in another memory: "local", "shared" or "global"."""
        func, buffer = cache.set_scope(self.func, self._buffers[tensor], Scope(scope))
        self.rewrite(tensor.name, "set_scope", (scope,), func)
        self._buffers[tensor] = buffer

    def buffer(self, tensor: Tensor | CachedTensor) -> Buffer:
        """The buffer that holds a tensor.

        Raises:
            ScheduleError: the tensor belongs to another schedule.
        """
        if tensor not in self._buffers:
            raise ScheduleError(f"{tensor.name!r} belongs to another schedule")
        return self._buffers[tensor]

    def show(self) -> str:
        """The loops as text."""
        return str(self.func)

    @property
    def stages(self) -> list[str]:
        """The blocks that are still in the loops, in order."""
        return [b.name for b in blocks_in(self.func.body)]


def _unknown(name: str, schedule: Schedule) -> Any:
    raise ScheduleError(f"no stage {name!r}; the stages are {', '.join(schedule.stages)}")


@dataclass(frozen=True)
class Stage:
    """One computation of a schedule, with TVM's primitives."""

    schedule: Schedule
    tensor: Tensor | CachedTensor

    @property
    def block_name(self) -> str:
        return self.schedule._blocks[self.tensor]

    @property
    def block(self) -> Block:
        return block_of(self.schedule.func, self.block_name)

    @property
    def axes(self) -> tuple[Var, ...]:
        """The loops around the stage, outermost first (leaf axes, and those it is computed at)."""
        return tuple(l.var for l in loops_above(self.schedule.func, self.block))

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.axes)

    def axis(self, axis: Axis) -> Var:
        """A loop by name, by the axis of the te tensor, or itself."""
        if isinstance(axis, IterVar):
            return axis.var
        if isinstance(axis, Var):
            return axis
        found = [a for a in self.axes if a.name == axis]
        if not found:
            raise ScheduleError(
                f"stage {self.block_name!r} has no axis {axis!r}; its axes are {', '.join(self.axis_names)}"
            )
        return found[-1]

    __getitem__ = axis

    def _apply(self, step: str, arguments: tuple[Any, ...], func: PrimFunc) -> None:
        names = tuple(a.name if isinstance(a, Var) else a for a in arguments)
        self.schedule.rewrite(self.block_name, step, names, func)

    def split(
        self, axis: Axis, factor: int | None = None, nparts: int | None = None
    ) -> tuple[Var, Var]:
        """See `primitives.split`; returns (outer, inner)."""
        var = self.axis(axis)
        func, outer, inner = split.split(self.schedule.func, var, factor, nparts)
        self._apply("split", (var, factor, nparts), func)
        return outer, inner

    def tile(self, x: Axis, y: Axis, x_factor: int, y_factor: int) -> tuple[Var, Var, Var, Var]:
        """Two splits and a reorder: returns (x.outer, y.outer, x.inner, y.inner)."""
        xo, xi = self.split(x, factor=x_factor)
        yo, yi = self.split(y, factor=y_factor)
        self.reorder(xo, yo, xi, yi)
        return xo, yo, xi, yi

    def fuse(self, *axes: Axis) -> Var:
        """Fuse consecutive loops, outermost first; see `primitives.fuse`."""
        loops = [self.axis(a) for a in axes]
        if not loops:
            raise ScheduleError("fuse() needs at least one axis")
        fused = loops[0]
        for other in loops[1:]:
            func, result = fuse.fuse(self.schedule.func, fused, other)
            self._apply("fuse", (fused, other), func)
            fused = result
        return fused

    def reorder(self, *axes: Axis) -> None:
        """Put loops in this order, outermost first; see `primitives.reorder`."""
        loops = [self.axis(a) for a in axes]
        self._apply("reorder", tuple(loops), reorder.reorder(self.schedule.func, loops))

    def _mark(self, axis: Axis, kind: ForKind, name: str) -> None:
        var = self.axis(axis)
        self._apply(name, (var,), annotate.set_kind(self.schedule.func, var, kind, name))

    def vectorize(self, axis: Axis) -> None:
        """Run the iterations of a spatial loop as vector lanes."""
        self._mark(axis, ForKind.VECTORIZED, "vectorize")

    def unroll(self, axis: Axis) -> None:
        """Write the iterations of a loop out."""
        self._mark(axis, ForKind.UNROLLED, "unroll")

    def parallel(self, axis: Axis) -> None:
        """Spread the iterations of a spatial loop over threads."""
        self._mark(axis, ForKind.PARALLEL, "parallel")

    def bind(self, axis: Axis, thread: str) -> None:
        """Run a loop over a GPU thread axis."""
        var = self.axis(axis)
        self._apply("bind", (var, thread), annotate.bind(self.schedule.func, var, thread))

    def pragma(self, axis: Axis, key: str, value: Any = True) -> None:
        """Attach a hint to a loop."""
        var = self.axis(axis)
        self._apply(
            "pragma", (var, key, value), annotate.pragma(self.schedule.func, var, key, value)
        )

    def compute_at(self, consumer: Stage | Tensor | CachedTensor, axis: Axis) -> None:
        """Compute just what each iteration of a consumer's loop needs, inside that loop."""
        stage = consumer if isinstance(consumer, Stage) else self.schedule[consumer]
        var = stage.axis(axis)
        func = compute_at.compute_at(self.schedule.func, self.block_name, var)
        self._apply("compute_at", (stage.block_name, var), func)

    def compute_inline(self) -> None:
        """Let readers compute the value themselves; the stage disappears."""
        name = self.block_name
        func = inline.compute_inline(self.schedule.func, name)
        self.schedule.rewrite(name, "compute_inline", (), func)

    def compute_root(self) -> None:
        """Compute the whole stage before its readers: how every stage starts."""
        self._apply("compute_root", (), self.schedule.func)

    def set_scope(self, scope: str) -> None:
        self.schedule.set_scope(self.tensor, scope)


def create_schedule(
    outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor] | None = None, name: str = "main"
) -> Schedule:
    """A schedule of naive loops over all stages that `outputs` need.

    `inputs` fixes the order of the function's parameters; by default the placeholders in order
    of appearance.
    """
    results = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if inputs is None:
        inputs = inputs_of(results)
    func, buffers = create_func(inputs, results, name)
    return Schedule(func, buffers)


__all__ = ["Axis", "CachedTensor", "Schedule", "Stage", "create_schedule"]
