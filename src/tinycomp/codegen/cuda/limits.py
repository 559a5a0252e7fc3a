"""What a GPU architecture allows a kernel: threads, grid, shared memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...diagnostics import ScheduleError, Span
from ...ir.expr import Expr, Var, as_expr
from ...tir.sizes import evaluate

THREADS_PER_BLOCK = 1024
BLOCK = (1024, 1024, 64)  # of threadIdx.x, y, z
GRID = (2**31 - 1, 65535, 65535)  # of blockIdx.x, y, z
CLUSTER_SIZE = 16  # blocks
PORTABLE_CLUSTER = 8  # more must be asked for, and not every GPU of an architecture has them
STATIC_SHARED = 48 * 1024  # bytes; more is asked for at launch

Extent = int | Expr
"""A number that may depend on the symbolic sizes of a function."""

_SHARED = {
    "sm_80": 163, "sm_86": 99, "sm_87": 163, "sm_89": 99, "sm_90": 227, "sm_100": 227,
    "sm_103": 227, "sm_110": 227, "sm_120": 99, "sm_121": 99,
}  # fmt: skip


def shared_limit(arch: str) -> int:
    """Extent of shared memory that one block may use (CUDA C++ Programming Guide, table 30).

    >>> shared_limit("sm_90a") // 1024, shared_limit("sm_75") // 1024
    (227, 48)
    """
    return _SHARED.get(arch.rstrip("af"), 48) * 1024


def compute_capability(arch: str) -> int:
    """The number of an architecture; 0 while it is not chosen.

    >>> compute_capability("sm_90a"), compute_capability("sm_100"), compute_capability("")
    (90, 100, 0)
    """
    return int(arch.removeprefix("sm_").rstrip("af") or 0)


def has_async_copies(arch: str) -> bool:
    """Whether there are cp.async and the matrix instructions of `tir.tensor_intrinsics.warp`."""
    return compute_capability(arch) >= 80


def spills_for_blocks(arch: str) -> bool:
    """Whether the assembler spills registers to fit more blocks; NVRTC 13.5 does for sm_100."""
    return compute_capability(arch) // 10 == 10


def cluster_limit(arch: str) -> int:
    """Blocks that a cluster may have; 1 where there are no clusters.

    >>> cluster_limit("sm_90a"), cluster_limit("sm_80")
    (16, 1)
    """
    return CLUSTER_SIZE if compute_capability(arch) >= 90 else 1


@dataclass(frozen=True, slots=True)
class TensorMapSpec:
    """A tensor map that the host makes for a launch; see `tir.tile.nodes.TensorMap`.

    Attributes:
        param: index of the function's parameter that it describes; -1: the workspace.
        swizzle: bytes, 0 for none.
        offset: bytes from there.
        lower, upper, steps: of the windows of an im2col map; empty for boxes of a tensor.
    """

    param: int
    dtype: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int
    offset: int = 0
    lower: tuple[int, ...] = ()
    upper: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()

    def address(self, params: Sequence[int], workspace: int) -> int:
        """Where the tensor is, given the addresses of the parameters and of the workspace."""
        return (workspace if self.param < 0 else params[self.param]) + self.offset


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch of a function.

    Attributes:
        name: of the `__global__` function.
        grid, block: extents in x, y, z.
        shared_bytes: of shared memory, all buffers together.
        dynamic_shared: bytes to ask for at launch; 0 where the kernel declares its own.
        params: indices of the function's parameters that are passed, in order.
        workspace: byte offsets in the function's workspace that follow them.
        can_fail: whether `int* error, int error_code` come last.
        cluster: blocks of a cluster in x, y, z; the kernel says so itself.
        maps: 128-byte tensor maps, passed by value after the pointers.
        programmatic: whether it may begin before the launch ahead ends; the kernel waits itself.
        sizes: the values of the function's symbolic sizes, passed before `error`.
        wide: whether the kernel takes them as `long long`, not int.
    """

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    dynamic_shared: int
    params: tuple[int, ...]
    workspace: tuple[int, ...]
    can_fail: bool
    cluster: tuple[int, int, int] = (1, 1, 1)
    maps: tuple[TensorMapSpec, ...] = ()
    programmatic: bool = False
    sizes: tuple[int, ...] = ()
    wide: bool = False

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def is_empty(self) -> bool:
        """Whether there is no block to run, as for a size of 0."""
        return 0 in self.grid


@dataclass(frozen=True, slots=True)
class SymbolicLaunch:
    """A launch as a function of symbolic sizes.

    Attributes:
        fixed: the launch without what depends on them.
        grid, workspace: extents and byte offsets over the sizes.
    """

    fixed: Launch
    grid: tuple[Extent, Extent, Extent]
    workspace: tuple[Extent, ...]

    @staticmethod
    def of(launch: Launch) -> SymbolicLaunch:
        """A launch that depends on no sizes."""
        return SymbolicLaunch(launch, launch.grid, launch.workspace)

    def at(self, sizes: Mapping[Var, int]) -> Launch:
        """The launch in a call with these values of all sizes."""
        x, y, z = (evaluate(as_expr(extent), sizes) for extent in self.grid)
        offsets = tuple(evaluate(as_expr(offset), sizes) for offset in self.workspace)
        values = tuple(sizes.values())
        return replace(self.fixed, grid=(x, y, z), workspace=offsets, sizes=values)


def check_launch(launch: Launch, arch: str, span: Span) -> None:
    """Refuse a launch that the architecture cannot run.

    Raises:
        ScheduleError: naming the limit, and what to split.
    """
    for extent, limit, dim in zip(launch.block, BLOCK, "xyz", strict=True):
        if extent > limit:
            _refuse(launch, f"threadIdx.{dim} has extent {extent}, at most {limit}", span)
    if launch.threads > THREADS_PER_BLOCK:
        shape = " x ".join(map(str, launch.block))
        _refuse(launch, f"a block has {shape} = {launch.threads} threads, at most 1024", span)
    for extent, limit, dim in zip(launch.grid, GRID, "xyz", strict=True):
        if extent > limit:
            _refuse(launch, f"blockIdx.{dim} has extent {extent}, at most {limit}", span)
    blocks = math.prod(launch.cluster)
    if blocks > cluster_limit(arch):
        reason = f"a cluster has {blocks} blocks, at most {cluster_limit(arch)} on {arch}"
        _refuse(launch, reason, span)
    if launch.shared_bytes > shared_limit(arch):
        _refuse(
            launch,
            f"a block uses {launch.shared_bytes} bytes of shared memory, "
            f"{arch} has {shared_limit(arch)}",
            span,
            "cache smaller tiles",
        )


def _refuse(
    launch: Launch, reason: str, span: Span, hint: str = "split the loop that is bound to it"
) -> None:
    raise ScheduleError(f"{launch.name} cannot be launched: {reason}", hint=hint, span=span)
