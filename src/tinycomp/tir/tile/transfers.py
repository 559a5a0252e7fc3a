"""Copies, stores and products of a tile program while they are under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...dtype import DType
from . import nodes as op
from .arithmetic import multiply_add
from .lanes import Output
from .layout import ROW_BYTES
from .memory import Access, Clock, MBarrier, SharedMemory, TileError

if TYPE_CHECKING:
    from .interpreter import Agent, Block


def check_place(stmt: Any, what: str, start: int, offset: int, nbytes: int) -> None:
    """Raise TileError unless a box fits where it is copied to or from."""
    if offset < 0 or offset + nbytes > stmt.tile.nbytes:
        raise TileError(f"{what} does not lie within a stage of {stmt.tile.name}")
    if stmt.map.swizzle.span and start % 1024:
        raise TileError(f"{what} begins at {start}, which is not aligned to 1024 bytes")


def _box(
    map: op.TensorMap, corner: Sequence[int], tap: Sequence[int] = ()
) -> tuple[list[np.ndarray], np.ndarray]:
    """Indices of the elements of a box, outermost first, and which of them exist."""
    if map.im2col is not None:
        return _pixels(map, map.im2col, corner, tap)
    axes = [c + np.arange(n) for c, n in zip(corner, map.box, strict=True)]
    grid = list(np.meshgrid(*reversed(axes), indexing="ij"))
    inside: np.ndarray = np.ones(grid[0].shape, np.bool_)
    for index, extent in zip(reversed(grid), map.dims, strict=True):
        inside &= (index >= 0) & (index < extent)
    return grid, inside


def _pixels(
    map: op.TensorMap, walk: op.Im2col, corner: Sequence[int], tap: Sequence[int]
) -> tuple[list[np.ndarray], np.ndarray]:
    """`_box` for the taps of windows, which begin with that at `corner`."""
    channel, *first, image = corner
    counts = walk.counts(map.dims)
    number, after = image, []
    for start, low, stride, count in zip(first, walk.lower, walk.strides, counts, strict=True):
        place, off = divmod(start - low, stride)
        if off or not 0 <= place < count:
            raise TileError(f"no window of {map.name} begins at {tuple(first)}")
        after.append(place)
    number = (number * counts[1] + after[1]) * counts[0] + after[0] + np.arange(map.box[1])
    across, down = number % counts[0], number // counts[0] % counts[1]
    w, h = (
        low + place * stride + more
        for low, place, stride, more in zip(
            walk.lower, (across, down), walk.strides, tap, strict=True
        )
    )
    index = [channel + np.arange(map.box[0]), w, h, number // (counts[0] * counts[1])]
    shape = (map.box[1], map.box[0])
    grid = [np.broadcast_to(index[0], shape)]
    grid += [np.broadcast_to(i[:, None], shape) for i in index[1:]]
    inside: np.ndarray = np.ones(shape, np.bool_)
    for i, extent in zip(grid, map.dims, strict=True):
        inside &= (i >= 0) & (i < extent)
    return grid[::-1], inside


def _elements(map: op.TensorMap, grid: list[np.ndarray], inside: np.ndarray) -> np.ndarray:
    """Positions in the tensor's memory, in elements."""
    itemsize = map.buffer.dtype.itemsize
    position = grid[-1].astype(np.int64) + map.offset // itemsize
    for index, stride in zip(reversed(grid[:-1]), map.strides, strict=True):
        position += index * (stride // itemsize)
    return np.where(inside, position, 0)


def landing(
    block: Block, barrier: MBarrier, map: op.TensorMap, source: np.ndarray,
    corner: list[int], tap: list[int], start: int, done: Clock, what: str,
) -> Callable[[], None]:  # fmt: skip
    """What happens when a copy arrives: the bytes are there, and the barrier counts them."""

    def land() -> None:
        block.in_flight -= 1
        grid, inside = _box(map, corner, tap)
        values = source.reshape(-1)[_elements(map, grid, inside)]
        values[~inside] = np.zeros((), values.dtype)
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        block.memory.data[map.swizzle.apply(start + np.arange(data.size))] = data
        barrier.transferred(data.size, done, what)

    return land


class Stored:
    """A TMA store under way."""

    def __init__(
        self, map: op.TensorMap, memory: SharedMemory, start: int, corner: list[int],
        output: Output, end: tuple[int, int],
    ) -> None:  # fmt: skip
        self.map, self.memory, self.start, self.corner = map, memory, start, corner
        self.output, self.end, self.done = output, end, False

    def run(self) -> None:
        if self.done:
            return
        self.done = True
        grid, inside = _box(self.map, self.corner)
        at = self.map.swizzle.apply(self.start + np.arange(self.map.box_bytes))
        values = self.memory.data[at].view(self.map.buffer.dtype.numpy).reshape(inside.shape)
        where = _elements(self.map, grid, inside)
        self.output.write(where[inside], values[inside])


class Product:
    """A wgmma under way."""

    def __init__(self, agent: Agent, stmt: op.Wgmma, end: tuple[int, int]) -> None:
        self.agent, self.stmt, self.end, self.done = agent, stmt, end, False
        shape = stmt.acc.shape
        self.places = [
            self._place(operand, extent)
            for operand, extent in ((stmt.a, 64), (stmt.b, shape.n))
            if isinstance(operand, op.Operand)
        ]
        self.registers = [stmt.acc.buffer]
        if isinstance(stmt.a, op.Fragment):
            self.registers.append(stmt.a.buffer)

    def _place(self, operand: op.Operand, extent: int) -> tuple[op.SharedTile, int, np.ndarray]:
        stage, _ = self.agent.position(operand.cursor)
        offset = self.agent.value(operand.offset)
        start = self.agent.block.memory.address(operand.tile, stage, offset)
        shape = self.stmt.acc.shape
        itemsize = shape.dtype.itemsize
        addresses = operand.descriptor.addresses(start, extent, shape.k, itemsize)
        low = self.agent.block.memory.address(operand.tile, stage, 0)
        if addresses.min() < low or addresses.max() >= low + operand.tile.nbytes:
            raise TileError(f"wgmma of {self.agent.name} reads beyond a stage of its operand")
        if start % 16 or operand.tile.nbytes % (8 * ROW_BYTES):
            raise TileError(f"wgmma of {self.agent.name} has an operand at {start}: not aligned")
        return operand.tile, stage, addresses

    def note(self, begin: Clock) -> None:
        """Its reads last until it is waited for."""
        itemsize = self.stmt.acc.shape.dtype.itemsize
        for tile, stage, at in self.places:
            low, high = int(at.min()), int(at.max()) + itemsize
            access = Access(low, high, False, self.end, f"wgmma of {self.agent.name}")
            self.agent.block.memory.use(tile, stage, access, begin)

    def run(self) -> None:
        if self.done:
            return
        self.done = True
        stmt, shape = self.stmt, self.stmt.acc.shape
        shape = self.stmt.acc.shape
        *left, b = (self._operand(at, shape.dtype) for _, _, at in self.places)
        b = b.view((shape.right or shape.dtype).numpy)
        a = left[0] if left else self._fragment(stmt.a)  # type: ignore[arg-type]
        row, column = shape.fragment()
        first = stmt.tile * shape.registers
        registers = self.agent.memory.registers_of(stmt.acc.buffer).values
        part = registers[:, first : first + shape.registers]
        before = np.zeros((64, shape.n), shape.acc.numpy)
        if stmt.accumulate:
            before[row, column] = part
        part[:] = multiply_add(a, b, before)[row, column]

    def _fragment(self, fragment: op.Fragment) -> np.ndarray:
        row, k = self.stmt.acc.shape.left_fragment()
        values = self.agent.memory.registers_of(fragment.buffer).values
        a = np.empty((64, self.stmt.acc.shape.k), values.dtype)
        a[row, k] = values[:, fragment.first : fragment.first + k.shape[1]]
        return a

    def _operand(self, at: np.ndarray, dtype: DType) -> np.ndarray:
        bytes_at = at[..., None] + np.arange(dtype.itemsize)
        data = self.agent.block.memory.data[bytes_at]
        return np.ascontiguousarray(data).view(dtype.numpy)[..., 0]
