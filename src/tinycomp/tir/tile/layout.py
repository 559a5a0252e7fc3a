"""How tiles lie in shared memory, and which thread holds what of a product.

These records are the single place for each fact: the interpreter moves data by them and code
generation encodes them, so that a wrong bit shows as wrong numbers on a machine without a GPU.
Sources: PTX ISA 8.x, "Asynchronous warpgroup level matrix instructions" (canonical layouts, matrix
descriptor format, register fragments) and "Tensor-swizzling modes".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from ...dtype import DType

__all__ = ["ROW_BYTES", "Major", "MatrixDescriptor", "Swizzle", "WgmmaShape", "instruction_k"]

ROW_BYTES = 128
"""Bytes of the innermost dimension of a tile: the span of the widest swizzle."""


class Major(StrEnum):
    """Which dimension of an operand is contiguous in memory."""

    K = "k"  # the one that is summed
    MN = "mn"  # the rows of A, the columns of B


@dataclass(frozen=True, slots=True)
class Swizzle:
    """A permutation of 16-byte units within rows of 32, 64 or 128 bytes: bits 4.. of an address are
    XORed with bits 7... `span` 0 leaves addresses alone.

    >>> swizzle = Swizzle(128)
    >>> [swizzle.apply(row * 128) // 16 % 8 for row in range(9)]
    [0, 1, 2, 3, 4, 5, 6, 7, 0]
    """

    span: int

    @property
    def mask(self) -> int:
        return {0: 0, 32: 0x10, 64: 0x30, 128: 0x70}[self.span]

    def apply(self, address: Any) -> Any:
        """The address (or array of addresses) where data at `address` really lies."""
        return address ^ ((address >> 3) & self.mask)


@dataclass(frozen=True, slots=True)
class MatrixDescriptor:
    """How `wgmma` finds an operand in shared memory, from its start address.

    Only the canonical layouts with 128-byte swizzle are described.

    Attributes:
        major: the contiguous dimension.
        leading: MN-major: bytes from one group of 128 bytes of rows (or columns) to the next.
        stride: bytes from 8 rows (K-major) or 8 steps of k (MN-major) to the next 8.
    """

    major: Major
    leading: int
    stride: int
    swizzle: Swizzle = Swizzle(128)

    def constant(self) -> int:
        """The 64 bits without the start address, which bits 0 to 13 hold in units of 16 bytes.

        >>> hex(MatrixDescriptor(Major.K, 16, 1024).constant())
        '0x4000004000010000'
        """
        mode = {0: 0, 128: 1, 64: 2, 32: 3}[self.swizzle.span]
        return (self.leading >> 4) << 16 | (self.stride >> 4) << 32 | mode << 62

    def addresses(self, start: int, extent: int, k: int, itemsize: int) -> np.ndarray:
        """Byte addresses of the elements [extent][k] of the operand that begins at `start`."""
        i, p = np.arange(extent)[:, None], np.arange(k)[None, :]
        if self.major is Major.K:
            linear = i % 8 * ROW_BYTES + i // 8 * self.stride + p * itemsize
        else:
            per_row = ROW_BYTES // itemsize
            across = i % per_row * itemsize + i // per_row * self.leading
            linear = across + p % 8 * ROW_BYTES + p // 8 * self.stride
        return self.swizzle.apply(start + linear)


@dataclass(frozen=True, slots=True)
class WgmmaShape:
    """One `wgmma.mma_async`: D[64, n] += A[64, k] B[k, n] by a warpgroup of 128 threads.

    Attributes:
        dtype: of A, and of B if nothing else is said.
        acc: of D: float32, or int32 for bytes.
        right: of B: bytes may be uint8 on one side and int8 on the other.
    """

    n: int
    dtype: DType
    acc: DType = DType.FLOAT32
    right: DType | None = None

    @property
    def k(self) -> int:
        return instruction_k(self.dtype)

    @property
    def registers(self) -> int:
        """Of D in each thread."""
        return self.n // 2

    @property
    def transposes(self) -> bool:
        """Whether operands may be MN-major."""
        return self.dtype in (DType.FLOAT16, DType.BFLOAT16)

    def fragment(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of D in [thread, register]."""
        thread, register = np.arange(128)[:, None], np.arange(self.registers)[None, :]
        return fragment_row(thread, register), fragment_column(thread, register)

    def left_fragment(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and k of A in [thread, element], where A is in registers."""
        count = 64 * self.k // 128
        thread, element = np.arange(128)[:, None], np.arange(count)[None, :]
        pack = 4 // self.dtype.itemsize
        return (
            fragment_row(thread, element // pack * 2),
            thread % 4 * pack + element % pack + element // (2 * pack) * (4 * pack),
        )


def fragment_row(thread: Any, register: Any) -> Any:
    """The row of D that a register of a thread holds (PTX ISA, figure "WGMMA .m64nNk16 D").

    Works on ints, arrays and expressions; `register` counts from the first of D.
    """
    return thread // 32 * 16 + thread % 32 // 4 + register // 2 % 2 * 8


def fragment_column(thread: Any, register: Any) -> Any:
    """The column of D that a register of a thread holds."""
    return register // 4 * 8 + thread % 4 * 2 + register % 2


def left_element(row_half: Any, k_half: Any, pack: int) -> Any:
    """The first of the `pack` neighbouring elements of A that a thread holds in one register: rows
    of the upper or lower 8 of 16, and the first or second half of k. Works on expressions too.

    >>> left_element(1, 0, 2), left_element(0, 1, 2)  # PTX ISA: a2 is 8 rows below, a4 has k + 8
    (2, 4)
    """
    return (row_half + 2 * k_half) * pack


def instruction_k(dtype: DType) -> int:
    """Length of the sum of one instruction: 32 bytes.

    >>> instruction_k(DType.BFLOAT16), instruction_k(DType.INT8)
    (16, 32)
    """
    return 32 // dtype.itemsize
