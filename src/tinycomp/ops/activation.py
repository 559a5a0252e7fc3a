"""Activation functions, composed of elementwise operators so that they fuse with anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..relay.nodes import Atom
from ..types import TensorType
from .common import is_one
from .onnx_node import OnnxImport, OnnxNode


class Emit:
    """Calls of operators on atoms and Python numbers; a number takes the atoms' dtype.

    >>> emit("add", x, 1.0)  # doctest: +SKIP
    """

    def __init__(self, node: OnnxNode) -> None:
        self.builder = node.builder

    def __call__(self, op: str, *args: Atom | float, **attrs: Any) -> Atom:
        dtype = next(
            a.type.dtype
            for a in args
            if not isinstance(a, int | float) and isinstance(a.type, TensorType)
        )
        atoms = [self.builder.const(a, dtype) if isinstance(a, int | float) else a for a in args]
        return self.builder.call(op, *atoms, **attrs)

    def where(self, condition: Atom, x: Atom | float, y: Atom | float, like: Atom) -> Atom:
        """`condition ? x : y` with numbers in the dtype of `like`."""
        assert isinstance(like.type, TensorType)
        dtype = like.type.dtype
        values = [self.builder.const(v, dtype) if isinstance(v, int | float) else v for v in (x, y)]
        return self.builder.call("where", condition, *values)


Activation = Callable[..., Atom]  # (emit, x, *parameters) -> Atom


def _negative_branch(emit: Emit, x: Atom, negative: Atom) -> Atom:
    """x where x > 0, `negative` elsewhere; NaN passes through `negative`."""
    return emit.where(emit("greater", x, 0.0), x, negative, x)


def elu(emit: Emit, x: Atom, alpha: float = 1.0) -> Atom:
    """x > 0 ? x : alpha * (exp(x) - 1)"""
    # exp of min(x, 0): a large x must not overflow in the branch that is not taken
    negative = emit("expm1", emit("minimum", x, 0.0))
    return _negative_branch(emit, x, emit("multiply", negative, alpha) if alpha != 1 else negative)


def selu(
    emit: Emit, x: Atom, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813
) -> Atom:
    """gamma * elu(x, alpha)"""
    return emit("multiply", elu(emit, x, alpha), gamma)


def celu(emit: Emit, x: Atom, alpha: float = 1.0) -> Atom:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))"""
    inner = (
        emit("divide", emit("minimum", x, 0.0), alpha) if alpha != 1 else emit("minimum", x, 0.0)
    )
    return _negative_branch(emit, x, emit("multiply", emit("expm1", inner), alpha))


def gelu(emit: Emit, x: Atom) -> Atom:
    """x * 0.5 * (1 + erf(x / sqrt(2)))"""
    erf = emit("erf", emit("multiply", x, 1 / math.sqrt(2)))
    return emit("multiply", emit("multiply", x, 0.5), emit("add", erf, 1.0))


def gelu_tanh(emit: Emit, x: Atom) -> Atom:
    """x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))"""
    cubic = emit("multiply", emit("multiply", emit("multiply", x, x), 0.044715), x)
    inner = emit("multiply", emit("add", x, cubic), math.sqrt(2 / math.pi))
    # 0.5 * (1 + tanh(y)) = sigmoid(2 y)
    return emit("multiply", x, emit("sigmoid", emit("multiply", inner, 2.0)))


def hard_sigmoid(emit: Emit, x: Atom, alpha: float = 0.2, beta: float = 0.5) -> Atom:
    """clip(alpha * x + beta, 0, 1)"""
    linear = emit("add", emit("multiply", x, alpha), beta)
    return emit("clip", linear, a_min=0.0, a_max=1.0)


def hard_swish(emit: Emit, x: Atom) -> Atom:
    """x * clip(x / 6 + 0.5, 0, 1)"""
    return emit("multiply", x, hard_sigmoid(emit, x, 1 / 6, 0.5))


def softplus(emit: Emit, x: Atom) -> Atom:
    """log(1 + exp(x)), as max(x, 0) + log1p(exp(-|x|)) which cannot overflow"""
    small = emit("log1p", emit("exp", emit("negative", emit("abs", x))))
    return emit("add", emit("maximum", x, 0.0), small)


def mish(emit: Emit, x: Atom) -> Atom:
    """x * tanh(softplus(x))"""
    return emit("multiply", x, emit("tanh", softplus(emit, x)))


def softsign(emit: Emit, x: Atom) -> Atom:
    """x / (1 + |x|)"""
    return emit("divide", x, emit("add", emit("abs", x), 1.0))


def swish(emit: Emit, x: Atom, alpha: float = 1.0) -> Atom:
    """x * sigmoid(alpha * x)"""
    return emit("multiply", x, emit("sigmoid", emit("multiply", x, alpha) if alpha != 1 else x))


def thresholded_relu(emit: Emit, x: Atom, alpha: float = 1.0) -> Atom:
    """x > alpha ? x : 0"""
    return emit.where(emit("greater", x, alpha), x, 0.0, x)


def affine(emit: Emit, x: Atom, alpha: float = 1.0, beta: float = 0.0) -> Atom:
    """alpha * x + beta"""
    return emit("add", emit("multiply", x, alpha), beta)


def scaled_tanh(emit: Emit, x: Atom, alpha: float = 1.0, beta: float = 1.0) -> Atom:
    """alpha * tanh(beta * x)"""
    return emit("multiply", emit("tanh", emit("multiply", x, beta)), alpha)


def leaky_relu(emit: Emit, x: Atom, alpha: float = 0.01) -> Atom:
    """x where x >= 0, alpha * x elsewhere"""
    return emit("nn.leaky_relu", x, alpha=alpha)


def clip(emit: Emit, x: Atom, low: float = -math.inf, high: float = math.inf) -> Atom:
    """Values limited to [low, high]"""
    return emit("clip", x, a_min=low, a_max=high)


ACTIVATIONS: dict[str, Activation] = {
    "Relu": lambda emit, x: emit("nn.relu", x),
    "Sigmoid": lambda emit, x: emit("sigmoid", x),
    "Tanh": lambda emit, x: emit("tanh", x),
    "LeakyRelu": leaky_relu,
    "Elu": elu,
    "Selu": selu,
    "Celu": celu,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Mish": mish,
    "Softplus": softplus,
    "Softsign": softsign,
    "Swish": swish,
    "ThresholdedRelu": thresholded_relu,
    "Affine": affine,
    "ScaledTanh": scaled_tanh,
    "Clip": clip,
}


def apply_activation(node: OnnxNode, kind: str, x: Atom, parameters: Sequence[float] = ()) -> Atom:
    """The activation `kind` of `x`; parameters in the order alpha, beta.

    Raises:
        UnsupportedModel: no such activation.
    """
    function = {name.lower(): f for name, f in ACTIVATIONS.items()}.get(kind.lower())
    if function is None:
        raise node.unsupported(f"the activation {kind!r}")
    return function(Emit(node), x, *parameters)


def _import(kind: str, **defaults: float) -> OnnxImport:
    """An importer whose node attributes are the activation's parameters, by name."""

    def convert(node: OnnxNode) -> Atom:
        parameters = [node.attr(name, default) for name, default in defaults.items()]
        return ACTIVATIONS[kind](Emit(node), node.input(0), *parameters)

    return convert


def _import_gelu(node: OnnxNode) -> Atom:
    function = gelu_tanh if node.attr("approximate", "none") == "tanh" else gelu
    return function(Emit(node), node.input(0))


def _import_biased(function: Activation) -> OnnxImport:
    """com.microsoft activations of (x, optional bias)."""

    def convert(node: OnnxNode) -> Atom:
        emit, x = Emit(node), node.input(0)
        return function(emit, emit("add", x, node.input(1)) if node.has(1) else x)

    return convert


def _import_quick_gelu(node: OnnxNode) -> Atom:
    return swish(Emit(node), node.input(0), node.attr("alpha", 1.702))


def _import_swiglu(node: OnnxNode) -> Atom:
    node.expect(node.type(0) == node.type(1), f"{node.type(0)} and {node.type(1)} differ")
    emit = Emit(node)
    return emit("multiply", swish(emit, node.input(0), node.attr("alpha", 1.0)), node.input(1))


def _import_prelu(node: OnnxNode) -> Atom:
    emit, x, slope = Emit(node), node.input(0), node.input(1)
    shape = node.type(1).shape
    while len(shape) > node.type(0).rank and is_one(shape[0]):
        shape = shape[1:]
    if shape != node.type(1).shape:
        slope = emit("reshape", slope, newshape=shape)
    negative = emit("multiply", x, slope)
    return emit.where(emit("less", x, 0.0), negative, x, x)


def _import_shrink(node: OnnxNode) -> Atom:
    emit, x = Emit(node), node.input(0)
    bias, bound = float(node.attr("bias", 0.0)), float(node.attr("lambd", 0.5))
    above = emit.where(emit("greater", x, bound), emit("subtract", x, bias), 0.0, x)
    return emit.where(emit("less", x, -bound), emit("add", x, bias), above, x)


ONNX: dict[str, OnnxImport] = {
    "Elu": _import("Elu", alpha=1.0),
    "Selu": _import("Selu", alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Celu": _import("Celu", alpha=1.0),
    "Gelu": _import_gelu,
    "HardSigmoid": _import("HardSigmoid", alpha=0.2, beta=0.5),
    "HardSwish": _import("HardSwish"),
    "Mish": _import("Mish"),
    "Softplus": _import("Softplus"),
    "Softsign": _import("Softsign"),
    "Swish": _import("Swish", alpha=1.0),
    "ThresholdedRelu": _import("ThresholdedRelu", alpha=1.0),
    "SwiGLU": _import_swiglu,
    "PRelu": _import_prelu,
    "Shrink": _import_shrink,
    "com.microsoft::Gelu": _import_biased(gelu),
    "com.microsoft::BiasGelu": _import_biased(gelu),
    "com.microsoft::FastGelu": _import_biased(gelu_tanh),
    "com.microsoft::QuickGelu": _import_quick_gelu,
}
