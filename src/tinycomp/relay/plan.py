"""What a compiled model does when it runs: kernels in order, over planned memory.

Made from a fused Function by the memory planner, turned into one native entry function by the
code generator, and stored in the artifact's manifest for `inspect` and `profile`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ..diagnostics import NO_SPAN, Span
from ..types import TensorType


class Space(StrEnum):
    INPUT = "input"  # caller's array number `position`
    OUTPUT = "output"  # caller's array number `position`
    CONSTANT = "constant"  # byte offset `position` in the constants
    ARENA = "arena"  # byte offset `position` in the arena


@dataclass(frozen=True, slots=True)
class BufferRef:
    """Where a tensor's memory is. `offset` bytes further for inputs and outputs."""

    space: Space
    position: int
    nbytes: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class KernelCall:
    """Run a kernel. `args` are its parameters in order: inputs, then outputs."""

    kernel: str
    args: tuple[BufferRef, ...]
    workspace: BufferRef | None = None
    can_fail: bool = False
    span: Span = NO_SPAN
    label: str = ""  # operators in it, for the profile: "nn.conv2d+add+nn.relu"


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy `source.nbytes` bytes."""

    source: BufferRef
    target: BufferRef


@dataclass(frozen=True, slots=True)
class Branch:
    """Run one of two step lists, by a bool in memory."""

    condition: BufferRef
    then_steps: tuple[Step, ...]
    else_steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Run `condition_steps`; while `condition` is true: `body_steps`, `condition_steps` again."""

    condition_steps: tuple[Step, ...]
    condition: BufferRef
    body_steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """Run several step lists at the same time, each on one thread. They touch no common memory
    that one of them writes."""

    branches: tuple[tuple[Step, ...], ...]


Step = KernelCall | Copy | Branch | Repeat | Parallel


@dataclass(frozen=True, slots=True)
class ExecutionPlan:
    """The steps of a model and the memory they need."""

    steps: tuple[Step, ...]
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    arena_bytes: int
    unshared_bytes: int  # what the arena would need without reuse
    constant_bytes: int


def all_steps(steps: tuple[Step, ...]) -> Iterator[Step]:
    """Every step, also inside other steps, in text order. Iterative."""
    stack: list[Step] = list(reversed(steps))
    while stack:
        step = stack.pop()
        yield step
        if isinstance(step, Branch):
            stack.extend(reversed(step.then_steps + step.else_steps))
        elif isinstance(step, Repeat):
            stack.extend(reversed(step.condition_steps + step.body_steps))
        elif isinstance(step, Parallel):
            stack.extend(reversed([s for branch in step.branches for s in branch]))
