"""Hashing and copying of weights on several threads; hashlib and NumPy release the interpreter.

>>> digest(b"abc").hex()[:16]
'ba7816bf8f01cfea'
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..target import default_num_threads

PIECE = 4 << 20


def digest(data: Any) -> bytes:
    """The SHA-256 of up to 4 MiB; of more, that of the hashes of its pieces of 4 MiB (a tree).

    Args:
        data: bytes, or anything with the buffer interface.
    """
    view = memoryview(data).cast("B")
    if len(view) <= PIECE:
        return hashlib.sha256(view).digest()
    starts = range(0, len(view), PIECE)
    with ThreadPoolExecutor(default_num_threads()) as pool:
        pieces = pool.map(lambda i: hashlib.sha256(view[i : i + PIECE]).digest(), starts)
        return hashlib.sha256(b"tree" + b"".join(pieces)).digest()


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """`target[:] = source` for arrays of bytes."""
    if len(source) <= PIECE:
        target[:] = source
        return

    def part(start: int) -> None:
        target[start : start + PIECE] = source[start : start + PIECE]

    with ThreadPoolExecutor(default_num_threads()) as pool:
        list(pool.map(part, range(0, len(source), PIECE)))
