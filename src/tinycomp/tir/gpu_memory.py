"""The memory of threads that `gpu_executor` runs, with who touched which element since when."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..diagnostics import VerifyError
from ..ir.expr import as_int
from .nodes import Buffer, Scope

_SEVERAL = -2  # an element that more than one thread has read
_NOBODY = -1


class RaceError(VerifyError):
    """Two threads touch one element, one of them writes, and no barrier is between them."""


class Threads:
    """The threads of blocks [first, last): lanes in the order of blocks, then of threads."""

    def __init__(
        self, grid: tuple[int, ...], block: tuple[int, ...], first: int, last: int
    ) -> None:
        self.per_block = math.prod(block)
        self.blocks, self.first = last - first, first
        self.count = self.per_block * self.blocks
        lane = np.arange(self.count)
        self.block = lane // self.per_block  # within this group
        self.number = lane % self.per_block  # within the block
        self.id = lane + first * self.per_block  # in the whole launch
        self._index: dict[str, np.ndarray] = {}
        for prefix, extents, position in (
            ("blockIdx", grid, self.block + first),
            ("threadIdx", block, self.number),
        ):
            for dim, extent in zip("xyz", extents, strict=True):
                self._index[f"{prefix}.{dim}"] = position % extent
                position = position // extent

    def index(self, axis: str) -> np.ndarray:
        """Where each thread is along an axis."""
        return self._index[axis]

    def shuffle(self, value: Any, mask: int, active: np.ndarray | None, name: str) -> np.ndarray:
        """Each thread's value in the thread whose number differs by the bits of `mask`.

        Raises:
            VerifyError: a thread would read from one that is not there or not active.
        """
        partner = self.number ^ mask
        missing = (partner >= self.per_block) | (partner // 32 != self.number // 32)
        source = np.where(missing, 0, partner + self.block * self.per_block)
        if active is not None:
            missing = (missing | ~active[source]) & active
        if missing.any():
            raise VerifyError(f"{name}: a shuffle reads from a thread that does not take part")
        return np.broadcast_to(value, (self.count,))[source]


class _Tracked:
    """Storage of a buffer: [owners, elements], and who touched each element."""

    def __init__(self, buffer: Buffer, owners: int, data: np.ndarray | None) -> None:
        self.shape = tuple(as_int(d) for d in buffer.shape)
        elements = max(1, math.prod(self.shape))
        self.data = data
        self.written: np.ndarray | None = None
        if data is None:
            fill = float("nan") if buffer.dtype.is_float else buffer.dtype.max_value
            self.data = np.full((owners, elements), fill, buffer.dtype.numpy)
            self.written = np.zeros((owners, elements), np.bool_)
        size = (owners, elements)
        self.tracks = buffer.scope is not Scope.LOCAL
        if self.tracks:
            self.writer = np.full(size, _NOBODY, np.int64)
            self.written_in = np.zeros(size, np.int64)
            self.reader = np.full(size, _NOBODY, np.int64)
            self.read_in = np.zeros(size, np.int64)


@dataclass(frozen=True)
class _Pending:
    """A store of each active lane that has not happened yet."""

    buffer: Buffer
    indices: list[np.ndarray]
    value: np.ndarray
    active: np.ndarray


class Copies:
    """Asynchronous copies under way, in groups of each thread."""

    def __init__(self, threads: Threads) -> None:
        self.groups = np.zeros(threads.count, np.int64)  # that each thread has ended
        self.pending: list[tuple[np.ndarray, _Pending]] = []

    def start(self, one: _Pending) -> None:
        self.pending.append((self.groups.copy(), one))

    def commit(self, mask: np.ndarray | None) -> None:
        """End the group of copies that each thread started."""
        self.groups += 1 if mask is None else mask

    def finish(self, latest: int, mask: np.ndarray | None) -> list[_Pending]:
        """What has arrived when the threads of `mask` have waited for all but their latest
        groups."""
        here = np.ones(len(self.groups), np.bool_) if mask is None else mask
        arrived: list[_Pending] = []
        left: list[tuple[np.ndarray, _Pending]] = []
        for group, one in self.pending:
            done = one.active & (here & (group < self.groups - latest))[:, None]
            if done.any():
                arrived.append(replace(one, active=done))
            if (one.active & ~done).any():
                left.append((group, replace(one, active=one.active & ~done)))
        self.pending = left
        return arrived


class Memory:
    """All buffers of one launch."""

    def __init__(self, name: str, spaces: dict[Buffer, np.ndarray], check_races: bool) -> None:
        self.name, self.check = name, check_races
        self.common = {b: _Tracked(b, 1, a.reshape(1, -1)) for b, a in spaces.items()}
        self.own: dict[Buffer, _Tracked] = {}

    def start(self, threads: Threads) -> None:
        """Continue with other blocks: fresh block and thread memory."""
        self.threads = threads
        self.own.clear()
        # Phases count barriers; those of other groups of blocks are told apart by the block.
        self.phase = np.ones(threads.blocks, np.int64)
        self.copies = Copies(threads)
        self.is_async = False

    def allocate(self, buffer: Buffer, mask: np.ndarray | None) -> None:
        """Memory that one block or thread has; shared memory exists as long as the block."""
        if buffer.scope is Scope.SHARED:
            if buffer not in self.own:
                self.own[buffer] = _Tracked(buffer, self.threads.blocks, None)
            return
        if buffer not in self.own:
            self.own[buffer] = _Tracked(buffer, self.threads.count, None)
        elif mask is None:
            written = self.own[buffer].written
            assert written is not None
            written[:] = False

    def barrier(self, mask: np.ndarray | None) -> None:
        """All threads of the blocks that come here wait for each other."""
        if mask is None:
            self.phase += 1
            return
        arrived = mask.reshape(self.threads.blocks, -1)
        some, every = arrived.any(axis=1), arrived.all(axis=1)
        if (some & ~every).any():
            raise VerifyError(f"{self.name}: a barrier is not reached by all threads of a block")
        self.phase[every] += 1

    def load(self, buffer: Buffer, indices: list[np.ndarray], active: np.ndarray) -> np.ndarray:
        space, owner, at = self._place(buffer, indices, active)
        assert space.data is not None
        if space.written is not None and not space.written[owner, at][active].all():
            lane = np.argwhere(active & ~space.written[owner, at])[0]
            self._fail(VerifyError, buffer, indices, lane, "is read but was never written")
        if self.check and space.tracks:
            self._note_read(buffer, space, owner, at, indices, active)
        if not space.data.shape[1]:  # nothing is read from a buffer of no elements
            return np.zeros(active.shape, space.data.dtype)
        values = space.data[owner, at]
        return values if active.all() else np.where(active, values, np.zeros((), values.dtype))

    def store(
        self, buffer: Buffer, indices: list[np.ndarray], value: np.ndarray, active: np.ndarray
    ) -> None:
        space, owner, at = self._place(buffer, indices, active)
        assert space.data is not None
        if self.check and space.tracks:
            self._note_write(buffer, space, owner, at, indices, active)
        rows = np.broadcast_to(owner, at.shape)
        if buffer.offset is not None:
            self._take_over(buffer, rows, at, active)
        if self.is_async and space.written is not None:
            self.copies.start(_Pending(buffer, indices, value.astype(space.data.dtype), active))
            space.written[rows[active], at[active]] = False
            return
        space.data[rows[active], at[active]] = value[active]
        if space.written is not None:
            space.written[rows[active], at[active]] = True

    def _take_over(
        self, buffer: Buffer, rows: np.ndarray, at: np.ndarray, active: np.ndarray
    ) -> None:
        """What is written is lost for other buffers in the same place of shared memory."""
        start, size = buffer.offset or 0, buffer.dtype.itemsize
        for other, space in self.own.items():
            if other is buffer or other.offset is None:
                continue
            width, count = other.dtype.itemsize, math.prod(space.shape)
            low, end = other.offset, other.offset + count * width
            if not (start < end and low < start + math.prod(self.own[buffer].shape) * size):
                continue
            for byte in range(0, size, min(size, width)):
                element = (start + at * size + byte - low) // width
                hit = active & (element >= 0) & (element < count)
                element = np.where(hit, element, 0)
                if self.check and space.tracks and hit.any():
                    self._check_write(other, space, rows, element, [element], hit)
                assert space.written is not None
                space.written[rows[hit], element[hit]] = False

    def wait(self, groups: int, mask: np.ndarray | None) -> None:
        """Asynchronous copies arrive that are not of the latest groups of their threads."""
        for one in self.copies.finish(groups, mask):
            self.store(one.buffer, one.indices, one.value, one.active)

    def _place(
        self, buffer: Buffer, indices: list[np.ndarray], active: np.ndarray
    ) -> tuple[_Tracked, Any, np.ndarray]:
        """The storage, and the row and element of each access; those not active get element 0."""
        space = self.own.get(buffer) or self.common.get(buffer)
        if space is None:
            raise VerifyError(f"{self.name}: buffer {buffer} is not allocated here")
        at = np.zeros(active.shape, np.int64)
        for index, extent in zip(indices, space.shape, strict=True):
            wrong = active & ((index < 0) | (index >= extent))
            if wrong.any():
                self._fail(VerifyError, buffer, indices, np.argwhere(wrong)[0], "is out of bounds")
            at = at * extent + np.where(active, index, 0)
        if buffer in self.common:
            return space, np.zeros((1, 1), np.int64), at
        owner = self.threads.block if buffer.scope is Scope.SHARED else np.arange(active.shape[0])
        return space, owner[:, None], at

    def _note_read(
        self, buffer: Buffer, space: _Tracked, owner: Any, at: Any, indices: Any, active: Any
    ) -> None:
        me, phase, block = self._who(active)
        writer = space.writer[owner, at]
        foreign = active & (writer != _NOBODY) & (writer != me)
        bad = foreign & (self._elsewhere(writer, block) | (space.written_in[owner, at] == phase))
        if bad.any():
            lane = np.argwhere(bad)[0]
            self._race(
                buffer, indices, lane, "reads what thread", "wrote", int(writer[tuple(lane)])
            )
        rows = np.broadcast_to(owner, at.shape)
        old, when = space.reader[owner, at], space.read_in[owner, at]
        again = (when == phase) & (old != _NOBODY) & (old != me) & ~self._elsewhere(old, block)
        value = np.where(again, _SEVERAL, me)
        keep = active
        space.reader[rows[keep], at[keep]] = value[keep]
        space.read_in[rows[keep], at[keep]] = np.broadcast_to(phase, at.shape)[keep]
        clash = active & (space.reader[owner, at] != value)
        space.reader[rows[clash], at[clash]] = _SEVERAL

    def _note_write(
        self, buffer: Buffer, space: _Tracked, owner: Any, at: Any, indices: Any, active: Any
    ) -> None:
        me, phase, _ = self._who(active)
        self._check_write(buffer, space, owner, at, indices, active)
        rows = np.broadcast_to(owner, at.shape)
        mine = np.broadcast_to(me, at.shape)
        space.writer[rows[active], at[active]] = mine[active]
        space.written_in[rows[active], at[active]] = np.broadcast_to(phase, at.shape)[active]
        clash = active & (space.writer[owner, at] != mine)
        if clash.any():
            lane = np.argwhere(clash)[0]
            other = int(space.writer[owner, at][tuple(lane)])
            self._race(buffer, indices, lane, "writes what thread", "writes", other)

    def _check_write(
        self, buffer: Buffer, space: _Tracked, owner: Any, at: Any, indices: Any, active: Any
    ) -> None:
        """No other thread may have touched since the last barrier what is written."""
        me, phase, block = self._who(active)
        for who, when, verb in (
            (space.writer, space.written_in, "wrote"),
            (space.reader, space.read_in, "read"),
        ):
            other = who[owner, at]
            foreign = active & (other != _NOBODY) & (other != me)
            bad = foreign & (self._elsewhere(other, block) | (when[owner, at] == phase))
            if bad.any():
                lane = np.argwhere(bad)[0]
                self._race(
                    buffer, indices, lane, "writes what thread", verb, int(other[tuple(lane)])
                )

    def _who(self, active: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Thread, phase and block of each lane, as columns."""
        threads = self.threads
        return (
            threads.id[:, None],
            self.phase[threads.block][:, None],
            (threads.block + threads.first)[:, None],
        )

    def _elsewhere(self, other: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Whether a thread is in another block, which no barrier orders."""
        return (other >= 0) & (other // self.threads.per_block != block)

    def _race(
        self, buffer: Buffer, indices: Any, lane: np.ndarray, does: str, verb: str, other: int
    ) -> None:
        per_block = self.threads.per_block
        mine = int(self.threads.id[lane[0]])
        whom = "several threads" if other == _SEVERAL else (
            f"thread {other % per_block} of block {other // per_block}"
        )  # fmt: skip
        what = f"and {whom} {verb} it, with no barrier between them"
        who = f"thread {mine % per_block} of block {mine // per_block} {does.split()[0]} it"
        self._fail(RaceError, buffer, indices, lane, f"races: {who} {what}")

    def _fail(
        self, error: type[VerifyError], buffer: Buffer, indices: Any, lane: Any, what: str
    ) -> None:
        place = ", ".join(str(int(i[tuple(lane)])) for i in indices)
        raise error(f"{self.name}: {buffer.name}[{place}] {what} ({buffer})")
