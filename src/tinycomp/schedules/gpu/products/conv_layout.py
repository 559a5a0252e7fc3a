"""Layouts of convolutions on a GPU: which run in NHWC, and how their weights are packed then."""

from __future__ import annotations

from dataclasses import replace

from ....dtype import DType
from ....relay.nodes import Binding, Call
from ....relay.op import Op
from ....types import TensorType
from ..hopper.gemm import ARCH, takes_channels_last

SHORT_FLOATS = frozenset({DType.FLOAT16, DType.BFLOAT16})
"""What tensor cores take as it lies in memory; in NHWC what they sum over, the channels of a pixel,
lies together."""


def choose_gpu_conv_tile(binding: Binding, arch: str) -> tuple[int, ...] | None:
    """The packing of weights for a convolution in NHWC, as rows, columns and channels of a tile.

    Channels are 1 where a tile program takes the weights as [output channel, tap, channel]; else
    all, which tiles of [channel, output channel] copy in whole lines. None for other operators.
    """
    call, type_ = binding.value, binding.var.type
    if not isinstance(call, Call) or not isinstance(call.op, Op) or call.op.name != "nn.conv2d":
        return None
    weight = call.args[1].type
    assert isinstance(weight, TensorType)
    assert isinstance(type_, TensorType)
    if not weight.is_static or not type_.is_static or type_.size == 0:
        return None
    o, channels, *kernel = weight.static_shape
    attrs = replace(call.attrs, kernel_size=tuple(kernel))  # type: ignore[call-arg]
    tiled = arch == ARCH and takes_channels_last(attrs, type_, channels)
    return 1, 1, 1 if tiled else o
