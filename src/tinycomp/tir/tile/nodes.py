"""Tile programs: kernels whose warpgroups have roles and work asynchronously.

A `TileProgram` is a statement at the root of a function, one launch. Its roles run concurrently in
every block; they move tiles through shared memory with the tensor memory accelerator (TMA) and
multiply them with `wgmma`, ordered by mbarriers. Statements inside a role are those of the loop IR
(`Seq`, `For`, `If`) and the operations below, each of which is one or two instructions; ordinary
code of all threads sits in `ThreadCode`.

Rings: a tile and its barriers have `stages`, and a role walks them with a `Cursor`, which knows the
stage and the parity of the round. (CUTLASS calls it PipelineState.)
"""

from __future__ import annotations

from ...dtype import DType
from ...ir.expr import Expr, Var, const
from ...ir.node import dataclass
from ..nodes import Buffer, Stmt
from .layout import MatrixDescriptor, Swizzle, WgmmaShape

__all__ = [
    "Accumulator", "Advance", "Ahead", "Arrive", "Barrier", "ClusterSync", "CommitStores", "Cursor",
    "ExpectBytes", "FenceBarrierInit", "FenceProxy", "Fragment", "Im2col", "InitBarriers", "Let",
    "LetStage", "NamedArrive", "NamedBarrier", "Operand", "Role", "SharedTile", "TensorMap",
    "ThreadCode", "TileProgram", "TmaLoad", "TmaPrefetch", "TmaStore", "Wait", "WaitStores",
    "Wgmma", "WgmmaCommit", "WgmmaFence", "WgmmaWait",
]  # fmt: skip

WARPGROUP = 128
"""Threads that issue wgmma together."""


@dataclass(frozen=True, slots=True)
class Im2col:
    """How a copy walks the pixels of images [N, H, W, C] (PTX ISA, "im2col mode").

    Pixels are those where windows may begin, from left to right, row after row, image after image;
    offsets then say which tap of each window is meant. All pairs are (W, H).

    Attributes:
        lower: where the first window begins: minus the padding before the image.
        upper: how far behind the image's last pixel the last window may begin: the padding after
            the image less the reach of a window.
        strides: from one window to the next.
    """

    lower: tuple[int, int]
    upper: tuple[int, int]
    strides: tuple[int, int]

    def counts(self, dims: tuple[int, ...]) -> tuple[int, int]:
        """How many windows there are in a row, and rows of them, for extents (C, W, H, N).

        >>> Im2col((-1, -1), (-1, -1), (2, 2)).counts((64, 56, 57, 8))  # 3 x 3, padded by 1
        (28, 29)
        """
        sizes = zip(dims[1:3], self.lower, self.upper, self.strides, strict=True)
        across, down = (-(-(d + high - low) // stride) for d, low, high, stride in sizes)
        return across, down


@dataclass(frozen=True, slots=True, eq=False)
class TensorMap:
    """A tensor in global memory as TMA sees it: what cuTensorMapEncodeTiled takes, or, with
    `im2col`, cuTensorMapEncodeIm2col.

    Attributes:
        buffer: a parameter of the function.
        dims: extents, innermost first.
        strides: bytes between elements of dims[1:], multiples of 16.
        box: extents of what one copy moves; outside of `dims` copies read 0 and write nothing.
            With `im2col` these are channels and pixels.
        offset: bytes from the start of the buffer, a multiple of 16.
    """

    name: str
    buffer: Buffer
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: Swizzle
    im2col: Im2col | None = None
    offset: int = 0

    @property
    def box_bytes(self) -> int:
        count = self.buffer.dtype.itemsize
        for extent in self.box:
            count *= extent
        return count


@dataclass(frozen=True, slots=True, eq=False)
class SharedTile:
    """`stages` times `nbytes` of shared memory, each aligned to 1024 bytes.

    `buffer` names the elements of all stages, in the order of addresses, for `ThreadCode`.
    """

    name: str
    dtype: DType
    nbytes: int
    stages: int
    buffer: Buffer


@dataclass(frozen=True, slots=True, eq=False)
class Barrier:
    """`stages` mbarriers; a phase ends after `count` arrivals and all expected bytes."""

    name: str
    count: int
    stages: int


@dataclass(frozen=True, slots=True, eq=False)
class Cursor:
    """A role's position in a ring: stage and parity, from (0, 0)."""

    name: str
    stages: int


@dataclass(frozen=True, slots=True, eq=False)
class Accumulator:
    """`tiles` results D of `shape` in registers; `buffer` names a thread's registers."""

    shape: WgmmaShape
    tiles: int
    buffer: Buffer


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A or B of a wgmma: where it begins in a stage of a tile, and how it lies there."""

    tile: SharedTile
    cursor: Cursor
    offset: Expr  # bytes
    descriptor: MatrixDescriptor


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """A of a wgmma in registers: elements of an array of each thread, from `first` on, in the order
    of `WgmmaShape.left_fragment`. They may not change until the wgmma is waited for."""

    buffer: Buffer
    first: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Role(Stmt):
    """What some warpgroups of a block do.

    Attributes:
        first, warpgroups: which ones.
        warpgroup, thread: variables: the warpgroup within the role, the thread within it.
        registers: per thread, by setmaxnreg; 0 leaves them alone.
        single: one thread does it all, the others wait for the end.
        arrays: registers of each thread beside those of the accumulators.
    """

    CHILDREN = ("body",)
    name: str
    first: int
    warpgroups: int
    warpgroup: Var
    thread: Var
    body: Stmt
    registers: int = 0
    single: bool = False
    cursors: tuple[Cursor, ...] = ()
    accumulators: tuple[Accumulator, ...] = ()
    arrays: tuple[Buffer, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TileProgram(Stmt):
    """One launch of `grid` blocks in clusters of `cluster`.

    Attributes:
        block, rank: variables: the block, and its number within the cluster.
        setup, finish: what all threads do before and after their roles.
    """

    CHILDREN = ("setup", "roles", "finish")
    name: str
    grid: int
    cluster: int
    block: Var
    rank: Var
    maps: tuple[TensorMap, ...]
    tiles: tuple[SharedTile, ...]
    barriers: tuple[Barrier, ...]
    setup: Stmt
    roles: tuple[Role, ...]
    finish: Stmt

    @property
    def warpgroups(self) -> int:
        return sum(role.warpgroups for role in self.roles)

    @property
    def threads(self) -> int:
        return self.warpgroups * WARPGROUP


class TileOp(Stmt):
    """An operation of a role."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Let(TileOp):
    """`var = value`, until the enclosing iteration ends; 0 <= var < extent."""

    CHILDREN = ("value",)
    var: Var
    value: Expr
    extent: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LetStage(TileOp):
    """`var` is the stage where a cursor is, until the enclosing iteration ends."""

    var: Var
    cursor: Cursor


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class InitBarriers(TileOp):
    """One thread of the block makes all mbarriers."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FenceBarrierInit(TileOp):
    """Makes new mbarriers visible to copies and to the other blocks of the cluster."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ClusterSync(TileOp):
    """All threads of the cluster (of the block, where clusters have one) wait for each other."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NamedBarrier(TileOp):
    """`warpgroups` warpgroups, all threads of each, wait for each other.

    Names `first` to `first + number of warpgroups` are used where each has its own.
    """

    CHILDREN = ("name",)
    name: Expr
    warpgroups: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NamedArrive(TileOp):
    """All threads of a warpgroup arrive at a barrier that others wait at, and go on."""

    CHILDREN = ("name",)
    name: Expr
    warpgroups: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Wait(TileOp):
    """Wait until the phase of the cursor's round has ended; with `before`, that of the round before
    it, which for the first round has. With `cluster`, what other blocks of the cluster wrote to
    their shared memory before they arrived may be read."""

    barrier: Barrier
    cursor: Cursor
    before: bool = False
    cluster: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Arrive(TileOp):
    """One thread of the warpgroup arrives; with `everywhere`, in each block of the cluster."""

    barrier: Barrier
    cursor: Cursor
    everywhere: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ExpectBytes(TileOp):
    """Arrive, and let the phase wait for this many bytes too."""

    barrier: Barrier
    cursor: Cursor
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Advance(TileOp):
    """The next stage, or the one `by` stages on."""

    CHILDREN = ("by",)
    cursor: Cursor
    by: Expr = const(1)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TmaLoad(TileOp):
    """Copy the box at `coordinates` (innermost first) to `offset` in a stage of a tile, and count
    its bytes on the barrier of that stage; with `multicast`, in every block of the cluster.

    `tap` is where in its windows a copy of pixels reads, (W, H) from where they begin.
    """

    CHILDREN = ("coordinates", "offset", "tap")
    map: TensorMap
    coordinates: tuple[Expr, ...]
    tile: SharedTile
    offset: Expr
    cursor: Cursor
    barrier: Barrier
    multicast: bool = False
    tap: tuple[Expr, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ahead(TileOp):
    """What one thread does in the setup before a launch waits for the one ahead of it, where
    launches are programmatic; nothing elsewhere. It may only ask for data (`TmaPrefetch`)."""

    CHILDREN = ("body",)
    body: Stmt


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TmaPrefetch(TileOp):
    """Ask for the box at `coordinates` in the L2 cache, from which nothing stale is read later."""

    CHILDREN = ("coordinates",)
    map: TensorMap
    coordinates: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TmaStore(TileOp):
    """One thread of the warpgroup starts the copy from `offset` in a tile to the box at
    `coordinates`."""

    CHILDREN = ("coordinates", "offset")
    map: TensorMap
    coordinates: tuple[Expr, ...]
    tile: SharedTile
    offset: Expr


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CommitStores(TileOp):
    """The stores of this thread since the last commit are a group."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WaitStores(TileOp):
    """The thread that stores waits until at most `pending` groups still read shared memory."""

    pending: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FenceProxy(TileOp):
    """What this thread wrote to shared memory becomes visible to copies and wgmma."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WgmmaFence(TileOp):
    """Orders other uses of the accumulators before the wgmma that follow."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Wgmma(TileOp):
    """D[tile] = A B, plus D[tile] where `accumulate`."""

    acc: Accumulator
    tile: int
    a: Operand | Fragment
    b: Operand
    accumulate: bool = True


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WgmmaCommit(TileOp):
    """The wgmma since the last commit are a group."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WgmmaWait(TileOp):
    """Wait until at most `pending` groups are not done.

    `ready` are the accumulators whose products then are, where these are not all of the role's.
    """

    pending: int
    ready: tuple[Accumulator, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ThreadCode(TileOp):
    """Loop IR that each thread of the warpgroup runs: register arrays, loads and stores."""

    CHILDREN = ("body",)
    body: Stmt
