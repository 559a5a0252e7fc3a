"""Convolutions on a GPU as matrix products whose operand gathers windows of the input.

(Implicit GEMM: Chetlur et al., "cuDNN: Efficient primitives for deep learning", 2014.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .... import te
from ....ir.expr import as_int
from ....relay.nodes import Atom, Call, Function, Value, Var
from ....relay.op import Op
from ....te.tensor import Tensor
from ....types import TensorType
from ...collapse import groups_of, is_elementwise, rebuild
from .gemm import MIN_ROWS, gemm


def merge_pixels(function: Function) -> Function:
    """A convolution in NCHW and the elementwise work after it, over fewer dimensions.

    The weights become a matrix [channels, window]; the image of a pointwise convolution and what
    follows the output lose the difference between rows and columns of pixels, so that vectors may
    cross from one row to the next. Buffers are dense: only indices change.
    """
    found = [b for b in function.bindings if _is_product(b.value)]
    out = function.ret_type
    if len(found) != 1 or not isinstance(out, TensorType) or not math.prod(out.static_shape):
        return function
    conv = found[0]
    x, w = conv.args
    uses = Counter(atom for b in function.bindings for atom in b.args)
    if uses[x] > 1 or uses[w] > 1 or function.result in (x, w):
        return function
    if not all(b is conv or is_elementwise(b.value) for b in function.bindings):
        return function
    groups = groups_of(function, out, 0, {x, w})
    pixels = [[0], [1], [2, 3]] if any({2, 3} <= set(g) for g in groups) else [[0], [1], [2], [3]]
    assert isinstance(conv.value, Call)
    (n, c, *image), (o, *window) = _shape(x), _shape(w)
    attrs = replace(conv.value.attrs, kernel_size=tuple(window[1:]))  # type: ignore[call-arg]
    shapes: dict[Atom, tuple[int, ...]] = {w: (o, math.prod(window))}
    if _is_pointwise(attrs):
        shapes[x] = (n, c, math.prod(image))
    return rebuild(function, 4, pixels, {x, w}, shapes, {conv: attrs})


def _shape(atom: Atom) -> tuple[int, ...]:
    assert isinstance(atom.type, TensorType)
    return atom.type.static_shape


def _is_product(value: Value) -> bool:
    """Whether a value is a convolution that `expand_conv2d` takes."""
    if not isinstance(value, Call) or not isinstance(value.op, Op) or value.op.name != "nn.conv2d":
        return False
    x, w = value.args
    known = isinstance(x, Var) and isinstance(w, Var) and isinstance(w.type, TensorType)
    return known and is_gemm(value.attrs, _shape(x), _shape(w)) and w.type.dtype.is_float  # type: ignore[union-attr]


def is_gemm(attrs: Any, x: Sequence[int], w: Sequence[int]) -> bool:
    """Whether a convolution of these shapes is worth tiles of a matrix product."""
    plain = attrs.data_layout == "NCHW" and attrs.kernel_layout == "OIHW"
    return plain and w[0] // attrs.groups >= MIN_ROWS and math.prod((*x, *w)) > 0


def _is_pointwise(attrs: Any) -> bool:
    return (*attrs.kernel_size, *attrs.strides) == (1, 1, 1, 1) and not any(attrs.padding)


def expand_conv2d(
    attrs: Any, args: Sequence[Tensor], out: TensorType, arch: str
) -> list[Tensor] | None:
    """nn.conv2d in NCHW as a product of the weights and the windows of the input.

    After `merge_pixels` the weights are a matrix, and the output may have one axis of pixels. None
    where that does not fit.
    """
    x, w = args
    if attrs.data_layout == "NHWC":
        return _channels_last(attrs, x, w, out, arch)
    shapes = ([as_int(d) for d in t.shape] for t in args)
    images, _, *pixels = out.static_shape
    if not is_gemm(attrs, *shapes) or not out.dtype.is_float or not math.prod(pixels):
        return None
    o = as_int(w.shape[0])
    kh, kw = attrs.kernel_size if w.ndim == 2 else map(as_int, w.shape[2:])
    window, groups = kh * kw, attrs.groups
    m, ci = o // groups, as_int(x.shape[1]) // groups
    width = _out_width(attrs, x, kw) if x.ndim == 4 else 1

    def weights(b: Any, i: Any, p: Any) -> Any:
        if w.ndim == 2:
            return w((b % groups) * m + i, p)
        return w((b % groups) * m + i, p // window, p // kw % kh, p % kw)

    def windows(b: Any, p: Any, j: Any) -> Any:
        channel = (b % groups) * ci + p // window
        if x.ndim == 3:
            return x(b // groups, channel, j)
        return _window(attrs, x, (b // groups, channel), (j // width, j % width),
                       (p // kw % kh, p % kw))  # fmt: skip

    return gemm(
        out,
        (images * groups, m, math.prod(pixels), ci * window),
        weights,
        windows,
        lambda n, c, *at: (*_group(n, c, groups, m), at[0] * width + at[1] if at[1:] else at[0]),
        attrs.precision,
        arch,
    )


def _channels_last(
    attrs: Any, x: Tensor, w: Tensor, out: TensorType, arch: str
) -> list[Tensor] | None:
    """nn.conv2d in NHWC as a product of the windows, whose channels lie together, and the weights.

    Those are OIHW or, for copies of whole vectors, packed with all output channels last.
    """
    images, height, width, o = out.static_shape
    packed = attrs.kernel_layout == "packed"
    if attrs.groups != 1 or attrs.kernel_layout == "HWC" or not out.dtype.is_float:
        return None
    kh, kw = attrs.kernel_size if packed else map(as_int, w.shape[2:])
    ci = as_int(x.shape[3])
    if not math.prod((images, height, width, o, ci)) or o < MIN_ROWS:
        return None

    def windows(_: Any, i: Any, p: Any) -> Any:
        tap, pixel = p // ci, i // width
        place = (pixel // height, pixel % height, i % width)
        return _window(attrs, x, place[:1], place[1:], (tap // kw, tap % kw), (p % ci,))

    def weights(_: Any, p: Any, j: Any) -> Any:
        tap, c = p // ci, p % ci
        if not packed:
            return w(j, c, tap // kw, tap % kw)
        lanes = attrs.tile[2]
        return w(j // lanes, tap // kw, tap % kw, c, j % lanes)

    return gemm(
        out,
        (1, images * height * width, o, kh * kw * ci),
        windows,
        weights,
        lambda n, h, v, c: (te.const(0), (n * height + h) * width + v, c),
        attrs.precision,
        arch,
    )


def _out_width(attrs: Any, x: Tensor, kw: int) -> int:
    _, left, _, right = attrs.padding
    reach = as_int(x.shape[3]) + left + right - (kw - 1) * attrs.dilation[1]
    return (reach - 1) // attrs.strides[1] + 1


def _window(attrs: Any, x: Tensor, plane: Any, pixel: Any, tap: Any, after: Any = ()) -> Any:
    """The input under one tap of the window of an output pixel; 0 outside.

    Args:
        plane, after: its indices before and after those of the pixel.
    """
    rows, columns = x.shape[len(plane) : len(plane) + 2]
    top, left, bottom, right = attrs.padding
    h = pixel[0] * attrs.strides[0] + tap[0] * attrs.dilation[0] - top
    v = pixel[1] * attrs.strides[1] + tap[1] * attrs.dilation[1] - left
    value = x(*plane, h, v, *after)
    edges = [h >= 0] * (top > 0) + [h < rows] * (top + bottom > 0)
    edges += [v >= 0] * (left > 0) + [v < columns] * (left + right > 0)
    for edge in edges:
        value = te.if_then_else(edge, value, te.const(0, value.dtype))
    return value


def _group(n: Any, c: Any, groups: int, m: int) -> tuple[Any, Any]:
    """The product and its row that hold channel c of image n."""
    return (n, c) if groups == 1 else (n * groups + c // m, c % m)
