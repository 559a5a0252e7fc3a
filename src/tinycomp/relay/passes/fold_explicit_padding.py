"""Padding operators, folded into the windows that read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..nodes import Atom, Binding, Call, Function
from ..pass_infra import FunctionPass, PassContext
from ..pattern import op_name, tensor
from ..visitor import Uses, rebuilt, remove_dead_bindings

_WINDOWS = ("nn.conv2d", "nn.conv3d", "nn.max_pool2d", "nn.avg_pool2d")


@dataclass(frozen=True)
class FoldExplicitPadding(FunctionPass):
    """`nn.pad` followed by a convolution or pooling becomes that operator with padding.

        %0 = nn.pad(%x, pad_width=((0, 0), (0, 0), (1, 1), (1, 1)))
        %1 = nn.conv2d(%0, W)     ->     %1 = nn.conv2d(%x, W, padding=(1, 1, 1, 1))

    Convolutions and averages are padded with 0, maxima with -inf.
    """

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        uses = Uses(function)
        bindings = [_fold(binding, uses) for binding in function.bindings]
        result = rebuilt(function, bindings, function.result)
        return function if result is function else remove_dead_bindings(result)


def _fold(binding: Binding, uses: Uses) -> Binding:
    call = binding.value
    if not isinstance(call, Call) or op_name(call) not in _WINDOWS:
        return binding
    args, attrs, span = call.args, call.attrs, binding.span
    while (found := _folded(op_name(call), args[0], attrs, uses)) is not None:
        attrs, padded = found
        assert isinstance(padded.value, Call)
        args = (padded.value.args[0], *args[1:])
        span = span | padded.span
    if attrs is call.attrs:
        return binding
    return Binding(binding.var, Call(call.op, args, attrs), span)


def _folded(name: str, data: Atom, attrs: Any, uses: Uses) -> tuple[Any, Binding] | None:
    """Attributes of the window operator that include the padding of its data; None if it cannot."""
    pad = uses.producer(data)
    if pad is None or not isinstance(pad.value, Call) or op_name(pad.value) != "nn.pad":
        return None
    pad_attrs: Any = pad.value.attrs
    if pad_attrs.mode != "constant" or len(pad.value.args) != 1:
        return None
    widths = pad_attrs.pad_width
    first = 1 if getattr(attrs, "data_layout", "NCHW") == "NHWC" else 2
    spatial = widths[first : first + len(widths) - 2]
    others = (*widths[:first], *widths[first + len(spatial) :])
    if any(w != (0, 0) for w in map(tuple, others)) or any(min(w) < 0 for w in spatial):
        return None
    if not _value_fits(name, pad_attrs.value, data, attrs):
        return None
    more = (*(before for before, _ in spatial), *(after for _, after in spatial))
    padding = tuple(p + q for p, q in zip(attrs.padding, more, strict=True))
    if name == "nn.avg_pool2d":
        return replace(attrs, padding=padding, count_include_pad=True), pad
    return replace(attrs, padding=padding), pad


def _value_fits(name: str, value: float, data: Atom, attrs: Any) -> bool:
    """Whether the operator's own padding is padding with `value`."""
    if name == "nn.max_pool2d":
        return value == tensor(data).dtype.min_value
    if name == "nn.avg_pool2d" and any(attrs.padding) and not attrs.count_include_pad:
        return False
    return value == 0
