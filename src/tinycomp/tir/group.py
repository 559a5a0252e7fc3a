"""Several stages of a schedule, placed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..diagnostics import ScheduleError
from ..te.tensor import ComputeOp, Tensor, topological
from .stage import Axis, Stage, TensorLike

if TYPE_CHECKING:
    from .schedule import Schedule


@dataclass(frozen=True)
class Group:
    """A part of the computation that is moved as one; made by `Schedule.create_group`.

    Attributes:
        schedule: whose stages these are.
        members: the tensors, producers first.
    """

    schedule: Schedule
    members: tuple[Tensor, ...]

    def compute_at(self, consumer: Stage | TensorLike | str, axis: Axis) -> None:
        """Compute all stages of the group inside a loop of a stage that reads their results."""
        with self.schedule.all_or_nothing():
            for tensor in reversed(self.members):
                self.schedule[tensor].compute_at(consumer, axis)

    def compute_root(self) -> None:
        """Compute all stages of the group before the loops that use them."""
        with self.schedule.all_or_nothing():
            for tensor in self.members:
                self.schedule[tensor].compute_root()


def group_members(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], include_inputs: bool
) -> tuple[Tensor, ...]:
    """The computed tensors that `outputs` need and that need `inputs`, producers first.

    Raises:
        ScheduleError: there are none.
    """
    wrong = [t for t in (*outputs, *inputs) if not isinstance(t, Tensor)]
    if wrong:
        raise ScheduleError(
            f"s.create_group: {wrong[0]!r} is not a tensor", hint="give tensors, not their names"
        )
    first = {t.op for t in inputs}
    reached = set(first)
    members: list[Tensor] = []
    for op in topological(outputs):
        if any(t.op in reached for t in op.inputs) and op not in first:
            reached.add(op)
        if op in reached and isinstance(op, ComputeOp) and (include_inputs or op not in first):
            members.append(op.output(0))
    if not members:
        names = ", ".join(t.name for t in outputs)
        raise ScheduleError(
            f"no stage lies between {', '.join(t.name for t in inputs)} and {names}",
            hint="give tensors that the outputs are computed from",
        )
    return tuple(members)
