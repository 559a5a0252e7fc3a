"""image.resize and ONNX Resize, Upsample: nearest, linear and cubic interpolation over any axes.

Every axis is handled alone: output position o maps to a source coordinate, and that to one, two or
four (index, weight) taps. The mapping is written once and evaluated both by NumPy and as tensor
expressions. Nearest indices become exact integer arithmetic such as `o // 2` where that exists.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import te
from ..dtype import DType
from ..ir.expr import BinaryOp, Expr, as_int, binary
from ..relay.nodes import Atom
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor
from ..types import TensorType, Type
from .onnx_node import OnnxImport, OnnxNode
from .window import expect, tensor_arg, widen


@dataclass(frozen=True)
class ResizeAttrs(Attrs):
    """Entries of `size`, `scales` and both halves of `roi` (starts, ends) belong to `axes`."""

    axes: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()  # output positions per input position
    mode: str = "nearest"  # nearest, linear, cubic
    coordinate_transformation: str = "half_pixel"
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: bool = False
    extrapolation_value: float = 0.0
    roi: tuple[float, ...] = ()


NUMPY = SimpleNamespace(
    floor=np.floor,
    ceil=np.ceil,
    minimum=np.minimum,
    maximum=np.maximum,
    where=np.where,
    to_int=lambda x: np.asarray(x).astype(np.int64),
    to_float=lambda x: np.asarray(x).astype(np.float32),
)
TE = SimpleNamespace(
    floor=lambda x: te.call("floor", x),
    ceil=lambda x: te.call("ceil", x),
    minimum=lambda a, b: binary(BinaryOp.MIN, a, b),
    maximum=lambda a, b: binary(BinaryOp.MAX, a, b),
    where=te.select,
    to_int=lambda x: te.cast(x, DType.INT64),
    to_float=lambda x: te.cast(x, DType.FLOAT32),
)

Taps = list[tuple[Any, Any]]  # (index, weight); weight None: the only tap


def _coordinate(attrs: ResizeAttrs, k: int, o: Any, n: int) -> Any:
    """The source coordinate of output position `o` (float32) along `axes[k]`, of extent `n`."""
    mode, out, scale = attrs.coordinate_transformation, attrs.size[k], attrs.scales[k]
    if mode in ("align_corners", "pytorch_half_pixel") and out == 1:
        return o * 0.0
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (o + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        offset = n / 2 * (1 - out / (scale * n))
        return (o + 0.5) / scale - 0.5 + offset
    if mode == "align_corners":
        return o * float(n - 1) / float(out - 1)
    if mode == "asymmetric":
        return o / scale
    assert mode == "tf_crop_and_resize", mode
    start, end = attrs.roi[k], attrs.roi[k + len(attrs.axes)]
    if out == 1:
        return o * 0.0 + 0.5 * (start + end) * (n - 1)
    return o * ((end - start) * (n - 1) / (out - 1)) + start * (n - 1)


def _nearest_index(f: SimpleNamespace, mode: str, x: Any) -> Any:
    if mode == "floor":
        return f.floor(x)
    if mode == "ceil":
        return f.ceil(x)
    return f.ceil(x - 0.5) if mode == "round_prefer_floor" else f.floor(x + 0.5)


def _taps(f: SimpleNamespace, attrs: ResizeAttrs, k: int, o: Any, n: int) -> Taps:
    """Which elements along `axes[k]` make output position `o`, with what weights."""
    x = _coordinate(attrs, k, f.to_float(o), n)
    bounded = lambda i: f.minimum(f.maximum(i, 0), n - 1)  # noqa: E731
    if attrs.mode == "nearest":
        return [(bounded(f.to_int(_nearest_index(f, attrs.nearest_mode, x))), None)]
    if attrs.mode == "linear":
        x = f.minimum(f.maximum(x, 0.0), float(n - 1))
        low = f.to_int(f.floor(x))
        weight = x - f.floor(x)
        return [(bounded(low), 1.0 - weight), (bounded(low + 1), weight)]
    base = f.floor(x)
    indices = [f.to_int(base) + d for d in (-1, 0, 1, 2)]
    weights = cubic_weights(x - base, attrs.cubic_coeff_a)
    if attrs.exclude_outside:
        inside = [(i >= 0) & (i < n) for i in indices]
        weights = [f.where(c, w, w * 0.0) for c, w in zip(inside, weights, strict=True)]
        total = weights[0] + weights[1] + weights[2] + weights[3]
        weights = [w / total for w in weights]
    return [(bounded(i), w) for i, w in zip(indices, weights, strict=True)]


def cubic_weights(t: Any, a: float) -> list[Any]:
    """Keys' cubic convolution at distances 1 + t, t, 1 - t, 2 - t.

    Keys, Cubic convolution interpolation for digital image processing, 1981.
    """

    def near(d: Any) -> Any:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Any) -> Any:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]


def _integer_index(attrs: ResizeAttrs, k: int, n: int) -> tuple[int, int, int] | None:
    """(a, b, c) such that clamp((o * a + b) // c, 0, n - 1) is the nearest index of every o.

    Each o bounds b: c * index <= o * a + b < c * (index + 1), one-sidedly where clamped.
    """
    positions = np.arange(attrs.size[k])
    indices = _taps(NUMPY, attrs, k, positions, n)[0][0]
    if attrs.coordinate_transformation == "align_corners" and attrs.size[k] > 1:
        step = Fraction(n - 1, attrs.size[k] - 1)
    elif attrs.coordinate_transformation == "tf_crop_and_resize":
        return None
    else:
        step = Fraction(1 / attrs.scales[k]).limit_denominator(4096)
    a, c = 2 * step.numerator, 2 * step.denominator
    lower = c * indices - a * positions
    upper = lower + c - 1
    low = int(lower[indices > 0].max(initial=-(1 << 60)))
    high = int(upper[indices < n - 1].min(initial=1 << 60))
    if low > high:
        return None
    b = min(max(0, low), high)
    divisor = math.gcd(a, b, c)
    return a // divisor, b // divisor, c // divisor


def _te_taps(attrs: ResizeAttrs, k: int, o: Expr, n: int) -> Taps:
    affine = _integer_index(attrs, k, n) if attrs.mode == "nearest" else None
    if affine is None:
        return _taps(TE, attrs, k, o, n)
    a, b, c = affine
    index: Expr = (o * a + b) // c
    if ((attrs.size[k] - 1) * a + b) // c > n - 1:
        index = binary(BinaryOp.MIN, index, n - 1)
    if b < 0:
        index = binary(BinaryOp.MAX, index, 0)
    return [(index, None)]


def _infer(attrs: ResizeAttrs, types: Sequence[Type]) -> TensorType:
    x = tensor_arg(types, 0, "image.resize")
    shape = list(x.shape)
    for axis, size in zip(attrs.axes, attrs.size, strict=True):
        expect(isinstance(shape[axis], int), f"image.resize: axis {axis} of {x} must be known")
        shape[axis] = size
    return TensorType(tuple(shape), x.dtype)


def _compute(attrs: ResizeAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    (x,) = args
    extents = [as_int(x.shape[axis]) for axis in attrs.axes]
    extrapolates = attrs.coordinate_transformation == "tf_crop_and_resize"

    def body(*index: Any) -> Any:
        taps = [_te_taps(attrs, k, index[a], extents[k]) for k, a in enumerate(attrs.axes)]
        total = None
        for chosen in itertools.product(*taps):
            source, weight = list(index), None
            for axis, (position, w) in zip(attrs.axes, chosen, strict=True):
                source[axis] = position
                weight = w if weight is None else weight * w
            value = x(*source)
            if weight is not None:
                value = value.astype(DType.FLOAT32) * weight
            total = value if total is None else total + value
        assert total is not None
        if extrapolates:
            outside = te.const(False, DType.BOOL)
            for k, axis in enumerate(attrs.axes):
                c = _coordinate(attrs, k, te.cast(index[axis], DType.FLOAT32), extents[k])
                outside = outside | (c < 0.0) | (c > float(extents[k] - 1))
            total = te.select(outside, te.const(attrs.extrapolation_value, total.dtype), total)
        return total.astype(out.dtype)

    return [te.compute(out.shape, body, name="resize", tag="resize")]


def _reference(attrs: ResizeAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    (x,) = arrays
    dtype = x.dtype
    if attrs.mode != "nearest":
        x = widen(x).astype(np.float32)
    outside = np.zeros((1,) * x.ndim, bool)
    for k, axis in enumerate(attrs.axes):
        n, o = x.shape[axis], np.arange(attrs.size[k])
        column = [-1 if a == axis else 1 for a in range(x.ndim)]
        if attrs.coordinate_transformation == "tf_crop_and_resize":
            c = _coordinate(attrs, k, o.astype(np.float32), n).reshape(column)
            outside = outside | (c < 0) | (c > n - 1)
        parts = [
            np.take(x, index, axis=axis) * (1 if weight is None else weight.reshape(column))
            for index, weight in _taps(NUMPY, attrs, k, o, n)
        ]
        x = np.sum(parts, axis=0, dtype=x.dtype) if len(parts) > 1 else parts[0]
    if outside.any():
        x = np.where(outside, np.asarray(attrs.extrapolation_value, x.dtype), x)
    return x.astype(dtype, copy=False)


def _samples() -> Iterable[Sample]:
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 4)).astype(np.float32)
    for mode in ("nearest", "linear", "cubic"):
        for transformation in ("half_pixel", "asymmetric", "align_corners"):
            attrs = ResizeAttrs((2, 3), (7, 8), (7 / 5, 2.0), mode, transformation)
            yield Sample((x,), attrs, atol=1e-5)
    yield Sample((x,), ResizeAttrs((1, 2), (4, 3), (2.0, 0.6), nearest_mode="ceil"))
    crop = ResizeAttrs(
        (2, 3), (4, 6), (0.8, 1.5), "linear", "tf_crop_and_resize", roi=(0.1, -0.2, 0.9, 1.1)
    )
    yield Sample((x,), crop, atol=1e-5)


OPS: tuple[Op, ...] = (
    Op(
        "image.resize",
        OpPattern.INJECTIVE,
        _infer,
        _compute,
        _reference,
        ResizeAttrs,
        _samples,
        doc="Interpolation along some axes, over any layout. ONNX Resize.",
    ),
)


def _sizes_and_scales(node: OnnxNode, axes: Sequence[int]) -> tuple[list[int], list[float]]:
    """Output size and scale of each axis, from the node's `scales` or `sizes`."""
    shape = node.type(0).shape
    extents = [shape[a] for a in axes]
    by_scale = node.has(2) and node.const(2).size
    given = node.const(2 if by_scale else 3).ravel().tolist()
    node.expect(len(given) == len(axes), f"{len(given)} sizes or scales for {len(axes)} axes")
    if by_scale:
        scales = [float(s) for s in given]
        node.expect(all(0 < s < math.inf for s in scales), f"scales {scales} must be positive")
        sizes = [
            math.floor(np.float32(n) * np.float32(s)) if isinstance(n, int) else -1
            for n, s in zip(extents, scales, strict=True)
        ]
        return sizes, scales
    sizes = [int(s) for s in given]
    node.expect(0 not in extents or sizes == extents, f"{node.type(0)} is empty")
    ratios = [
        s / (n or 1) if isinstance(n, int) else 1.0 for s, n in zip(sizes, extents, strict=True)
    ]
    policy = node.attr("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        ratios = [ratio] * len(axes)
        sizes = [math.floor(n * ratio + 0.5) for n in extents if isinstance(n, int)]
    return sizes, [float(np.float32(r)) for r in ratios]


def _import_resize(node: OnnxNode) -> Atom:
    x, rank = node.input(0), node.type(0).rank
    given = node.attr("axes") or range(rank)
    node.expect(all(-rank <= a < rank for a in given), f"axes {list(given)} of {node.type(0)}")
    axes = [a % rank for a in given]
    sizes, scales = _sizes_and_scales(node, axes)
    transformation = node.attr("coordinate_transformation_mode", "half_pixel")
    roi = [0.0] * len(axes) + [1.0] * len(axes)
    if transformation == "tf_crop_and_resize":
        roi = [float(v) for v in node.const(1).ravel()]
        node.expect(len(roi) == 2 * len(axes), f"roi has {len(roi)} numbers for {len(axes)} axes")
    if node.attr("antialias", 0) and any(s < 1 for s in scales):
        raise node.unsupported("antialias=1 when shrinking")
    shape = node.type(0).shape
    crops = transformation == "tf_crop_and_resize"
    kept = [
        k
        for k, axis in enumerate(axes)
        if scales[k] != 1.0 or (isinstance(shape[axis], int) and (crops or sizes[k] != shape[axis]))
    ]
    if not kept:
        return x
    if not all(isinstance(shape[axes[k]], int) for k in kept):
        raise node.unsupported("resizing a symbolic dimension", "fix the input shapes")
    return node.builder.call(
        "image.resize", x,
        axes=tuple(axes[k] for k in kept),
        size=tuple(sizes[k] for k in kept),
        scales=tuple(scales[k] for k in kept),
        mode=node.attr("mode", "nearest"),
        coordinate_transformation=transformation,
        nearest_mode=node.attr("nearest_mode", "round_prefer_floor"),
        cubic_coeff_a=float(node.attr("cubic_coeff_a", -0.75)),
        exclude_outside=bool(node.attr("exclude_outside", 0)),
        extrapolation_value=float(node.attr("extrapolation_value", 0.0)),
        roi=tuple(roi[k] for k in kept) + tuple(roi[len(axes) + k] for k in kept),
    )  # fmt: skip


def _import_upsample(node: OnnxNode) -> Atom:
    """Upsample (to opset 9): scales as an input or an attribute, asymmetric, rounding down."""
    scales = node.attr("scales")
    atom = node.input(1) if scales is None else node.builder.const(scales, DType.FLOAT32)
    attrs = {
        "mode": node.attr("mode", "nearest"),
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    return _import_resize(
        OnnxNode(
            "Upsample", node.name, (node.input(0), None, atom), attrs, 1, node.builder, node.domain
        )
    )


ONNX: dict[str, OnnxImport] = {"Resize": _import_resize, "Upsample": _import_upsample}
