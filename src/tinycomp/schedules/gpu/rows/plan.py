"""How rows are spread over the threads of a GPU, and where a row stays between its reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from ....codegen.cuda.limits import PORTABLE_CLUSTER, cluster_limit, shared_limit
from ....ir.expr import as_int
from ....te.tensor import ComputeOp
from ....tir.lower_gpu import ACCESS
from ....tir.nodes import Buffer, PrimFunc
from ....tir.passes.bind_threads import WARP
from ...common import Kernel, extents

HELD = 32  # elements of a row that a thread keeps in registers
HELD_BY_MANY = 16  # the same for a thread of a block of 1024, which has 64 registers
_WARP_ROW = 1024  # elements up to which a warp takes a row alone, if there are many rows
_BLOCK = 1024  # threads of the largest block
_CLUSTER_BLOCK = 512  # of a block in a cluster: two of them share a multiprocessor
_MULTIPROCESSORS = 132  # of a large GPU
_MANY_ROWS = _MULTIPROCESSORS * 8  # as many as keep it busy with a warp for each
_SHARE = 2048  # elements of a row that are worth a block of a cluster
_IN_FLIGHT = 32  # bytes that a thread should ask for before it waits
_RESERVED = 4096  # bytes of shared memory for partial results


class Memory(StrEnum):
    """Where a row stays between its reductions."""

    REGISTERS = "registers"
    SHARED = "shared"
    GLOBAL = "global"  # nowhere: it is read again


@dataclass(frozen=True)
class RowPlan:
    """How rows are spread over threads.

    Attributes:
        rows: leading axes that all stages share.
        count, length: of rows, and elements of one.
        threads: of one row in a block.
        lanes: elements of one access.
        blocks: of a cluster that has one row.
        repeat: rows that a thread works on beside each other, to have their loads in flight.
    """

    rows: int
    count: int
    length: int
    threads: int
    lanes: int
    memory: Memory
    blocks: int = 1
    repeat: int = 1

    @property
    def together(self) -> int:
        """Rows of one block."""
        if self.threads > WARP or self.blocks > 1:
            return 1
        most = 256 // self.threads
        while most > 1 and (self.count % most or self.count // most < _MANY_ROWS // 8):
            most //= 2
        return most

    def factors(self, extent: int, lanes: int) -> list[int]:
        """Extents of the loops over `extent` elements of a row: the block of the cluster, a step
        of its threads, the thread, a lane of its access. Every block has one contiguous part,
        which does not depend on the lanes."""
        unit = self.threads * self.lanes
        part = math.ceil(extent / (self.blocks * unit)) * unit
        return [self.blocks, part // (self.threads * lanes), self.threads, lanes]


def plan_rows(kernel: Kernel, out: ComputeOp, rows: int) -> RowPlan:
    """Threads, vectors and memory for the rows of a group."""
    length = max(_row_length(op, rows) for op in kernel.stages)
    count = math.prod(extents(out)[:rows])
    func = kernel.schedule.func
    wide = [b for b in func.params if elements_of(b) == count * length]
    lanes = min((ACCESS.lanes(b.dtype) for b in wide), default=1)
    while lanes > 1 and any(as_int(b.shape[-1]) % lanes for b in wide):
        lanes //= 2
    once = len(kernel.reductions) == 1 and is_per_row(out, rows)
    if once:
        return RowPlan(rows, count, length, _threads(length, count, lanes), lanes, Memory.GLOBAL)
    if any(len(b.shape) - rows > 1 for b in wide):
        lanes = 1  # what a thread holds of several dimensions is not told from what others hold
    held = sum(b.dtype.itemsize for b in wide if b not in _results(func))  # bytes of an element
    room = shared_limit(kernel.target.arch) - _RESERVED
    limit = cluster_limit(kernel.target.arch) if _divisible(kernel, rows, length) else 1
    blocks = _blocks(length, count, limit)
    part = -(-length // blocks)
    threads = _threads(part, count * blocks, lanes)
    if blocks > 1 and part <= _CLUSTER_BLOCK * HELD:
        threads = min(threads, _CLUSTER_BLOCK)
    if part <= threads * (HELD if threads < _BLOCK else HELD_BY_MANY):
        memory = Memory.REGISTERS
    elif part * held <= room:
        memory = Memory.SHARED
    else:
        blocks, threads, memory = 1, _threads(length, count, lanes), Memory.GLOBAL
    plan = RowPlan(rows, count, length, threads, lanes, memory, blocks)
    return replace(plan, repeat=_repeat(plan, held * -(-part // (threads * lanes)) * lanes))


def held_on_chip(length: int, itemsize: int, arch: str) -> bool:
    """Whether the blocks of the largest cluster can hold a row of one input."""
    held = -(-length // cluster_limit(arch)) * itemsize
    return held <= shared_limit(arch) - _RESERVED


def _repeat(plan: RowPlan, nbytes: int) -> int:
    """How many rows a thread takes that asks for `nbytes` of one, if there are enough rows."""
    repeat = 1
    while (
        plan.threads <= WARP
        and 2 * repeat * nbytes <= _IN_FLIGHT
        and plan.count % (2 * repeat * plan.together) == 0
        and plan.count * plan.threads >= 2 * repeat * _MULTIPROCESSORS * 2048
    ):
        repeat *= 2
    return repeat


def _blocks(length: int, count: int, limit: int) -> int:
    """Blocks of a cluster for each row: as many as hold it in registers, and more where there are
    fewer rows than multiprocessors."""
    blocks = 1
    while 2 * blocks <= limit:
        too_long = length > blocks * _CLUSTER_BLOCK * HELD
        idle = 2 * count * blocks <= _MULTIPROCESSORS and length >= 2 * blocks * _SHARE
        if not too_long and not (idle and 2 * blocks <= PORTABLE_CLUSTER):
            break
        blocks *= 2
    return blocks


def _divisible(kernel: Kernel, rows: int, length: int) -> bool:
    """Whether blocks can have parts of the rows: these are all of one length."""
    return {_row_length(op, rows) for op in kernel.stages} <= {1, length}


def part_plan(count: int, length: int, lanes: int) -> RowPlan:
    """A block for each row, which is read in a loop."""
    threads = min(256, -(-length // (lanes * WARP)) * WARP)
    return RowPlan(0, count, length, threads, lanes, Memory.GLOBAL)


def input_lanes(kernel: Kernel, length: int) -> int:
    """Elements of one access to rows of all inputs."""
    func = kernel.schedule.func
    inputs = [b for b in func.params if b not in _results(func) and elements_of(b) >= length]
    lanes = min((ACCESS.lanes(b.dtype) for b in inputs), default=1)
    while lanes > 1 and any(as_int(b.shape[-1]) % lanes for b in inputs):
        lanes //= 2
    return lanes


def elements_of(buffer: Buffer) -> int:
    return math.prod(map(as_int, buffer.shape))


def is_per_row(op: ComputeOp, rows: int) -> bool:
    """Whether the stage has one element for each row."""
    return all(e == 1 for e in extents(op)[rows:]) and bool(op.inputs)


def _results(func: PrimFunc) -> Sequence[Buffer]:
    return func.params[-func.num_outputs :]


def _row_length(op: ComputeOp, rows: int) -> int:
    spatial = math.prod(extents(op)[rows:])
    return spatial * math.prod(as_int(a.extent) for a in op.reduce_axis)


def _threads(length: int, count: int, lanes: int) -> int:
    """Threads of one row: fewer than a warp for a short one, up to 1024 for a long one."""
    vectors = -(-length // lanes)
    if vectors <= WARP // 2 and count % (WARP // 2) == 0:
        return 1 << (vectors - 1).bit_length()
    if length <= _WARP_ROW and (count >= _MANY_ROWS or vectors <= WARP):
        return WARP
    if count < _MANY_ROWS:  # two vectors each, so that all of the GPU has work
        return min(_BLOCK, -(-vectors // (2 * WARP)) * WARP)
    return 256 if length <= 256 * HELD else _BLOCK
