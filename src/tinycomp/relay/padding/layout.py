"""What is claimed of a value of a model for larger sizes, fed with padded inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Factor:
    """An extent in the model for smaller sizes, and in the one for larger sizes."""

    small: int
    large: int

    @property
    def is_padded(self) -> bool:
        return self.small != self.large


Axis = tuple[Factor, ...]
"""The factors of an axis, outermost first: (3, 3) and (5, 8) are 3 rows of 5 elements padded to 8,
merged into one axis of 15 and 24. Most axes have one factor."""

Place = tuple[int, int]
"""An axis, and a factor in it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Element i of the small value is element i of the large one, index by index of all factors.

    Attributes:
        axes: the factors of every axis.
        fill: what elements hold whose index is beyond the small extent in at least one of the
            places `filled`, and is inside it in all other places. Nothing is known of the others.
    """

    axes: tuple[Axis, ...]
    fill: float | int | bool | None = None
    filled: frozenset[Place] = frozenset()

    @staticmethod
    def corner(small: Sequence[int], large: Sequence[int]) -> Claim:
        """The small value is the corner of the large one.

        >>> Claim.corner((3, 5), (3, 8)).padded()
        [(1, 0)]
        """
        return Claim(tuple((Factor(s, n),) for s, n in zip(small, large, strict=True)))

    def padded(self) -> list[Place]:
        """The places where the extents differ."""
        return [
            (a, f) for a, axis in enumerate(self.axes) for f, x in enumerate(axis) if x.is_padded
        ]

    def at(self, place: Place) -> Factor:
        return self.axes[place[0]][place[1]]

    @property
    def factors(self) -> list[Factor]:
        """Of all axes, in the order of memory."""
        return [factor for axis in self.axes for factor in axis]


def extents(axis: Axis) -> tuple[int, int]:
    """The sizes of an axis in both models."""
    return math.prod(f.small for f in axis), math.prod(f.large for f in axis)


def regroup(
    factors: Sequence[Factor], small: Sequence[int], large: Sequence[int]
) -> tuple[Axis, ...] | None:
    """The factors of a value, divided among the axes of another shape with the same elements.

    Factors of one size are split where an axis ends inside them. None if an axis would end inside
    a padded factor.

    >>> regroup([Factor(3, 3), Factor(5, 8), Factor(6, 6)], (15, 2, 3), (24, 2, 3))[0]
    (Factor(small=3, large=3), Factor(small=5, large=8))
    """
    rest = [f for f in reversed(factors) if f.large != 1]
    axes: list[Axis] = []
    for wanted in zip(small, large, strict=True):
        axis: list[Factor] = []
        left = wanted
        while left != (1, 1):
            if not rest:
                return None
            factor = rest.pop()
            part = _leading(factor, *left)
            if part is None:
                return None
            if part != factor:
                inner = Factor(factor.small // part.small, factor.large // part.large)
                rest.append(inner)
            axis.append(part)
            left = left[0] // part.small, left[1] // part.large
        axes.append(_merged(axis))
    return None if rest else tuple(axes)


def _leading(factor: Factor, small: int, large: int) -> Factor | None:
    """The outer part of a factor that is a divisor of the extents, the rest being of one size."""
    if large % factor.large == 0 and small % factor.small == 0:
        return factor
    if not factor.is_padded:
        part = math.gcd(math.gcd(factor.small, small), large)
        return Factor(part, part) if part > 1 else None
    inner = factor.large // large if factor.large % large == 0 else 0
    if inner and factor.small == small * inner:
        return Factor(small, large)
    return None


def _merged(axis: Sequence[Factor]) -> Axis:
    """Factors that are of one size become part of the factor outside of them."""
    result: list[Factor] = []
    for factor in axis:
        if result and not factor.is_padded:
            outer = result.pop()
            factor = Factor(outer.small * factor.small, outer.large * factor.large)
        result.append(factor)
    return tuple(result) or (Factor(1, 1),)


def refined(axis: Axis, sizes: Sequence[int]) -> Axis | None:
    """An axis with factors of the given sizes in the large model, if its own can be split so.

    >>> refined((Factor(15, 24),), (3, 8)), refined((Factor(15, 40),), (5, 8))
    (None, None)
    >>> refined((Factor(15, 20),), (4, 5))
    (Factor(small=3, large=4), Factor(small=5, large=5))
    """
    rest = list(reversed(axis))
    result: list[Factor] = []
    for size in sizes:
        if not rest:
            return None
        factor = rest.pop()
        inner = factor.large // size
        if factor.large % size or factor.small % inner:
            return None
        result.append(Factor(factor.small // inner, size))
        if inner > 1:
            rest.append(Factor(inner, inner))
    return tuple(result) if not rest else None
