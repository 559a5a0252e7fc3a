"""ONNX importers of losses of classification, composed of gathers and sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtype import DType
from ..relay.nodes import Atom
from .layout import reshape
from .onnx_node import OnnxImport, OnnxNode
from .unary import cast_to


def negative_log_likelihood(node: OnnxNode, log_probability: Atom) -> Atom:
    """The loss of [n, classes, ...] for the classes of input 1 [n, ...], weighted by input 2."""
    call, const = node.builder.call, node.builder.const
    type_: Any = log_probability.type
    shape, dtype = type_.static_shape, type_.dtype
    labels = node.type(1)
    node.expect(
        len(shape) >= 2 and labels.shape == (shape[0], *shape[2:]), f"{labels} does not fit {type_}"
    )
    target = cast_to(node, node.input(1), DType.INT64)
    ignored = None
    if node.attr("ignore_index") is not None:
        label = const(np.asarray(node.attr("ignore_index"), np.int64))
        ignored = call("equal", target, label)
        target = call("where", ignored, const(np.asarray(0, np.int64)), target)
    places = reshape(node, target, (shape[0], 1, *shape[2:]))
    chosen = reshape(node, call("gather", log_probability, places, axis=1), labels.shape)
    weight = _weights(node, target, ignored, dtype)
    loss = call("negative", chosen)
    if weight is not None:
        loss = call("multiply", loss, weight)
    return _reduced(node, loss, weight)


def _weights(node: OnnxNode, target: Atom, ignored: Atom | None, dtype: DType) -> Atom | None:
    """How much each label counts; None where all count 1."""
    call = node.builder.call
    if not node.has(2) and ignored is None:
        return None
    one, zero = (node.builder.const(v, dtype) for v in (1.0, 0.0))
    weight = call("take", node.input(2), target, axis=0) if node.has(2) else one
    return weight if ignored is None else call("where", ignored, zero, weight)


def _reduced(node: OnnxNode, loss: Atom, weight: Atom | None) -> Atom:
    call = node.builder.call
    reduction = node.choice("reduction", "mean", ("none", "sum", "mean"))
    axes = tuple(range(node.type(1).rank))
    if reduction == "none":
        return loss
    if reduction == "mean" and weight is None:
        return call("mean", loss, axis=axes, keepdims=False)
    total = call("sum", loss, axis=axes, keepdims=False)
    if reduction == "sum":
        return total
    assert weight is not None
    return call("divide", total, call("sum", weight, axis=axes, keepdims=False))


def _import_nll_loss(node: OnnxNode) -> Atom:
    return negative_log_likelihood(node, node.input(0))


def _import_softmax_cross_entropy(node: OnnxNode) -> list[Atom]:
    log_probability = node.builder.call("nn.log_softmax", node.input(0), axis=1)
    loss = negative_log_likelihood(node, log_probability)
    return [loss, log_probability][: node.num_outputs]


ONNX: dict[str, OnnxImport] = {
    "NegativeLogLikelihoodLoss": _import_nll_loss,
    "SoftmaxCrossEntropyLoss": _import_softmax_cross_entropy,
}
