"""What is known of operators whose tensor expressions do not show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...dtype import DType
from ...types import TensorType
from .layout import Claim, Factor
from .operators import Agreement, Use


def _topk(small: Use, large: Use, operands: Sequence[Claim]) -> Agreement:
    """Equal elements keep their order, so padding that is as bad as can be comes behind the others;
    and there are at least k others. (NaN is larger than all numbers, so this needs no exception.)
    """
    attrs: Any = small.attrs
    theirs: Any = large.attrs
    (claim,), (type_,) = operands, small.args
    assert isinstance(type_, TensorType)
    axis = attrs.axis % type_.rank
    reason = "topk sorts what is padded"
    worst = type_.dtype.min_value if attrs.largest else _largest(type_.dtype)
    if worst is None or len(claim.axes[axis]) != 1:
        return Agreement(None, reason)
    place = axis, 0
    if claim.at(place).is_padded and not (claim.fill == worst and place in claim.filled):
        return Agreement(None, reason, frozenset({(0, place)}))
    chosen = (Factor(attrs.k, theirs.k),)
    axes = (*claim.axes[:axis], chosen, *claim.axes[axis + 1 :])
    return Agreement((Claim(axes), Claim(axes)))


def _largest(dtype: DType) -> int | float | None:
    """The value that no other is behind in ascending order; of floats that would be NaN."""
    return None if dtype.is_float else dtype.max_value


FACTS: Mapping[str, Callable[[Use, Use, Sequence[Claim]], Agreement]] = {"topk": _topk}
