"""What convolution, pooling and the other operators of neural networks share: window geometry
along spatial axes, padding, accumulation types, and checks of argument types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import te
from ..diagnostics import TypeMismatch
from ..dtype import DType
from ..ir.expr import all_of
from ..te.tensor import Tensor
from ..types import Dim, TensorType, Type, as_dim
from .onnx_node import OnnxNode


def expect(condition: bool, message: str) -> None:
    """Raise TypeMismatch unless the condition holds."""
    if not condition:
        raise TypeMismatch(message)


def tensor_arg(types: Sequence[Type], index: int, op: str, rank: int | None = None) -> TensorType:
    """Argument `index` of an operator as a tensor type (of this rank)."""
    expect(index < len(types), f"{op}: argument {index} is missing")
    found = types[index]
    expect(isinstance(found, TensorType), f"{op}: argument {index} must be a tensor, found {found}")
    assert isinstance(found, TensorType)
    expect(
        rank is None or found.rank == rank,
        f"{op}: argument {index} must have rank {rank}, found {found}",
    )
    return found


def dims_agree(a: Dim, b: Dim) -> bool:
    """Whether two dimensions may be equal; symbolic ones are not contradicted."""
    return not (isinstance(a, int) and isinstance(b, int)) or a == b


def expect_precision(precision: str, dtype: DType, op: str) -> None:
    """Refuse an attribute `precision` that does not fit the operands' dtype."""
    known = ("fp32", "fp32_strict", "tf32")
    expect(precision in known, f"{op}: precision {precision!r} is not one of {', '.join(known)}")
    fits = precision == "fp32" or dtype is DType.FLOAT32
    expect(fits, f"{op}: precision {precision!r} needs float32 operands, found {dtype}")


def accumulation_dtype(dtype: DType) -> DType:
    """What sums of this dtype are kept in: float16 and bfloat16 are only stored."""
    return DType.FLOAT32 if dtype in (DType.FLOAT16, DType.BFLOAT16) else dtype


def widen(array: np.ndarray) -> np.ndarray:
    """An array in its accumulation type."""
    return array.astype(accumulation_dtype(DType.of(array.dtype)).numpy, copy=False)


def stored(tensor: Tensor, dtype: DType) -> Tensor:
    """`tensor` converted to `dtype` in a stage of its own; itself if it has that dtype."""
    if tensor.dtype is dtype:
        return tensor
    return te.compute(tensor.shape, lambda *i: tensor(*i).astype(dtype), name=f"{tensor.name}_cast")


def output_dim(size: Dim, kernel: int, stride: int, before: int, after: int, dilation: int) -> Dim:
    """Number of window positions along one axis.

    >>> output_dim(224, 7, 2, 3, 3, 1)
    112
    """
    expect(
        kernel > 0 and stride > 0 and dilation > 0,
        f"kernel size {kernel}, stride {stride} and dilation {dilation} must be positive",
    )
    return as_dim((size + (before + after - dilation * (kernel - 1) - 1)) // stride + 1)


def pad_axes(
    x: Tensor, axes: Sequence[int], padding: Sequence[int], value: float | int = 0
) -> Tensor:
    """`x` padded along `axes` by `padding` = (all befores, all afters), in a stage tagged "pad".

    A negative amount crops. Without padding the result is `x` itself.
    """
    befores, afters = padding[: len(axes)], padding[len(axes) :]
    if not any(padding):
        return x
    amounts = {a: (b, e) for a, b, e in zip(axes, befores, afters, strict=True) if b or e}
    shape = [d + sum(amounts[a]) if a in amounts else d for a, d in enumerate(x.shape)]

    def body(*index: Any) -> Any:
        moved = [i - amounts[a][0] if a in amounts else i for a, i in enumerate(index)]
        inside = []
        for a, (before, after) in amounts.items():
            inside += [index[a] >= before] if before > 0 else []
            inside += [index[a] < x.shape[a] + before] if after > 0 else []
        return te.if_then_else(all_of(inside), x(*moved), te.const(value, x.dtype))

    return te.compute(shape, body, name="pad", tag="pad")


def pad_array(
    x: np.ndarray, axes: Sequence[int], padding: Sequence[int], value: float | int = 0
) -> np.ndarray:
    """NumPy's counterpart of `pad_axes`."""
    width, crop = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
    for k, axis in enumerate(axes):
        before, after = padding[k], padding[k + len(axes)]
        width[axis] = (max(before, 0), max(after, 0))
        crop[axis] = slice(max(-before, 0), x.shape[axis] - max(-after, 0))
    return np.pad(x[tuple(crop)], width, constant_values=value)


def same_padding(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int],
    upper: bool,
) -> tuple[int, ...]:  # fmt: skip
    """Padding of auto_pad SAME_*: as many outputs as ceil(size / stride).

    >>> same_padding((5,), (2,), (1,), (1,), upper=True)
    (0, 1)
    """
    befores, afters = [], []
    for n, k, s, d in zip(size, kernel, strides, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        small, large = total // 2, total - total // 2
        befores.append(small if upper else large)
        afters.append(large if upper else small)
    return (*befores, *afters)


_AUTO_PADS = ("", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def import_padding(
    node: OnnxNode, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """The node's `pads`, or what its `auto_pad` means for the spatial axes of input 0.

    Raises:
        ModelError: the window's attributes do not fit each other.
        UnsupportedModel: SAME_* over a dimension that is not known.
    """
    check_window(node, kernel, strides, dilation)
    auto = node.choice("auto_pad", "NOTSET", _AUTO_PADS) or "NOTSET"
    if auto == "NOTSET":
        pads = tuple(node.attr("pads") or (0,) * (2 * len(kernel)))
        _check_length(node, "pads", pads, 2 * len(kernel))
        return pads
    if auto == "VALID":
        return (0,) * (2 * len(kernel))
    spatial = node.type(0).shape[-len(kernel) :]
    if not all(isinstance(d, int) for d in spatial):
        raise node.unsupported(f"auto_pad={auto} over symbolic dimensions", "fix the input shapes")
    sizes = [d for d in spatial if isinstance(d, int)]
    return same_padding(sizes, kernel, strides, dilation, upper=auto == "SAME_UPPER")


def check_window(
    node: OnnxNode, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> None:
    """Refuse a window whose attributes do not fit the spatial axes of input 0.

    Raises:
        ModelError: a wrong number of values, or one that is not positive.
    """
    named = {"kernel_shape": kernel, "strides": strides, "dilations": dilation}
    for name, values in named.items():
        _check_length(node, name, values, node.type(0).rank - 2)
        node.expect(all(v > 0 for v in values), f"{name} {list(values)} must be positive")


def _check_length(node: OnnxNode, name: str, values: Sequence[int], length: int) -> None:
    node.expect(
        len(values) == length,
        f"{name} {list(values)} must have {length} numbers for the input {node.type(0)}",
    )
