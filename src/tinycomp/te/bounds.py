"""Interval arithmetic: the values an integer expression can take, as inclusive ranges.

A range is `(low, high)` with infinities where nothing is known.

>>> floordiv((0, 31), (8, 8)), floormod((0, 5), (8, 8)), mul((-2, 3), (0, INF))
((0, 3), (0, 5), (-inf, inf))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..dtype import DType
from ..ir.expr import BinaryOp

INF = math.inf
Bound = int | float
Range = tuple[Bound, Bound]
UNKNOWN: Range = (-INF, INF)


def add(a: Range, b: Range) -> Range:
    return a[0] + b[0], a[1] + b[1]


def sub(a: Range, b: Range) -> Range:
    return a[0] - b[1], a[1] - b[0]


def _times(x: Bound, y: Bound) -> Bound:
    return 0 if x == 0 or y == 0 else x * y  # 0 * inf is 0: the bound is never reached


def mul(a: Range, b: Range) -> Range:
    corners = [_times(x, y) for x in a for y in b]
    return min(corners), max(corners)


def _over(x: Bound, y: Bound, divide: Callable[[int, int], int]) -> Bound:
    if math.isinf(x):
        return x
    if math.isinf(y):
        return 0 if x >= 0 else -1
    return divide(int(x), int(y))


def floordiv(a: Range, b: Range) -> Range:
    """Range of a // b for a divisor that is not negative, which makes it monotone in a; else
    unknown. By zero gives 0."""
    if b[0] < 0:
        return UNKNOWN
    if b[0] == 0:
        return union((0, 0), floordiv(a, (1, max(1, b[1]))))
    corners = [_over(x, y, lambda p, q: p // q) for x in a for y in b]
    return min(corners), max(corners)


def floormod(a: Range, b: Range) -> Range:
    if b[0] < 0:
        return UNKNOWN
    if b[0] == 0:
        return union((0, 0), floormod(a, (1, max(1, b[1]))))
    if a[0] >= 0 and a[1] < b[0]:
        return a
    return 0, min(b[1] - 1, a[1]) if a[0] >= 0 else b[1] - 1


def truncdiv(a: Range, b: Range) -> Range:
    if b[0] < 1:
        return UNKNOWN
    corners = [_over(x, y, lambda p, q: abs(p) // q * (1 if p >= 0 else -1)) for x in a for y in b]
    return min(corners), max(corners)


def truncmod(a: Range, b: Range) -> Range:
    if b[0] < 1:
        return UNKNOWN
    top = b[1] - 1
    return max(min(a[0], 0), -top), min(max(a[1], 0), top)


def minimum(a: Range, b: Range) -> Range:
    return min(a[0], b[0]), min(a[1], b[1])


def maximum(a: Range, b: Range) -> Range:
    return max(a[0], b[0]), max(a[1], b[1])


def bit_and(a: Range, b: Range) -> Range:
    tops = [r[1] for r in (a, b) if r[0] >= 0]  # a non-negative operand caps the result
    return (0, min(tops)) if tops else UNKNOWN


def bit_or(a: Range, b: Range) -> Range:
    top = max(a[1], b[1])
    if a[0] < 0 or b[0] < 0 or math.isinf(top):
        return UNKNOWN
    return 0, (1 << int(top).bit_length()) - 1


def union(a: Range, b: Range) -> Range:
    return min(a[0], b[0]), max(a[1], b[1])


def of_dtype(dtype: DType) -> Range:
    """All values of an integer dtype; int64 counts as unbounded, being the type of indices."""
    if dtype is DType.INT64 or dtype.is_float:
        return UNKNOWN
    return int(dtype.min_value), int(dtype.max_value)


OF_BINARY: Mapping[BinaryOp, Callable[[Range, Range], Range]] = {
    BinaryOp.ADD: add,
    BinaryOp.SUB: sub,
    BinaryOp.MUL: mul,
    BinaryOp.FLOORDIV: floordiv,
    BinaryOp.FLOORMOD: floormod,
    BinaryOp.TRUNCDIV: truncdiv,
    BinaryOp.TRUNCMOD: truncmod,
    BinaryOp.MIN: minimum,
    BinaryOp.MAX: maximum,
    BinaryOp.BIT_AND: bit_and,
    BinaryOp.BIT_OR: bit_or,
    BinaryOp.BIT_XOR: bit_or,
}
