"""Which element of a small matrix each lane of a warp holds in which register.

The layouts of `mma.sync` (PTX ISA, "Matrix fragments for mma"). With g = lane / 4 and q = lane % 4,
a 32-bit register holds w = 32 / bits elements, neighbours along k:

- a, 16 x 8w: register r of lane (g, q) holds row g + 8 (r % 2), from k = w q + 4w (r / 2) on
- b, 8 x 8w (a row is a column of the right operand): row g, from k = w q + 4w r on
- c, 16 x 8: element e holds row g + 8 (e / 2), column 2 q + e % 2

>>> A = FragmentLayout("a", 16)
>>> A.shape, A.elements, A.place(5, 3)
((16, 16), 8, (9, 3))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LANES = 32


@dataclass(frozen=True, slots=True)
class FragmentLayout:
    """The layout of one operand of a matrix instruction.

    Attributes:
        role: "a", "b" or "c".
        bits: of an element.
        transposed: whether the logical matrix has k first: (k, rows) in place of (rows, k).
    """

    role: str
    bits: int
    transposed: bool = False

    @property
    def packed(self) -> int:
        """Elements in one register."""
        return 32 // self.bits

    @property
    def shape(self) -> tuple[int, int]:
        """Of the logical matrix."""
        if self.role == "c":
            return 16, 8
        rows, depth = (16 if self.role == "a" else 8), 8 * self.packed
        return (depth, rows) if self.transposed else (rows, depth)

    @property
    def elements(self) -> int:
        """Elements that one lane holds."""
        return self.shape[0] * self.shape[1] // LANES

    @property
    def registers(self) -> int:
        """32-bit registers that hold them."""
        return self.elements // self.packed

    def place(self, lane: Any, element: Any) -> tuple[Any, Any]:
        """Row and column of an element, for numbers, arrays and expressions alike."""
        group, quad = lane // 4, lane % 4
        if self.role == "c":
            return group + 8 * (element // 2), 2 * quad + element % 2
        register, half = element // self.packed, element % self.packed
        if self.role == "a":
            row, register = group + 8 * (register % 2), register // 2
        else:
            row = group
        depth = quad * self.packed + half + register * (4 * self.packed)
        return (depth, row) if self.transposed else (row, depth)

    def indices(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of all elements, as arrays [lane, element].

        >>> rows, columns = FragmentLayout("c", 32).indices()
        >>> rows.shape, sorted(set(zip(rows.flat, columns.flat))) == [*np.ndindex(16, 8)]
        ((32, 4), True)
        """
        lane, element = np.meshgrid(np.arange(LANES), np.arange(self.elements), indexing="ij")
        return self.place(lane, element)
