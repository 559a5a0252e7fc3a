"""Shared memory and mbarriers of one block, as the tile interpreter runs them.

Whether two accesses are ordered does not depend on the order in which the interpreter happens to
run them: every thread of control and every asynchronous operation is a component of vector clocks
(Mattern 1989), synchronisation joins clocks, and an access is checked against those before it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from ...diagnostics import VerifyError
from .nodes import Barrier, SharedTile

POISON = 0xFF  # bytes of NaN: memory that holds nothing


class TileError(VerifyError):
    """A tile program that a GPU could run wrongly."""


class Clock(dict[int, int]):
    """What has happened before, by component."""

    def join(self, other: Clock) -> None:
        for component, time in other.items():
            if self.get(component, 0) < time:
                self[component] = time

    def knows(self, event: tuple[int, int]) -> bool:
        return self.get(event[0], 0) >= event[1]


class Components:
    """Numbers for threads of control and asynchronous operations."""

    def __init__(self) -> None:
        self._next = itertools.count(1)

    def fresh(self) -> int:
        return next(self._next)


@dataclass(slots=True)
class Fences:
    """How many proxy fences a warpgroup has executed."""

    count: int = 0


@dataclass(slots=True)
class Access:
    """Bytes [low, high) of shared memory, read or written until `end` has happened; with `mask`,
    those of them that it marks.

    `fences` and `fence` say which fence must have made a write by ordinary stores visible to
    asynchronous readers; None for asynchronous accesses.
    """

    low: int
    high: int
    writes: bool
    end: tuple[int, int]
    what: str
    fences: Fences | None = None
    fence: int = 0
    mask: np.ndarray | None = None

    def overlaps(self, other: Access) -> bool:
        low, high = max(self.low, other.low), min(self.high, other.high)
        if low >= high:
            return False
        masks = [x.mask[low - x.low : high - x.low] for x in (self, other) if x.mask is not None]
        return not masks or bool(np.logical_and.reduce(masks).any())

    def covers(self, other: Access) -> bool:
        return self.mask is None and self.low <= other.low and other.high <= self.high


class SharedMemory:
    """The shared memory of a block, and who uses which bytes."""

    def __init__(self, tiles: tuple[SharedTile, ...], name: str) -> None:
        self.name = name
        self.start: dict[SharedTile, int] = {}
        size = 0
        for tile in tiles:
            self.start[tile] = size
            size += -(-tile.nbytes * tile.stages // 1024) * 1024
        self.data = np.full(size, POISON, np.uint8)
        self.exited = False
        self._accesses: dict[tuple[SharedTile, int], list[Access]] = {}

    def address(self, tile: SharedTile, stage: int, offset: int) -> int:
        return self.start[tile] + stage * tile.nbytes + offset

    def use(self, tile: SharedTile, stage: int, access: Access, begin: Clock) -> None:
        """Note an access that starts after `begin`.

        Raises:
            TileError: it overlaps one that may still be under way, or reads ordinary stores that no
                fence made visible, or the block has exited.
        """
        if self.exited:
            raise TileError(f"{access.what} uses shared memory of {self.name}, which has exited")
        kept: list[Access] = []
        for old in self._accesses.get((tile, stage), ()):
            if (old.writes or access.writes) and old.overlaps(access):
                self._check(tile, stage, old, access, begin)
            if not (access.writes and access.covers(old)):
                kept.append(old)
        kept.append(access)
        self._accesses[(tile, stage)] = kept

    def _check(self, tile: SharedTile, stage: int, old: Access, new: Access, begin: Clock) -> None:
        where = f"stage {stage} of {tile.name} of {self.name}"
        if not begin.knows(old.end):
            raise TileError(
                f"race: {new.what} {'writes' if new.writes else 'reads'} {where}, "
                f"which {old.what} may still be {'writing' if old.writes else 'reading'}",
                hint="nothing makes the second wait for the end of the first",
            )
        ordinary = old.fences if old.writes and new.fences is None else None
        if ordinary is not None and ordinary.count <= old.fence:
            raise TileError(
                f"{new.what} may not see what {old.what} wrote to {where}",
                hint="fence.proxy.async must follow ordinary stores before the barrier",
            )


@dataclass(slots=True)
class MBarrier:
    """One mbarrier (PTX ISA, "mbarrier"): arrivals and bytes that the current phase waits for."""

    barrier: Barrier
    name: str
    made: tuple[int, int] | None = None  # the event of its initialisation
    published: bool = False
    phase: int = 0
    pending: int = 0
    nbytes: int = 0
    gathered: Clock = field(default_factory=Clock)
    ended: Clock = field(default_factory=Clock)

    def init(self, event: tuple[int, int]) -> None:
        self.made, self.pending = event, self.barrier.count

    def require(self, clock: Clock, what: str, remote: bool) -> None:
        """Raise TileError unless the barrier is there for who knows `clock`."""
        if self.made is None or not clock.knows(self.made):
            raise TileError(f"{what} uses {self.name} before it is surely initialised")
        if remote and not self.published:
            raise TileError(
                f"{what} may not see {self.name}", hint="fence.mbarrier_init must follow its init"
            )

    def arrive(self, clock: Clock, what: str, nbytes: int = 0) -> None:
        if not self.pending:
            raise TileError(f"{what} arrives at {self.name} once more than it counts")
        self.gathered.join(clock)
        self.pending -= 1
        self.nbytes += nbytes
        self._complete(what)

    def transferred(self, nbytes: int, clock: Clock, what: str) -> None:
        self.gathered.join(clock)
        self.nbytes -= nbytes
        self._complete(what)

    def _complete(self, what: str) -> None:
        if self.pending:
            return
        if self.nbytes < 0:
            raise TileError(f"{self.name} expects {-self.nbytes} bytes less than arrive by {what}")
        if not self.nbytes:
            self.phase += 1
            self.pending = self.barrier.count
            self.ended, self.gathered = self.gathered, Clock()
