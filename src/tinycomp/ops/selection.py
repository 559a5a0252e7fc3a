"""ONNX importers of operators whose results have a size that depends on data.

Code is for fixed sizes, so that data must be known while compiling: masks and lists that a model
carries with it. What is not is refused.
"""

from __future__ import annotations

import numpy as np

from ..diagnostics import UnsupportedModel
from ..relay.nodes import Atom, Constant
from .onnx_node import OnnxImport, OnnxNode


def _known(node: OnnxNode, index: int) -> np.ndarray:
    """An input on whose values the size of the result depends.

    Raises:
        UnsupportedModel: it depends on data.
    """
    atom = node.input(index)
    if isinstance(atom, Constant):
        return atom.data
    name = node.input_names[index] if index < len(node.input_names) else f"#{index}"
    raise UnsupportedModel(
        f"{node.op_type}: the size of the result depends on the input {name!r}, which must be "
        "known while compiling, but depends on data",
        span=node.span,
        hint="end the model before this node and do the rest outside; or take a result of fixed "
        "size, such as TopK's, or Where with a mask",
    )


def _import_non_zero(node: OnnxNode) -> Atom:
    return node.builder.const(np.array(np.nonzero(_known(node, 0)), np.int64))


def _import_compress(node: OnnxNode) -> Atom:
    """The slices, or elements, at which the condition holds."""
    places = np.flatnonzero(_known(node, 1))
    x, axis, size = node.input(0), 0, node.type(0).size
    if node.attr("axis") is None:
        x = node.builder.call("reshape", x, newshape=(size,))
    else:
        axis = node.axis(0)
        size = node.type(0).shape[axis]
    fits = isinstance(size, int) and (not places.size or places[-1] < size)
    node.expect(fits, f"the condition is longer than the {size} elements of the axis")
    return node.builder.call("take", x, node.builder.const(places.astype(np.int64)), axis=axis)


def _import_unique(node: OnnxNode) -> list[Atom]:
    """Different elements, or slices, in order or as they come first; where they came first, which
    one each was, and how often."""
    x = _known(node, 0)
    axis = None if node.attr("axis") is None else node.axis(0)
    values, first, which, counts = np.unique(x, True, True, True, axis=axis)
    if not node.attr("sorted", 1):
        order = np.argsort(first)
        values, first, counts = np.take(values, order, axis or 0), first[order], counts[order]
        which = np.argsort(order)[which]
    results = (values, first, which.reshape(-1), counts)
    own = (results[0], *(r.astype(np.int64) for r in results[1:]))
    return [node.builder.const(np.ascontiguousarray(r)) for r in own[: node.num_outputs]]


def _import_non_max_suppression(node: OnnxNode) -> list[Atom]:
    raise UnsupportedModel(
        "NonMaxSuppression: how many boxes are selected depends on data, and results of tinycomp "
        "have fixed sizes",
        span=node.span,
        hint="export the model without it and select the boxes outside",
    )


ONNX: dict[str, OnnxImport] = {
    "NonZero": _import_non_zero,
    "Compress": _import_compress,
    "Unique": _import_unique,
    "NonMaxSuppression": _import_non_max_suppression,
}
