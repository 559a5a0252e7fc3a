"""What the operator families share: argument checks, broadcasting, and test data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..diagnostics import TypeMismatch
from ..dtype import DType
from ..ir.expr import Expr, as_expr, const
from ..te.tensor import Tensor
from ..types import Dim, TensorType, Type

Reference = Callable[..., Any]

FLOATS = frozenset(d for d in DType if d.is_float)
INTS = frozenset(d for d in DType if d.is_int)
NUMBERS = FLOATS | INTS
BOOLS = frozenset({DType.BOOL})
ANY = frozenset(DType)


def tensors(op: str, types: Sequence[Type], count: int | None = None) -> list[TensorType]:
    """The argument types, checked to be `count` tensors (any number if None)."""
    if count is not None and len(types) != count:
        raise TypeMismatch(f"{op}: expected {count} arguments, got {len(types)}")
    for i, type_ in enumerate(types):
        if not isinstance(type_, TensorType):
            raise TypeMismatch(f"{op}: argument {i} must be a tensor, got {type_}")
    return list(types)  # type: ignore[arg-type]


def require_dtype(op: str, index: int, type_: TensorType, allowed: frozenset[DType]) -> None:
    """Refuse an argument whose dtype the operator does not take."""
    if type_.dtype not in allowed:
        names = ", ".join(sorted(allowed))
        raise TypeMismatch(f"{op}: argument {index} is {type_}, its dtype must be one of: {names}")


def require_same_dtype(op: str, types: Sequence[TensorType]) -> DType:
    """The one dtype of all arguments."""
    dtypes = [t.dtype for t in types]
    if len(set(dtypes)) != 1:
        raise TypeMismatch(f"{op}: arguments must have one dtype, got {', '.join(dtypes)}")
    return dtypes[0]


def broadcast_shapes(op: str, shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    """The NumPy broadcast of several shapes.

    >>> broadcast_shapes("add", [(3, 1), (4,)])
    (3, 4)
    """
    rank = max((len(s) for s in shapes), default=0)
    result: list[Dim] = []
    for d in range(-rank, 0):
        dims = [s[d] for s in shapes if len(s) >= -d and s[d] != 1]
        if any(dim != dims[0] for dim in dims):
            text = " and ".join(f"[{', '.join(map(str, s))}]" for s in shapes)
            raise TypeMismatch(f"{op}: shapes {text} do not broadcast (axis {d})")
        result.append(dims[0] if dims else 1)
    return tuple(result)


def read_broadcast(tensor: Tensor, indices: Sequence[Expr], shape: Sequence[Dim]) -> Expr:
    """The element of `tensor` that broadcasting to `shape` puts at `indices`."""
    skip = len(indices) - tensor.ndim
    return tensor(
        *(
            const(0) if is_one(extent) and not is_one(shape[skip + d]) else indices[skip + d]
            for d, extent in enumerate(tensor.shape)
        )
    )


def is_one(dim: Dim) -> bool:
    return as_expr(dim) is const(1)


def normalize_axis(op: str, axis: int, rank: int) -> int:
    """`axis` counted from the front; TypeMismatch if the rank has no such axis."""
    if not -rank <= axis < rank:
        raise TypeMismatch(f"{op}: axis {axis} is out of range for rank {rank}")
    return axis % rank


def in_working_precision(function: Reference) -> Reference:
    """`function` of arrays, with float16 and bfloat16 computed in float32 and rounded once."""

    def wrapped(*arrays: np.ndarray) -> np.ndarray:
        dtype = next((a.dtype for a in arrays if is_half(a.dtype)), None)
        if dtype is None:
            return function(*arrays)
        result = function(*(a.astype(np.float32) if is_half(a.dtype) else a for a in arrays))
        return result.astype(dtype) if result.dtype == np.float32 else result

    return wrapped


def is_half(dtype: np.dtype) -> bool:
    return dtype.itemsize == 2 and DType.of(dtype).is_float


def sample_array(
    shape: Sequence[int],
    dtype: str | DType = DType.FLOAT32,
    seed: int = 0,
    low: float = -4,
    high: float = 4,
) -> np.ndarray:
    """Seeded test data: uniform in [low, high), of any dtype."""
    dtype = DType(dtype)
    rng = np.random.default_rng(seed)
    if dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_int:
        return rng.integers(
            max(int(low), 0) if dtype.is_unsigned else int(low), int(high), shape
        ).astype(dtype.numpy)
    return rng.uniform(low, high, shape).astype(dtype.numpy)
