"""A model for the largest sizes of open dimensions that gives the results of all smaller ones.

XLA calls it bounded dynamism and pads dynamically; here the decisions are data (a `Plan`), and each
smaller size is proven before it runs. Two models are walked side by side (`walk`), the one for the
sizes and the one for the bucket, and the claim about their values is

    small[i] == large[i]   for every index i inside the small one's shape.

It holds for inputs by padding at the end of an axis, and carries over from operator to operator
(`operators`). Where an operator would mix padding into its results, the large model's operands are
masked: 0 for sums and products, -inf for softmax. The mask depends on extents, a small tensor that
is an input at run time, as are constants that depend on sizes. What is beyond the small shape never
matters, so it may hold anything, NaN too: it is replaced, not multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ...types import TensorType
from ..builder import Builder
from ..nodes import Atom, Function, IRModule, Var, replace_args
from ..op import OpSet
from .layout import Claim
from .walk import Extent, Mask, Plan, Slot, Walk

T = TypeVar("T")


@dataclass(frozen=True)
class Crop:
    """How a result of the small model is found in that of the large one.

    Attributes:
        large, small: the sizes of all factors of all axes.
        shape: of the small result.
    """

    large: tuple[int, ...]
    small: tuple[int, ...]
    shape: tuple[int, ...]

    def __call__(self, array: Any) -> Any:
        """The small result, a view where all axes have one factor."""
        factors = array if array.shape == self.large else array.reshape(self.large)
        corner = factors[tuple(slice(n) for n in self.small)]
        return corner if corner.shape == self.shape else corner.reshape(self.shape)

    @staticmethod
    def of(claim: Claim) -> Crop:
        factors = claim.factors
        shape = tuple(math.prod(f.small for f in axis) for axis in claim.axes)
        return Crop(tuple(f.large for f in factors), tuple(f.small for f in factors), shape)


@dataclass(frozen=True)
class Fit:
    """How sizes are run by a larger model.

    Attributes:
        hidden: what its hidden inputs are fed with.
        crops: for each result.
    """

    hidden: tuple[np.ndarray, ...]
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class Bounded:
    """A model for the largest sizes, and what it does about padding; made by `bound`.

    Attributes:
        large: the model as imported, without what the plan does.
        extents: groups of padded extents that are equal for all sizes, each an element of the
            hidden tensor of extents.
        constants: groups of constants that are equal for all sizes, each a hidden input.
    """

    large: IRModule
    ops: OpSet
    plan: Plan
    extents: tuple[tuple[Extent, ...], ...] = ()
    constants: tuple[tuple[Slot, ...], ...] = ()

    def fit(self, small: IRModule) -> Fit | str:
        """How the model runs smaller sizes; or why it is not proven to."""
        walk = Walk(small, self.large, self.ops, self.plan)
        reason = walk.run()
        if reason is not None:
            return reason
        hidden: list[np.ndarray] = []
        sizes = [{walk.extents[e].small for e in group} for group in self.extents]
        if sizes:
            hidden.append(np.array([max(group) for group in sizes], np.int32))
        for slots in self.constants:
            found = {_identity(walk.values[s]): walk.values[s] for s in slots}
            small_value, like = next(iter(found.values()))
            hidden.append(_padded(small_value, like.shape))
            sizes.append({*range(len(found))})
        if any(len(group) != 1 for group in sizes):
            return "sizes that are equal for other sizes of the dimensions differ"
        assert walk.result is not None
        return Fit(tuple(hidden), tuple(map(Crop.of, walk.result)))

    def module(self) -> IRModule:
        """The large model with masks, and with parameters for what depends on sizes."""
        if self.plan.is_empty:
            return self.large
        walk = Walk(self.large, self.large, self.ops, self.plan)
        reason = walk.run()
        assert reason is None, reason
        function, names = _Emitter(self, walk).run()
        inputs = self.large.input_names
        return replace(
            self.large,
            functions={**self.large.functions, "main": function},
            input_names=(*inputs, *names) if inputs else (),
        )


def bound(large: IRModule, samples: Sequence[IRModule], ops: OpSet) -> Bounded:
    """What a model must do about padding to run smaller sizes.

    Args:
        samples: the model for some smaller sizes, those first where all dimensions are smaller. One
            that cannot be proven adds nothing.
        ops: operators to rewrite with.
    """
    plan = Plan()
    for small in samples:
        walk = Walk(small, large, ops, plan, extend=True)
        if walk.run() is None:
            plan = walk.plan
    walks = [Walk(small, large, ops, plan) for small in (*samples, large)]
    walks = [walk for walk in walks if walk.run() is None]
    extents = [(s, place) for s in sorted(plan.masks) for place in sorted(plan.masks[s].places)]
    return Bounded(
        large,
        ops,
        plan,
        _grouped(extents, lambda e: [(w.extents[e].small, w.extents[e].large) for w in walks]),
        _grouped(sorted(plan.fed), lambda s: [_identity(w.values[s]) for w in walks]),
    )


def _grouped(items: Iterable[T], facts: Callable[[T], list[Hashable]]) -> tuple[tuple[T, ...], ...]:
    """Items with the same facts, together."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(tuple(facts(item)), []).append(item)
    return tuple(map(tuple, groups.values()))


def _identity(values: tuple[np.ndarray, np.ndarray]) -> Hashable:
    """What two constants must have in common to be one input."""
    return tuple((str(a.dtype), a.shape, a.tobytes()) for a in values)


def _padded(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The array with its last elements repeated, so that indices stay valid."""
    at = [np.minimum(np.arange(n), m - 1) for m, n in zip(array.shape, shape, strict=True)]
    return np.asarray(array[np.ix_(*at)])


class _Emitter:
    """Writes the large model with what its plan does."""

    def __init__(self, bounded: Bounded, walk: Walk) -> None:
        self.plan, self.walk = bounded.plan, walk
        self.main = bounded.large.main
        self.builder = Builder(bounded.ops)
        self.builder.params = list(self.main.params)
        self.element = {e: k for k, group in enumerate(bounded.extents) for e in group}
        names = []
        if bounded.extents:
            names.append("extents")
            self.extents = self.builder.param("extents", (len(bounded.extents),), "int32")
        self.fed: dict[Slot, Var] = {}
        for k, group in enumerate(bounded.constants):
            _, value = walk.values[group[0]]
            names.append(f"constant{k}")
            param = self.builder.param(names[-1], value.shape, str(value.dtype))
            self.fed.update(dict.fromkeys(group, param))
        taken = {*bounded.large.input_names}
        self.names = ["'" * (name in taken) + name for name in names]

    def run(self) -> tuple[Function, list[str]]:
        for path, _, binding in self.walk.steps:
            self.builder.span = binding.span
            args: list[Atom] = []
            for number, atom in enumerate(binding.args):
                slot = path, number
                atom = self.fed.get(slot, atom)
                mask = self.plan.masks.get(slot)
                args.append(atom if mask is None else self._masked(slot, atom, mask))
            value = replace_args(binding.value, args)
            self.builder.bindings.append(
                binding if value is binding.value else replace(binding, value=value)
            )
        result = self.walk.final
        return replace(
            self.main,
            params=tuple(self.builder.params),
            bindings=tuple(self.builder.bindings),
            result=result,
        ), self.names

    def _masked(self, slot: Slot, atom: Atom, mask: Mask) -> Atom:
        """where(index < extent, atom, fill), for every place that is masked."""
        call, const = self.builder.call, self.builder.const
        assert isinstance(atom.type, TensorType)
        inside: Atom | None = None
        for axis, f in sorted(mask.places):
            sizes = mask.sizes[axis]
            index = np.arange(math.prod(sizes), dtype=np.int32) // math.prod(sizes[f + 1 :])
            column = (-1,) + (1,) * (atom.type.rank - axis - 1)
            k = self.element[slot, (axis, f)]
            extent = call("strided_slice", self.extents, begin=(k,), end=(k + 1,), strides=(1,))
            extent = call("reshape", extent, newshape=(1,) * len(column))
            test = call("less", const((index % sizes[f]).reshape(column)), extent)
            inside = test if inside is None else call("logical_and", inside, test)
        assert inside is not None
        return call("where", inside, atom, const(mask.fill, atom.type.dtype))
