"""What the tensor cores of Hopper compute, bit for bit as far as it is known.

Khattak and Mikaitis, "Accurate models of NVIDIA tensor cores" (arXiv:2512.07004): the products of
one instruction and the old sum are aligned to the largest exponent among them, cut to two bits
below the last one of float32 there, added, and the sum is cut to float32. Nothing is rounded to
nearest, so that long sums lose up to half a unit in each step, always towards zero.
"""

from __future__ import annotations

import numpy as np

from ...dtype import DType

__all__ = ["multiply_add"]

_MANTISSA = 23  # bits of float32
_EXTRA = 2  # that the sum keeps below them


def multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a[m, k] b[n, k]^T + c[m, n] as one instruction; k is that of the instruction.

    Integers are exact and wrap. float32 operands are tf32: their low 13 bits are ignored.

    >>> one, tiny = np.ones((1, 1), np.float16), np.full((1, 1), 2.0**-12, np.float16)
    >>> multiply_add(one, one, np.float32([[2.0**-24]])) == 1, multiply_add(tiny, tiny, one) == 1
    (array([[ True]]), array([[ True]]))
    """
    if c.dtype.kind == "i":
        return a.astype(c.dtype) @ b.astype(c.dtype).T + c
    a, b = (_operand(x) for x in (a, b))
    terms = np.empty((a.shape[1] + 1, *c.shape))
    np.multiply(a.T[:, :, None], b.T[:, None, :], out=terms[:-1])
    terms[-1] = c
    largest = _exponent(np.maximum(terms.max(0), -terms.min(0)))
    total = _cut(terms, largest - _MANTISSA - _EXTRA).sum(0)
    return _cut(total, np.maximum(_exponent(total), -126) - _MANTISSA).astype(np.float32)


def _operand(x: np.ndarray) -> np.ndarray:
    if x.dtype == DType.FLOAT32.numpy:
        x = (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return x.astype(np.float64)


def _exponent(x: np.ndarray) -> np.ndarray:
    return np.frexp(x)[1] - 1


def _cut(x: np.ndarray, bit: np.ndarray) -> np.ndarray:
    """Towards zero to multiples of 2^bit."""
    scaled = x * np.ldexp(1.0, -bit)
    return np.trunc(scaled, out=scaled) * np.ldexp(1.0, bit)
