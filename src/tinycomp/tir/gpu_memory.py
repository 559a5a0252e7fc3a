"""The memory of threads that `gpu_executor` runs, with who touched which element since when."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..diagnostics import VerifyError
from ..ir.expr import as_int
from .nodes import Buffer, For, ForKind, Scope, Stmt
from .primitives.annotate import CLUSTER
from .tree import statements

_SEVERAL = -2  # an element that more than one thread has read
_NOBODY = -1


class RaceError(VerifyError):
    """Two threads touch one element, one of them writes, and no barrier is between them."""


@dataclass(frozen=True)
class LaunchShape:
    """How many clusters, blocks and threads a launch has.

    Attributes:
        grid: clusters in x, y, z.
        block: threads of a block.
        cluster: blocks of a cluster, along x.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: int = 1

    @staticmethod
    def of(root: Stmt) -> LaunchShape:
        """The shape of a launch, from its loops over thread axes."""
        extents = {
            s.thread: as_int(s.extent)
            for s in statements(root)
            if isinstance(s, For) and s.kind is ForKind.THREAD
        }

        def along(axis: str) -> tuple[int, int, int]:
            x, y, z = (extents.get(f"{axis}.{d}", 1) for d in "xyz")
            return x, y, z

        return LaunchShape(along("blockIdx"), along("threadIdx"), extents.get(CLUSTER, 1))


class Threads:
    """The threads of clusters [first, last): lanes in the order of blocks, then of threads."""

    def __init__(self, shape: LaunchShape, first: int, last: int) -> None:
        self.per_block, self.per_cluster = math.prod(shape.block), shape.cluster
        self.clusters = last - first
        self.blocks = self.clusters * shape.cluster
        self.count = self.per_block * self.blocks
        lane = np.arange(self.count)
        self.block = lane // self.per_block  # within this group
        self.cluster = self.block // shape.cluster
        self.rank = self.block % shape.cluster  # of the block in its cluster
        self.number = lane % self.per_block  # within the block
        self.id = lane + first * shape.cluster * self.per_block  # in the whole launch
        self._index: dict[str, np.ndarray] = {CLUSTER: self.rank}
        for prefix, extents, position in (
            ("blockIdx", shape.grid, self.cluster + first),
            ("threadIdx", shape.block, self.number),
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
        self.met = np.zeros(threads.clusters, np.int64)  # the same for barriers of clusters
        self.arriving = np.zeros(threads.clusters, np.bool_)  # have arrived and not waited yet
        self.reaching = np.zeros(threads.clusters, np.bool_)  # into other blocks, since they met
        self.quiet = False  # whether nothing was touched since the last arrival
        self.copies = Copies(threads)
        self.is_async = False

    def allocate(self, buffer: Buffer, mask: np.ndarray | None) -> None:
        """Memory that one block or thread has; shared memory exists as long as the block."""
        if buffer.scope in (Scope.SHARED, Scope.CLUSTER):
            if buffer not in self.own:
                shared = buffer.scope is Scope.SHARED
                owners = self.threads.blocks if shared else self.threads.clusters
                self.own[buffer] = _Tracked(buffer, owners, None)
            return
        if buffer not in self.own:
            self.own[buffer] = _Tracked(buffer, self.threads.count, None)
        elif mask is None:
            written = self.own[buffer].written
            assert written is not None
            written[:] = False

    def barrier(self, mask: np.ndarray | None) -> None:
        """All threads of the blocks that come here wait for each other."""
        self.phase[self._all_or_none(mask, self.threads.blocks, "block")] += 1

    def cluster_arrive(self, mask: np.ndarray | None) -> None:
        """All threads of the clusters say that they have come here."""
        here = self._all_or_none(mask, self.threads.clusters, "cluster")
        if self.arriving[here].any():
            raise VerifyError(f"{self.name}: a cluster arrives twice before it waits")
        self.arriving[here] = self.quiet = True

    def cluster_wait(self, mask: np.ndarray | None) -> None:
        """They wait until all have said so; what was done before can then be seen.

        For the threads of a block it is a barrier only if they do nothing in between.
        """
        here = self._all_or_none(mask, self.threads.clusters, "cluster")
        if not self.arriving[here].all():
            raise VerifyError(f"{self.name}: a cluster waits for an arrival that does not come")
        self.met[here] += 1
        self.arriving[here] = self.reaching[here] = False
        if self.quiet:
            self.phase.reshape(self.threads.clusters, -1)[here] += 1

    def end(self) -> None:
        """All threads have come to their end.

        Raises:
            VerifyError: a block may have ended before another reached for its shared memory.
        """
        if self.reaching.any():
            raise VerifyError(
                f"{self.name}: a block may end while another of its cluster still reaches for its "
                "shared memory: there is no barrier of the cluster after the last such access"
            )

    def _all_or_none(self, mask: np.ndarray | None, count: int, what: str) -> np.ndarray:
        """Which of the blocks or clusters all come to a barrier; the others must not at all."""
        if mask is None:
            return np.ones(count, np.bool_)
        arrived = mask.reshape(count, -1)
        every = np.asarray(arrived.all(axis=1))
        if (arrived.any(axis=1) & ~every).any():
            raise VerifyError(f"{self.name}: a barrier is not reached by all threads of a {what}")
        return every

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
        if buffer.scope is Scope.CLUSTER:
            self._require_running(buffer, indices, active)
            return space, self.threads.cluster[:, None], at
        owner = self.threads.block if buffer.scope is Scope.SHARED else np.arange(active.shape[0])
        return space, owner[:, None], at

    def _require_running(
        self, buffer: Buffer, indices: list[np.ndarray], active: np.ndarray
    ) -> None:
        """Other blocks of the cluster must have begun; they may not end before the next barrier."""
        cluster = self.threads.cluster[:, None]
        remote = active & (indices[0] != self.threads.rank[:, None])
        early = remote & (self.met[cluster] == 0)
        if early.any():
            what = "is in a block that may not have begun: the cluster has not met before"
            self._fail(VerifyError, buffer, indices, np.argwhere(early)[0], what)
        between = active & self.arriving[cluster]
        if between.any():
            what = "is accessed between the arrival at a barrier of the cluster and the wait"
            self._fail(VerifyError, buffer, indices, np.argwhere(between)[0], what)
        self.reaching[self.threads.cluster[remote.any(axis=1)]] = True

    def _note_read(
        self, buffer: Buffer, space: _Tracked, owner: Any, at: Any, indices: Any, active: Any
    ) -> None:
        me, phase, size = self._who(buffer)
        writer = space.writer[owner, at]
        foreign = active & (writer != _NOBODY) & (writer != me)
        bad = foreign & (_elsewhere(writer, me, size) | (space.written_in[owner, at] == phase))
        if bad.any():
            lane = np.argwhere(bad)[0]
            self._race(
                buffer, indices, lane, "reads what thread", "wrote", int(writer[tuple(lane)])
            )
        rows = np.broadcast_to(owner, at.shape)
        old, when = space.reader[owner, at], space.read_in[owner, at]
        again = (when == phase) & (old != _NOBODY) & (old != me) & ~_elsewhere(old, me, size)
        value = np.where(again, _SEVERAL, me)
        keep = active
        space.reader[rows[keep], at[keep]] = value[keep]
        space.read_in[rows[keep], at[keep]] = np.broadcast_to(phase, at.shape)[keep]
        clash = active & (space.reader[owner, at] != value)
        space.reader[rows[clash], at[clash]] = _SEVERAL

    def _note_write(
        self, buffer: Buffer, space: _Tracked, owner: Any, at: Any, indices: Any, active: Any
    ) -> None:
        me, phase, _ = self._who(buffer)
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
        me, phase, size = self._who(buffer)
        for who, when, verb in (
            (space.writer, space.written_in, "wrote"),
            (space.reader, space.read_in, "read"),
        ):
            other = who[owner, at]
            foreign = active & (other != _NOBODY) & (other != me)
            bad = foreign & (_elsewhere(other, me, size) | (when[owner, at] == phase))
            if bad.any():
                lane = np.argwhere(bad)[0]
                self._race(
                    buffer, indices, lane, "writes what thread", verb, int(other[tuple(lane)])
                )

    def _who(self, buffer: Buffer) -> tuple[np.ndarray, np.ndarray, int]:
        """Thread and phase of each lane as columns, and how many threads have barriers for the
        buffer together."""
        self.quiet = False
        threads = self.threads
        if buffer.scope is Scope.CLUSTER:
            size = threads.per_block * threads.per_cluster
            return threads.id[:, None], self.met[threads.cluster][:, None], size
        return threads.id[:, None], self.phase[threads.block][:, None], threads.per_block

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


def _elsewhere(other: np.ndarray, me: np.ndarray, size: int) -> np.ndarray:
    """Whether a thread is in another group of `size` threads, which no barrier orders."""
    return (other >= 0) & (other // size != me // size)
