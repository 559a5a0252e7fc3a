"""Types of graph values. A dimension is an int or a symbolic expression over named dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .dtype import DType
from .ir.expr import Expr, IntImm, as_int

Dim = int | Expr


def as_dim(value: Dim) -> Dim:
    """A constant expression becomes an int, so that static shapes compare as ints."""
    return value.value if isinstance(value, IntImm) else value


@dataclass(frozen=True, slots=True)
class TensorType:
    """An n-dimensional array.

    >>> str(TensorType((1, 3), DType.FLOAT32))
    'float32[1, 3]'
    """

    shape: tuple[Dim, ...]
    dtype: DType

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape as ints; TypeError where a dimension is symbolic."""
        return tuple(as_int(d) for d in self.shape)

    @property
    def size(self) -> int:
        """Number of elements of a static shape."""
        return math.prod(self.static_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a static shape."""
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class TupleType:
    """A fixed sequence of values."""

    fields: tuple[Type, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.fields))})"


Type = TensorType | TupleType


def tensor_type(shape: Sequence[Dim], dtype: str | DType = DType.FLOAT32) -> TensorType:
    """A TensorType from any sequence of dimensions and any spelling of the dtype."""
    return TensorType(tuple(as_dim(d) for d in shape), DType(dtype))
