"""Memory in which every access out of bounds is found.

Arrays lie between pages that may not be touched, flush with one of them: what goes past that end
stops the process, what goes past the other changes bytes that are checked afterwards.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

CANARY = 0xFF
"""The byte that fills memory nobody wrote: NaN as a float, -1 as an integer."""


class GuardedMemory:
    """Cells of `cell_bytes` each, with an inaccessible page before and after every one.

    >>> memory = GuardedMemory(cells=2, cell_bytes=4096)
    >>> a = memory.array(0, (3,), np.dtype("float32"), at_end=True)
    >>> a[:] = 1
    >>> memory.untouched(0)
    True
    """

    def __init__(self, cells: int, cell_bytes: int) -> None:
        page = mmap.PAGESIZE
        self.cell_bytes = -(-cell_bytes // page) * page
        stride = self.cell_bytes + page
        self._memory = mmap.mmap(-1, cells * stride + page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for cell in range(cells + 1):
            address = ctypes.c_void_p(start + cell * stride)
            if protect(address, ctypes.c_size_t(page), ctypes.c_int(0)):
                raise OSError(ctypes.get_errno(), "mprotect")
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._starts = [page + cell * stride for cell in range(cells)]
        self._used = [slice(0, 0)] * cells

    def array(
        self,
        cell: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        *,
        at_end: bool,
        alignment: int = 0,
    ) -> np.ndarray:
        """An array at the end or start of a cell that is otherwise filled with canaries.

        Args:
            alignment: of the first element; by default that of one element.

        Raises:
            ValueError: the cell is too small.
        """
        alignment = alignment or dtype.itemsize
        count = int(np.prod(shape, dtype=np.int64))
        nbytes = count * dtype.itemsize
        if nbytes + alignment > self.cell_bytes:
            raise ValueError(f"{nbytes} bytes do not fit in a cell of {self.cell_bytes}")
        start = self._starts[cell]
        self._bytes[start : start + self.cell_bytes] = CANARY
        if at_end:
            start += (self.cell_bytes - nbytes) // alignment * alignment
        self._used[cell] = slice(start, start + nbytes)
        return np.ndarray(shape, dtype, self._memory, start)

    def untouched(self, cell: int) -> bool:
        """Whether all bytes around the cell's array still are canaries."""
        start, used = self._starts[cell], self._used[cell]
        before = self._bytes[start : used.start]
        after = self._bytes[used.stop : start + self.cell_bytes]
        return bool((before == CANARY).all() and (after == CANARY).all())
