"""Pooling: nn.max_pool2d, nn.avg_pool2d, and the ONNX pooling operators in 1 to 3 dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import te
from ..dtype import DType
from ..ir.expr import BinaryOp, Expr, binary
from ..relay.nodes import Atom
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor
from ..types import TensorType, Type
from .onnx_node import OnnxImport, OnnxNode
from .window import (
    accumulation_dtype,
    expect,
    import_padding,
    output_dim,
    pad_array,
    pad_axes,
    stored,
    tensor_arg,
    widen,
)


@dataclass(frozen=True)
class Pool2dAttrs(Attrs):
    """`uncounted` is the part of the bottom and right padding that exists only so that a last,
    partial window fits (ceil_mode): averages never count it."""

    pool_size: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    count_include_pad: bool = False
    data_layout: str = "NCHW"
    uncounted: tuple[int, int] = (0, 0)


def _spatial_axes(attrs: Pool2dAttrs) -> tuple[int, int]:
    return (1, 2) if attrs.data_layout == "NHWC" else (2, 3)


def _infer_pool(attrs: Pool2dAttrs, types: Sequence[Type]) -> TensorType:
    x = tensor_arg(types, 0, "pool2d", 4)
    shape = list(x.shape)
    for k, axis in enumerate(_spatial_axes(attrs)):
        before, after = attrs.padding[k], attrs.padding[k + 2]
        size = output_dim(
            x.shape[axis], attrs.pool_size[k], attrs.strides[k], before, after, attrs.dilation[k]
        )
        expect(not isinstance(size, int) or size > 0, f"pool2d: {x} is smaller than the window")
        shape[axis] = size
    return TensorType(tuple(shape), x.dtype)


def _window_reduce(
    attrs: Pool2dAttrs, x: Tensor, out: TensorType, reducer: Callable[..., Any], identity: float
) -> Tensor:
    """The reduction of every window of `x`, padded with the identity."""
    axes = _spatial_axes(attrs)
    padded = pad_axes(x, axes, attrs.padding, identity)
    window = [te.reduce_axis((0, k), name=n) for k, n in zip(attrs.pool_size, "rs", strict=True)]
    acc = x.dtype if reducer is te.max else accumulation_dtype(x.dtype)

    def body(*index: Any) -> Any:
        source = list(index)
        for k, axis in enumerate(axes):
            source[axis] = index[axis] * attrs.strides[k] + window[k] * attrs.dilation[k]
        return reducer(padded(*source).astype(acc), axis=window)

    return te.compute(out.shape, body, name="pool", tag="pool", attrs=dict(vars(attrs)))


def _compute_max(attrs: Pool2dAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    return [_window_reduce(attrs, args[0], out, te.max, out.dtype.min_value)]


def _counted_range(attrs: Pool2dAttrs, k: int, size: Any) -> tuple[int, Any] | None:
    """The rows [low, high) along spatial axis `k` that an average counts; None if all are."""
    before, after = attrs.padding[k], attrs.padding[k + 2]
    if attrs.count_include_pad:
        uncounted = attrs.uncounted[k]
        return (-before, size + (after - uncounted)) if uncounted else None
    return (0, size) if before or after else None


def _window_count(attrs: Pool2dAttrs, x: Tensor, index: Sequence[Any]) -> Expr | int:
    """How many elements the window at `index` counts."""
    count: Expr | int = 1
    for k, axis in enumerate(_spatial_axes(attrs)):
        counted = _counted_range(attrs, k, x.shape[axis])
        if counted is None:
            count = attrs.pool_size[k] * count
            continue
        low, high = counted
        first, step = index[axis] * attrs.strides[k] - attrs.padding[k], attrs.dilation[k]
        begin = binary(BinaryOp.MAX, (low - first + (step - 1)) // step, 0)
        end = binary(BinaryOp.MIN, (high - first + (step - 1)) // step, attrs.pool_size[k])
        count = (end - begin) * count
    return count


def _compute_avg(attrs: Pool2dAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    (x,) = args
    total = _window_reduce(attrs, x, out, te.sum, 0)

    def mean(*index: Any) -> Any:
        count = _window_count(attrs, x, index)
        divisor = te.cast(count, total.dtype) if isinstance(count, Expr) else float(count)
        return total(*index) / divisor

    return [stored(te.compute(out.shape, mean, name="avg_pool"), out.dtype)]


def _windows(attrs: Pool2dAttrs, x: np.ndarray, value: float) -> Iterable[np.ndarray]:
    """For each position in the window, that element of every window."""
    axes = _spatial_axes(attrs)
    x = pad_array(x, axes, attrs.padding, value)
    sizes = [
        int(output_dim(x.shape[a], k, s, 0, 0, d))  # type: ignore[arg-type]
        for a, k, s, d in zip(axes, attrs.pool_size, attrs.strides, attrs.dilation, strict=True)
    ]
    for tap in itertools.product(*map(range, attrs.pool_size)):
        index = [slice(None)] * 4
        for k, axis in enumerate(axes):
            start = tap[k] * attrs.dilation[k]
            index[axis] = slice(
                start, start + (sizes[k] - 1) * attrs.strides[k] + 1, attrs.strides[k]
            )
        yield x[tuple(index)]


def _reference_max(attrs: Pool2dAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    (x,) = arrays
    windows = iter(_windows(attrs, x, DType.of(x.dtype).min_value))
    out = next(windows).copy()
    for window in windows:
        np.maximum(out, window, out=out)
    return out


def _reference_avg(attrs: Pool2dAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    x = widen(arrays[0])
    total = sum(_windows(attrs, x, 0.0))
    counted = np.ones([n if a in _spatial_axes(attrs) else 1 for a, n in enumerate(x.shape)])
    if attrs.count_include_pad:
        inner = [attrs.padding[k + 2] - attrs.uncounted[k] for k in (0, 1)]
        counted = pad_array(counted, _spatial_axes(attrs), (*attrs.padding[:2], *inner), 1.0)
        rest = Pool2dAttrs(
            attrs.pool_size, attrs.strides, (0, 0, *attrs.uncounted), attrs.dilation,
            data_layout=attrs.data_layout,
        )  # fmt: skip
        count = sum(_windows(rest, counted, 0.0))
    else:
        count = sum(_windows(attrs, counted, 0.0))
    return np.asarray(total / np.asarray(count).astype(x.dtype)).astype(arrays[0].dtype)


def _samples(average: bool) -> Callable[[], Iterable[Sample]]:
    def samples() -> Iterable[Sample]:
        x = np.random.default_rng(0).standard_normal((1, 3, 6, 7)).astype(np.float32)
        nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        yield Sample((x,), Pool2dAttrs((2, 2), (2, 2)))
        yield Sample((x,), Pool2dAttrs((3, 3), (2, 1), (1, 0, 1, 2)))
        yield Sample((nhwc,), Pool2dAttrs((3, 2), (1, 2), (1, 1, 1, 0), data_layout="NHWC"))
        yield Sample((x,), Pool2dAttrs((2, 2), (1, 1), (1, 1, 1, 1), (2, 3)))
        if average:
            attrs = Pool2dAttrs((3, 3), (2, 2), (1, 1, 2, 1), count_include_pad=True)
            yield Sample((x,), attrs)
            yield Sample((x,), Pool2dAttrs(*list(vars(attrs).values())[:6], uncounted=(1, 0)))

    return samples


OPS: tuple[Op, ...] = (
    Op(
        "nn.max_pool2d",
        OpPattern.OUT_ELEMWISE_FUSABLE,
        _infer_pool,
        _compute_max,
        _reference_max,
        Pool2dAttrs,
        _samples(average=False),
        doc="Largest element of each window; padding never wins. ONNX MaxPool.",
    ),
    Op(
        "nn.avg_pool2d",
        OpPattern.OUT_ELEMWISE_FUSABLE,
        _infer_pool,
        _compute_avg,
        _reference_avg,
        Pool2dAttrs,
        _samples(average=True),
        doc="Mean of each window. ONNX AveragePool.",
    ),
)


def _ceil_extra(
    size: Sequence[Any], kernel: Sequence[int], strides: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:  # fmt: skip
    """Padding to add behind each axis so that ceil_mode's last, partial window fits.

    A window that would start in the padding behind the data is not made.
    """
    nd, extra = len(kernel), []
    for k in range(nd):
        before, after, s = padding[k], padding[k + nd], strides[k]
        span = size[k] + before + after - dilation[k] * (kernel[k] - 1) - 1
        count = -(-span // s) + 1
        if (count - 1) * s >= size[k] + before:
            count -= 1
        extra.append(max((count - 1) * s - span, 0))
    return tuple(extra)


def pool(node: OnnxNode, op: str, x: Atom, kernel: Sequence[int]) -> Atom:
    """Pooling by `op` over the trailing axes: two at a time, since windows are separable."""
    assert isinstance(x.type, TensorType)
    nd = len(kernel)
    strides = tuple(node.attr("strides") or (1,) * nd)
    dilation = tuple(node.attr("dilations") or (1,) * nd)
    padding = import_padding(node, kernel, strides, dilation)
    extra = (0,) * nd
    if node.attr("ceil_mode", 0):
        if not all(isinstance(d, int) for d in x.type.shape[2:]):
            raise node.unsupported("ceil_mode over symbolic dimensions", "fix the input shapes")
        extra = _ceil_extra(x.type.shape[2:], kernel, strides, padding, dilation)
    include = bool(node.attr("count_include_pad", 0)) and op == "nn.avg_pool2d"
    axes = list(range(nd))
    groups = {1: [axes], 2: [axes], 3: [axes[1:], axes[:1]]}[nd]
    for group in groups:
        x = _pool_axes(
            node, op, x, group, kernel=kernel, strides=strides, padding=padding,
            dilation=dilation, extra=extra, include=include,
        )  # fmt: skip
    return x


def _pool_axes(
    node: OnnxNode, op: str, x: Atom, group: Sequence[int], *, kernel: Sequence[int],
    strides: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    extra: Sequence[int], include: bool,
) -> Atom:  # fmt: skip
    """One two-dimensional pooling over spatial axes `group`; a lone axis gets a unit partner."""
    assert isinstance(x.type, TensorType)
    nd, shape = len(kernel), x.type.shape
    call = node.builder.call

    def pair(values: Sequence[int], neutral: int) -> tuple[int, ...]:
        chosen = tuple(values[k] for k in group)
        return chosen if len(chosen) == 2 else (chosen[0], neutral)

    lone = len(group) == 1
    if nd == 3:
        n, c, d, h, w = shape
        x = call("reshape", x, newshape=(n, c, d, h * w) if lone else (n, c * d, h, w))
    elif nd == 1:
        x = call("reshape", x, newshape=(*shape, 1))
    behind = [padding[k + nd] + extra[k] for k in range(nd)]
    out = call(
        op, x, pool_size=pair(kernel, 1), strides=pair(strides, 1),
        padding=pair(padding[:nd], 0) + pair(behind, 0), dilation=pair(dilation, 1),
        count_include_pad=include, uncounted=pair(extra, 0),
    )  # fmt: skip
    assert isinstance(out.type, TensorType)
    if nd == 2:
        return out
    result = list(shape)
    for position, k in enumerate(group):
        result[2 + k] = out.type.shape[2 + position]
    return call("reshape", out, newshape=tuple(result))


def _import_pool(op: str) -> OnnxImport:
    def convert(node: OnnxNode) -> Atom:
        kernel = tuple(node.attr("kernel_shape"))
        if len(kernel) not in (1, 2, 3):
            raise node.unsupported(f"pooling over {len(kernel)} axes")
        if node.num_outputs > 1:
            raise node.unsupported("the output Indices")
        return pool(node, op, node.input(0), kernel)

    return convert


def _import_lp_pool(node: OnnxNode) -> Atom:
    kernel, p = tuple(node.attr("kernel_shape")), float(node.attr("p", 2))
    x, call = node.input(0), node.builder.call
    node.expect(p > 0, f"p is {p}")
    if node.attr("ceil_mode", 0):
        raise node.unsupported("ceil_mode=1")
    dtype = node.type(0).dtype
    powers = call("power", call("abs", x), node.builder.const(p, dtype))
    counted = OnnxNode(
        node.op_type, node.name, node.inputs, {**node.attrs, "count_include_pad": 1},
        1, node.builder, node.domain, node.input_names,
    )  # fmt: skip
    mean = pool(counted, "nn.avg_pool2d", powers, kernel)
    size = float(np.prod(kernel))
    total = call("multiply", mean, node.builder.const(size, dtype))
    return call("power", total, node.builder.const(1.0 / p, dtype))


def _import_global(op: str) -> OnnxImport:
    def convert(node: OnnxNode) -> Atom:
        axis = tuple(range(2, node.type(0).rank))
        return node.builder.call(op, node.input(0), axis=axis, keepdims=True)

    return convert


ONNX: dict[str, OnnxImport] = {
    "MaxPool": _import_pool("nn.max_pool2d"),
    "AveragePool": _import_pool("nn.avg_pool2d"),
    "LpPool": _import_lp_pool,
    "GlobalAveragePool": _import_global("mean"),
    "GlobalMaxPool": _import_global("max"),
}
