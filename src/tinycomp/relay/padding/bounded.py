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

from ..nodes import IRModule
from ..op import OpSet
from .emit import Emitter
from .layout import Claim
from .walk import Extent, Plan, Slot, Walk

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
        if reason is not None:  # the plan may lack something for want of something else
            return Walk(small, self.large, self.ops, self.plan, extend=True).run() or reason
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
        function, names = Emitter(walk, self.extents, self.constants).run()
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
