"""Matrix instructions of warps, as `gpu_executor` runs them: by the layouts of their records, on
the registers of each lane."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..diagnostics import VerifyError
from ..dtype import DType
from ..ir.expr import Call, Load
from .gpu_memory import Memory, Threads
from .nodes import Buffer
from .tensor_intrinsics.fragments import LANES, FragmentLayout
from .tensor_intrinsics.warp import MMA, PACKS, Mma

Indices = list[Any]  # of one place, for each thread or the same for all


class Warps:
    """The warps of the threads that run together."""

    def __init__(self, threads: Threads, memory: Memory, name: str) -> None:
        self.threads, self.memory, self.name = threads, memory, name

    def run(self, call: Call, places: list[Indices], mask: np.ndarray | None) -> None:
        """Execute a call whose arguments are loads, at these indices.

        Raises:
            VerifyError: only some lanes of a warp are there.
        """
        active = self._whole_warps(call, mask)
        buffers: list[Any] = [arg.source for arg in call.args if isinstance(arg, Load)]
        operands = list(zip(buffers, places, strict=True))
        if call.name in MMA:
            self._mma(MMA[call.name], operands, active)
        elif call.name in PACKS:
            to, pair = operands
            values = self.memory.load(*self._access(pair, 2, active))
            self._write(to, values.astype(PACKS[call.name].numpy), active)
        else:
            self._load_matrix(operands, active, call.name.endswith(".trans"))

    def _whole_warps(self, call: Call, mask: np.ndarray | None) -> np.ndarray:
        """The lanes that take part."""
        active = np.ones(self.threads.count, np.bool_) if mask is None else mask
        if self.threads.per_block % LANES:
            raise VerifyError(f"{self.name}: {call.name} in a block that has no whole warps")
        by_warp = active.reshape(-1, LANES)
        if (by_warp.any(axis=1) != by_warp.all(axis=1)).any():
            raise VerifyError(f"{self.name}: {call.name} is not reached by all lanes of a warp")
        return active

    def _access(
        self, place: tuple[Buffer, Indices], count: int, active: np.ndarray
    ) -> tuple[Buffer, list[np.ndarray], np.ndarray]:
        """`count` elements along the last dimension from a place on, for each thread."""
        buffer, indices = place
        shape = (self.threads.count, count)
        columns = [np.asarray(i).reshape(-1, 1) for i in indices]
        columns[-1] = columns[-1] + np.arange(count)
        return buffer, [np.broadcast_to(c, shape) for c in columns], np.repeat(
            active[:, None], count, axis=1
        )  # fmt: skip

    def _read(
        self, place: tuple[Buffer, Indices], count: int, dtype: DType, active: np.ndarray
    ) -> np.ndarray:
        """Elements [warp, lane, element] of `count` registers."""
        values = self.memory.load(*self._access(place, count, active))
        return np.ascontiguousarray(values).view(dtype.numpy).reshape(-1, LANES, values.shape[1] * (
            values.itemsize // dtype.itemsize))  # fmt: skip

    def _write(self, place: tuple[Buffer, Indices], values: np.ndarray, active: np.ndarray) -> None:
        buffer = place[0]
        registers = np.ascontiguousarray(values).view(buffer.dtype.numpy)
        registers = registers.reshape(self.threads.count, -1)
        to, indices, lanes = self._access(place, registers.shape[1], active)
        self.memory.store(to, indices, registers, lanes)

    def _mma(self, record: Mma, operands: list[tuple[Buffer, Indices]], active: np.ndarray) -> None:
        c, a, b = operands
        left = _gather(record.a, self._read(a, record.a.registers, record.dtype, active))
        right = _gather(record.b, self._read(b, record.b.registers, record.right, active))
        before = self._read(c, record.c.registers, record.accumulator, active)
        left, right = (_exact(m, record) for m in (left, right))
        product = left @ right.transpose(0, 2, 1)
        result = before + product[:, *record.c.indices()]
        self._write(c, result.astype(record.accumulator.numpy), active)

    def _load_matrix(
        self, operands: list[tuple[Buffer, Indices]], active: np.ndarray, transposed: bool
    ) -> None:
        """Lane 8 m + r reads row r of matrix m, 16 bytes; lane (g, q) gets of each matrix the 4
        bytes q of row g or, transposed, the 16-bit elements g of rows 2 q and 2 q + 1."""
        source, *targets = operands
        count = 16 // source[0].dtype.itemsize
        rows = self.memory.load(*self._access(source, count, active))
        units = np.ascontiguousarray(rows).view(np.uint16).reshape(-1, 4, 8, 8)
        if transposed:
            units = np.ascontiguousarray(units.transpose(0, 1, 3, 2))
        registers = units.view(np.uint32).transpose(0, 2, 3, 1).reshape(-1, LANES, 4)
        for part, target in zip(np.split(registers, len(targets), axis=2), targets, strict=True):
            self._write(target, part, active)


def _gather(layout: FragmentLayout, values: np.ndarray) -> np.ndarray:
    """The matrices [warp, row, column] whose elements the lanes hold."""
    matrix = np.empty((len(values), *layout.shape), values.dtype)
    matrix[:, *layout.indices()] = values
    return matrix


def _exact(matrix: np.ndarray, record: Mma) -> np.ndarray:
    """Operands as the accumulator's type; tf32 ignores the low bits."""
    if record.dtype is DType.FLOAT32:
        return (matrix.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return matrix.astype(record.accumulator.numpy)
