"""Which operators may share a kernel row by row.

A stitched group goes on after a reduction: all its values have the same leading *row* dimensions,
its reductions run over all the others, and so each row is finished before the next one begins.
Softmax, layer normalisation and what surrounds them become one kernel. On GPUs the reductions may
run over inner dimensions instead: then each *column* is finished by the threads that have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...types import Dim, TensorType
from ..nodes import Binding, Call, Function, Var
from ..op import Op, OpPattern


@dataclass(frozen=True)
class RowSpace:
    """The common shape of a group, reduced over some adjacent axes: the last ones for rows, others
    for columns."""

    shape: tuple[Dim, ...]
    axes: tuple[int, ...]

    @property
    def rows(self) -> tuple[Dim, ...]:
        """The dimensions before the reduced ones."""
        return self.shape[: self.axes[0]]

    @property
    def reduced(self) -> tuple[Dim, ...]:
        """The dimensions that are reduced."""
        return tuple(self.shape[a] for a in self.axes)

    @property
    def has_columns(self) -> bool:
        return self.axes[-1] < len(self.shape) - 1

    def holds(self, shape: tuple[Dim, ...]) -> bool:
        """Whether values of this shape belong here: one for each element, or one for each row or
        column, with the reduced dimensions kept or gone."""
        kept = tuple(1 if a in self.axes else d for a, d in enumerate(self.shape))
        gone = tuple(d for a, d in enumerate(self.shape) if a not in self.axes)
        return shape in (self.shape, kept, gone)


def is_reduction(op: Op) -> bool:
    """Whether `op` is one reduction (sum, max, ...), not made of several as softmax is."""
    return op.pattern is OpPattern.COMM_REDUCE and not is_composite(op)


def is_composite(op: Op) -> bool:
    """Whether `op` reduces and goes on with the full row: softmax, layer_norm."""
    return op.stitchable and op.pattern > OpPattern.BROADCAST and op.name.startswith("nn.")


def stitchable(binding: Binding) -> bool:
    """Whether the operator may be a member of a stitched group at all."""
    value = binding.value
    if not isinstance(value, Call) or isinstance(value.op, Function):
        return False
    return value.op.stitchable


def reduced_axes(value: Call) -> tuple[int, ...]:
    """The axes that a reduction or composite runs over, none for an elementwise operator."""
    assert isinstance(value.op, Op)
    if value.op.pattern <= OpPattern.BROADCAST or not value.args:
        return ()
    type_, axis = value.args[0].type, getattr(value.attrs, "axis", None)
    if not isinstance(type_, TensorType) or axis is None:
        return ()
    if isinstance(axis, int):
        axis %= max(type_.rank, 1)
        return tuple(range(axis, type_.rank)) if value.op.name == "nn.layer_norm" else (axis,)
    return tuple(sorted(a % type_.rank for a in axis))


def find_row_space(
    members: Iterable[Binding], max_row_bytes: int, columns: bool = False
) -> RowSpace | None:
    """The row space that all members share, or None if they may not be stitched.

    There must be at least one reduction, and the buffers of one row must fit `max_row_bytes`.
    Reductions over other than the last axes are taken only if `columns` are asked for.
    """
    members = list(members)
    if not all(stitchable(m) for m in members):
        return None
    spaces = {_space_of(m.value) for m in members if _reduces(m)}
    if len(spaces) != 1:
        return None
    space = spaces.pop()
    if space is None or (space.has_columns and not columns):
        return None
    if not all(_fits(m, members, space) for m in members):
        return None
    return space if _row_bytes(members, space) <= max_row_bytes else None


def goes_past_reduction(members: Sequence[Binding]) -> bool:
    """Whether something in the group reads a reduction, or is a composite: the stitched case."""
    reductions = {m.var for m in members if _reduces(m)}
    return any(
        isinstance(m.value, Call)
        and isinstance(m.value.op, Op)
        and (is_composite(m.value.op) or any(a in reductions for a in m.args))
        for m in members
    )


def _reduces(binding: Binding) -> bool:
    value = binding.value
    return (
        isinstance(value, Call)
        and isinstance(value.op, Op)
        and value.op.pattern > OpPattern.BROADCAST
        and not value.op.view
    )


def _space_of(value: object) -> RowSpace | None:
    assert isinstance(value, Call)
    axes, type_ = reduced_axes(value), value.args[0].type
    if not axes or not isinstance(type_, TensorType):
        return None
    adjacent = axes == tuple(range(axes[0], axes[-1] + 1))
    return RowSpace(type_.shape, axes) if adjacent else None


def _fits(member: Binding, members: Sequence[Binding], space: RowSpace) -> bool:
    type_ = member.var.type
    if not isinstance(type_, TensorType) or not space.holds(type_.shape):
        return False
    if _reduces(member):
        return True
    inside = {m.var for m in members}
    return all(  # broadcasting aligns at the right: equal ranks keep rows with rows
        not isinstance(a.type, TensorType) or a.type.rank == type_.rank
        for a in member.args
        if a in inside
    )


def _row_bytes(members: Sequence[Binding], space: RowSpace) -> int:
    """Bytes of the rows that must be kept while later reductions run; huge if not static."""
    if not all(isinstance(d, int) for d in space.reduced):
        return 1 << 62
    elements = 1
    for dim in space.reduced:
        assert isinstance(dim, int)
        elements *= dim
    uses: dict[Var, int] = {m.var: 0 for m in members}
    for member in members:
        for atom in set(member.args):
            if isinstance(atom, Var) and atom in uses:
                uses[atom] += 1
    kept, widest = 1, 1
    for member in members:
        type_ = member.var.type
        assert isinstance(type_, TensorType)
        widest = max(widest, type_.dtype.itemsize)
        if type_.shape == space.shape and uses[member.var] > 1:
            kept += 1
    return elements * widest * kept
