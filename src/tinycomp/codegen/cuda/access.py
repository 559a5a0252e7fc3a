"""How the threads of a GPU kernel touch memory: coalescing, bank conflicts, bytes moved.

Some warps of some blocks are run on the executor with a memory that keeps no values, only the
addresses of each request. From these follow, for every access in the program:

- in global memory, the 32-byte sectors that the requests of a warp touch, against the fewest that
  could hold what the warp asks for;
- in shared memory, how many times the 32 banks of 4 bytes must be asked (wavefronts), against the
  fewest for that many bytes. (CUDA C++ Best Practices Guide, 10.2.1 and 10.2.3.)

Loops run their first, middle and last iterations, which stand for the others. What is read from
memory and used as an index is taken to be spread at random.

>>> from tinycomp import te
>>> from tinycomp.tir.lower_gpu import lower_gpu
>>> A = te.placeholder((64, 64), name="A")
>>> B = te.compute((64, 64), lambda i, j: A[j, i] + 1.0, name="B")
>>> s = te.create_schedule(B.op)
>>> s[B].bind("i", "blockIdx.x"), s[B].bind("j", "threadIdx.x")
(None, None)
>>> launch, = find_accesses(lower_gpu(s.func))
>>> for site in launch.sites:
...     print(f"{site.verb} {site.buffer.name}: {site.efficiency:.3f} of each sector is wanted")
load A: 0.125 of each sector is wanted
store B: 1.000 of each sector is wanted
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...dtype import DType
from ...ir.expr import Call, Expr, Load, as_int
from ...ir.node import postorder
from ...tir.gpu_executor import ThreadGroup
from ...tir.gpu_memory import LaunchShape, Memory, Threads
from ...tir.nodes import Alloc, Buffer, Evaluate, For, ForKind, PrimFunc, Scope, Seq, Stmt, Store
from ...tir.passes.visit import Visit, drive
from ...tir.tensor_intrinsics.warp import LOADS, MMA, PACKS
from ...tir.tile.nodes import TileProgram
from ...tir.tree import child_statements, statements
from .expressions import ExprEmitter, Names, Writer

WARP = 32
SECTOR = 32  # bytes; what a cache line is filled by
_WITHOUT_ADDRESSES = (
    "barrier", "cluster_arrive", "cluster_wait", "prefetch", "async_commit", "async_wait",
)  # fmt: skip
_BANKS_BYTES = 128  # what shared memory delivers at once: 32 banks of 4 bytes


@dataclass(slots=True)
class Site:
    """One access of the program, over all threads of the launch.

    Attributes:
        verb: "load" or "store".
        width: bytes of one thread's request.
        requests: of warps.
        moved, wanted: bytes in units that memory delivers (sectors, or wavefronts of shared
            memory), and the fewest that could hold what was asked for.
    """

    buffer: Buffer
    verb: str
    width: int
    requests: float = 0.0
    moved: float = 0.0
    wanted: float = 0.0

    @property
    def efficiency(self) -> float:
        """Wanted over moved bytes: 1 is perfect."""
        return self.wanted / self.moved if self.moved else 1.0

    @property
    def conflicts(self) -> float:
        """How often, on average, a request to shared memory is repeated for bank conflicts."""
        return self.moved / self.wanted if self.wanted else 1.0

    def __str__(self) -> str:
        rate = f"{self.efficiency:4.0%} of bytes moved wanted"
        if self.buffer.scope is Scope.SHARED:
            rate = f"{self.conflicts:.1f} wavefronts for each needed"
        return f"{self.verb:5} {self.buffer!s:40} {self.width:2} bytes a thread, {rate}"


@dataclass(frozen=True, slots=True)
class LaunchAccess:
    """What one launch does to memory.

    Attributes:
        in_flight: bytes that a thread asks global memory for before it waits, at most: loads of
            one run of statements without a loop or barrier between them.
        unique: bytes of the buffers in global memory that are touched, each once.
    """

    threads: int
    blocks: int
    sites: tuple[Site, ...]
    in_flight: int
    unique: int

    @property
    def global_sites(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.buffer.scope is Scope.GLOBAL)

    @property
    def shared_sites(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.buffer.scope is Scope.SHARED)

    @property
    def moved(self) -> float:
        """Bytes between the multiprocessors and the caches."""
        return sum(s.moved for s in self.global_sites)

    @property
    def efficiency(self) -> float:
        """Of the bytes moved, those that were asked for."""
        return sum(s.wanted for s in self.global_sites) / self.moved if self.moved else 1.0

    @property
    def conflicts(self) -> float:
        """Wavefronts of shared memory over the fewest possible."""
        wanted = sum(s.wanted for s in self.shared_sites)
        return sum(s.moved for s in self.shared_sites) / wanted if wanted else 1.0

    def __str__(self) -> str:
        lines = [
            f"{self.blocks} blocks of {self.threads} threads, {self.moved / 1e6:.3g} MB moved for "
            f"{self.unique / 1e6:.3g} MB touched, {self.in_flight} bytes in flight per thread"
        ]
        return "\n".join([*lines, *(f"  {site}" for site in self.sites)])


def find_accesses(func: PrimFunc) -> list[LaunchAccess]:
    """The accesses of each launch of a function lowered by `lower_gpu`.

    Tile programs are left out: their accesses are copies of whole tiles.
    """
    body = func.body
    while isinstance(body, Alloc) and body.buffer.scope is Scope.GLOBAL:
        body = body.body
    roots = body.stmts if isinstance(body, Seq) else (body,)
    return [_launch(func, root) for root in roots if not isinstance(root, TileProgram)]


def _launch(func: PrimFunc, root: Stmt) -> LaunchAccess:
    loops = [s for s in statements(root) if isinstance(s, For)]
    shape = LaunchShape.of(root)
    clusters = math.prod(shape.grid)
    trace = _Trace(_width_of(loops))
    with np.errstate(all="ignore"):
        for number, times in _sample(clusters):
            threads = Threads(shape, number, number + 1)
            group = _Sampled(func, threads, Memory(func.name, {}, False), trace)
            group.weight = times
            drive(group.visit(root, None))
    buffers = {s.buffer for s in trace.sites.values() if s.buffer.scope is Scope.GLOBAL}
    unique = sum(math.prod(map(as_int, b.shape)) * b.dtype.itemsize for b in buffers)
    return LaunchAccess(
        math.prod(shape.block), clusters * shape.cluster, tuple(trace.sites.values()),
        bytes_in_flight(root), unique,
    )  # fmt: skip


def _width_of(loops: Sequence[For]) -> Any:
    """A function of a buffer and indices: how many of the lanes are one access in CUDA C++."""
    names = Names()
    emitter = ExprEmitter(Writer(), names)
    for loop in loops:
        names.analyzer.bind(loop.var, loop.min, loop.extent)

    def width(buffer: Buffer, indices: tuple[Any, ...], predicate: Any) -> int:
        access = emitter.place(buffer, indices)
        if predicate is not None or access.scattered or access.lanes == 1:
            return 1
        return access.lanes if emitter.is_wide(buffer, access.lanes, access.index) else 1

    return width


def bytes_in_flight(root: Stmt) -> int:
    """The most bytes of global memory that one thread loads without a loop or barrier between."""
    best = 0
    written = {s.buffer for s in statements(root) if isinstance(s, Store)}
    regions = [root]
    while regions:
        start = regions.pop()
        total = 0
        work = [(start, 1)]
        while work:
            stmt, times = work.pop()
            if isinstance(stmt, For) and stmt is not start and _waits(stmt):
                regions.append(stmt)
                continue
            if isinstance(stmt, For) and stmt.kind is ForKind.UNROLLED:
                times *= as_int(stmt.extent)
            if isinstance(stmt, Evaluate) and _is_barrier(stmt):
                best, total = max(best, total), 0
            total += times * _loaded(stmt, written)
            work.extend((child, times) for child in reversed(child_statements(stmt)))
        best = max(best, total)
    return best


def _waits(loop: For) -> bool:
    return loop.kind not in (ForKind.UNROLLED, ForKind.THREAD)


def _is_barrier(stmt: Evaluate) -> bool:
    return isinstance(stmt.value, Call) and stmt.value.name == "barrier"


def _loaded(stmt: Stmt, written: set[Buffer]) -> int:
    inside = set(child_statements(stmt))
    nbytes = 0
    for node in postorder([c for c in stmt.children() if c not in inside]):
        if isinstance(node, Load):
            buffer: Any = node.source
            if buffer.scope is Scope.GLOBAL and buffer not in written:
                nbytes += node.lanes * buffer.dtype.itemsize
    return nbytes


@dataclass
class _Trace:
    """The accesses found so far, by place in the program."""

    width: Any
    sites: dict[Any, Site] = field(default_factory=dict)
    widths: dict[Any, int] = field(default_factory=dict)

    def add(
        self,
        node: Load | Store,
        buffer: Buffer,
        at: np.ndarray,
        active: np.ndarray,
        weight: float,
    ) -> None:
        """One request of every thread for elements `at`, where `active`: [threads, lanes]."""
        verb = "load" if isinstance(node, Load) else "store"
        if node not in self.widths:
            self.widths[node] = self.width(buffer, node.indices, node.predicate)
        wide = self.widths[node]
        width = wide * buffer.dtype.itemsize
        site = self.sites.setdefault(node, Site(buffer, verb, width))
        at, active = at[:, ::wide], active[:, ::wide]
        for first in range(0, len(at), WARP):
            for lane in range(at.shape[1]):
                here = active[first : first + WARP, lane]
                if here.any():
                    starts = at[first : first + WARP, lane][here] * buffer.dtype.itemsize
                    self._request(site, starts, weight)

    def _request(self, site: Site, starts: np.ndarray, weight: float) -> None:
        site.requests += weight
        starts = starts[np.sort(np.unique(starts, return_index=True)[1])]  # in the order of lanes
        needed = len(starts) * site.width
        if site.buffer.scope is Scope.GLOBAL:
            sectors = np.union1d(starts // SECTOR, (starts + site.width - 1) // SECTOR)
            site.moved += weight * len(sectors) * SECTOR
            site.wanted += weight * -(-needed // SECTOR) * SECTOR
            return
        site.moved += weight * _wavefronts(starts, site.width) * _BANKS_BYTES
        site.wanted += weight * -(-needed // _BANKS_BYTES) * _BANKS_BYTES


def _wavefronts(starts: np.ndarray, width: int) -> int:
    """How often the banks are asked for distinct requests of one warp.

    Requests of more than 4 bytes go in parts of 128 bytes; in each part, the busiest bank counts.
    """
    words = np.unique(starts // 4) if width <= 4 else starts // 4
    each = max(1, _BANKS_BYTES // max(width, 4))
    count = 0
    for first in range(0, len(words), each):
        part = words[first : first + each, None] + np.arange(max(1, width // 4))
        count += int(np.bincount(np.unique(part) % 32, minlength=32).max())
    return count


class _Sampled(ThreadGroup):
    """Runs a few iterations of each loop, and notes addresses instead of moving values."""

    def __init__(self, func: PrimFunc, threads: Threads, memory: Memory, trace: _Trace) -> None:
        super().__init__(func, threads, memory)
        self.trace, self.weight = trace, 1.0

    def visit(self, stmt: Stmt, mask: np.ndarray | None) -> Visit[None]:
        yield self.visit(stmt.body, mask) if isinstance(stmt, Alloc) else super().visit(stmt, mask)

    def loop(self, stmt: For, mask: np.ndarray | None) -> Visit[None]:
        if stmt.kind is ForKind.THREAD:
            yield super().loop(stmt, mask)
            return
        low, extent = self.evaluate((stmt.min, stmt.extent), mask)
        around = self.weight
        for i, times in _sample(int(np.max(extent))):
            self.weight = around * times
            self.vars[stmt.var] = low + i
            yield self.visit(stmt.body, mask)
        self.weight = around

    def evaluate_call(self, value: Expr, mask: np.ndarray | None) -> None:
        name = value.name if isinstance(value, Call) else ""
        if isinstance(value, Call) and name in LOADS:
            self._note_rows(value.args[0], mask)
        elif name not in _WITHOUT_ADDRESSES and name not in MMA and name not in PACKS:
            self.evaluate((value,), mask)

    def _note_rows(self, place: Any, mask: np.ndarray | None) -> None:
        """The row of 16 bytes that each lane gives ldmatrix."""
        lanes = 16 // place.source.dtype.itemsize
        shape = (self.threads.count, lanes)
        indices = [np.asarray(i).reshape(-1, 1) for i in self.evaluate(place.indices, mask)]
        indices[-1] = indices[-1] + np.arange(lanes)
        here = np.ones(self.threads.count, np.bool_) if mask is None else mask
        self.trace.widths[place] = lanes
        active = np.broadcast_to(here[:, None], shape)
        self._note(place, place.source, [np.broadcast_to(i, shape) for i in indices], active)

    def write(self, stmt: Store, indices: list[np.ndarray], value: Any, active: np.ndarray) -> None:
        self._note(stmt, stmt.buffer, indices, active)

    def read(self, node: Load, indices: list[np.ndarray], active: np.ndarray) -> np.ndarray:
        buffer: Any = node.source
        mixed = self._note(node, buffer, indices, active) * 2654435761 % (1 << 32)
        if buffer.dtype is DType.BOOL:
            return mixed % 7 > 0
        limit = min(1 << 16, buffer.dtype.max_value) if buffer.dtype.is_int else 1 << 16
        return (mixed % limit).astype(buffer.dtype.numpy)

    def _note(
        self, node: Load | Store, buffer: Buffer, indices: list[np.ndarray], active: np.ndarray
    ) -> np.ndarray:
        """Records a request; returns which elements of the buffer it touches."""
        at = np.zeros(active.shape, np.int64)
        for index, extent in zip(indices, buffer.shape, strict=True):
            at = at * as_int(extent) + index % max(1, as_int(extent))
        if buffer.scope in (Scope.GLOBAL, Scope.SHARED):
            self.trace.add(node, buffer, at, active, self.weight)
        return at

    def call(self, node: Call, values: dict[Any, Any], mask: Any) -> Any:
        if node.name == "checked_index":  # values are made up: keep them inside
            index, extent = (values[a] for a in node.args)
            return index % extent
        return super().call(node, values, mask)


def _sample(count: int) -> list[tuple[int, int]]:
    """Iterations to run, and how many each stands for."""
    return (
        [(i, 1) for i in range(count)] if count <= 3 else [(0, 1), (1, count - 2), (count - 1, 1)]
    )
