"""Element types. A `DType` is its own name, so `DType.FLOAT32 == "float32"` holds."""

from __future__ import annotations

from enum import StrEnum

import ml_dtypes
import numpy as np


class DType(StrEnum):
    """The type of one tensor element.

    >>> DType("float32").itemsize, DType.of(np.dtype("int64")), DType.BOOL.is_float
    (4, <DType.INT64: 'int64'>, False)
    """

    BOOL = "bool"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @classmethod
    def of(cls, dtype: object) -> DType:
        """The DType of a NumPy dtype, a name or a DType; raises ValueError for anything else."""
        return cls(dtype) if isinstance(dtype, str) else cls(np.dtype(dtype).name)  # type: ignore[arg-type]

    @property
    def is_float(self) -> bool:
        return self in _FLOATS

    @property
    def is_int(self) -> bool:
        """Whether this is a signed or unsigned integer (bool is not)."""
        return self is not DType.BOOL and self not in _FLOATS

    @property
    def is_unsigned(self) -> bool:
        return self.startswith("uint")

    @property
    def bits(self) -> int:
        """Bits of the stored element; a bool is stored in one byte."""
        return _BITS[self]

    @property
    def itemsize(self) -> int:
        """Bytes of one stored element."""
        return _BITS[self] // 8

    @property
    def numpy(self) -> np.dtype:
        return _NUMPY[self]

    @property
    def min_value(self) -> int | float:
        """Smallest value: -inf for floats, so that it is the identity of max."""
        if self is DType.BOOL:
            return 0
        return -float("inf") if self.is_float else int(np.iinfo(self.numpy).min)

    @property
    def max_value(self) -> int | float:
        """Largest value: +inf for floats, so that it is the identity of min."""
        if self is DType.BOOL:
            return 1
        return float("inf") if self.is_float else int(np.iinfo(self.numpy).max)


_FLOATS = frozenset({DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64})
_NUMPY = {
    d: np.dtype(ml_dtypes.bfloat16) if d is DType.BFLOAT16 else np.dtype(d.value) for d in DType
}
_BITS = {d: _NUMPY[d].itemsize * 8 for d in DType}
