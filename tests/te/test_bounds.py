"""Interval arithmetic, against every pair of values of small intervals."""

import itertools
import math

import numpy as np
import pytest

from tinycomp.dtype import DType
from tinycomp.te import bounds
from tinycomp.te.evaluate_expr import BINARY

INTERVALS = [(a, b) for a in (-5, -1, 0, 2) for b in (-5, -1, 0, 3, 6) if a <= b]


@pytest.mark.parametrize("op", bounds.OF_BINARY)
def test_ranges_hold_all_results(op):
    for a, b in itertools.product(INTERVALS, INTERVALS):
        low, high = bounds.OF_BINARY[op](a, b)
        for x, y in itertools.product(range(a[0], a[1] + 1), range(b[0], b[1] + 1)):
            result = int(BINARY[op](np.int64(x), np.int64(y))) if y or "div" not in op else 0
            if y or not ("div" in op or "mod" in op):
                assert low <= result <= high, (op, a, b, x, y)


@pytest.mark.parametrize("op", bounds.OF_BINARY)
def test_unbounded_operands_do_not_fail(op):
    for a in (bounds.UNKNOWN, (0, math.inf), (-math.inf, 4)):
        for b in (bounds.UNKNOWN, (1, math.inf), (2, 2)):
            low, high = bounds.OF_BINARY[op](a, b)
            assert low <= high


def test_dtypes():
    assert bounds.of_dtype(DType.UINT8) == (0, 255)
    assert bounds.of_dtype(DType.INT64) == bounds.UNKNOWN
