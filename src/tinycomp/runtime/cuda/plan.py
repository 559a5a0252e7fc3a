"""What a GPU artifact holds besides machine code: the execution plan and the launches, as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...codegen.cuda.limits import Launch, TensorMapSpec
from ...codegen.cuda.nvrtc import Resources
from ...diagnostics import Span
from ...dtype import DType
from ...relay.plan import (
    Branch,
    BufferRef,
    Copy,
    ExecutionPlan,
    KernelCall,
    Parallel,
    Repeat,
    Space,
    Step,
)
from ...types import TensorType


@dataclass(frozen=True)
class CudaPlan:
    """The steps of a model, the launches of each kernel, and what their code uses."""

    plan: ExecutionPlan
    launches: Mapping[str, tuple[Launch, ...]]
    resources: Mapping[str, Mapping[str, Resources]]

    def to_json(self) -> str:
        plan = self.plan
        return json.dumps(
            {
                "steps": _steps_json(plan.steps),
                "inputs": [_type_json(t) for t in plan.inputs],
                "outputs": [_type_json(t) for t in plan.outputs],
                "arena_bytes": plan.arena_bytes,
                "unshared_bytes": plan.unshared_bytes,
                "constant_bytes": plan.constant_bytes,
                "launches": {
                    name: [dataclasses.asdict(one) for one in launches]
                    for name, launches in self.launches.items()
                },
                "resources": {
                    name: {entry: dataclasses.asdict(r) for entry, r in found.items()}
                    for name, found in self.resources.items()
                },
            }
        )

    @staticmethod
    def from_json(text: str) -> CudaPlan:
        data = json.loads(text)
        plan = ExecutionPlan(
            _steps(data["steps"]),
            tuple(_type(t) for t in data["inputs"]),
            tuple(_type(t) for t in data["outputs"]),
            data["arena_bytes"],
            data["unshared_bytes"],
            data["constant_bytes"],
        )
        launches = {
            name: tuple(launch_from_json(one) for one in items)
            for name, items in data["launches"].items()
        }
        resources = {
            name: {entry: Resources(**r) for entry, r in found.items()}
            for name, found in data["resources"].items()
        }
        return CudaPlan(plan, launches, resources)


def launch_from_json(data: Mapping[str, Any]) -> Launch:
    """A launch from the fields that `dataclasses.asdict` gives."""
    values = _tuples(data)
    maps = tuple(TensorMapSpec(**_tuples(one)) for one in values.pop("maps", ()))
    return Launch(**values, maps=maps)


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def _type_json(type_: TensorType) -> list[Any]:
    return [list(type_.static_shape), str(type_.dtype)]


def _type(data: list[Any]) -> TensorType:
    return TensorType(tuple(data[0]), DType(data[1]))


def _ref_json(ref: BufferRef | None) -> list[Any] | None:
    return None if ref is None else [str(ref.space), ref.position, ref.nbytes, ref.offset]


def _ref(data: Any) -> BufferRef:
    return BufferRef(Space(data[0]), *data[1:])


def _steps_json(steps: tuple[Step, ...]) -> list[Any]:
    """A flat list; a step that holds others is followed by them, and says how many they are.

    Branches may be nested deeply, so nothing here recurses.
    """
    out: list[Any] = []
    work: list[Any] = list(reversed(steps))
    while work:
        step = work.pop()
        if isinstance(step, KernelCall):
            refs = [_ref_json(r) for r in step.args]
            out.append(["call", step.kernel, refs, _ref_json(step.workspace), step.can_fail,
                        list(step.span.nodes), step.label])  # fmt: skip
        elif isinstance(step, Copy):
            out.append(["copy", _ref_json(step.source), _ref_json(step.target)])
        elif isinstance(step, Branch):
            parts = step.then_steps, step.else_steps
            out.append(["branch", _ref_json(step.condition), *map(len, parts)])
            work.extend(reversed(parts[0] + parts[1]))
        elif isinstance(step, Repeat):
            parts = step.condition_steps, step.body_steps
            out.append(["repeat", _ref_json(step.condition), *map(len, parts)])
            work.extend(reversed(parts[0] + parts[1]))
        elif isinstance(step, Parallel):
            out.append(["parallel", *map(len, step.branches)])
            work.extend(reversed([s for branch in step.branches for s in branch]))
    return out


def _steps(items: list[Any]) -> tuple[Step, ...]:
    """The inverse: from the end, so that the steps inside another are ready before it."""
    stack: list[Step] = []  # the first step on top
    for item in reversed(items):
        kind = item[0]
        if kind == "call":
            workspace = None if item[3] is None else _ref(item[3])
            refs = tuple(_ref(r) for r in item[2])
            stack.append(
                KernelCall(item[1], refs, workspace, item[4], Span(tuple(item[5])), item[6])
            )
        elif kind == "copy":
            stack.append(Copy(_ref(item[1]), _ref(item[2])))
        elif kind == "parallel":
            branches = tuple(tuple(stack.pop() for _ in range(count)) for count in item[1:])
            stack.append(Parallel(branches))
        else:
            first = tuple(stack.pop() for _ in range(item[2]))
            second = tuple(stack.pop() for _ in range(item[3]))
            condition = _ref(item[1])
            if kind == "branch":
                stack.append(Branch(condition, first, second))
            else:
                stack.append(Repeat(first, condition, second))
    return tuple(reversed(stack))
