"""ONNX importers of shape operators; most shapes in them are known while importing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..diagnostics import ModelError
from ..dtype import DType
from ..relay.nodes import Atom
from ..types import TensorType
from .common import broadcast_shapes, normalize_axis
from .onnx_node import OnnxImport, OnnxNode
from .unary import cast_to


def reshape(node: OnnxNode, x: Atom, shape: Sequence[Any]) -> Atom:
    """`x` under another shape; itself if it has that shape."""
    assert isinstance(x.type, TensorType)
    same = x.type.shape == tuple(shape)
    return x if same else node.builder.call("reshape", x, newshape=tuple(shape))


def transpose(node: OnnxNode, x: Atom, axes: Sequence[int]) -> Atom:
    """`x` with permuted axes; itself for the identity."""
    same = list(axes) == list(range(len(axes)))
    return x if same else node.builder.call("transpose", x, axes=tuple(axes))


def slice_axis(node: OnnxNode, x: Atom, axis: int, begin: int, end: int) -> Atom:
    """Elements [begin, end) of one axis; `x` itself if that is all."""
    assert isinstance(x.type, TensorType)
    shape = x.type.static_shape
    if (begin, end) == (0, shape[axis]):
        return x
    begins, ends = [0] * len(shape), list(shape)
    begins[axis], ends[axis] = begin, end
    return node.builder.call(
        "strided_slice", x, begin=tuple(begins), end=tuple(ends), strides=(1,) * len(shape)
    )


def ints(node: OnnxNode, index: int, default: Any = None) -> list[int]:
    """Constant input `index` as a list of ints."""
    return node.vector(index, default)


def _import_reshape(node: OnnxNode) -> Atom:
    shape, new = node.type(0).static_shape, ints(node, 1)
    if not node.attr("allowzero", 0):
        if any(d == 0 and i >= len(shape) for i, d in enumerate(new)):
            raise ModelError(f"Reshape: the target {new} copies an axis that {node.type(0)} lacks")
        new = [shape[i] if d == 0 else d for i, d in enumerate(new)]
    if -1 in new:
        known = math.prod(d for d in new if d != -1)
        if new.count(-1) > 1 or known == 0 or math.prod(shape) % known:
            raise ModelError(f"Reshape: {node.type(0)} does not fit the shape {new}")
        new[new.index(-1)] = math.prod(shape) // known
    return reshape(node, node.input(0), new)


def _import_flatten(node: OnnxNode) -> Atom:
    shape, axis = node.type(0).static_shape, node.attr("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return reshape(node, node.input(0), (math.prod(shape[:axis]), math.prod(shape[axis:])))


def _import_squeeze(node: OnnxNode) -> Atom:
    shape = node.type(0).static_shape
    axes = {normalize_axis("Squeeze", a, len(shape)) for a in ints(node, 1, ())}
    axes = axes if node.has(1) else {d for d, n in enumerate(shape) if n == 1}
    if any(shape[a] != 1 for a in axes):
        raise ModelError(f"Squeeze: axes {sorted(axes)} of {node.type(0)} are not all of size 1")
    return reshape(node, node.input(0), [n for d, n in enumerate(shape) if d not in axes])


def _import_unsqueeze(node: OnnxNode) -> Atom:
    shape, axes = node.type(0).static_shape, ints(node, 1)
    rank = len(shape) + len(axes)
    places = {normalize_axis("Unsqueeze", a, rank) for a in axes}
    if len(places) != len(axes):
        raise ModelError(f"Unsqueeze: axes {axes} repeat")
    rest = iter(shape)
    return reshape(node, node.input(0), [1 if d in places else next(rest) for d in range(rank)])


def _import_transpose(node: OnnxNode) -> Atom:
    rank = node.type(0).rank
    return transpose(node, node.input(0), node.attr("perm", tuple(reversed(range(rank)))))


def _import_expand(node: OnnxNode) -> Atom:
    shape = broadcast_shapes("Expand", (node.type(0).shape, ints(node, 1)))
    if shape == node.type(0).shape:
        return node.input(0)
    return node.builder.call("broadcast_to", node.input(0), shape=shape)


def _import_concat(node: OnnxNode) -> Atom:
    inputs = [node.input(i) for i in range(len(node.inputs))]
    if len(inputs) == 1:
        return inputs[0]
    axis = normalize_axis("Concat", node.attr("axis"), node.type(0).rank)
    return node.builder.call("concatenate", *inputs, axis=axis)


def _import_slice(node: OnnxNode) -> Atom:
    shape = node.type(0).static_shape
    starts, ends = ints(node, 1), ints(node, 2)
    axes = ints(node, 3, range(len(starts)))
    steps = ints(node, 4, [1] * len(starts))
    node.expect(
        len(starts) == len(ends) == len(axes) == len(steps),
        f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps",
    )
    begin, end, strides = [0] * len(shape), list(shape), [1] * len(shape)
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        d = normalize_axis("Slice", axis, len(shape))
        if step == 0:
            raise ModelError("Slice: a step is 0")
        begin[d], end[d], strides[d] = slice(start, stop, step).indices(shape[d])
        if not range(begin[d], end[d], step):
            begin[d], end[d], strides[d] = 0, 0, 1
    if begin == [0] * len(shape) and end == list(shape) and strides == [1] * len(shape):
        return node.input(0)
    return node.builder.call(
        "strided_slice", node.input(0), begin=tuple(begin), end=tuple(end), strides=tuple(strides)
    )


def _import_split(node: OnnxNode) -> list[Atom]:
    axis = normalize_axis("Split", node.attr("axis", 0), node.type(0).rank)
    extent = node.type(0).static_shape[axis]
    if node.has(1):
        sizes = ints(node, 1)
    else:
        parts = node.attr("num_outputs", node.num_outputs)
        node.expect(0 < parts <= node.num_outputs, f"{parts} parts for {node.num_outputs} outputs")
        part = -(-extent // parts)
        sizes = [min(part, extent - p * part) for p in range(parts)]
    if sum(sizes) != extent or min(sizes, default=0) < 0:
        raise ModelError(f"Split: parts {sizes} do not add up to axis {axis} of {node.type(0)}")
    bounds = np.cumsum([0, *sizes]).tolist()
    x = node.input(0)
    return [slice_axis(node, x, axis, b, e) for b, e in pairwise(bounds)]


def _import_tile(node: OnnxNode) -> Atom:
    reps = tuple(ints(node, 1))
    if any(r < 0 for r in reps):
        raise ModelError(f"Tile: repetitions {list(reps)} contain a negative number")
    return (
        node.input(0) if set(reps) <= {1} else node.builder.call("tile", node.input(0), reps=reps)
    )


def _import_shape(node: OnnxNode) -> Atom:
    shape = node.type(0).static_shape
    return node.builder.const(np.array(shape[node.attr("start", 0) : node.attr("end")], np.int64))


def _import_size(node: OnnxNode) -> Atom:
    return node.builder.const(np.asarray(node.type(0).size, np.int64))


def _import_constant(node: OnnxNode) -> Atom:
    for name, dtype in (
        ("value", None), ("value_float", np.float32), ("value_floats", np.float32),
        ("value_int", np.int64), ("value_ints", np.int64),
    ):  # fmt: skip
        if name in node.attrs:
            return node.builder.const(np.asarray(node.attrs[name], dtype))
    raise node.unsupported(f"a constant given as {', '.join(node.attrs) or 'nothing'}")


def _full(node: OnnxNode, shape: Sequence[int], dtype: DType, value: Any) -> Atom:
    if any(d < 0 for d in shape):
        raise ModelError(f"{node.op_type}: {list(shape)} is not a shape", span=node.span)
    if math.prod(shape) <= node.builder.fold_limit:
        return node.builder.const(np.full(shape, value, dtype.numpy))
    return node.builder.call("full", shape=tuple(shape), dtype=dtype, value=value)


def _import_constant_of_shape(node: OnnxNode) -> Atom:
    value = np.asarray(node.attr("value", np.zeros(1, np.float32)))
    return _full(node, ints(node, 0), DType.of(value.dtype), value.item())


def _import_range(node: OnnxNode) -> Atom:
    start, limit, delta = (node.scalar(i) for i in range(3))
    if delta == 0:
        raise ModelError("Range: delta is 0")
    if not all(np.isfinite(v.astype(float)) for v in (start, limit, delta)):
        raise ModelError("Range: start, limit and delta must be finite")
    size = max(math.ceil((limit.astype(float) - start.astype(float)) / delta.astype(float)), 0)
    if size <= node.builder.fold_limit:
        steps = np.arange(size).astype(start.dtype)
        return node.builder.const(steps * delta + start)
    dtype = DType.of(start.dtype)
    return node.builder.call(
        "arange", start=start.item(), step=delta.item(), size=size, dtype=dtype
    )


def _import_eye_like(node: OnnxNode) -> Atom:
    dtype = node.attr("dtype") or node.type(0).dtype
    rows, columns = node.rank(0, 2).static_shape
    return node.builder.const(np.eye(rows, columns, node.attr("k", 0), dtype.numpy))


def _import_pad(node: OnnxNode) -> Atom:
    """Pad; negative widths cut elements off first."""
    x, shape = node.input(0), node.type(0).static_shape
    axes = [normalize_axis("Pad", a, len(shape)) for a in ints(node, 3, range(len(shape)))]
    pads = ints(node, 1)
    node.expect(len(pads) == 2 * len(axes), f"{len(pads)} pads for {len(axes)} axes")
    mode = node.choice("mode", "constant", ("constant", "edge", "reflect", "wrap"))
    value = node.scalar(2, 0).item()
    if value is False or value is True:
        value = int(value)
    widths = [(0, 0)] * len(shape)
    for n, axis in enumerate(axes):
        before, after = pads[n], pads[n + len(axes)]
        x = slice_axis(node, x, axis, max(-before, 0), shape[axis] - max(-after, 0))
        widths[axis] = (max(before, 0), max(after, 0))
    if not any(map(any, widths)):
        return x
    return node.builder.call("nn.pad", x, pad_width=tuple(widths), mode=mode, value=value)


def _import_center_crop_pad(node: OnnxNode) -> Atom:
    x, shape, target = node.input(0), node.type(0).static_shape, ints(node, 1)
    axes = [
        normalize_axis("CenterCropPad", a, len(shape)) for a in node.attr("axes", range(len(shape)))
    ]
    node.expect(len(axes) == len(target), f"{len(target)} sizes for {len(axes)} axes")
    widths = [(0, 0)] * len(shape)
    for axis, size in zip(axes, target, strict=True):
        extra = size - shape[axis]
        if extra >= 0:
            widths[axis] = (extra // 2, extra - extra // 2)
        else:
            begin = -extra // 2
            x = slice_axis(node, x, axis, begin, begin + size)
    if not any(map(any, widths)):
        return x
    return node.builder.call("nn.pad", x, pad_width=tuple(widths))


def _import_depth_to_space(node: OnnxNode) -> Atom:
    n, c, h, w = node.rank(0, 4).static_shape
    size = node.attr("blocksize")
    node.expect(size > 0 and c % size**2 == 0, f"blocksize {size} does not fit {node.type(0)}")
    if node.choice("mode", "DCR", ("DCR", "CRD")) == "DCR":
        split, axes = (n, size, size, c // size**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, axes = (n, c // size**2, size, size, h, w), (0, 1, 4, 2, 5, 3)
    moved = transpose(node, reshape(node, node.input(0), split), axes)
    return reshape(node, moved, (n, c // size**2, h * size, w * size))


def _import_space_to_depth(node: OnnxNode) -> Atom:
    n, c, h, w = node.rank(0, 4).static_shape
    size = node.attr("blocksize")
    fits = size > 0 and h % size == 0 and w % size == 0
    node.expect(fits, f"blocksize {size} does not fit {node.type(0)}")
    split = reshape(node, node.input(0), (n, c, h // size, size, w // size, size))
    depth_first = node.choice("mode", "DCR", ("DCR", "CRD")) == "DCR"
    moved = transpose(node, split, (0, 3, 5, 1, 2, 4) if depth_first else (0, 1, 3, 5, 2, 4))
    return reshape(node, moved, (n, c * size**2, h // size, w // size))


def _import_trilu(node: OnnxNode) -> Atom:
    k = int(node.scalar(1, 0))
    return node.builder.call("trilu", node.input(0), upper=bool(node.attr("upper", 1)), k=k)


def _import_one_hot(node: OnnxNode) -> Atom:
    """OneHot; indices may be floats, values are [off, on]."""
    b = node.builder
    depth = int(node.scalar(1))
    indices = node.input(0)
    if not node.type(0).dtype.is_int:
        indices = cast_to(node, indices, DType.INT64)
    off, on = (reshape(node, slice_axis(node, node.input(2), 0, i, i + 1), ()) for i in (0, 1))
    axis = normalize_axis("OneHot", node.attr("axis", -1), node.type(0).rank + 1)
    return b.call("one_hot", indices, on, off, depth=depth, axis=axis)


def _import_dropout(node: OnnxNode) -> list[Atom]:
    if node.has(2) and bool(node.const(2)):
        raise node.unsupported("training mode")
    x = node.input(0)
    if node.num_outputs == 1:
        return [x]
    return [x, _full(node, node.type(0).static_shape, DType.BOOL, 1)]


ONNX: dict[str, OnnxImport] = {
    "Reshape": _import_reshape,
    "Flatten": _import_flatten,
    "Squeeze": _import_squeeze,
    "Unsqueeze": _import_unsqueeze,
    "Transpose": _import_transpose,
    "Expand": _import_expand,
    "Concat": _import_concat,
    "Slice": _import_slice,
    "Split": _import_split,
    "Tile": _import_tile,
    "Shape": _import_shape,
    "Size": _import_size,
    "Constant": _import_constant,
    "ConstantOfShape": _import_constant_of_shape,
    "Range": _import_range,
    "EyeLike": _import_eye_like,
    "Pad": _import_pad,
    "CenterCropPad": _import_center_crop_pad,
    "DepthToSpace": _import_depth_to_space,
    "SpaceToDepth": _import_space_to_depth,
    "Trilu": _import_trilu,
    "OneHot": _import_one_hot,
    "Dropout": _import_dropout,
}
