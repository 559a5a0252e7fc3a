"""Schedules: how a computation runs, as a sequence of checked rewrites of its loops.

>>> from tinycomp import te
>>> A = te.placeholder((64, 64), name="A")
>>> B = te.compute((64, 64), lambda i, j: A[i, j] * 2.0, name="B")
>>> s = create_schedule(B, [A])
>>> outer, inner = s[B].split(s[B].axis("j"), factor=16)
>>> s[B].vectorize(inner)
>>> s[B].axis_names
('i', 'j.outer', 'j.inner')

Each call rewrites the loop IR at once and checks itself at once; `s.show()` prints the loops. The
calls that succeeded are a value, `s.steps`: it prints as Python, travels as JSON, has a stable
hash, and replays on another shape of the same computation.

>>> print(s.trace())
def apply(s):
    s["B"].split("j", factor=16)
    s["B"].vectorize("j.inner")
>>> C = te.compute((32, 48), lambda i, j: A[i, j] * 2.0, name="B")
>>> other = create_schedule(C, [A])
>>> other.replay(Schedule.from_json(s.to_json()))
>>> print(other.func.body)
for i in range(32):
    for j.outer in range(3):
        for j.inner in vectorized(16):
            with block("B"): i = i, j = j.outer * 16 + j.inner
                B[i, j] = A[i, j] * 2f32
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

from ..diagnostics import ScheduleError
from ..ir.expr import Var
from ..ir.node import Node, fold
from ..te.tensor import IterVar, PlaceholderOp, ScanOp, Tensor, inputs_of
from .from_te import create_func
from .group import Group, group_members
from .nodes import Buffer, For, PrimFunc, Stmt
from .primitives.cache import CacheRead, CacheWrite, SetScope
from .primitives.common import excerpt, unique
from .primitives.normalize import Normalize
from .primitives.rfactor import Rfactor
from .primitives.step import Step
from .primitives.table import STEPS
from .stage import Axis, CachedTensor, Stage, TensorLike
from .tree import block_of, blocks_in, child_statements, loops_above, substitute_stmt

FORMAT = 1  # of the JSON text


class Schedule:
    """The loops of a computation and the steps that shaped them.

    Args:
        func: the naive loops.
        buffers: the buffer of each tensor.
        renamed: loops that do not have the variable of their te axis, by stage and that variable.
    """

    def __init__(
        self,
        func: PrimFunc,
        buffers: Mapping[Tensor, Buffer],
        renamed: Mapping[tuple[str, Var], Var] | None = None,
    ) -> None:
        self._func = func
        self._initial = (func, dict(buffers), dict(renamed or {}))
        self._steps: list[Step] = []
        self._loops: dict[str, list[For]] = {}  # by stage, of the present function
        self._renamed = dict(renamed or {})
        self._buffer_names: dict[TensorLike, str] = {t: b.name for t, b in buffers.items()}
        self._stages: dict[TensorLike, str] = {
            t: buffers[t if isinstance(t.op, ScanOp) else t.op.output(0)].name
            for t in buffers
            if not isinstance(t.op, PlaceholderOp)
        }
        self.intrinsics: dict[str, Any] = {}  # of tensorize, by name

    @property
    def func(self) -> PrimFunc:
        """The loops as they are now."""
        return self._func

    @func.setter
    def func(self, func: PrimFunc) -> None:
        self._func = func
        self._loops.clear()

    # -- stages and axes ---------------------------------------------------------------------

    def __getitem__(self, tensor: TensorLike | str) -> Stage:
        """The stage that computes a tensor; a stage may also be named."""
        return Stage(self, self._tensor(tensor))

    def _tensor(self, tensor: TensorLike | str) -> TensorLike:
        if isinstance(tensor, str):
            named = (t for t, name in self._stages.items() if name == tensor)
            by_op = (t for t in self._stages if isinstance(t, Tensor) and t.op.name == tensor)
            found = next(named, None) or next(by_op, None)
            if found is None:
                given = any(b.name == tensor for b in self.func.params)
                what = f"{tensor!r} is an input" if given else "there is no such stage"
                raise ScheduleError(
                    f"s[{tensor!r}]: {what}", hint=f"the stages are {', '.join(self.stages)}"
                )
            return found
        if not isinstance(tensor, Tensor | CachedTensor):
            raise ScheduleError(
                f"s[{tensor!r}]: this {type(tensor).__name__} is not a tensor",
                hint=f"give a tensor, or the name of a stage: {', '.join(self.stages)}",
            )
        if tensor not in self._stages:
            raise ScheduleError(
                f"s[{tensor.name}]: {tensor.name!r} is an input or belongs to another schedule",
                hint=f"the stages are {', '.join(self.stages)}",
            )
        return tensor

    def stage_name(self, tensor: TensorLike | str) -> str:
        """The name of the block that computes a tensor."""
        return self._stages[self._tensor(tensor)]

    def buffer_name(self, tensor: TensorLike | str) -> str:
        """The name of the buffer of a tensor, which may be an input."""
        if isinstance(tensor, str):
            return tensor
        if not isinstance(tensor, Tensor | CachedTensor):
            raise ScheduleError(
                f"{tensor!r} is not a tensor",
                hint=f"the tensors are {', '.join(self._buffer_names.values())}",
            )
        if tensor not in self._buffer_names:
            raise ScheduleError(
                f"tensor {tensor.name!r} is not part of this schedule",
                hint=f"its tensors are {', '.join(self._buffer_names.values())}",
            )
        return self._buffer_names[tensor]

    def buffer(self, name: str) -> Buffer:
        """The buffer of that name."""
        buffers = (*self.func.params, *self.func.allocs)
        found = next((b for b in buffers if b.name == name), None)
        if found is None:
            raise ScheduleError(
                f"there is no buffer {name!r}: it was inlined, or never was",
                hint=f"call cache_read before compute_inline; the buffers are "
                f"{', '.join(b.name for b in buffers)}",
            )
        return found

    def loops(self, stage: str) -> list[For]:
        """The loops around a stage, outermost first; their names differ."""
        if stage not in self._loops:
            self._loops[stage] = loops_above(self.func, block_of(self.func, stage))
        return self._loops[stage]

    def loop(self, stage: str, axis: str) -> For:
        """The loop of that name around a stage."""
        loops = self.loops(stage)
        found = [l for l in loops if l.var.name == axis]
        if not found:
            raise ScheduleError(
                f"stage {stage!r} has no axis {axis!r}: it never had, or it was split or fused",
                hint=f"its axes are {', '.join(l.var.name for l in loops) or 'none'}",
            )
        return found[-1]

    def axis(self, stage: str, axis: Axis) -> Var:
        """The loop variable that an axis handle or name means for a stage.

        Raises:
            ScheduleError: the stage has no such loop now.
        """
        if isinstance(axis, str):
            return self.loop(stage, axis).var
        if not isinstance(axis, Var | IterVar):
            raise ScheduleError(
                f"{axis!r} is not an axis",
                hint="give its name, the handle that a call returned, or the axis of the tensor",
            )
        var = axis.var if isinstance(axis, IterVar) else axis
        var = self._renamed.get((stage, var), var)
        if any(l.var is var for l in self.loops(stage)):
            return var
        names = ", ".join(l.var.name for l in self.loops(stage)) or "none"
        if isinstance(axis, IterVar) and self._may_name(stage, axis):
            # A stage that was moved or cached has new loops.
            found = [l.var for l in self.loops(stage) if l.var.name == var.name]
            if found:
                return found[-1]
        raise ScheduleError(
            f"axis {var.name!r} is not a loop of stage {stage!r}: it belongs to another stage, or "
            "was split, fused or moved",
            hint=f"the axes of {stage!r} are {names}",
        )

    def _may_name(self, stage: str, axis: IterVar) -> bool:
        """Whether an axis is the stage's own; those of another computation only look alike."""
        owners = [
            t.op for t, name in self._stages.items() if name == stage and isinstance(t, Tensor)
        ]
        axes = [
            a for op in owners for a in (*getattr(op, "axis", ()), *getattr(op, "reduce_axis", ()))
        ]
        return not owners or any(a.var is axis.var for a in axes)

    def new_stage(self, buffer: Buffer, name: str = "") -> CachedTensor:
        """The handle of a stage that a primitive made; its block has the buffer's name, or this."""
        handle = CachedTensor(name or buffer.name, buffer.dtype)
        self._stages[handle] = handle.name
        self._buffer_names[handle] = buffer.name
        return handle

    def new_stages(self, buffers: Sequence[Buffer]) -> list[CachedTensor]:
        """The handles of the outputs of one stage, whose block has the first buffer's name."""
        handles = [self.new_stage(buffer) for buffer in buffers]
        for handle in handles:
            self._stages[handle] = buffers[0].name
        return handles

    @property
    def stages(self) -> list[str]:
        """The blocks that are still in the loops, in order."""
        return [b.name for b in blocks_in(self.func.body)]

    # -- steps -------------------------------------------------------------------------------

    @property
    def steps(self) -> tuple[Step, ...]:
        """The calls that shaped the loops, as values."""
        return tuple(self._steps)

    def do(self, step: Step) -> Any:
        """Apply a step and record it; the schedule is unchanged if it is refused.

        Raises:
            ScheduleError: with the call, the reason, a hint and the loops concerned.
        """
        before = self.func
        try:
            result = step.apply(self)
        except ScheduleError as error:
            self.func = before
            self.refuse(step.call(), step.stage, getattr(step, "axis", ""), error)
        self._steps.append(step)
        return result

    def refuse(self, call: str, stage: str, axis: Any, error: ScheduleError) -> NoReturn:
        """Raise the error of a primitive with the call and the loops around it."""
        around = error.excerpt or excerpt(self.func, stage, str(axis))
        hint = error.hint or "s.show() prints the loops"
        raise ScheduleError(f"{call}: {error.message}", hint=hint, excerpt=around) from None

    def trace(self) -> str:
        """Python source of a function `apply(s)` that repeats the steps on a schedule.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> _ = s[B].split("i", factor=4)
        >>> print(s.trace())
        def apply(s):
            s["B"].split("i", factor=4)
        """
        lines = [f"    {step.call()}" for step in self.steps]
        return "\n".join(["def apply(s):", *(lines or ["    pass"])])

    def to_json(self) -> str:
        """The steps as JSON text; see `from_json`.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].parallel("i")
        >>> s.to_json()
        '{"format": 1, "steps": [{"axis": "i", "stage": "B", "step": "parallel"}]}'
        """
        steps = [step.to_dict() for step in self.steps]
        return json.dumps({"format": FORMAT, "steps": steps}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> tuple[Step, ...]:
        """The steps of `to_json`.

        Raises:
            ScheduleError: the text is not JSON of steps.
        """
        try:
            content = json.loads(text)
        except (json.JSONDecodeError, TypeError) as error:
            raise ScheduleError(
                f"the schedule is not JSON: {error}", hint="give the text of Schedule.to_json()"
            ) from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ScheduleError(
                f"the text is not a schedule of format {FORMAT}",
                hint="give the text of Schedule.to_json() of this version",
            )
        if not isinstance(content.get("steps"), list):
            raise ScheduleError("the text holds no steps", hint="it may have been cut off")
        return tuple(_step_of(values) for values in content["steps"])

    def hash(self) -> str:
        """SHA-256 of the steps, the same in every process."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def replay(self, steps: Iterable[Step]) -> None:
        """Apply steps taken from a schedule of the same computation, maybe of another shape.

        Raises:
            ScheduleError: naming the step that cannot be applied; the schedule is unchanged.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s[B].parallel("i")
        >>> other = te.create_schedule(B)
        >>> other.replay(s.steps)
        >>> other.hash() == s.hash()
        True
        """
        wanted = list(steps)
        if not all(isinstance(step, Step) for step in wanted):
            raise ScheduleError(
                "s.replay takes steps", hint="Schedule.from_json(text), or the .steps of a schedule"
            )
        with self.all_or_nothing():
            for number, step in enumerate(wanted, 1):
                try:
                    self.do(step)
                except ScheduleError as error:
                    raise ScheduleError(
                        f"step {number} of {len(wanted)} cannot be replayed: {error.message}",
                        hint=error.hint,
                        excerpt=error.excerpt,
                    ) from None

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """If a call inside is refused, none of them happened."""
        before = self.func, list(self._steps), dict(self._stages), dict(self._buffer_names)
        try:
            yield
        except ScheduleError:
            self.func, self._steps, self._stages, self._buffer_names = before
            raise

    def snapshots(self) -> list[PrimFunc]:
        """The naive loops, and the loops after each step."""
        other = Schedule(*self._initial)
        other.intrinsics = self.intrinsics
        functions = [other.func]
        for step in self.steps:
            other.do(step)
            functions.append(other.func)
        return functions

    def show(self) -> str:
        """The loops as text."""
        return str(self.func)

    def to_html(self) -> str:
        """A web page of the stages, loops and axes before and after each step.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s.to_html()[:15]
        '<!doctype html>'
        """
        from ..visualize.html import schedule_html  # a layer above: it only draws

        return schedule_html(self)

    # -- primitives of the whole schedule ---------------------------------------------------------

    def cache_write(
        self, tensor: TensorLike | str | Sequence[TensorLike], scope: str = "local"
    ) -> Any:
        """Compute `tensor` into a buffer in `scope` first; returns the computing stage's tensor.

        The reduction axes now belong to the returned tensor's stage. A stage with several outputs
        has all of them cached, and a list is returned. See `primitives.cache`.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s.cache_write(B, "local")
        CachedTensor(name='B.local', dtype=<DType.FLOAT32: 'float32'>)
        >>> s.stages
        ['B.local', 'B']
        """
        names = {self.stage_name(t) for t in _listed(tensor)}
        if len(names) != 1:
            raise ScheduleError(
                f"s.cache_write: {', '.join(sorted(names))} are different stages",
                hint="call it once for each stage",
            )
        return self.do(CacheWrite(names.pop(), scope))

    def cache_read(
        self, tensor: TensorLike | str, scope: str, readers: Sequence[TensorLike | str]
    ) -> CachedTensor:
        """Copy `tensor` into `scope` first and let `readers` read the copy; see
        `primitives.cache`.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> s = te.create_schedule(B)
        >>> s.cache_read(A, "shared", [B])
        CachedTensor(name='A.shared', dtype=<DType.FLOAT32: 'float32'>)
        >>> s.stages
        ['A.shared', 'B']
        """
        names = tuple(self.stage_name(r) for r in _listed(readers))
        return self.do(CacheRead(self.buffer_name(tensor), scope, names))

    def rfactor(self, tensor: TensorLike | str, axis: Axis, factor_axis: int = -1) -> Any:
        """Partial results per iteration of a reduction axis; returns the tensor of these, whose
        dimension `factor_axis` (the last) is the factored axis; of a reduction of several values,
        a list of tensors. See `primitives.rfactor`.

        >>> from tinycomp import te
        >>> A, k = te.placeholder((8, 6), name="A"), te.reduce_axis((0, 6), name="k")
        >>> B = te.compute((8,), lambda i: te.sum(A[i, k], axis=k), name="B")
        >>> s = te.create_schedule(B)
        >>> s.rfactor(B, "k")
        CachedTensor(name='B.rf', dtype=<DType.FLOAT32: 'float32'>)
        >>> s.stages
        ['B.rf', 'B']
        """
        stage = self[tensor]
        name = stage.name_of(axis, "rfactor")
        return self.do(Rfactor(stage.block_name, name, factor_axis))

    def set_scope(self, tensor: TensorLike | str, scope: str) -> None:
        """Keep an intermediate tensor in another memory: "local", "shared", "warp" or "global".

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> C = te.compute((8, 6), lambda i, j: B[i, j] * 2.0, name="C")
        >>> s = te.create_schedule(C)
        >>> s.set_scope(B, "shared")
        >>> s.buffer("B")
        B: float32[8, 6] shared
        """
        self.do(SetScope(self.buffer_name(tensor), scope))

    def normalize(self) -> Schedule:
        """Loops that start elsewhere start at 0; returns this schedule.

        >>> from tinycomp import te
        >>> A, k = te.placeholder((8,), name="A"), te.reduce_axis((2, 6), name="k")
        >>> B = te.compute((), lambda: te.sum(A[k], axis=k), name="B")
        >>> s = te.create_schedule(B).normalize()
        >>> print(s.func.body)
        for k in range(4):
            with block("B"): reduce k = k + 2
                init:
                    B[] = 0f32
                B[] = B[] + A[k]
        """
        self.do(Normalize())
        return self

    def create_group(
        self,
        outputs: Tensor | Sequence[Tensor],
        inputs: Tensor | Sequence[Tensor],
        include_inputs: bool = False,
    ) -> Group:
        """The stages between tensors, to be placed together; see `Group`.

        >>> from tinycomp import te
        >>> A = te.placeholder((8, 6), name="A")
        >>> B = te.compute((8, 6), lambda i, j: A[i, j] + 1.0, name="B")
        >>> C = te.compute((8, 6), lambda i, j: B[i, j] * 2.0, name="C")
        >>> s = te.create_schedule(C)
        >>> group = s.create_group(B, A)
        >>> group.compute_at(s[C], "i")
        >>> s[B].axes
        (i, i_1, j)
        """
        ends: list[Any] = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        starts: list[Any] = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        return Group(self, group_members(ends, starts, include_inputs))


def _listed(readers: Any) -> Sequence[TensorLike | str]:
    return readers if isinstance(readers, list | tuple) else [readers]


def _step_of(values: Any) -> Step:
    name = values.get("step") if isinstance(values, dict) else None
    if not isinstance(name, str) or name not in STEPS:
        raise ScheduleError(
            f"there is no schedule step {name!r}", hint=f"the steps are {', '.join(STEPS)}"
        )
    return STEPS[name].from_dict(values)


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
    func, renamed = _own_axes(func)
    return Schedule(func, buffers, renamed)


def _own_axes(func: PrimFunc) -> tuple[PrimFunc, dict[tuple[str, Var], Var]]:
    """Every loop with a variable of its own (stages may share te axes), names unique in a stage."""
    seen: set[Var] = set()
    fresh: dict[Stmt, Var] = {}
    renamed: dict[tuple[str, Var], Var] = {}
    stack: list[tuple[Stmt, tuple[str, ...]]] = [(func.body, ())]
    while stack:
        stmt, names = stack.pop()
        if isinstance(stmt, For):
            var = stmt.var
            if var in seen or var.name in names:
                fresh[stmt] = Var(unique(var.name, names), var.dtype)
                renamed.update({(b.name, var): fresh[stmt] for b in blocks_in(stmt)})
            seen.add(var)
            names = (*names, fresh[stmt].name if stmt in fresh else var.name)
        stack.extend((child, names) for child in reversed(child_statements(stmt)))
    if not fresh:
        return func, renamed

    def step(node: Node, children: list[Any]) -> Node:
        result = node.with_children(children)
        if isinstance(node, For) and node in fresh and isinstance(result, For):
            body = substitute_stmt(result.body, {node.var: fresh[node]})
            result = replace(result, var=fresh[node], body=body)
        return result

    return replace(func, body=fold(func.body, step)), renamed


__all__ = ["Axis", "CachedTensor", "Group", "Schedule", "Stage", "create_schedule"]
