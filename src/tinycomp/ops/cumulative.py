"""Running sums and products along an axis: `cumsum cumprod`.

The tensor expression says what each element is, on its own; schedules compute them in one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import te
from ..dtype import DType
from ..ir.expr import Expr
from ..relay.nodes import Atom
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor, compute, reduce_axis
from ..types import TensorType
from .common import NUMBERS, normalize_axis, require_dtype, sample_array, tensors
from .onnx_node import OnnxImport, OnnxNode
from .window import accumulation_dtype, stored, widen


@dataclass(frozen=True)
class CumulativeAttrs(Attrs):
    """`exclusive`: up to an element, without it; `reverse`: from the end."""

    axis: int
    exclusive: bool = False
    reverse: bool = False


def _infer(op: str) -> Callable[[CumulativeAttrs, Any], TensorType]:
    def infer(attrs: CumulativeAttrs, types: Any) -> TensorType:
        (x,) = tensors(op, types, 1)
        require_dtype(op, 0, x, NUMBERS)
        normalize_axis(op, attrs.axis, x.rank)
        return x

    return infer


def _compute(op: str, reducer: Callable[..., Any]) -> Callable[..., list[Tensor]]:
    def expand(attrs: CumulativeAttrs, inputs: Any, out: TensorType) -> list[Tensor]:
        (x,) = inputs
        axis, acc = attrs.axis % x.ndim, accumulation_dtype(out.dtype)

        def element(*i: Expr) -> Expr:
            k = reduce_axis((0, x.shape[axis]), name="k")
            low, high = (i[axis], k.var) if attrs.reverse else (k.var, i[axis])
            where = low < high if attrs.exclusive else low <= high
            value = x(*i[:axis], k.var, *i[axis + 1 :]).astype(acc)
            return reducer(value, axis=k, where=where)

        return [stored(compute(out.shape, element, name=op), out.dtype)]

    return expand


def _reference(ufunc: np.ufunc) -> Callable[[CumulativeAttrs, Any], np.ndarray]:
    def reference(attrs: CumulativeAttrs, arrays: Any) -> np.ndarray:
        (x,) = arrays
        wide = widen(np.flip(x, attrs.axis) if attrs.reverse else x)
        total = ufunc.accumulate(wide, attrs.axis, dtype=wide.dtype)
        if attrs.exclusive:
            total = np.roll(total, 1, attrs.axis)
            np.moveaxis(total, attrs.axis, 0)[:1] = ufunc.identity
        total = np.flip(total, attrs.axis) if attrs.reverse else total
        return np.ascontiguousarray(total.astype(x.dtype))

    return reference


def _samples() -> tuple[Sample, ...]:
    return (
        Sample((sample_array((3, 5)),), CumulativeAttrs(1)),
        Sample((sample_array((3, 5)),), CumulativeAttrs(0, True)),
        Sample((sample_array((6,), DType.INT64),), CumulativeAttrs(0, True, True)),
        Sample((sample_array((2, 3, 4)),), CumulativeAttrs(1, False, True)),
    )


def _op(name: str, reducer: Callable[..., Any], ufunc: np.ufunc, doc: str) -> Op:
    compute, reference = _compute(name, reducer), _reference(ufunc)
    return Op(
        name, OpPattern.OPAQUE, _infer(name), compute, reference, CumulativeAttrs, _samples, doc=doc
    )


CUMSUM = _op("cumsum", te.sum, np.add, "Running sums along an axis (ONNX CumSum).")
CUMPROD = _op("cumprod", te.prod, np.multiply, "Running products along an axis (ONNX CumProd).")

OPS: tuple[Op, ...] = (CUMSUM, CUMPROD)


def _importer(op: str) -> OnnxImport:
    def importer(node: OnnxNode) -> Atom:
        axis = normalize_axis(node.op_type, int(node.scalar(1)), node.type(0).rank)
        exclusive, reverse = bool(node.attr("exclusive", 0)), bool(node.attr("reverse", 0))
        return node.builder.call(op, node.input(0), axis=axis, exclusive=exclusive, reverse=reverse)

    return importer


ONNX: dict[str, OnnxImport] = {"CumSum": _importer("cumsum"), "CumProd": _importer("cumprod")}
