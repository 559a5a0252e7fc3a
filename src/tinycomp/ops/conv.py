"""Convolutions: nn.conv2d in its layouts, nn.conv3d, weight packing, and ONNX Conv, FusedConv."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import te
from ..ir.expr import is_const
from ..relay.nodes import Atom
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor
from ..types import Dim, TensorType, Type
from .activation import apply_activation
from .onnx_node import OnnxImport, OnnxNode
from .window import (
    accumulation_dtype,
    dims_agree,
    expect,
    expect_precision,
    import_padding,
    output_dim,
    pad_array,
    pad_axes,
    stored,
    tensor_arg,
    widen,
)


@dataclass(frozen=True)
class Conv2dAttrs(Attrs):
    """Attributes of nn.conv2d.

    `kernel_layout` is "OIHW" (any data layout and groups), "packed" (NHWC, the result of
    nn.pack_conv2d; blocks do not cross groups) or "HWC" (NHWC depthwise). `out_channels` and
    `kernel_size` may be left 0 for OIHW and HWC. `precision` is as for nn.matmul.
    """

    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    data_layout: str = "NCHW"
    kernel_layout: str = "OIHW"
    out_channels: int = 0
    kernel_size: tuple[int, int] = (0, 0)
    tile: tuple[int, int, int] = (1, 1, 16)  # rows, columns, channels of the register tile
    precision: str = "fp32"


@dataclass(frozen=True)
class Conv3dAttrs(Attrs):
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0)
    dilation: tuple[int, int, int] = (1, 1, 1)
    groups: int = 1


@dataclass(frozen=True)
class PackConv2dAttrs(Attrs):
    tile: tuple[int, int, int] = (1, 1, 16)


ConvAttrs = Conv2dAttrs | Conv3dAttrs


def _channel_axis(attrs: ConvAttrs, rank: int) -> int:
    return rank - 1 if isinstance(attrs, Conv2dAttrs) and attrs.data_layout == "NHWC" else 1


def _spatial_axes(attrs: ConvAttrs, rank: int) -> list[int]:
    channel = _channel_axis(attrs, rank)
    return [axis for axis in range(1, rank) if axis != channel]


def _weight_dims(attrs: ConvAttrs, w: TensorType, op: str) -> tuple[Dim, Dim, tuple[Dim, ...]]:
    """(output channels, input channels, kernel size) that the weight's type says."""
    layout = attrs.kernel_layout if isinstance(attrs, Conv2dAttrs) else "OIHW"
    if layout == "OIHW":
        return w.shape[0], w.shape[1] * attrs.groups, w.shape[2:]
    assert isinstance(attrs, Conv2dAttrs)
    expect(attrs.data_layout == "NHWC", f"{op}: kernel layout {layout} needs data layout NHWC")
    if layout == "HWC":
        expect(attrs.groups == w.shape[2], f"{op}: {w} is not depthwise for {attrs.groups} groups")
        return w.shape[2], w.shape[2], w.shape[:2]
    expect(layout == "packed", f"{op}: kernel layout {layout!r} is unknown")
    blocks, nr = -(-attrs.out_channels // attrs.tile[2]), attrs.tile[2]
    expect(
        w.shape[:3] == (blocks, *attrs.kernel_size) and w.shape[4] == nr,
        f"{op}: {w} is not packed for {attrs.out_channels} channels in blocks of {nr}",
    )
    expect(
        attrs.groups == 1 or attrs.out_channels % (attrs.groups * nr) == 0,
        f"{op}: blocks of {nr} channels cross the {attrs.groups} groups",
    )
    return attrs.out_channels, w.shape[3] * attrs.groups, attrs.kernel_size


def _infer_conv(attrs: ConvAttrs, types: Sequence[Type]) -> TensorType:
    nd = len(attrs.strides)
    op = f"nn.conv{nd}d"
    x = tensor_arg(types, 0, op, nd + 2)
    packed = isinstance(attrs, Conv2dAttrs) and attrs.kernel_layout != "OIHW"
    layout = attrs.kernel_layout if isinstance(attrs, Conv2dAttrs) else "OIHW"
    ranks = {"OIHW": nd + 2, "HWC": 3, "packed": 5}
    w = tensor_arg(types, 1, op, ranks.get(layout, nd + 2) if packed else nd + 2)
    expect(x.dtype is w.dtype, f"{op}: dtypes differ: {x} and {w}")
    if isinstance(attrs, Conv2dAttrs):
        expect_precision(attrs.precision, x.dtype, op)
    out_channels, in_channels, kernel = _weight_dims(attrs, w, op)
    channel = _channel_axis(attrs, x.rank)
    expect(
        dims_agree(x.shape[channel], in_channels),
        f"{op}: {x} has {x.shape[channel]} channels, the weight {w} needs {in_channels}",
    )
    expect(
        not isinstance(out_channels, int) or out_channels % attrs.groups == 0,
        f"{op}: {out_channels} output channels do not divide into {attrs.groups} groups",
    )
    shape = list(x.shape)
    shape[channel] = out_channels
    for k, axis in enumerate(_spatial_axes(attrs, x.rank)):
        expect(isinstance(kernel[k], int), f"{op}: the kernel size of {w} must be known")
        size = output_dim(
            x.shape[axis], int(kernel[k]),  # type: ignore[arg-type]
            attrs.strides[k], attrs.padding[k], attrs.padding[k + nd], attrs.dilation[k],
        )  # fmt: skip
        expect(not isinstance(size, int) or size > 0, f"{op}: {x} is smaller than the window {w}")
        shape[axis] = size
    return TensorType(tuple(shape), x.dtype)


def _te_attrs(attrs: ConvAttrs, kernel: Sequence[Any]) -> dict[str, Any]:
    return {**vars(attrs), "kernel_size": tuple(kernel)}


def _compute_conv(attrs: ConvAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    x, w = args
    padded = pad_axes(x, _spatial_axes(attrs, x.ndim), attrs.padding)
    layout = attrs.kernel_layout if isinstance(attrs, Conv2dAttrs) else "OIHW"
    if layout == "packed":
        assert isinstance(attrs, Conv2dAttrs)
        result = _conv2d_packed(attrs, padded, w, out)
    elif layout == "HWC":
        assert isinstance(attrs, Conv2dAttrs)
        result = _conv2d_depthwise(attrs, padded, w, out)
    else:
        result = _conv_general(attrs, padded, w, out)
    return [stored(result, out.dtype)]


def _conv2d_packed(attrs: Conv2dAttrs, x: Tensor, w: Tensor, out: TensorType) -> Tensor:
    """NHWC data and [O/nr][kh][kw][I/groups][nr] weights: the layout of the fast schedule."""
    (sh, sw), (dh, dw), nr = attrs.strides, attrs.dilation, attrs.tile[2]
    acc = accumulation_dtype(out.dtype)
    r = te.reduce_axis((0, w.shape[1]), name="r")
    s = te.reduce_axis((0, w.shape[2]), name="s")
    ci = te.reduce_axis((0, w.shape[3]), name="ci")
    blocks = attrs.out_channels // attrs.groups // nr  # of one group, if there are several

    def body(n: Any, h: Any, w_: Any, c: Any) -> Any:
        first = 0 if attrs.groups == 1 else c // nr // blocks * w.shape[3]
        value = x(n, h * sh + r * dh, w_ * sw + s * dw, first + ci).astype(acc)
        return te.sum(value * w(c // nr, r, s, ci, c % nr).astype(acc), axis=[r, s, ci])

    return te.compute(
        out.shape,
        body,
        name="conv2d",
        tag="conv2d_nhwc",
        attrs=_te_attrs(attrs, attrs.kernel_size),
    )


def _conv2d_depthwise(attrs: Conv2dAttrs, x: Tensor, w: Tensor, out: TensorType) -> Tensor:
    """NHWC data and [kh][kw][C] weights: each channel alone."""
    (sh, sw), (dh, dw) = attrs.strides, attrs.dilation
    acc = accumulation_dtype(out.dtype)
    r = te.reduce_axis((0, w.shape[0]), name="r")
    s = te.reduce_axis((0, w.shape[1]), name="s")
    return te.compute(
        out.shape,
        lambda n, h, w_, c: te.sum(
            x(n, h * sh + r * dh, w_ * sw + s * dw, c).astype(acc) * w(r, s, c).astype(acc),
            axis=[r, s],
        ),
        name="depthwise_conv2d",
        tag="depthwise_nhwc",
        attrs=_te_attrs(attrs, [int(d) for d in _ints(w.shape[:2])]),
    )


def _ints(dims: Sequence[Any]) -> list[int]:
    return [d if isinstance(d, int) else d.value for d in dims]


def _conv_general(attrs: ConvAttrs, x: Tensor, w: Tensor, out: TensorType) -> Tensor:
    """Weights as ONNX has them ([O][I/groups][k...]), any layout, groups and number of axes."""
    acc, nd = accumulation_dtype(out.dtype), len(attrs.strides)
    channel, spatial = _channel_axis(attrs, x.ndim), _spatial_axes(attrs, x.ndim)
    group_in, group_out = w.shape[1], w.shape[0] // attrs.groups
    ci = te.reduce_axis((0, group_in), name="ci")
    window = [te.reduce_axis((0, w.shape[2 + k]), name=f"r{k}") for k in range(nd)]

    def body(*index: Any) -> Any:
        c = index[channel]
        source = list(index)
        source[channel] = ci.var if attrs.groups == 1 else (c // group_out) * group_in + ci
        for k, axis in enumerate(spatial):
            source[axis] = index[axis] * attrs.strides[k] + window[k] * attrs.dilation[k]
        return te.sum(x(*source).astype(acc) * w(c, ci, *window).astype(acc), axis=[ci, *window])

    ungrouped = "conv2d_nchw" if nd == 2 else "conv3d_ncdhw"
    tag = ungrouped if attrs.groups == 1 and channel == 1 else f"conv{nd}d_grouped"
    info = _te_attrs(attrs, _ints(w.shape[2:]))
    return te.compute(out.shape, body, name=f"conv{nd}d", tag=tag, attrs=info)


def _dense_weight(attrs: ConvAttrs, w: np.ndarray) -> np.ndarray:
    """The weight as [O][I/groups][k...]."""
    if not isinstance(attrs, Conv2dAttrs) or attrs.kernel_layout == "OIHW":
        return w
    if attrs.kernel_layout == "HWC":
        return w.transpose(2, 0, 1)[:, None]
    blocks, kh, kw, i, nr = w.shape
    return w.transpose(0, 4, 3, 1, 2).reshape(blocks * nr, i, kh, kw)[: attrs.out_channels]


def _reference_conv(attrs: ConvAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    x, weight = widen(arrays[0]), _dense_weight(attrs, widen(arrays[1]))
    channel, spatial = _channel_axis(attrs, x.ndim), _spatial_axes(attrs, x.ndim)
    x = np.moveaxis(pad_array(x, spatial, attrs.padding), channel, -1)
    kernel, groups, out_channels = weight.shape[2:], attrs.groups, weight.shape[0]
    sizes = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[1:-1], kernel, attrs.strides, attrs.dilation, strict=True)
    ]
    count = x.shape[0] * int(np.prod(sizes))
    out = np.zeros((groups, count, out_channels // groups), x.dtype)
    grouped = weight.reshape(groups, out_channels // groups, *weight.shape[1:])
    for tap in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, n, s, d in zip(tap, sizes, attrs.strides, attrs.dilation, strict=True)
        )
        patch = x[(slice(None), *window)].reshape(count, groups, -1).transpose(1, 0, 2)
        w = grouped[(slice(None), slice(None), slice(None), *tap)]
        out += patch * w.transpose(0, 2, 1) if w.shape[2] == 1 else patch @ w.transpose(0, 2, 1)
    dense = out.transpose(1, 0, 2).reshape(x.shape[0], *sizes, out_channels)
    return np.ascontiguousarray(np.moveaxis(dense, -1, channel)).astype(arrays[0].dtype, copy=False)


def _infer_pack(attrs: PackConv2dAttrs, types: Sequence[Type]) -> TensorType:
    w = tensor_arg(types, 0, "nn.pack_conv2d", 4)
    o, i, kh, kw = w.shape
    nr = attrs.tile[2]
    return TensorType(((o + (nr - 1)) // nr, kh, kw, i, nr), w.dtype)


def _compute_pack(attrs: PackConv2dAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    (w,) = args
    nr, channels = attrs.tile[2], w.shape[0]

    def body(block: Any, r: Any, s: Any, i: Any, lane: Any) -> Any:
        o = block * nr + lane
        value = w(o, i, r, s)
        if is_const(channels % nr, 0):
            return value
        return te.if_then_else(o < channels, value, te.const(0, w.dtype))

    return [te.compute(out.shape, body, name="pack_conv2d")]


def _reference_pack(attrs: PackConv2dAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    (w,) = arrays
    o, i, kh, kw = w.shape
    nr = attrs.tile[2]
    blocks = -(-o // nr)
    if o % nr:
        w = np.pad(w, ((0, blocks * nr - o), (0, 0), (0, 0), (0, 0)))
    return np.ascontiguousarray(w.reshape(blocks, nr, i, kh, kw).transpose(0, 3, 4, 2, 1))


def _f32(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _samples_conv2d() -> Iterable[Sample]:
    x, w = _f32(0, 1, 4, 7, 6), _f32(1, 6, 4, 3, 3)
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    tile = (1, 2, 4)
    packed = _reference_pack(PackConv2dAttrs(tile), (w,))
    pads = (1, 0, 1, 2)
    yield Sample((x, w), Conv2dAttrs(padding=pads), atol=1e-5)
    yield Sample((x, w), Conv2dAttrs((2, 1), (1, 1, 1, 1), (2, 1)), atol=1e-5)
    yield Sample((x, _f32(2, 6, 2, 2, 2)), Conv2dAttrs(groups=2), atol=1e-5)
    yield Sample((nhwc, w), Conv2dAttrs(padding=pads, data_layout="NHWC"), atol=1e-5)
    for strides in ((1, 1), (2, 2)):
        attrs = Conv2dAttrs(strides, pads, (1, 1), 1, "NHWC", "packed", 6, (3, 3), tile)
        yield Sample((nhwc, packed), attrs, atol=1e-5)
    grouped = _reference_pack(PackConv2dAttrs(tile), (_f32(5, 8, 2, 3, 3),))
    attrs = Conv2dAttrs((1, 1), pads, (1, 1), 2, "NHWC", "packed", 8, (3, 3), tile)
    yield Sample((nhwc, grouped), attrs, atol=1e-5)
    depthwise = Conv2dAttrs((2, 1), pads, (1, 1), 4, "NHWC", "HWC", 4, (3, 3))
    yield Sample((nhwc, _f32(3, 3, 3, 4)), depthwise, atol=1e-5)
    yield Sample((nhwc, _f32(4, 8, 1, 3, 3)), Conv2dAttrs(groups=4, data_layout="NHWC"), atol=1e-5)


def _samples_conv3d() -> Iterable[Sample]:
    x = _f32(0, 1, 2, 4, 5, 4)
    yield Sample((x, _f32(1, 3, 2, 2, 3, 2)), Conv3dAttrs(padding=(1, 0, 1, 0, 1, 0)), atol=1e-5)
    yield Sample((x, _f32(2, 2, 1, 2, 2, 2)), Conv3dAttrs((2, 1, 1), groups=2), atol=1e-5)


def _samples_pack() -> Iterable[Sample]:
    yield Sample((_f32(0, 6, 3, 2, 2),), PackConv2dAttrs((1, 1, 4)))
    yield Sample((_f32(1, 8, 3, 1, 1),), PackConv2dAttrs((1, 1, 4)))


OPS: tuple[Op, ...] = (
    Op(
        "nn.conv2d",
        OpPattern.OUT_ELEMWISE_FUSABLE,
        _infer_conv,
        _compute_conv,
        _reference_conv,
        Conv2dAttrs,
        _samples_conv2d,
        doc="Two-dimensional (grouped) convolution of (data, weight). ONNX Conv without bias.",
    ),
    Op(
        "nn.conv3d",
        OpPattern.OUT_ELEMWISE_FUSABLE,
        _infer_conv,
        _compute_conv,
        _reference_conv,
        Conv3dAttrs,
        _samples_conv3d,
        doc="Three-dimensional convolution, NCDHW data and OIDHW weight.",
    ),
    Op(
        "nn.pack_conv2d",
        OpPattern.INJECTIVE,
        _infer_pack,
        _compute_pack,
        _reference_pack,
        PackConv2dAttrs,
        _samples_pack,
        doc="An OIHW weight in channel blocks [ceil(O/nr),kh,kw,I,nr], zero-padded.",
    ),
)


def add_channel_bias(node: OnnxNode, out: Atom, bias: Atom) -> Atom:
    """`out + bias` along channel axis 1."""
    assert isinstance(out.type, TensorType)
    assert isinstance(bias.type, TensorType)
    shape = (bias.type.shape[0],) + (1,) * (out.type.rank - 2)
    return node.builder.call("add", out, node.builder.call("reshape", bias, newshape=shape))


def convolve(node: OnnxNode, x: Atom, w: Atom, **attrs: Any) -> Atom:
    """nn.conv2d or nn.conv3d by the rank of `x`; one spatial axis becomes two."""
    assert isinstance(x.type, TensorType)
    assert isinstance(w.type, TensorType)
    call = node.builder.call
    if x.type.rank > 3:
        return call(f"nn.conv{x.type.rank - 2}d", x, w, **attrs)
    (n, c, length), (o, i, k) = x.type.shape, w.type.shape
    begin, end = attrs.pop("padding", (0, 0))
    (stride,), (dilation,) = attrs.pop("strides", (1,)), attrs.pop("dilation", (1,))
    out = call(
        "nn.conv2d",
        call("reshape", x, newshape=(n, c, 1, length)),
        call("reshape", w, newshape=(o, i, 1, k)),
        strides=(1, stride), padding=(0, begin, 0, end), dilation=(1, dilation), **attrs,
    )  # fmt: skip
    assert isinstance(out.type, TensorType)
    return call("reshape", out, newshape=(out.type.shape[0], o, out.type.shape[3]))


def import_convolution(node: OnnxNode, x: Atom, w: Atom) -> Atom:
    """A convolution without bias by the attributes of ONNX Conv."""
    data, weight = x.type, w.type
    assert isinstance(data, TensorType)
    assert isinstance(weight, TensorType)
    nd = data.rank - 2
    if nd not in (1, 2, 3):
        raise node.unsupported(f"a convolution of input rank {data.rank}")
    node.expect(weight.rank == data.rank, f"the weight {weight} does not fit the input {data}")
    kernel = tuple(node.attr("kernel_shape") or weight.static_shape[2:])
    node.expect(kernel == weight.shape[2:], f"kernel_shape {kernel} contradicts {weight}")
    strides = tuple(node.attr("strides") or (1,) * nd)
    dilation = tuple(node.attr("dilations") or (1,) * nd)
    padding = import_padding(node, kernel, strides, dilation)
    groups = node.attr("group", 1)
    return convolve(node, x, w, strides=strides, padding=padding, dilation=dilation, groups=groups)


def _import_conv(node: OnnxNode) -> Atom:
    out = import_convolution(node, node.input(0), node.input(1))
    return add_channel_bias(node, out, node.input(2)) if node.has(2) else out


def _import_fused_conv(node: OnnxNode) -> Atom:
    out = _import_conv(node)
    if node.has(3):
        out = node.builder.call("add", out, node.input(3))
    kind = node.attr("activation", "")
    return apply_activation(node, kind, out, node.attr("activation_params", ())) if kind else out


ONNX: dict[str, OnnxImport] = {
    "Conv": _import_conv,
    "com.microsoft::FusedConv": _import_fused_conv,
}
