"""Operators expressed by others, so that sizes in them become constants.

A constant that differs between two sizes can be an input of the model; an attribute, or a size that
the tensor expression counts, cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...dtype import DType
from ...types import TensorType
from ..builder import Builder
from ..nodes import Atom, Call, Constant

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Rewrite:
    """How an operator is expressed by others.

    Attributes:
        axes: for which axes, so that what differs between a call and that for other sizes becomes
            a constant; None if that cannot be.
        emit: the operators for a call and these axes; as many for all sizes.
    """

    axes: Callable[[Call, Call], Axes | None]
    emit: Callable[[Builder, Call, Axes], Atom]


def _shape(atom: Atom) -> tuple[int, ...]:
    assert isinstance(atom.type, TensorType)
    return atom.type.static_shape


def _mean(b: Builder, call: Call, axes: Axes) -> Atom:
    """mean(x) = sum(x) / count; halves are summed and divided in float32, as `mean` does."""
    (x,) = call.args
    attrs: Any = call.attrs
    assert isinstance(x.type, TensorType)
    dtype = x.type.dtype
    half = dtype.is_float and dtype.itemsize == 2
    wide = b.call("cast", x, dtype=DType.FLOAT32) if half else x
    total = b.call("sum", wide, axis=axes, keepdims=attrs.keepdims)
    assert isinstance(total.type, TensorType)
    count = b.const(math.prod(_shape(x)[a] for a in axes), total.type.dtype)
    mean = b.call("divide", total, count)
    return b.call("cast", mean, dtype=dtype) if half else mean


def _read(b: Builder, x: Atom, axis: int, positions: np.ndarray) -> Atom:
    return b.call("take", x, b.const(positions.astype(np.int64)), axis=axis)


def _moved(call: Call, other: Call) -> Axes:
    """The axes where slices begin at another place."""
    a: Any = call.attrs
    b: Any = other.attrs
    starts = zip(a.begin, a.strides, strict=True), zip(b.begin, b.strides, strict=True)
    return tuple(axis for axis, (p, q) in enumerate(zip(*starts, strict=True)) if p != q)


def _slice(b: Builder, call: Call, axes: Axes) -> Atom:
    """The places that are read along some axes are a constant."""
    (x,) = call.args
    attrs: Any = call.attrs
    begin, end, strides = list(attrs.begin), list(attrs.end), list(attrs.strides)
    for axis in axes:
        x = _read(b, x, axis, np.arange(begin[axis], end[axis], strides[axis]))
        begin[axis], end[axis], strides[axis] = 0, _shape(x)[axis], 1
    return b.call("strided_slice", x, begin=tuple(begin), end=tuple(end), strides=tuple(strides))


def _bordered(call: Call, other: Call) -> Axes | None:
    """The axes that are padded with what is at their border."""
    attrs: Any = call.attrs
    if attrs.mode == "constant":
        return None
    return tuple(axis for axis, width in enumerate(attrs.pad_width) if any(width))


def _pad(b: Builder, call: Call, axes: Axes) -> Atom:
    (x,) = call.args
    attrs: Any = call.attrs
    for axis in axes:
        width = attrs.pad_width[axis]
        x = _read(b, x, axis, np.pad(np.arange(_shape(x)[axis]), width, mode=attrs.mode))
    return x


def _concatenate(b: Builder, call: Call, axes: Axes) -> Atom:
    """Every part is read where it belongs in the result, and one chosen by the place."""
    (axis,) = axes
    sizes = [_shape(x)[axis] for x in call.args]
    place = np.arange(sum(sizes))
    column = (-1,) + (1,) * (len(_shape(call.args[0])) - axis - 1)
    result, start = _read(b, call.args[0], axis, np.minimum(place, sizes[0] - 1)), sizes[0]
    for x, size in zip(call.args[1:], sizes[1:], strict=True):
        part = _read(b, x, axis, np.clip(place - start, 0, size - 1))
        result = b.call("where", b.const((place < start).reshape(column)), result, part)
        start += size
    return result


def _from_the_end(call: Call, other: Call) -> Axes | None:
    """The axis of constant indices that count from the end."""
    indices = call.args[1]
    attrs: Any = call.attrs
    counts = isinstance(indices, Constant) and bool((indices.data < 0).any())
    return (attrs.axis,) if counts else None


def _take(b: Builder, call: Call, axes: Axes) -> Atom:
    x, indices = call.args
    assert isinstance(indices, Constant)
    places = indices.data.astype(np.int64)
    return _read(b, x, axes[0], np.where(places < 0, places + _shape(x)[axes[0]], places))


def _axis(call: Call, other: Call) -> Axes:
    """The axis, or axes, of the attributes."""
    attrs: Any = call.attrs
    rank = len(_shape(call.args[0]))
    axes = attrs.axis if isinstance(attrs.axis, tuple) else (attrs.axis,)
    return tuple(axis % rank for axis in axes)


REWRITES: Mapping[str, Rewrite] = {
    "mean": Rewrite(_axis, _mean),
    "strided_slice": Rewrite(_moved, _slice),
    "nn.pad": Rewrite(_bordered, _pad),
    "concatenate": Rewrite(_axis, _concatenate),
    "take": Rewrite(_from_the_end, _take),
}
