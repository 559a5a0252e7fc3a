"""Operators expressed by others, so that sizes in them become constants.

A constant that differs between two sizes can be an input of the model; an attribute, or a size that
the tensor expression counts, cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...dtype import DType
from ...types import TensorType
from ..builder import Builder
from ..nodes import Atom, Call, Constant
from ..op import Op

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Rewrite:
    """How an operator is expressed by others.

    Attributes:
        axes: for which axes, so that what differs between a call and that for other sizes becomes
            a constant; None if that cannot be.
        emit: the operators for a call and these axes; as many for all sizes.
        indices: the operand of the last of these operators whose elements are then indices inside
            the small model's axes, or outside of both models'.
    """

    axes: Callable[[Call, Call], Axes | None]
    emit: Callable[[Builder, Call, Axes], Atom]
    indices: int | None = None


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


def _take(b: Builder, call: Call, axes: Axes) -> Atom:
    """Indices count from the front: constant ones at once, others when the model runs."""
    x, indices = call.args
    (axis,) = axes
    if isinstance(indices, Constant):
        places = indices.data.astype(np.int64)
        return _read(b, x, axis, np.where(places < 0, places + _shape(x)[axis], places))
    return b.call("take", x, _checked(b, indices, [_shape(x)[axis]]), axis=axis)


def _gather_nd(b: Builder, call: Call, axes: Axes) -> Atom:
    x, indices = call.args
    sizes = [_shape(x)[axis] for axis in axes]
    return b.call("gather_nd", x, _checked(b, indices, sizes), attrs=call.attrs)


def _indexed(call: Call, other: Call) -> Axes:
    """The axes that the last axis of gather_nd's indices counts along."""
    attrs: Any = call.attrs
    depth = _shape(call.args[1])[-1]
    return tuple(range(attrs.batch_dims, attrs.batch_dims + depth))


def _checked(b: Builder, indices: Atom, sizes: Sequence[int]) -> Atom:
    """Indices counted from the front; those out of range are so for all sizes."""
    dtype = DType.INT64
    indices = b.call("cast", indices, dtype=dtype)
    size = b.const(sizes[0] if len(sizes) == 1 else np.array(sizes), dtype)
    zero, outside = b.const(0, dtype), b.const(dtype.max_value, dtype)
    from_the_end = b.call("less", indices, zero)
    front = b.call("where", from_the_end, b.call("add", indices, size), indices)
    inside = b.call(
        "logical_and", b.call("greater_equal", front, zero), b.call("less", front, size)
    )
    return b.call("where", inside, front, outside)


def _tile(b: Builder, call: Call, axes: Axes) -> Atom:
    (x,) = call.args
    attrs: Any = call.attrs
    for axis in axes:
        size = _shape(x)[axis]
        x = _read(b, x, axis, np.arange(size * attrs.reps[axis]) % size)
    return x


def _repeated(call: Call, other: Call) -> Axes:
    attrs: Any = call.attrs
    return tuple(axis for axis, count in enumerate(attrs.reps) if count != 1)


def _average(b: Builder, call: Call, axes: Axes) -> Atom:
    """avg_pool(x) = avg_pool(x), padding counted, / the share of each window that is no padding."""
    (x,) = call.args
    attrs: Any = call.attrs
    assert isinstance(call.op, Op)
    assert isinstance(x.type, TensorType)
    counted = replace(attrs, count_include_pad=True)
    ones = np.ones([n if a in axes else 1 for a, n in enumerate(_shape(x))], x.type.dtype.numpy)
    share = b.const(np.asarray(call.op.reference(counted, [ones])))
    return b.call("divide", b.call(call.op, x, attrs=counted), share)


def _windows(call: Call, other: Call) -> Axes | None:
    """The spatial axes of pooling that does not count its padding."""
    attrs: Any = call.attrs
    if attrs.count_include_pad or any(attrs.uncounted):
        return None
    return tuple(map(attrs.data_layout.index, "HW"))


_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}


def _resized(call: Call, other: Call) -> Axes | None:
    """The axes that are of another size, unless they are extrapolated."""
    a: Any = call.attrs
    b: Any = other.attrs
    (x,), (y,) = call.args, other.args
    assert isinstance(x.type, TensorType)
    if a.coordinate_transformation == "tf_crop_and_resize" or not x.type.dtype.is_float:
        return None
    sizes = zip(_shape(x), _shape(y), strict=True)
    differ = {axis for axis, (n, m) in enumerate(sizes) if n != m}
    differ |= {a.axes[k] for k, (n, m) in enumerate(zip(a.size, b.size, strict=True)) if n != m}
    return tuple(axis for axis in a.axes if axis in differ)


def _resize(b: Builder, call: Call, axes: Axes) -> Atom:
    """Interpolation is linear in what it reads: its places and weights are constants, those of
    resizing the unit matrix."""
    (x,) = call.args
    attrs: Any = call.attrs
    assert isinstance(call.op, Op)
    assert isinstance(x.type, TensorType)
    dtype, taps = x.type.dtype, _TAPS[attrs.mode]
    x = b.call("cast", x, dtype=DType.FLOAT32)
    for axis in axes:
        alone = _along(attrs, [attrs.axes.index(axis)])
        unit = np.eye(_shape(x)[axis], dtype=np.float32)
        weights = np.asarray(call.op.reference(replace(alone, axes=(0,)), [unit]))
        order = np.argsort(-np.abs(weights), axis=1, kind="stable")
        column = (-1,) + (1,) * (len(_shape(x)) - axis - 1)
        total: Atom | None = None
        for tap in range(taps):
            place = order[:, min(tap, order.shape[1] - 1)]
            weight = weights[np.arange(len(place)), place] * (tap < order.shape[1])
            part = _read(b, x, axis, place)
            part = b.call("multiply", part, b.const(weight.reshape(column).astype(np.float32)))
            total = part if total is None else b.call("add", total, part)
        assert total is not None
        x = total
    rest = [k for k, axis in enumerate(attrs.axes) if axis not in axes]
    return b.call("cast", b.call(call.op, x, attrs=_along(attrs, rest)), dtype=dtype)


def _along(attrs: Any, chosen: Sequence[int]) -> Any:
    """Attributes of resizing only some of the axes."""
    half = len(attrs.axes)
    pick = lambda values: tuple(values[k] for k in chosen)  # noqa: E731
    return replace(
        attrs,
        axes=pick(attrs.axes),
        size=pick(attrs.size),
        scales=pick(attrs.scales),
        roi=pick(attrs.roi[:half]) + pick(attrs.roi[half:]) if attrs.roi else (),
    )


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
    "tile": Rewrite(_repeated, _tile),
    "take": Rewrite(_axis, _take, indices=1),
    "gather_nd": Rewrite(_indexed, _gather_nd, indices=1),
    "nn.avg_pool2d": Rewrite(_windows, _average),
    "image.resize": Rewrite(_resized, _resize),
}
