"""Softmax and log-softmax, and ONNX Softmax, LogSoftmax, Hardmax."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import te
from ..relay.nodes import Atom
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor
from ..types import TensorType, Type
from .onnx_node import OnnxImport, OnnxNode
from .window import accumulation_dtype, expect, tensor_arg, widen


@dataclass(frozen=True)
class SoftmaxAttrs(Attrs):
    axis: int = -1


def _infer(attrs: SoftmaxAttrs, types: Sequence[Type]) -> TensorType:
    x = tensor_arg(types, 0, "softmax")
    expect(-x.rank <= attrs.axis < x.rank, f"softmax: axis {attrs.axis} is outside {x}")
    expect(x.dtype.is_float, f"softmax: needs floating-point elements, found {x}")
    return x


def _reduce_stage(x: Tensor, axis: int, reducer: Any, name: str) -> Tensor:
    """`reducer` of `x` over `axis`, which disappears."""
    acc = accumulation_dtype(x.dtype)
    k = te.reduce_axis((0, x.shape[axis]), name="k")
    shape = [d for a, d in enumerate(x.shape) if a != axis]

    def body(*index: Any) -> Any:
        return reducer(x(*index[:axis], k, *index[axis:]).astype(acc), axis=k)

    return te.compute(shape, body, name=name, tag=name, attrs={"axis": axis})


def _without(index: Sequence[Any], axis: int) -> list[Any]:
    return [i for a, i in enumerate(index) if a != axis]


def _compute(attrs: SoftmaxAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    (x,) = args
    axis, acc = attrs.axis % x.ndim, accumulation_dtype(x.dtype)
    peak = _reduce_stage(x, axis, te.max, "softmax_max")
    exps = te.compute(
        x.shape,
        lambda *i: te.call("exp", x(*i).astype(acc) - peak(*_without(i, axis))),
        name="softmax_exp",
        tag="softmax_exp",
        attrs={"axis": axis},
    )
    total = _reduce_stage(exps, axis, te.sum, "softmax_sum")
    result = te.compute(
        x.shape,
        lambda *i: (exps(*i) / total(*_without(i, axis))).astype(out.dtype),
        name="softmax",
        tag="softmax",
        attrs={"axis": axis},
    )
    return [result]


def _compute_log(attrs: SoftmaxAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    (x,) = args
    axis, acc = attrs.axis % x.ndim, accumulation_dtype(x.dtype)
    peak = _reduce_stage(x, axis, te.max, "softmax_max")
    shifted = lambda i: x(*i).astype(acc) - peak(*_without(i, axis))  # noqa: E731
    exps = te.compute(
        x.shape,
        lambda *i: te.call("exp", shifted(i)),
        name="softmax_exp",
        tag="softmax_exp",
        attrs={"axis": axis},
    )
    total = _reduce_stage(exps, axis, te.sum, "softmax_sum")
    result = te.compute(
        x.shape,
        lambda *i: (shifted(i) - te.call("log", total(*_without(i, axis)))).astype(out.dtype),
        name="log_softmax",
        tag="log_softmax",
        attrs={"axis": axis},
    )
    return [result]


def _reference(attrs: SoftmaxAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    x = widen(arrays[0])
    exps = np.exp(x - x.max(axis=attrs.axis, keepdims=True))
    return (exps / exps.sum(axis=attrs.axis, keepdims=True)).astype(arrays[0].dtype, copy=False)


def _reference_log(attrs: SoftmaxAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    x = widen(arrays[0])
    shifted = x - x.max(axis=attrs.axis, keepdims=True)
    total = np.exp(shifted).sum(axis=attrs.axis, keepdims=True)
    return (shifted - np.log(total)).astype(arrays[0].dtype, copy=False)


def _samples() -> Iterable[Sample]:
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32) * 4
    for axis in (-1, 1, 0):
        yield Sample((x,), SoftmaxAttrs(axis))
    yield Sample((x.astype(np.float16),), SoftmaxAttrs(-1), rtol=2e-3, atol=1e-3)


OPS: tuple[Op, ...] = (
    Op(
        "nn.softmax",
        OpPattern.OPAQUE,
        _infer,
        _compute,
        _reference,
        SoftmaxAttrs,
        _samples,
        stitchable=True,
        doc="exp(x) / sum(exp(x)) along one axis. ONNX Softmax.",
    ),
    Op(
        "nn.log_softmax",
        OpPattern.OPAQUE,
        _infer,
        _compute_log,
        _reference_log,
        SoftmaxAttrs,
        _samples,
        stitchable=True,
        doc="log(softmax(x)) along one axis. ONNX LogSoftmax.",
    ),
)


def _import(op: str) -> OnnxImport:
    def convert(node: OnnxNode) -> Atom:
        axis = node.axis(-1) if node.type(0).rank else 0
        return node.builder.call(op, node.input(0), axis=axis)

    return convert


def _import_hardmax(node: OnnxNode) -> Atom:
    x, type_ = node.input(0), node.type(0)
    axis = node.axis(-1)
    size = type_.shape[axis]
    if not isinstance(size, int):
        raise node.unsupported("a symbolic axis", "fix the input shapes")
    call = node.builder.call
    best = call("argmax", x, axis=axis, keepdims=True, select_last=False)
    positions = np.arange(size).reshape([size if a == axis else 1 for a in range(type_.rank)])
    return call("cast", call("equal", best, node.builder.const(positions)), dtype=type_.dtype)


ONNX: dict[str, OnnxImport] = {
    "Softmax": _import("nn.softmax"),
    "LogSoftmax": _import("nn.log_softmax"),
    "Hardmax": _import_hardmax,
}
