"""Writing at computed places: `scatter_elements`, `scatter_nd`.

In tensor expressions every output element looks for the updates that hit it, and the last one wins
where several do; schedules go over the updates instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import te
from ..diagnostics import TypeMismatch
from ..dtype import DType
from ..ir.expr import BinaryOp, Expr, all_of, binary, const, if_then_else
from ..relay.nodes import Atom
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import IterVar, Tensor, compute, reduce_axis
from ..types import TensorType
from .common import INTS, normalize_axis, require_dtype, require_same_dtype, sample_array, tensors
from .index import check_constant, checked, np_checked
from .onnx_node import OnnxImport, OnnxNode
from .shape import ravel, unravel

REDUCTIONS = ("none", "add", "mul", "min", "max")


@dataclass(frozen=True)
class ScatterElementsAttrs(Attrs):
    axis: int
    reduction: str = "none"


@dataclass(frozen=True)
class ScatterNdAttrs(Attrs):
    reduction: str = "none"


def _check(op: str, types: Any, reduction: str) -> list[TensorType]:
    x, indices, updates = tensors(op, types, 3)
    require_dtype(op, 1, indices, INTS)
    require_same_dtype(op, (x, updates))
    if reduction not in REDUCTIONS:
        raise TypeMismatch(f"{op}: reduction {reduction!r} is none of {', '.join(REDUCTIONS)}")
    return [x, indices, updates]


def _combine(
    reduction: str,
    x: Tensor,
    axes: Callable[[], Sequence[IterVar]],
    hit: Callable[..., Expr],
    update: Callable[..., Expr],
    count: Sequence[Any],
) -> Tensor:
    """`x` with updates. `hit(i, ks)` tells whether update `ks` goes to element `i`."""  # fmt: skip
    if reduction == "none":

        def last(*i: Expr) -> Any:
            ks = axes()
            number = ravel([k.var for k in ks], count) + 1
            return te.max(number, axis=list(ks), where=hit(i, ks))

        winner = compute(x.shape, last, name="scatter_winner")

        def chosen(*i: Expr) -> Expr:
            ks = unravel(binary(BinaryOp.MAX, winner(*i), 1) - 1, count)
            return if_then_else(winner(*i) > 0, update(i, ks), x(*i))

        return compute(x.shape, chosen, name="scatter")
    name, op = {
        "add": ("sum", BinaryOp.ADD),
        "mul": ("prod", BinaryOp.MUL),
        "min": ("min", BinaryOp.MIN),
        "max": ("max", BinaryOp.MAX),
    }[reduction]

    def total(*i: Expr) -> Any:
        ks = axes()
        return getattr(te, name)(update(i, [k.var for k in ks]), axis=list(ks), where=hit(i, ks))

    totals = compute(x.shape, total, name="scatter_total")
    return compute(x.shape, lambda *i: binary(op, x(*i), totals(*i)), name="scatter")


def _np_write(
    reduction: str, x: np.ndarray, where: tuple[Any, ...], updates: np.ndarray
) -> np.ndarray:
    result = x.copy()
    if reduction == "none":
        result[where] = updates
    else:
        ufunc: Any = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}
        ufunc[reduction].at(result, where, updates)
    return result


def _infer_scatter_elements(attrs: ScatterElementsAttrs, types: Any) -> TensorType:
    x, indices, updates = _check("scatter_elements", types, attrs.reduction)
    normalize_axis("scatter_elements", attrs.axis, x.rank)
    if indices.shape != updates.shape or indices.rank != x.rank:
        raise TypeMismatch(
            f"scatter_elements: {indices} and {updates} must have one shape of {x}'s rank"
        )
    return x


def _compute_scatter_elements(
    attrs: ScatterElementsAttrs, inputs: Any, out: TensorType
) -> list[Tensor]:
    """Only updates on the element's own line along the axis can hit it."""
    x, indices, updates = inputs
    axis = attrs.axis % x.ndim
    others = [d for d in range(x.ndim) if d != axis]

    def axes() -> list[IterVar]:
        return [reduce_axis((0, indices.shape[axis]), name="k")]

    def place(i: Any, k: Any) -> Any:
        # Clamped, since updates may be smaller than x; `hit` is false where that matters.
        at = [
            i[d] if extent is x.shape[d] else binary(BinaryOp.MIN, i[d], extent - 1)
            for d, extent in enumerate(indices.shape)
        ]
        at[axis] = k[0].var if isinstance(k[0], IterVar) else k[0]
        return at

    def hit(i: Any, ks: Any) -> Expr:
        inside = [i[d] < indices.shape[d] for d in others if x.shape[d] is not indices.shape[d]]
        return all_of([*inside, checked(indices(*place(i, ks)), x.shape[axis]).equal(i[axis])])

    def update(i: Any, ks: Any) -> Expr:
        return updates(*place(i, ks))

    return [_combine(attrs.reduction, x, axes, hit, update, [indices.shape[axis]])]


def _np_scatter_elements(attrs: ScatterElementsAttrs, arrays: Any) -> np.ndarray:
    x, indices, updates = arrays
    where = list(np.indices(indices.shape, sparse=True))
    where[attrs.axis % x.ndim] = np_checked(indices, x.shape[attrs.axis], "scatter_elements")
    return _np_write(attrs.reduction, x, tuple(where), updates)


SCATTER_ELEMENTS = Op(
    "scatter_elements",
    OpPattern.OPAQUE,
    _infer_scatter_elements,
    _compute_scatter_elements,
    _np_scatter_elements,
    ScatterElementsAttrs,
    lambda: tuple(
        Sample(
            (
                sample_array((4, 3)),
                np.array([[0, -1], [2, 2], [0, 1]]),
                sample_array((3, 2), seed=1),
            ),
            ScatterElementsAttrs(axis, reduction),
        )
        for axis, reduction in ((0, "none"), (1, "none"), (0, "add"), (0, "mul"), (1, "max"))
    ),
    doc="(data, indices, updates): data with one element replaced per index (ScatterElements).",
)


def _infer_scatter_nd(attrs: ScatterNdAttrs, types: Any) -> TensorType:
    x, indices, updates = _check("scatter_nd", types, attrs.reduction)
    depth = indices.shape[-1] if indices.rank else 0
    if not isinstance(depth, int) or not 0 < depth <= x.rank:
        raise TypeMismatch(f"scatter_nd: indices {indices} do not fit {x}")
    if updates.shape != (*indices.shape[:-1], *x.shape[depth:]):
        raise TypeMismatch(f"scatter_nd: updates {updates} do not fit {x} and indices {indices}")
    return x


def _compute_scatter_nd(attrs: ScatterNdAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    x, indices, updates = inputs
    depth = x.ndim - (updates.ndim - (indices.ndim - 1))
    outer = indices.shape[:-1]

    def axes() -> list[IterVar]:
        return [reduce_axis((0, n), name=f"k{d}") for d, n in enumerate(outer)] or [
            reduce_axis((0, 1), name="k")
        ]

    def values(ks: Any) -> list[Any]:
        return [k.var if isinstance(k, IterVar) else k for k in ks][: len(outer)]

    def hit(i: Any, ks: Any) -> Expr:
        at = values(ks)
        return all_of(checked(indices(*at, const(d)), x.shape[d]).equal(i[d]) for d in range(depth))

    def update(i: Any, ks: Any) -> Expr:
        return updates(*values(ks), *i[depth:])

    return [_combine(attrs.reduction, x, axes, hit, update, outer or [const(1)])]


def _np_scatter_nd(attrs: ScatterNdAttrs, arrays: Any) -> np.ndarray:
    x, indices, updates = arrays
    where = tuple(
        np_checked(indices[..., d], x.shape[d], "scatter_nd") for d in range(indices.shape[-1])
    )
    return _np_write(attrs.reduction, x, where, updates)


_X = sample_array((4, 3))
SCATTER_ND = Op(
    "scatter_nd",
    OpPattern.OPAQUE,
    _infer_scatter_nd,
    _compute_scatter_nd,
    _np_scatter_nd,
    ScatterNdAttrs,
    lambda: (
        Sample((_X, np.array([[1], [-1], [1]]), sample_array((3, 3), seed=1)), ScatterNdAttrs()),
        Sample((_X, np.array([[1, 2], [0, 0]]), sample_array((2,), seed=1)), ScatterNdAttrs("add")),
        Sample((_X, np.array([2]), sample_array((3,), seed=1)), ScatterNdAttrs("max")),
    ),
    doc="(data, indices, updates): data with slices replaced (ONNX ScatterND).",
)

OPS: tuple[Op, ...] = (SCATTER_ELEMENTS, SCATTER_ND)


def _import_scatter_elements(node: OnnxNode) -> Atom:
    axis = normalize_axis("ScatterElements", node.attr("axis", 0), node.type(0).rank)
    check_constant(node, 1, [node.type(0).shape[axis]])
    return node.builder.call(
        "scatter_elements", *(node.input(i) for i in range(3)),
        axis=axis, reduction=node.attr("reduction", "none"),
    )  # fmt: skip


def _import_scatter_nd(node: OnnxNode) -> Atom:
    reduction = node.attr("reduction", "none")
    width = node.type(1).shape[-1:]
    if width and isinstance(width[0], int):
        check_constant(node, 1, node.type(0).shape[: width[0]])
    return node.builder.call("scatter_nd", *(node.input(i) for i in range(3)), reduction=reduction)


def _import_tensor_scatter(node: OnnxNode) -> Atom:
    """A cache with updates along an axis, from a place on that each batch has (0 if not given);
    mode circular goes on at the beginning."""
    past, update, call = node.type(0), node.type(1), node.builder.call
    axis = node.axis(-2)
    node.expect(axis > 0, f"axis {axis} is that of the batches")
    node.expect(update.rank == past.rank, f"the update {update} does not fit {past}")
    size, count = past.static_shape[axis], update.static_shape[axis]
    steps = [count if d == axis else 1 for d in range(past.rank)]
    places: Atom = node.builder.const(np.arange(count, dtype=np.int64).reshape(steps))
    if node.has(2):
        starts = call("cast", node.input(2), dtype=DType.INT64)
        first = call("reshape", starts, newshape=(past.shape[0], *[1] * (past.rank - 1)))
        places = call("add", first, places)
    if node.choice("mode", "linear", ("linear", "circular")) == "circular":
        places = call("mod", places, node.builder.const(np.asarray(size, np.int64)))
    indices = call("broadcast_to", places, shape=update.static_shape)
    return call("scatter_elements", node.input(0), indices, node.input(1), axis=axis)


ONNX: dict[str, OnnxImport] = {
    "TensorScatter": _import_tensor_scatter,
    "ScatterElements": _import_scatter_elements,
    "ScatterND": _import_scatter_nd,
}
