"""ONNX ConvTranspose, as one convolution followed by a rearrangement of its channels.

With stride s, output position o = s * q + p collects x[q - t] * w[s * t + p] over t. So for each
of the s phases p it is an ordinary convolution with every s-th tap of the flipped kernel; all
phases are computed as channels of one convolution of stride 1, and interleaved by reshape and
transpose. No zeros are inserted between the data, so no multiplication is wasted on them.
Method: the sub-pixel convolution of Shi et al., 2016 (arXiv 1609.07009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..diagnostics import ModelError
from ..relay.nodes import Atom
from ..relay.op import Op
from ..types import Dim, TensorType
from .conv import add_channel_bias, convolve
from .onnx_node import OnnxImport, OnnxNode
from .window import check_window


@dataclass(frozen=True)
class _Geometry:
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]  # cropped from the front of the full result
    size: tuple[int, ...]  # of the result

    @property
    def span(self) -> tuple[int, ...]:
        """Extent of the dilated kernel."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def taps(self) -> tuple[int, ...]:
        """Kernel elements per phase."""
        return tuple(-(-n // s) for n, s in zip(self.span, self.strides, strict=True))


def _geometry(node: OnnxNode) -> _Geometry:
    x, w = node.type(0), node.type(1)
    nd = x.rank - 2
    kernel = tuple(node.attr("kernel_shape") or w.static_shape[2:])
    strides = tuple(node.attr("strides") or (1,) * nd)
    dilation = tuple(node.attr("dilations") or (1,) * nd)
    extra = tuple(node.attr("output_padding") or (0,) * nd)
    check_window(node, kernel, strides, dilation)
    node.expect(kernel == w.shape[2:], f"kernel_shape {kernel} contradicts {w}")
    node.expect(all(abs(v) < 2**31 for v in (*strides, *dilation, *extra)), "sizes beyond 2^31")
    node.expect(len(extra) == nd, f"output_padding {list(extra)} of {x}")
    if not all(isinstance(d, int) for d in x.shape[2:]):
        raise node.unsupported("a symbolic spatial dimension", "fix the input shapes")
    auto, wanted = node.attr("auto_pad", "NOTSET"), node.attr("output_shape")
    pads = tuple(node.attr("pads") or (0,) * (2 * nd))
    node.expect(len(pads) == 2 * nd, f"pads {list(pads)} of {x}")
    node.expect(not wanted or len(wanted) >= nd, f"output_shape {wanted} of {x}")
    begin, size = [], []
    for k in range(nd):
        n = x.static_shape[2 + k]
        full = (n - 1) * strides[k] + extra[k] + dilation[k] * (kernel[k] - 1) + 1
        if wanted or auto in ("SAME_UPPER", "SAME_LOWER"):
            target = wanted[-nd:][k] if wanted else n * strides[k]
            total = max(full - target, 0)
            begin.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
            size.append(target)
        else:
            before, after = (pads[k], pads[k + nd]) if auto == "NOTSET" else (0, 0)
            begin.append(before)
            size.append(full - before - after)
    return _Geometry(kernel, strides, dilation, tuple(begin), tuple(size))


def _pad(node: OnnxNode, x: Atom, behind: Sequence[int]) -> Atom:
    """Zeros behind each axis."""
    if not any(behind):
        return x
    width = tuple((0, n) for n in behind)
    return node.builder.call("nn.pad", x, pad_width=width, mode="constant", value=0.0)


def _slice(node: OnnxNode, x: Atom, begin: Sequence[int], size: Sequence[int]) -> Atom:
    """`size` elements from `begin` along the trailing axes."""
    assert isinstance(x.type, TensorType)
    shape = x.type.static_shape
    lead = len(shape) - len(size)
    first, last = (0,) * lead + tuple(begin), tuple(b + n for b, n in zip(begin, size, strict=True))
    if first == (0,) * len(shape) and last == shape[lead:]:
        return x
    return node.builder.call(
        "strided_slice", x, begin=first, end=shape[:lead] + last, strides=(1,) * len(shape)
    )


def _dilate(node: OnnxNode, w: Atom, dilation: Sequence[int]) -> Atom:
    """Zeros between the kernel's elements: [k, 1] padded to [k, d], and the tail cut off."""
    assert isinstance(w.type, TensorType)
    if all(d == 1 for d in dilation):
        return w
    call, (o, i, *kernel) = node.builder.call, w.type.static_shape
    split = [part for k in kernel for part in (k, 1)]
    w = call("reshape", w, newshape=(o, i, *split))
    w = _pad(node, w, [0, 0, *(part for d in dilation for part in (0, d - 1))])
    spread = [k * d for k, d in zip(kernel, dilation, strict=True)]
    w = call("reshape", w, newshape=(o, i, *spread))
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    return _slice(node, w, (0,) * len(span), span)


def _phase_weight(node: OnnxNode, geometry: _Geometry, groups: int) -> Atom:
    """The weight [C, M/g, k...] as [M * phases, C/g, taps...], taps flipped."""
    w, type_ = node.input(1), node.type(1)
    call, nd = node.builder.call, len(geometry.kernel)
    w = _dilate(node, w, geometry.dilation)
    whole = [t * s for t, s in zip(geometry.taps, geometry.strides, strict=True)]
    w = _pad(node, w, [0, 0, *(a - b for a, b in zip(whole, geometry.span, strict=True))])
    channels, out_channels = type_.static_shape[:2]
    parts = [p for t, s in zip(geometry.taps, geometry.strides, strict=True) for p in (t, s)]
    w = call("reshape", w, newshape=(groups, channels // groups, out_channels, *parts))
    taps, phases = range(3, 3 + 2 * nd, 2), range(4, 4 + 2 * nd, 2)
    w = call("transpose", w, axes=(0, 2, *phases, 1, *taps))  # [g, M/g, s..., C/g, t...]
    count = groups * out_channels
    for s in geometry.strides:
        count *= s
    w = call("reshape", w, newshape=(count, channels // groups, *geometry.taps))
    return call(
        "strided_slice", w,
        begin=(0, 0, *(t - 1 for t in geometry.taps)),
        end=(count, channels // groups, *(-1 for _ in geometry.taps)),
        strides=(1, 1, *(-1 for _ in geometry.taps)),
    )  # fmt: skip


def _interleave(node: OnnxNode, y: Atom, strides: Sequence[int]) -> Atom:
    """[N, M * s..., q...] to [N, M, (q * s)...]."""
    assert isinstance(y.type, TensorType)
    if all(s == 1 for s in strides):
        return y
    call, nd = node.builder.call, len(strides)
    n, channels, *spatial = y.type.shape
    for s in strides:
        channels = channels // s
    y = call("reshape", y, newshape=(n, channels, *strides, *spatial))
    pairs = [axis for k in range(nd) for axis in (2 + nd + k, 2 + k)]
    y = call("transpose", y, axes=(0, 1, *pairs))
    sizes: list[Dim] = [q * s for q, s in zip(spatial, strides, strict=True)]
    return call("reshape", y, newshape=(n, channels, *sizes))


def _import_conv_transpose(node: OnnxNode) -> Atom:
    x, w, groups = node.type(0), node.type(1), node.attr("group", 1)
    if x.rank not in (3, 4, 5):
        raise node.unsupported(f"an input of rank {x.rank}")
    if w.rank != x.rank or not w.is_static or w.shape[0] != x.shape[1]:
        raise ModelError(f"ConvTranspose: {w} does not fit the input {x}", span=node.span)
    node.expect(groups > 0 and w.shape[0] % groups == 0, f"{groups} groups do not divide {w}")
    geometry = _geometry(node)
    nd, taps = x.rank - 2, geometry.taps
    y = convolve(
        node, node.input(0), _phase_weight(node, geometry, groups),
        strides=(1,) * nd, padding=tuple(t - 1 for t in taps) * 2, dilation=(1,) * nd,
        groups=groups,
    )  # fmt: skip
    y = _interleave(node, y, geometry.strides)
    assert isinstance(y.type, TensorType)
    # output_padding may ask for more than the phases computed: those elements are zero
    short = [
        max(b + n - have, 0)
        for b, n, have in zip(geometry.begin, geometry.size, y.type.static_shape[2:], strict=True)
    ]
    y = _slice(node, _pad(node, y, [0, 0, *short]), geometry.begin, geometry.size)
    return add_channel_bias(node, y, node.input(2)) if node.has(2) else y


OPS: tuple[Op, ...] = ()
ONNX: dict[str, OnnxImport] = {"ConvTranspose": _import_conv_transpose}
