"""Convolutions on a GPU as matrix products whose operand gathers windows of the input.

(Implicit GEMM: Chetlur et al., "cuDNN: Efficient primitives for deep learning", 2014.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import te
from ...ir.expr import as_int
from ...te.tensor import Tensor
from ...types import TensorType
from .gemm import MIN_ROWS, gemm


def expand_conv2d(attrs: Any, args: Sequence[Tensor], out: TensorType) -> list[Tensor] | None:
    """nn.conv2d in NCHW as a product of the weights and the windows of the input."""
    x, w = args
    plain = attrs.data_layout == "NCHW" and attrs.kernel_layout == "OIHW"
    if not plain or not out.dtype.is_float:
        return None
    images, channels, height, width = out.static_shape
    o, ci, kh, kw = (as_int(d) for d in w.shape)
    in_height, in_width = as_int(x.shape[2]), as_int(x.shape[3])
    groups = attrs.groups
    m, window = o // groups, kh * kw
    if m < MIN_ROWS or images * channels * height * width * ci * window == 0:
        return None
    (sh, sw), (dh, dw), (top, left_pad, bottom, right_pad) = (
        attrs.strides, attrs.dilation, attrs.padding,
    )  # fmt: skip

    def weights(b: Any, i: Any, p: Any) -> Any:
        return w((b % groups) * m + i, p // window, p // kw % kh, p % kw)

    def windows(b: Any, p: Any, j: Any) -> Any:
        h = j // width * sh + (p // kw % kh) * dh - top
        v = j % width * sw + (p % kw) * dw - left_pad
        value = x(b // groups, (b % groups) * ci + p // window, h, v)
        edges = [h >= 0] * (top > 0) + [h < in_height] * (top + bottom > 0)
        edges += [v >= 0] * (left_pad > 0) + [v < in_width] * (left_pad + right_pad > 0)
        for edge in edges:
            value = te.if_then_else(edge, value, te.const(0, value.dtype))
        return value

    return gemm(
        out,
        (images * groups, m, height * width, ci * window),
        weights,
        windows,
        lambda n, c, h, v: (*_group(n, c, groups, m), h * width + v),
    )


def _group(n: Any, c: Any, groups: int, m: int) -> tuple[Any, Any]:
    """The product and its row that hold channel c of image n."""
    return (n, c) if groups == 1 else (n * groups + c // m, c % m)
