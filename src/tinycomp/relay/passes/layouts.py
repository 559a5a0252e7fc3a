"""Arithmetic of layouts.

A *layout* of a value says how it is stored: `stored.shape[i] == value.shape[layout[i]]`, so NHWC is
(0, 2, 3, 1) for an NCHW value, and `stored` is the value transposed by `layout`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...types import Dim
from ..op import Op, OpPattern

Layout = tuple[int, ...]
NHWC: Layout = (0, 2, 3, 1)


def is_pointwise(op: Op) -> bool:
    """Whether the result at a place depends only on operands at that place, whatever the place.

    So the operator may as well work on transposed or reshaped operands. (trilu looks at where it
    is, nn.batch_norm at the channel axis.)
    """
    return op.pattern <= OpPattern.BROADCAST and op.stitchable and op.name != "nn.batch_norm"


def inverse(layout: Layout) -> Layout:
    """The axes that transpose the stored value back.

    >>> inverse((0, 2, 3, 1))
    (0, 3, 1, 2)
    """
    return tuple(sorted(range(len(layout)), key=layout.__getitem__))


def compose(first: Layout, then: Layout) -> Layout:
    """The axes of one transpose that does two: by `first`, and the result by `then`."""
    return tuple(first[axis] for axis in then)


def is_identity(layout: Layout) -> bool:
    return layout == tuple(range(len(layout)))


def keeps_order(shape: Sequence[Dim], axes: Layout) -> bool:
    """Whether transposing only moves axes of extent 1, so that memory stays as it is.

    >>> keeps_order((2, 8, 1, 1), (0, 2, 3, 1)), keeps_order((2, 8, 1, 3), (0, 2, 3, 1))
    (True, False)
    """
    moved = [axis for axis in axes if shape[axis] != 1]
    return moved == sorted(moved)


def reshape_blocks(old: Sequence[Dim], new: Sequence[Dim]) -> list[tuple[range, range]] | None:
    """Pairs of axis runs of equal size that a reshape maps to each other, as short as possible.

    >>> reshape_blocks((2, 6, 4, 5), (2, 3, 2, 20))
    [(range(0, 1), range(0, 1)), (range(1, 2), range(1, 3)), (range(2, 4), range(3, 4))]

    None where an extent that is not a known positive number has no equal partner.
    """
    blocks: list[tuple[range, range]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        first_i, first_j = i, j
        left, right = old[i], new[j]
        i, j = i + 1, j + 1
        while left != right:
            if not isinstance(left, int) or not isinstance(right, int) or min(left, right) < 1:
                return None
            if left < right:
                if i == len(old):
                    return None
                left, i = left * old[i], i + 1
            else:
                if j == len(new):
                    return None
                right, j = right * new[j], j + 1
        blocks.append((range(first_i, i), range(first_j, j)))
    if any(d != 1 for d in (*old[i:], *new[j:])):
        return None
    if i < len(old) or j < len(new):
        if not blocks:
            return None
        olds, news = blocks.pop()
        blocks.append((range(olds.start, len(old)), range(news.start, len(new))))
    return blocks


def reshaped_layout(old: Sequence[Dim], new: Sequence[Dim], layout: Layout) -> Layout | None:
    """The layout of a reshaped value if its stored form can be reshaped in place of it.

    >>> reshaped_layout((2, 8, 4, 4), (2, 8, 16), (0, 2, 3, 1))  # N(HW)C
    (0, 2, 1)
    >>> reshaped_layout((2, 8, 4, 4), (2, 128), (0, 2, 3, 1)) is None
    True
    """
    blocks = reshape_blocks(old, new)
    if blocks is None:
        return None
    position = {axis: i for i, axis in enumerate(a for a in layout if old[a] != 1)}
    where = inverse(layout)
    order: list[tuple[int, range]] = []
    for olds, news in blocks:
        places = [position[a] for a in olds if a in position]
        if places and places != list(range(places[0], places[0] + len(places))):
            return None
        anchors = [where[a] for a in olds if a in position] or [where[a] for a in olds]
        order.append((anchors[0], news))
    return tuple(axis for _, news in sorted(order, key=lambda o: o[0]) for axis in news)


QUAD = 4
"""Products of bytes that one 32-bit lane of a dot-product instruction adds up."""


def pack_bytes(b: np.ndarray, nr: int) -> np.ndarray:
    """B[K, N] of int8, K a multiple of 4, as [ceil(N / nr)][K / 4][nr * 4], zero-padded.

    >>> pack_bytes(np.arange(8, dtype=np.int8).reshape(4, 2), 2).tolist()
    [[[0, 2, 4, 6, 1, 3, 5, 7]]]
    """
    k, n = b.shape
    blocks = -(-n // nr)
    padded = np.pad(b, [(0, 0), (0, blocks * nr - n)])
    split = padded.reshape(k // QUAD, QUAD, blocks, nr).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(split.reshape(blocks, k // QUAD, nr * QUAD))
