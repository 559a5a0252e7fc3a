"""Factors of axes: regrouping and splitting them does not move elements."""

import math
import random

import numpy as np
import pytest

from tinycomp.relay.padding.layout import Claim, Factor, extents, refined, regroup


def positions(axes):
    """Where the elements of a small value are in memory of the large one, in order."""
    factors = [f for axis in axes for f in axis]
    large = np.arange(math.prod(f.large for f in factors)).reshape([f.large for f in factors])
    return large[tuple(slice(f.small) for f in factors)].ravel()


def random_factors(choice):
    count = choice.randint(1, 5)
    sizes = [choice.choice([1, 2, 3, 4, 6]) for _ in range(count)]
    return [Factor(choice.choice([s, s, max(1, s - 1)]), s) for s in sizes]


@pytest.mark.parametrize("seed", range(40))
def test_regrouping_moves_nothing(seed):
    choice = random.Random(seed)
    factors = random_factors(choice)
    cuts = sorted(choice.sample(range(len(factors) + 1), choice.randint(0, len(factors))))
    groups = [factors[i:j] for i, j in zip([0, *cuts], [*cuts, len(factors)], strict=True)]
    sizes = [extents(tuple(group)) for group in groups]
    axes = regroup(factors, *([s[k] for s in sizes] for k in (0, 1)))
    assert axes is not None
    assert [extents(axis) for axis in axes] == sizes
    np.testing.assert_array_equal(positions(axes), positions([factors]))


@pytest.mark.parametrize(
    ("factors", "small", "large"),
    [
        ([Factor(3, 4)], (3, 1), (2, 2)),
        ([Factor(2, 2), Factor(5, 8)], (5, 2), (8, 2)),
        ([Factor(10, 16)], (2, 5), (2, 8)),
    ],
)
def test_padded_factors_are_not_cut(factors, small, large):
    assert regroup(factors, small, large) is None


def test_factors_of_one_size_are_cut_where_axes_end():
    axes = regroup([Factor(5, 8), Factor(12, 12)], (5, 3, 4), (8, 3, 4))
    assert axes == ((Factor(5, 8),), (Factor(3, 3),), (Factor(4, 4),))
    assert regroup([Factor(60, 96)], (5, 12), (8, 12)) == ((Factor(5, 8),), (Factor(12, 12),))


@pytest.mark.parametrize("seed", range(20))
def test_refining_moves_nothing(seed):
    choice = random.Random(seed)
    outer, inner = Factor(choice.randint(1, 4), 4), choice.choice([1, 2, 3])
    whole = Factor(outer.small * inner, outer.large * inner)
    axis = refined((whole, Factor(2, 3)), (4, inner, 3) if inner > 1 else (4, 3))
    assert axis is not None
    np.testing.assert_array_equal(positions([axis]), positions([(whole, Factor(2, 3))]))


def test_places_of_padding():
    claim = Claim(((Factor(2, 2), Factor(5, 8)), (Factor(3, 3),), (Factor(1, 4),)))
    assert claim.padded() == [(0, 1), (2, 0)]
    assert claim.at((0, 1)) == Factor(5, 8)
