"""The code of a plan: masks, and parameters for what depends on sizes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...types import TensorType
from ..builder import Builder
from ..nodes import Atom, Binding, Call, Function, Var, replace_args
from ..op import Op
from .walk import Extent, Mask, Slot, Walk


@dataclass(frozen=True, slots=True)
class _Test:
    """The index in one place of an array is below an element of the extents.

    Attributes:
        sizes: of the factors of the axis; `factor` is the one that counts.
    """

    axis: int
    sizes: tuple[int, ...]
    factor: int
    element: int

    def indices(self) -> np.ndarray:
        """The factor's index, for every index of the axis."""
        inner = math.prod(self.sizes[self.factor + 1 :])
        every = np.arange(math.prod(self.sizes), dtype=np.int32)
        return every // inner % self.sizes[self.factor]


class Emitter:
    """Writes the large model of a walk with what the walk's plan does.

    Args:
        walk: of the large model beside itself.
        extents: groups of extents, one for each element of the tensor of extents.
        constants: groups of operands, one for each further parameter.
    """

    def __init__(
        self, walk: Walk, extents: Sequence[Sequence[Extent]], constants: Sequence[Sequence[Slot]]
    ) -> None:
        self.walk, self.main = walk, walk.large.main
        self.builder = Builder(walk.ops)
        self.builder.params = list(self.main.params)
        self.element = {e: k for k, group in enumerate(extents) for e in group}
        self.names: list[str] = []
        if extents:
            self.extents = self._param("extents", (len(extents),), "int32")
        self.fed: dict[Slot, Var] = {}
        for k, group in enumerate(constants):
            value = walk.values[group[0]][1]
            param = self._param(f"constant{k}", value.shape, str(value.dtype))
            self.fed.update(dict.fromkeys(group, param))
        self.producers = {b.var: b for _, _, b in walk.steps}
        reads = (atom for _, _, b in walk.steps for atom in b.args)
        self.uses = Counter([*reads, walk.final])

    def run(self) -> tuple[Function, list[str]]:
        """The function, and the names of the parameters that were added."""
        for path, _, binding in self.walk.steps:
            self.builder.span = binding.span
            args: list[Atom] = []
            for number, atom in enumerate(binding.args):
                slot = path, number
                atom = self.fed.get(slot, atom)
                mask = self.walk.plan.masks.get(slot)
                args.append(atom if mask is None else self._masked(slot, atom, mask))
            value = replace_args(binding.value, args)
            same = value is binding.value
            self.builder.bindings.append(binding if same else replace(binding, value=value))
        function = replace(
            self.main,
            params=tuple(self.builder.params),
            bindings=tuple(self.builder.bindings),
            result=self.walk.final,
        )
        return function, self.names

    def _param(self, name: str, shape: Sequence[int], dtype: str) -> Var:
        while name in self.walk.large.input_names:
            name += "'"
        self.names.append(name)
        return self.builder.param(name, shape, dtype)

    def _masked(self, slot: Slot, atom: Atom, mask: Mask) -> Atom:
        """where(index < extent, atom, fill), for every place that is masked.

        A mask of 0 goes in front of transpositions and reshapes, so that it is part of what
        computes the operand of a product; those of -inf stay where attention is recognised.
        """
        tests = [
            _Test(axis, mask.sizes[axis], f, self.element[slot, (axis, f)])
            for axis, f in sorted(mask.places)
        ]
        behind: list[Call] = []
        while mask.fill == 0 and (found := self._in_front(atom, tests)):
            producer, tests = found
            behind.append(producer)
            (atom,) = producer.args
        assert isinstance(atom.type, TensorType)
        zero = self.builder.const(mask.fill, atom.type.dtype)
        result = self.builder.call("where", self._inside(tests, atom.type.rank), atom, zero)
        for call in reversed(behind):
            assert isinstance(call.op, Op)
            result = self.builder.call(call.op, result, attrs=call.attrs)
        return result

    def _inside(self, tests: Sequence[_Test], rank: int) -> Atom:
        """Whether all tests hold, to be broadcast against an array."""
        call = self.builder.call
        results: list[Atom] = []
        for test in tests:
            k, index = test.element, self.builder.const(test.indices())
            extent = call("strided_slice", self.extents, begin=(k,), end=(k + 1,), strides=(1,))
            column = (len(index.data),) + (1,) * (rank - test.axis - 1)
            results.append(call("reshape", call("less", index, extent), newshape=column))
        inside = results[0]
        for other in results[1:]:
            inside = call("logical_and", inside, other)
        return inside

    def _in_front(self, atom: Atom, tests: Sequence[_Test]) -> tuple[Call, list[_Test]] | None:
        """The transposition or reshape that only this use reads, and the tests in front of it."""
        binding = self.producers.get(atom) if isinstance(atom, Var) else None
        if binding is None or not isinstance(binding.value, Call) or self.uses[atom] != 1:
            return None
        axes = _axes_in_front(binding, binding.value, [test.axis for test in tests])
        if axes is None:
            return None
        moved = [replace(test, axis=axis) for test, axis in zip(tests, axes, strict=True)]
        return binding.value, moved


def _axes_in_front(binding: Binding, call: Call, axes: Sequence[int]) -> list[int] | None:
    """Which axes of the operand of a transposition or reshape are these of its result."""
    name = call.op.name if isinstance(call.op, Op) else ""
    attrs: Any = call.attrs
    if name == "transpose":
        return [attrs.axes[axis] for axis in axes]
    if name != "reshape":
        return None
    assert isinstance(binding.var.type, TensorType)
    assert isinstance(call.args[0].type, TensorType)
    after, before = binding.var.type.static_shape, call.args[0].type.static_shape
    where = {(n, math.prod(before[d + 1 :])): d for d, n in enumerate(before)}
    found = [where.get((after[axis], math.prod(after[axis + 1 :]))) for axis in axes]
    return None if None in found else found  # type: ignore[return-value]
