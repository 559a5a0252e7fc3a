"""Which register tile a matmul or convolution gets; the packing of its weights follows."""

from __future__ import annotations

import math

from ..relay.nodes import Binding, Call
from ..relay.op import Op
from ..target import Target
from ..types import TensorType
from .matmul import choose_matmul_tile
from .window import choose_conv_tile


def choose_tile(binding: Binding, target: Target) -> tuple[int, ...] | None:
    """(mr, nr) for nn.matmul, (th, tw, nr) for nn.conv2d in NHWC, None where packing is no use.

    `nr` is the width of a panel of packed weights.
    """
    call, type_ = binding.value, binding.var.type
    if not isinstance(call, Call) or not isinstance(call.op, Op):
        return None
    if not isinstance(type_, TensorType) or not type_.is_static or type_.size == 0:
        return None
    shape = type_.static_shape
    if call.op.name == "nn.matmul":
        weights = call.args[1].type
        assert isinstance(weights, TensorType)
        rows = math.prod(shape[:-1]) if weights.rank == 2 else shape[-2]
        tile = choose_matmul_tile(rows, shape[-1], target)
        return (tile.mr, tile.nr)
    if call.op.name == "nn.conv2d":
        n, height, width, channels = shape
        if is_unit(call):
            height, width = 1, n * height * width
        groups: int = call.attrs.groups  # type: ignore[attr-defined]
        found = choose_conv_tile(height, width, channels, target, groups)
        return (found.th, found.tw, found.nr)
    return None


def is_unit(call: Call) -> bool:
    """Whether a convolution will be pointwise once its weights are packed."""
    a = call.attrs
    weights = call.args[1].type
    assert isinstance(weights, TensorType)
    return (
        weights.static_shape[2:] == (1, 1)
        and tuple(a.strides) == (1, 1)  # type: ignore[attr-defined]
        and not any(a.padding)  # type: ignore[attr-defined]
    )
