"""The constants of a model in one block of memory."""

from __future__ import annotations

import numpy as np

ALIGNMENT = 64


def align(nbytes: int) -> int:
    """The next multiple of 64.

    >>> align(0), align(1), align(64)
    (0, 64, 64)
    """
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class ConstantPool:
    """Arrays packed at 64-byte aligned offsets; the same array object is stored once.

    >>> pool = ConstantPool()
    >>> a = np.zeros(3, np.float32)
    >>> pool.add(a), pool.add(np.ones(1, np.int8)), pool.add(a), pool.nbytes
    (0, 64, 0, 128)
    """

    def __init__(self) -> None:
        self.entries: list[tuple[int, np.ndarray]] = []
        self.nbytes = 0
        self._offsets: dict[int, int] = {}

    def add(self, array: np.ndarray) -> int:
        """The byte offset of an array, which is added unless it is there already."""
        known = self._offsets.get(id(array))
        if known is not None:
            return known
        offset = self.nbytes
        self.entries.append((offset, array))  # keeps the array alive, and so its id unique
        self._offsets[id(array)] = offset
        self.nbytes += align(array.nbytes)
        return offset

    def write_into(self, block: np.ndarray) -> None:
        """Copy all constants into `block`, uint8[>= nbytes]; gaps are left as they are."""
        for offset, array in self.entries:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            block[offset : offset + array.nbytes] = data

    def to_bytes(self) -> bytes:
        """The whole block; gaps are zero."""
        block = np.zeros(self.nbytes, np.uint8)
        self.write_into(block)
        return block.tobytes()
