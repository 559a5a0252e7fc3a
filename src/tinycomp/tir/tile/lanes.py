"""What the ordinary code of a tile program's warpgroup reads and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...diagnostics import VerifyError
from ...ir.expr import as_int
from ..nodes import Buffer, Scope
from .memory import Access, Clock, TileError
from .nodes import SharedTile

if TYPE_CHECKING:
    from .interpreter import Agent, Block


class Output:
    """A parameter of the function, and how often each element was written."""

    def __init__(self, array: np.ndarray, is_output: bool) -> None:
        self.array, self.is_output = array, is_output
        self.written = np.zeros(array.size if is_output else 0, np.int32)

    def write(self, where: np.ndarray, values: np.ndarray) -> None:
        if not self.is_output:
            raise TileError("an input is written")
        self.array.reshape(-1)[where] = values
        np.add.at(self.written, where, 1)

    def check(self, name: str) -> None:
        """Raise TileError unless every element was written once."""
        if self.is_output and (self.written != 1).any():
            first = int(np.argmax(self.written != 1))
            raise TileError(f"element {first} of {name} is written {self.written[first]} times")


class Registers:
    """An array of each thread, and whether wgmma may use it."""

    def __init__(self, buffer: Buffer, threads: int) -> None:
        size = int(np.prod([as_int(d) for d in buffer.shape]))
        fill = float("nan") if buffer.dtype.is_float else buffer.dtype.max_value
        self.values = np.full((threads, size), fill, buffer.dtype.numpy)
        self.touched = True  # by other than wgmma, since the last fence
        self.pending = 0  # wgmma that are not waited for


class WarpgroupMemory:
    """Memory of one agent: its registers, the block's shared memory, the parameters."""

    def __init__(self, agent: Agent, outputs: dict[Buffer, Output]) -> None:
        self.agent, self.outputs = agent, outputs
        self.registers: dict[Buffer, Registers] = {}
        self._tiles = {tile.buffer: tile for tile in agent.program.tiles}
        self._used: dict[tuple[Block, SharedTile, int, bool], np.ndarray] = {}

    def registers_of(self, buffer: Buffer) -> Registers:
        found = self.registers.get(buffer)
        if found is None:
            found = self.registers[buffer] = Registers(buffer, self.agent.lanes.threads.count)
        return found

    def allocate(self, buffer: Buffer, mask: np.ndarray | None) -> None:
        self.registers.pop(buffer, None)

    def barrier(self, mask: np.ndarray | None) -> None:
        raise VerifyError("a role of a tile program may not wait for all threads of its block")

    def load(self, buffer: Buffer, indices: list[np.ndarray], active: np.ndarray) -> np.ndarray:
        at = self._place(buffer, indices, active)
        if buffer.scope is Scope.LOCAL:
            registers = self._touch(buffer)
            values = registers.values[np.arange(at.shape[0])[:, None], at]
        elif buffer in self._tiles:
            block, at = self._owner(buffer, at, active)
            raw = block.memory.data[self._bytes(block, buffer, at, active, False)]
            values = np.ascontiguousarray(raw).view(buffer.dtype.numpy)[..., 0]
        else:
            values = self.outputs[buffer].array.reshape(-1)[at]
        return np.where(active, values, np.zeros((), values.dtype))

    def store(
        self, buffer: Buffer, indices: list[np.ndarray], value: np.ndarray, active: np.ndarray
    ) -> None:
        at = self._place(buffer, indices, active)
        if buffer.scope is Scope.LOCAL:
            registers = self._touch(buffer)
            thread = np.broadcast_to(np.arange(at.shape[0])[:, None], at.shape)
            registers.values[thread[active], at[active]] = value[active]
        elif buffer in self._tiles:
            block, at = self._owner(buffer, at, active)
            where = self._bytes(block, buffer, at, active, True)[active]
            data = np.ascontiguousarray(value.astype(buffer.dtype.numpy)[active])
            block.memory.data[where] = data.view(np.uint8).reshape(where.shape)
        else:
            self.outputs[buffer].write(at[active], value[active])

    def _touch(self, buffer: Buffer) -> Registers:
        registers = self.registers_of(buffer)
        if registers.pending:
            raise TileError(
                f"{self.agent.name} uses {buffer.name} while wgmma may still use it",
                hint="wgmma.wait_group must come before",
            )
        registers.touched = True
        return registers

    def _place(self, buffer: Buffer, indices: list[np.ndarray], active: np.ndarray) -> np.ndarray:
        at = np.zeros(active.shape, np.int64)
        for index, extent in zip(indices, map(as_int, buffer.shape), strict=True):
            if (active & ((index < 0) | (index >= extent))).any():
                raise VerifyError(f"{self.agent.name}: {buffer.name} is accessed out of bounds")
            at = at * extent + np.where(active, index, 0)
        return at

    def _owner(
        self, buffer: Buffer, at: np.ndarray, active: np.ndarray
    ) -> tuple[Block, np.ndarray]:
        """The block of the cluster that has elements of a shared tile, and their places there."""
        own = self.agent.block
        if buffer.scope is not Scope.CLUSTER:
            return own, at
        size = self._tiles[buffer].nbytes // buffer.dtype.itemsize
        ranks = np.unique(at[active] // size)
        if ranks.size > 1:
            raise VerifyError(f"{self.agent.name} reaches for {buffer.name} of several blocks")
        rank = int(ranks[0]) if ranks.size else own.rank
        return self.agent.machine.cluster(own)[rank], at % size

    def _bytes(
        self, block: Block, buffer: Buffer, at: np.ndarray, active: np.ndarray, writes: bool
    ) -> np.ndarray:
        """Addresses of the bytes of elements of a shared tile."""
        tile, itemsize = self._tiles[buffer], buffer.dtype.itemsize
        offsets = at * itemsize
        for stage in np.unique(offsets[active] // tile.nbytes):
            inside = offsets[active & (offsets // tile.nbytes == stage)] % tile.nbytes
            key = (block, tile, int(stage), writes)
            mask = self._used.setdefault(key, np.zeros(tile.nbytes, np.bool_))
            mask[inside[:, None] + np.arange(itemsize)] = True
        start = block.memory.start[tile]
        return (start + offsets)[..., None] + np.arange(itemsize)

    def flush(self, begin: Clock, end: tuple[int, int]) -> None:
        """Note what was used of shared memory since the last time."""
        agent = self.agent
        for (block, tile, stage, writes), mask in self._used.items():
            start = block.memory.address(tile, stage, 0)
            what = f"code of {agent.name}"
            access = Access(
                start, start + tile.nbytes, writes, end, what,
                agent.fences, agent.fences.count, mask,
            )  # fmt: skip
            block.memory.use(tile, stage, access, begin)
        self._used.clear()
