"""Long sums of products in slices: where the result has fewer tiles than the GPU multiprocessors.

    partial[b, s, i, j] = sum of A[b, i, k] * B[b, k, j] over the k of slice s
    result[b, i, j] = sum of partial[b, s, i, j] over s

The first is a product of more, shorter batches, the second a launch of its own, which adds in a
fixed order and goes on with the elementwise work behind the product. (CUTLASS, "Efficient GEMM in
CUDA": split-K.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .... import te
from ....te.tensor import ComputeOp, Tensor, is_reduction
from ....types import TensorType
from ...common import Kernel
from ..rows.reduction import schedule_outputs

SLICES = "slices"  # tag of the sum over slices
_CHOICES = (1, 2, 3, 4, 6, 8, 12, 16)
_MIN_LENGTH = 128  # of a slice
_GRAIN = 64  # slices begin at multiples of a tile along k
LAUNCH = 2500  # cycles from one launch to the next
BYTES = 2500  # of partial results that are written and read again, per cycle
_GAIN = 0.85  # of the time without slices that is worth it

Sizes = tuple[int, int, int, int]


def choose_slices(sizes: Sizes, cycles: Callable[[int, int, int, int], float]) -> int:
    """How many slices take the shortest estimated time; see `fastest`."""
    return fastest(sizes, cycles)[0]


def fastest(sizes: Sizes, cycles: Callable[[int, int, int, int], float]) -> tuple[int, float]:
    """How many slices take the shortest estimated time, and that time in cycles.

    Args:
        sizes: batch, rows, columns and length of the sum.
        cycles: the time of a product of these sizes without slices.

    >>> def waves(batch, m, n, k):  # tiles of 64 x 64, a cycle for each step along k
    ...     return -(-batch * -(-m // 64) * -(-n // 64) // 132) * k
    >>> fastest((1, 64, 768, 65536), waves)[0], fastest((1, 4096, 4096, 65536), waves)[0]
    (8, 1)
    """
    batch, m, n, k = sizes
    whole = cycles(batch, m, n, k)

    def time(slices: int) -> float:
        if slices == 1:
            return whole * _GAIN
        moved = 2 * 4 * slices * batch * m * n / BYTES
        return cycles(slices * batch, m, n, slice_length(k, slices)) + LAUNCH + moved

    slices = min((s for s in _CHOICES if s == 1 or k // s >= _MIN_LENGTH), key=time)
    return slices, whole if slices == 1 else time(slices)


def slice_length(k: int, slices: int) -> int:
    """Elements of the sum in a slice; the last one may have fewer."""
    return math.ceil(k / slices / _GRAIN) * _GRAIN


def split_product(
    product: Callable[..., list[Tensor]],
    out: TensorType,
    acc: Any,
    sizes: Sizes,
    slices: int,
    left: Callable[..., Any],
    right: Callable[..., Any],
    result: Callable[..., tuple[Any, Any, Any]],
) -> list[Tensor]:
    """The result as te, from `product(type, sizes, left, right, result)` of the slices.

    Args:
        acc: the dtype of partial results; the others are as for `gemm`.
    """
    batch, m, n, k = sizes
    length = slice_length(k, slices)
    whole = length * slices == k

    def inside(place: Any, value: Any) -> Any:
        return value if whole else te.if_then_else(place < k, value, te.const(0, value.dtype))

    def left_slice(b: Any, i: Any, p: Any) -> Any:
        place = b % slices * length + p
        return inside(place, left(b // slices, i, place))

    def right_slice(b: Any, p: Any, j: Any) -> Any:
        place = b % slices * length + p
        return inside(place, right(b // slices, place, j))

    (partial,) = product(
        TensorType((batch * slices, m, n), acc),
        (batch * slices, m, n, length),
        left_slice,
        right_slice,
        lambda *index: index,
    )
    axis = te.reduce_axis((0, slices), name="slice")

    def total(*index: Any) -> Any:
        b, i, j = result(*index)
        return te.sum(partial(b * slices + axis, i, j), axis=axis)

    summed = te.compute(out.shape, total, name="product", tag=SLICES)
    if out.dtype is acc:
        return [summed]
    return [te.compute(out.shape, lambda *i: summed(*i).astype(out.dtype), name="rounded")]


def schedule_slices(
    kernel: Kernel, total: ComputeOp, schedule_product: Callable[[Kernel], None]
) -> None:
    """The product of the slices by its own schedule; their sum with one thread per element."""
    (partial,) = total.inputs
    product = Kernel(kernel.schedule, [partial], kernel.target)
    own = product.stages
    schedule_product(product)
    assert not is_reduction(own[-1])
    schedule_outputs(kernel, total, keep=own)
