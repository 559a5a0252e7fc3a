"""Reductions over axes: `sum mean prod max min all any argmax argmin`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import te
from ..dtype import DType
from ..ir.expr import Expr, cast, const, product, select
from ..relay.nodes import Atom
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import IterVar, Tensor, compute, reduce_axis
from ..types import Dim, TensorType
from .binary import divide, np_trunc_divide
from .common import (
    BOOLS,
    NUMBERS,
    in_working_precision,
    is_half,
    normalize_axis,
    require_dtype,
    sample_array,
    tensors,
)  # fmt: skip
from .onnx_node import OnnxImport, OnnxNode


@dataclass(frozen=True)
class ReduceAttrs(Attrs):
    """Axes to reduce over, all of them non-negative; none of them leaves the array as it is."""

    axis: tuple[int, ...]
    keepdims: bool = False


@dataclass(frozen=True)
class ArgReduceAttrs(Attrs):
    axis: int
    keepdims: bool = False
    select_last: bool = False


def reduced_shape(name: str, x: TensorType, axes: Sequence[int], keepdims: bool) -> tuple[Dim, ...]:
    """The shape of `x` after reducing over `axes`."""
    gone = {normalize_axis(name, a, x.rank) for a in axes}
    if keepdims:
        return tuple(1 if d in gone else dim for d, dim in enumerate(x.shape))
    return tuple(dim for d, dim in enumerate(x.shape) if d not in gone)


def reduce_indices(
    x: Tensor, axes: Sequence[int], keepdims: bool, spatial: Sequence[Expr]
) -> tuple[list[Expr], list[IterVar]]:
    """Indices into `x` for one output element, and the reduction axes in them."""
    gone = {a % x.ndim for a in axes}
    ks = {d: reduce_axis((0, x.shape[d]), name=f"k{d}") for d in sorted(gone)}
    kept = [d for d in range(x.ndim) if d not in gone]
    position = {d: d if keepdims else i for i, d in enumerate(kept)}
    indices = [ks[d].var if d in ks else spatial[position[d]] for d in range(x.ndim)]
    return indices, list(ks.values())


def _compute_reduction(name: str, attrs: ReduceAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
    """Float16 and bfloat16 accumulate in float32; mean divides the sum afterwards."""
    (x,) = inputs
    reducer = getattr(te, "sum" if name == "mean" else name)
    half = is_half(x.dtype.numpy)
    working = DType.FLOAT32 if half and name in ("sum", "mean", "prod") else x.dtype
    if not attrs.axis:
        return [compute(out.shape, lambda *i: x(*i), name=name)]

    def element(*i: Expr) -> Any:
        indices, axes = reduce_indices(x, attrs.axis, attrs.keepdims, i)
        return reducer(x(*indices).astype(working), axis=axes)

    total = compute(out.shape, element, name=name if name != "mean" else "mean_sum")
    if name == "mean":
        count = te_count(x, attrs.axis, working)
        return [compute(out.shape, lambda *i: divide(total(*i), count).astype(x.dtype), name=name)]
    if working is not x.dtype:
        return [compute(out.shape, lambda *i: total(*i).astype(x.dtype), name=f"{name}_cast")]
    return [total]


def te_count(x: Tensor, axes: Sequence[int], dtype: DType) -> Expr:
    """How many elements a reduction over `axes` of `x` combines, as a `dtype` expression."""
    return cast(product([x.shape[a] for a in axes]), dtype)


def _reference(
    function: Callable[..., Any], attrs: ReduceAttrs, arrays: Sequence[np.ndarray]
) -> np.ndarray:
    (x,) = arrays
    if not attrs.axis:
        return x
    reduce = in_working_precision(lambda a: np.asarray(function(a, attrs.axis, attrs.keepdims)))
    return reduce(x).astype(x.dtype)


def _np_mean(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    if DType.of(x.dtype).is_float:
        return np.mean(x, axis=axis, keepdims=keepdims)
    total = np.asarray(np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype))
    count = np.asarray(np.prod([x.shape[a] for a in axis]), x.dtype)
    return np_trunc_divide(total, count)


def _with_dtype(function: Any) -> Callable[..., Any]:
    """NumPy widens small integers when it sums; operators do not."""
    return lambda x, axis, keepdims: function(x, axis=axis, keepdims=keepdims, dtype=x.dtype)


def _plain(function: Any) -> Callable[..., Any]:
    return lambda x, axis, keepdims: function(x, axis=axis, keepdims=keepdims)


def _extreme(name: str) -> Callable[..., Any]:
    """Max and min of nothing are the dtype's limits."""

    def function(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
        dtype = DType.of(x.dtype)
        initial = dtype.min_value if name == "max" else dtype.max_value
        ufunc: Any = np.maximum if name == "max" else np.minimum
        return ufunc.reduce(x, axis=axis, keepdims=keepdims, initial=np.asarray(initial, x.dtype))

    return function


_TABLE = {
    "sum": (_with_dtype(np.sum), NUMBERS),
    "mean": (_np_mean, NUMBERS),
    "prod": (_with_dtype(np.prod), NUMBERS),
    "max": (_extreme("max"), NUMBERS),
    "min": (_extreme("min"), NUMBERS),
    "all": (_plain(np.all), BOOLS),
    "any": (_plain(np.any), BOOLS),
}


def _samples(dtypes: frozenset[DType]) -> Iterable[Sample]:
    for dtype in (d for d in (DType.FLOAT32, DType.INT32, DType.BOOL) if d in dtypes):
        x = sample_array((3, 4, 5), dtype)
        yield Sample((x,), ReduceAttrs((2,), True))
        yield Sample((x,), ReduceAttrs((1,), False))
        yield Sample((x,), ReduceAttrs((0, 2), False))
        yield Sample((x,), ReduceAttrs((0, 1, 2), False))
        yield Sample((x,), ReduceAttrs((), False))


def _reduce_op(name: str) -> Op:
    function, dtypes = _TABLE[name]

    def infer(attrs: ReduceAttrs, types: Any) -> TensorType:
        (x,) = tensors(name, types, 1)
        require_dtype(name, 0, x, dtypes)
        return TensorType(reduced_shape(name, x, attrs.axis, attrs.keepdims), x.dtype)

    return Op(
        name,
        OpPattern.COMM_REDUCE,
        infer,
        partial(_compute_reduction, name),
        partial(_reference, function),
        ReduceAttrs,
        partial(_samples, dtypes),
        stitchable=True,
        doc=f"The {name} over axes.",
    )


def _arg_reducer(largest: bool, select_last: bool) -> Callable[..., Any]:
    """Combines (index, value) pairs; among equal values the first or last index wins."""

    def combine(a: Any, b: Any) -> tuple[Expr, Expr]:
        better = a[1] > b[1] if largest else a[1] < b[1]
        earlier = a[0] > b[0] if select_last else a[0] < b[0]
        keep = better | (a[1].equal(b[1]) & earlier)
        return select(keep, a[0], b[0]), select(keep, a[1], b[1])

    def identity(index: DType, value: DType) -> tuple[Expr, Expr]:
        # Index 0 loses ties or is right in both directions: all values are then the worst one.
        return const(0, index), const(value.min_value if largest else value.max_value, value)

    return te.comm_reducer(combine, identity, name="argmax" if largest else "argmin")


def _arg_op(name: str) -> Op:
    largest = name == "argmax"

    def infer(attrs: ArgReduceAttrs, types: Any) -> TensorType:
        (x,) = tensors(name, types, 1)
        require_dtype(name, 0, x, NUMBERS)
        return TensorType(reduced_shape(name, x, (attrs.axis,), attrs.keepdims), DType.INT64)

    def build(attrs: ArgReduceAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
        (x,) = inputs
        reducer = _arg_reducer(largest, attrs.select_last)

        def element(*i: Expr) -> Any:
            indices, axes = reduce_indices(x, (attrs.axis,), attrs.keepdims, i)
            return reducer((axes[0].var, x(*indices)), axis=axes)

        return [compute(out.shape, element, name=name)[0]]

    def reference(attrs: ArgReduceAttrs, arrays: Any) -> np.ndarray:
        (x,) = arrays
        find = np.argmax if largest else np.argmin
        if attrs.select_last:
            last = x.shape[attrs.axis] - 1
            return np.asarray(
                last - find(np.flip(x, attrs.axis), attrs.axis, keepdims=attrs.keepdims), np.int64
            )
        return np.asarray(find(x, attrs.axis, keepdims=attrs.keepdims), np.int64)

    return Op(
        name, OpPattern.COMM_REDUCE, infer, build, reference, ArgReduceAttrs, _arg_samples,
        doc=f"Index of the {'largest' if largest else 'smallest'} element along an axis.",
    )  # fmt: skip


def _arg_samples() -> Iterable[Sample]:
    x = sample_array((3, 4, 5), DType.INT32)  # integers repeat, which tests ties
    for axis in (0, 1, 2):
        yield Sample((x,), ArgReduceAttrs(axis, True))
        yield Sample((x,), ArgReduceAttrs(axis, False, True))
    yield Sample((sample_array((6, 2)),), ArgReduceAttrs(0))


OPS: tuple[Op, ...] = (*map(_reduce_op, _TABLE), _arg_op("argmax"), _arg_op("argmin"))


def reduction_attrs(node: OnnxNode) -> tuple[tuple[int, ...], bool]:
    """The axes (input 1, counted from the front) and keepdims of an ONNX reduction node."""
    rank = node.type(0).rank
    axes = [int(a) for a in node.const(1, ()).ravel()]
    if not axes and not node.attr("noop_with_empty_axes", 0):
        axes = list(range(rank))
    axis = tuple(sorted(normalize_axis(node.op_type, a, rank) for a in axes))
    return axis, bool(node.attr("keepdims", 1))


def _reduce(
    name: str, before: Callable[[OnnxNode, Atom], Atom] | None = None, after: str = ""
) -> OnnxImport:
    """A reduction with an elementwise map before it and a unary operator after it."""

    def importer(node: OnnxNode) -> Atom:
        axis, keepdims = reduction_attrs(node)
        x = node.input(0) if before is None else before(node, node.input(0))
        boolean = node.type(0).dtype is DType.BOOL
        total = node.builder.call(
            {"max": "any", "min": "all"}[name] if boolean else name, x, axis=axis, keepdims=keepdims
        )
        return node.builder.call(after, total) if after else total

    return importer


def _square(node: OnnxNode, x: Atom) -> Atom:
    return node.builder.call("multiply", x, x)


def _import_log_sum_exp(node: OnnxNode) -> Atom:
    """log(sum(exp(x - m))) + m with m = max(x), or 0 where that is infinite."""
    axis, keepdims = reduction_attrs(node)
    x, b = node.input(0), node.builder
    if not axis:
        return x
    top = b.call("max", x, axis=axis, keepdims=True)
    finite = b.call("where", b.call("isinf", top), b.const(0, node.type(0).dtype), top)
    total = b.call("sum", b.call("exp", b.call("subtract", x, finite)), axis=axis, keepdims=True)
    result = b.call("add", b.call("log", total), finite)
    if keepdims:
        return result
    shape = reduced_shape(node.op_type, node.type(0), axis, False)
    return b.call("reshape", result, newshape=shape)


def _arg(name: str) -> OnnxImport:
    def importer(node: OnnxNode) -> Atom:
        return node.builder.call(
            name, node.input(0),
            axis=normalize_axis(node.op_type, node.attr("axis", 0), node.type(0).rank),
            keepdims=bool(node.attr("keepdims", 1)),
            select_last=bool(node.attr("select_last_index", 0)),
        )  # fmt: skip

    return importer


ONNX: dict[str, OnnxImport] = {
    "ReduceSum": _reduce("sum"),
    "ReduceMean": _reduce("mean"),
    "ReduceProd": _reduce("prod"),
    "ReduceMax": _reduce("max"),
    "ReduceMin": _reduce("min"),
    "ReduceL1": _reduce("sum", lambda node, x: node.builder.call("abs", x)),
    "ReduceL2": _reduce("sum", _square, "sqrt"),
    "ReduceSumSquare": _reduce("sum", _square),
    "ReduceLogSum": _reduce("sum", None, "log"),
    "ReduceLogSumExp": _import_log_sum_exp,
    "ArgMax": _arg("argmax"),
    "ArgMin": _arg("argmin"),
}
