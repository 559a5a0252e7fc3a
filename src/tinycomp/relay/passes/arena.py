"""Offsets of storages in the arena, by their lifetimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..constant_pool import align


@dataclass
class Period:
    """The steps in which branches run beside each other, from `start` to `end`."""

    start: int
    end: int


@dataclass(frozen=True, eq=False)
class BranchMemory:
    """One of the branches of a period; its own storages share memory with no other branch's."""

    period: Period


@dataclass
class Storage:
    """A piece of the arena, in use from step `start` to step `end`, both included; `branch`: the
    one that makes it."""

    nbytes: int
    start: int
    end: int
    branch: BranchMemory | None = None


def lay_out(storages: Sequence[Storage]) -> tuple[list[int], int]:
    """Byte offsets of storages in the arena, and its size.

    What only one branch uses lies in a piece of memory for this branch, in which lifetimes decide
    as they do in the arena; to everything else, the steps of a period are one.
    """
    whole: list[Storage] = []
    place: list[tuple[int, int]] = [(0, 0)] * len(storages)  # number in `whole`, offset in that
    own: dict[BranchMemory, list[int]] = {}
    for number, storage in enumerate(storages):
        period = storage.branch.period if storage.branch else None
        if storage.branch and period and storage.end <= period.end:
            own.setdefault(storage.branch, []).append(number)
            continue
        start = min(storage.start, period.start) if period else storage.start
        place[number] = len(whole), 0
        whole.append(Storage(storage.nbytes, start, storage.end))
    for branch, numbers in own.items():
        inner, nbytes = assign_offsets([storages[n] for n in numbers])
        for number, offset in zip(numbers, inner, strict=True):
            place[number] = len(whole), offset
        whole.append(Storage(nbytes, branch.period.start, branch.period.end))
    offsets, total = assign_offsets(whole)
    return [offsets[number] + offset for number, offset in place], total


def assign_offsets(storages: Sequence[Storage]) -> tuple[list[int], int]:
    """Byte offsets, and the bytes of the arena: largest first, each into the smallest gap it fits.

    >>> assign_offsets([Storage(64, 0, 1), Storage(128, 1, 2), Storage(64, 2, 3)])
    ([128, 0, 128], 192)
    """
    count = len(storages)
    starts = np.array([s.start for s in storages], np.int64)
    ends = np.array([s.end for s in storages], np.int64)
    sizes = np.array([align(s.nbytes) for s in storages], np.int64)
    offsets = np.zeros(count, np.int64)
    placed = np.zeros(count, bool)
    for i in sorted(range(count), key=lambda i: (-sizes[i], starts[i])):
        near = np.flatnonzero(placed & (starts <= ends[i]) & (starts[i] <= ends) & (sizes > 0))
        near = near[np.argsort(offsets[near], kind="stable")]
        offsets[i] = _smallest_gap(offsets[near], sizes[near], int(sizes[i]))
        placed[i] = True
    return offsets.tolist(), int((offsets + sizes).max(initial=0))


def _smallest_gap(offsets: np.ndarray, sizes: np.ndarray, need: int) -> int:
    """The start of the smallest gap of at least `need` bytes between blocks, else their end."""
    tops = np.maximum.accumulate(offsets + sizes)
    befores = np.concatenate([[0], tops[:-1]]) if len(tops) else tops
    gaps = offsets - befores
    fitting = np.flatnonzero(gaps >= need)
    if len(fitting):
        return int(befores[fitting[np.argmin(gaps[fitting])]])
    return int(tops[-1]) if len(tops) else 0
