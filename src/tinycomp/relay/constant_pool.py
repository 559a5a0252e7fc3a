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
    """Arrays packed at 64-byte aligned offsets; arrays of equal bytes are stored once.

    >>> pool = ConstantPool()
    >>> a = np.zeros(3, np.float32)
    >>> pool.add(a), pool.add(np.ones(1, np.int8)), pool.add(a.copy()), pool.nbytes
    (0, 64, 0, 128)
    """

    def __init__(self) -> None:
        self.entries: list[tuple[int, np.ndarray]] = []
        self.nbytes = 0
        self._offsets: dict[int, int] = {}
        self._alive: list[np.ndarray] = []  # so that ids stay unique
        self._alike: dict[bytes, list[int]] = {}  # entries by a sample of their bytes

    def add(self, array: np.ndarray) -> int:
        """The byte offset of an array, which is added unless it is there already."""
        known = self._offsets.get(id(array))
        if known is not None:
            return known
        data = _bytes_of(array)
        alike = self._alike.setdefault(_sample(data), [])
        for entry in alike:
            offset, other = self.entries[entry]
            if np.array_equal(_bytes_of(other), data):
                self._offsets[id(array)] = offset
                self._alive.append(array)
                return offset
        offset = self.nbytes
        alike.append(len(self.entries))
        self.entries.append((offset, array))
        self._offsets[id(array)] = offset
        self._alive.append(array)
        self.nbytes += align(array.nbytes)
        return offset

    def write_into(self, block: np.ndarray) -> None:
        """Copy all constants into `block`, uint8[>= nbytes]; gaps are left as they are."""
        for offset, array in self.entries:
            block[offset : offset + array.nbytes] = _bytes_of(array)

    def to_bytes(self) -> bytes:
        """The whole block; gaps are zero."""
        block = np.zeros(self.nbytes, np.uint8)
        self.write_into(block)
        return block.tobytes()


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _sample(data: np.ndarray) -> bytes:
    """The length and a few bytes: equal for equal data, and cheap even for large weights."""
    step = max(1, len(data) // 64)
    return len(data).to_bytes(8, "little") + data[::step].tobytes() + data[-64:].tobytes()
