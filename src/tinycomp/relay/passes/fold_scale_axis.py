"""Scales and shifts per output channel, folded into the weights of a convolution or matmul."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...diagnostics import NO_SPAN, Span
from ...types import TensorType
from ..builder import Builder
from ..nodes import Atom, Binding, Call, Constant, Function
from ..pass_infra import FunctionPass, PassContext
from ..pattern import op_name, tensor
from ..visitor import Uses


@dataclass(frozen=True)
class FoldScaleAxis(FunctionPass):
    """A chain of multiplications and additions by constants per output channel, after an operator
    with constant weights, becomes scaled weights and one addition.

        %0 = nn.conv2d(%x, W)
        %1 = add(%0, bias)              %0 = nn.conv2d(%x, W * scale)
        %2 = multiply(%1, scale)   ->   %3 = add(%0, bias * scale + shift)
        %3 = add(%2, shift)

    The new weights are computed in float64 and rounded once. Results differ by rounding.
    """

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        uses = Uses(function)
        chains = {
            chain.end: chain
            for binding in function.bindings
            if (chain := _find_chain(binding, uses)) is not None
        }
        if not chains:
            return function
        absorbed = {b for chain in chains.values() for b in chain.bindings}
        builder = Builder(ctx.ops)
        for binding in function.bindings:
            if binding in chains:
                _emit(chains[binding], builder)
            elif binding not in absorbed:
                builder.bindings.append(binding)
        return Function(function.params, tuple(builder.bindings), function.result, function.attrs)


@dataclass
class _Chain:
    """An operator with weights and the affine operations that follow it: y * scale + shift."""

    bindings: list[Binding]  # the operator first
    weight_axis: int  # of the output channels in the weights
    channel_axis: int  # of the output channels in the result
    scale: np.ndarray = field(default_factory=lambda: np.ones(1))
    shift: np.ndarray = field(default_factory=lambda: np.zeros(1))
    multiplications: int = 0
    additions: int = 0

    @property
    def end(self) -> Binding:
        return self.bindings[-1]


def _find_chain(root: Binding, uses: Uses) -> _Chain | None:
    """The chain that starts at `root`, if folding it saves an operation."""
    axes = _channel_axes(root)
    if axes is None:
        return None
    chain = _Chain([root], *axes)
    while uses.count(chain.end.var) == 1 and (users := uses.users(chain.end.var)):
        if not _extend(chain, users[0]):
            break
    worthwhile = chain.multiplications > 0 or chain.additions > 1
    return chain if worthwhile else None


def _channel_axes(binding: Binding) -> tuple[int, int] | None:
    """The axes of the output channels in weights and result; None if nothing can be folded."""
    call = binding.value
    if not isinstance(call, Call) or len(call.args) != 2 or not isinstance(call.args[1], Constant):
        return None
    if not tensor(call.args[1]).dtype.is_float or not isinstance(binding.var.type, TensorType):
        return None
    rank, attrs = binding.var.type.rank, call.attrs
    match op_name(call):
        case "nn.conv2d" if getattr(attrs, "kernel_layout", "OIHW") == "OIHW":
            return 0, 3 if getattr(attrs, "data_layout", "NCHW") == "NHWC" else 1
        case "nn.conv3d":
            return 0, 1
        case "nn.conv2d_transpose" if getattr(attrs, "groups", 1) == 1:
            return 1, 1
        case "nn.matmul" if call.args[1].data.ndim >= 2 and rank >= 1:
            return call.args[1].data.ndim - 1, rank - 1
    return None


def _extend(chain: _Chain, user: Binding) -> bool:
    """Take `user` into the chain if it is an affine operation per channel."""
    call = user.value
    if not isinstance(call, Call) or user.var.type != chain.end.var.type or len(call.args) != 2:
        return False
    name, (a, b) = op_name(call), call.args
    constant = b if a is chain.end.var else a
    commuted = constant is a
    if not isinstance(constant, Constant):
        return False
    if name not in ("add", "multiply") and (commuted or name not in ("subtract", "divide")):
        return False
    values = _per_channel(constant, tensor(user.var), chain.channel_axis)
    if values is None or (name == "divide" and not values.all()):
        return False
    if name in ("multiply", "divide"):
        factor = 1 / values if name == "divide" else values
        chain.scale, chain.shift = chain.scale * factor, chain.shift * factor
        chain.multiplications += 1
    else:
        chain.shift = chain.shift + (values if name == "add" else -values)
        chain.additions += 1
    chain.bindings.append(user)
    return True


def _per_channel(constant: Constant, result: TensorType, axis: int) -> np.ndarray | None:
    """The constant as a float64 vector over the channels (or of length 1); None if it varies
    along another axis."""
    shape = (1,) * (result.rank - constant.data.ndim) + constant.data.shape
    if any(extent != 1 for d, extent in enumerate(shape) if d != axis):
        return None
    return constant.data.astype(np.float64).reshape(-1)


def _emit(chain: _Chain, builder: Builder) -> None:
    root, end = chain.bindings[0], chain.end
    call = root.value
    assert isinstance(call, Call)
    span = _union(chain.bindings)
    weight = _scaled(call.args[1], chain.scale, chain.weight_axis)
    value = Call(call.op, (call.args[0], weight), call.attrs)
    if not chain.additions:
        builder.bindings.append(Binding(end.var, value, span))
        return
    rank = tensor(end.var).rank
    shape = (-1, *(1,) * (rank - 1 - chain.channel_axis))
    with builder.at(span):
        product = builder.bind(value, root.var.type, root.var.name)
        bias = builder.const(chain.shift.reshape(shape), tensor(end.var).dtype)
    add: Any = builder.ops["add"]
    builder.bindings.append(Binding(end.var, Call(add, (product, bias), add.attrs_type()), span))


def _scaled(weight: Atom, scale: np.ndarray, axis: int) -> Constant:
    assert isinstance(weight, Constant)
    shape = [1] * weight.data.ndim
    shape[axis] = -1
    scaled = weight.data.astype(np.float64) * scale.reshape(shape)
    return Constant(scaled.astype(weight.data.dtype), weight.span)


def _union(bindings: list[Binding]) -> Span:
    span = NO_SPAN
    for binding in bindings:
        span = span | binding.span
    return span
