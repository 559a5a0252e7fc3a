"""Input channels of zeros, where the channels of a pixel are no whole vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...dtype import DType
from ...types import TensorType
from ..nodes import Atom, Binding, Call, Constant, Function, Var
from ..op import Op, OpPattern
from ..pass_infra import FunctionPass, PassContext
from ..visitor import ExprMutator


@dataclass(frozen=True)
class PadChannels(FunctionPass):
    """Pads the channels of nn.conv2d in NHWC to 4, or to a multiple of 8, in the data and, ahead of
    time, in constant weights: the first layers of networks, whose images have 3 channels or so.

        %1 = nn.conv2d(%x, W)     ->     %0 = nn.pad(%x, channels by 1)
                                         %1 = nn.conv2d(%0, W with an input channel of zeros)

    Only where the padding becomes a part of the kernel that makes the data: where that only moves
    elements. (A sum over channels is cheaper in whole vectors than the copies are that it needs of
    single elements.)
    """

    dtypes: frozenset[DType] = frozenset(DType)

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        return _Padder(ctx, self.dtypes).run(function)


def padded_channels(channels: int) -> int:
    """How many channels make whole vectors.

    >>> [padded_channels(n) for n in (1, 3, 4, 6, 12, 64)]
    [4, 4, 4, 8, 16, 64]
    """
    return 4 if channels <= 4 else -(-channels // 8) * 8


class _Padder(ExprMutator):
    def __init__(self, ctx: PassContext, dtypes: frozenset[DType]) -> None:
        super().__init__(ctx.ops)
        self.dtypes = dtypes

    def visit_call(self, binding: Binding, call: Call) -> Atom:
        x, *rest = call.args
        name = call.op.name if isinstance(call.op, Op) else ""
        if name != "nn.conv2d" or not isinstance(rest[0], Constant) or not self._moves(x):
            return self.keep(binding, call)
        attrs, type_, weight = call.attrs, x.type, rest[0]
        layouts = attrs.data_layout, attrs.kernel_layout, attrs.groups  # type: ignore[attr-defined]
        assert isinstance(type_, TensorType)
        channels = weight.data.shape[1]
        more = padded_channels(channels) - channels
        if layouts != ("NHWC", "OIHW", 1) or type_.dtype not in self.dtypes or not more:
            return self.keep(binding, call)
        widths = ((0, 0), (0, 0), (0, 0), (0, more))
        data = self.builder.call("nn.pad", x, pad_width=widths, mode="constant", value=0.0)
        grown = np.pad(weight.data, [(0, 0), (0, more), (0, 0), (0, 0)])
        return self.builder.call(name, data, Constant(grown, weight.span), attrs=attrs)

    def _moves(self, data: Atom) -> bool:
        """Whether an operator that moves elements, or makes them one by one, gives `data`."""
        made = self.producer(data) if isinstance(data, Var) else None
        return (
            made is not None
            and isinstance(made.value, Call)
            and isinstance(made.value.op, Op)
            and made.value.op.pattern <= OpPattern.INJECTIVE
        )
