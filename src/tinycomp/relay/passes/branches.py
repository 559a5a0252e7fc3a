"""Which kernels of a function run beside each other: branches, each done by one worker.

Large kernels use the whole machine one after the other. Small ones are not worth dividing; but
where a function parts into chains that do not need each other (the two directions of a recurrent
layer, the heads of a detector), the chains are: workers meet once for all kernels of a chain. This
is list scheduling (Graham, "Bounds on multiprocessing timing anomalies", 1969) of whole chains.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..nodes import Binding, Function

Work = Callable[[Binding], float | None]
"""Estimated nanoseconds of a binding on one worker; 0 for what costs nothing. None for one that has
to run alone: it uses the whole machine, may fail, or holds other functions."""


@dataclass(frozen=True)
class Workers:
    """Threads of a CPU, or streams of a GPU.

    Attributes:
        count: how many there are.
        least_gain: nanoseconds that branches must save, since workers have to meet.
    """

    count: int
    least_gain: float


ONE = Workers(1, 0.0)


@dataclass(frozen=True)
class Section:
    """Branches that do not need each other; bindings of each in order."""

    branches: tuple[tuple[Binding, ...], ...]


Item = Binding | Section


def find_branches(function: Function, work: Work, workers: Workers) -> Sequence[Item]:
    """The bindings in an order that respects their needs, some of them in sections.

    Where no section saves `least_gain`, this is `function.bindings`.
    """
    if workers.count < 2:
        return function.bindings
    search = _Search(function, work, workers)
    items = search.run()
    return items if any(isinstance(i, Section) for i in items) else function.bindings


class _Search:
    """Kahn's topological sort. What must run alone or costs nothing goes first, so that as much as
    possible of the rest is ready at once and can be divided."""

    def __init__(self, function: Function, work: Work, workers: Workers) -> None:
        self.bindings, self.workers = function.bindings, workers
        self.work = [work(b) for b in self.bindings]
        maker = {b.var: i for i, b in enumerate(self.bindings)}
        self.sources = [sorted({maker[a] for a in b.args if a in maker}) for b in self.bindings]
        self.readers: list[list[int]] = [[] for _ in self.bindings]
        for reader, sources in enumerate(self.sources):
            for source in sources:
                self.readers[source].append(reader)
        self.missing = [len(sources) for sources in self.sources]
        self.first: list[int] = []  # ready; heaps of numbers of bindings
        self.small: list[int] = []
        self.items: list[Item] = []

    def run(self) -> list[Item]:
        for index, count in enumerate(self.missing):
            if not count:
                self._ready(index)
        while self.first or self.small:
            if self.first:
                self._emit(heapq.heappop(self.first))
            elif len(self.small) == 1:
                self._emit(heapq.heappop(self.small))
            else:
                self._divide()
        return self.items

    def _ready(self, index: int) -> None:
        heapq.heappush(self.small if self.work[index] else self.first, index)

    def _emit(self, index: int) -> None:
        self.items.append(self.bindings[index])
        self._done(index)

    def _done(self, index: int) -> None:
        for reader in self.readers[index]:
            self.missing[reader] -= 1
            if not self.missing[reader]:
                self._ready(reader)

    def _divide(self) -> None:
        """A section of all that can be done now, if that saves enough; else what is ready."""
        branches = self._packed(self._chains())
        saved = sum(load for load, _ in branches) - max(load for load, _ in branches)
        ready, self.small = sorted(self.small), []
        if saved < self.workers.least_gain:
            for index in ready:
                self._emit(index)
            return
        members = [sorted(branch) for _, branch in branches if branch]
        self.items.append(Section(tuple(tuple(self.bindings[i] for i in m) for m in members)))
        inside = {i for branch in members for i in branch}
        for index in inside:
            self._done(index)
        self.small = [i for i in self.small if i not in inside]
        self.first = [i for i in self.first if i not in inside]
        heapq.heapify(self.small)
        heapq.heapify(self.first)

    def _chains(self) -> list[list[int]]:
        """What can be done without the bindings that must run alone, divided so that no chain
        needs another; what needs two of them has to wait."""
        chain_of: dict[int, int] = {}
        chains: list[list[int]] = []
        missing: dict[int, int] = {}
        heap = list(self.small)
        while heap:
            index = heapq.heappop(heap)
            needed = {chain_of[s] for s in self.sources[index] if s in chain_of}
            if len(needed) > 1:
                continue
            if not needed:
                chains.append([])
            chain_of[index] = needed.pop() if needed else len(chains) - 1
            chains[chain_of[index]].append(index)
            for reader in self.readers[index]:
                missing[reader] = missing.get(reader, self.missing[reader]) - 1
                if not missing[reader] and self.work[reader] is not None:
                    heapq.heappush(heap, reader)
        return chains

    def _packed(self, chains: list[list[int]]) -> list[tuple[float, list[int]]]:
        """Chains shared out among workers: the longest first, each to the one with least to do."""
        loads = [(sum(self.work[i] or 0.0 for i in chain), chain) for chain in chains]
        workers: list[tuple[float, int, list[int]]]
        workers = [(0.0, number, []) for number in range(self.workers.count)]
        for load, chain in sorted(loads, key=lambda pair: (-pair[0], pair[1][0])):
            total, number, members = heapq.heappop(workers)
            heapq.heappush(workers, (total + load, number, members + chain))
        return [(load, members) for load, _, members in sorted(workers, key=lambda w: w[1])]
