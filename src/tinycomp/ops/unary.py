"""Elementwise operators of one argument, `cast` and `clip`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..diagnostics import TypeMismatch
from ..dtype import DType
from ..ir.expr import BinaryOp, Expr, binary, call, cast, const, select
from ..relay.nodes import Atom, Constant
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.evaluate_expr import cast as evaluate_cast
from ..te.tensor import compute
from ..types import TensorType
from .common import (
    ANY,
    BOOLS,
    FLOATS,
    INTS,
    NUMBERS,
    in_working_precision,
    require_dtype,
    sample_array,
    tensors,
)  # fmt: skip
from .onnx_node import OnnxImport, OnnxNode


@dataclass(frozen=True)
class CastAttrs(Attrs):
    dtype: DType

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", DType(self.dtype))  # may be given as text


@dataclass(frozen=True)
class ClipAttrs(Attrs):
    """Bounds; None leaves that side open."""

    a_min: float | int | None = None
    a_max: float | int | None = None


@dataclass(frozen=True)
class LeakyReluAttrs(Attrs):
    alpha: float = 0.01


@dataclass(frozen=True)
class IsInfAttrs(Attrs):
    detect_negative: bool = True
    detect_positive: bool = True


@dataclass(frozen=True)
class Unary:
    """A row of the table: the operator's element in NumPy and in te, and the dtypes it takes."""

    name: str
    numpy: Callable[[np.ndarray], np.ndarray]
    element: Callable[[Expr], Expr]
    dtypes: frozenset[DType]
    low: float = -4.0  # the samples' range: inside the function's domain
    high: float = 4.0
    to_bool: bool = False


def _intrinsic(name: str) -> Callable[[Expr], Expr]:
    return lambda x: call(name, x)


def _absolute(x: Expr) -> Expr:
    if x.dtype.is_float:
        return call("abs", x)
    return x if x.dtype.is_unsigned else select(x < 0, -x, x)


def _sign(x: Expr) -> Expr:
    if x.dtype.is_float:
        return call("sign", x)
    zero, one = const(0, x.dtype), const(1, x.dtype)
    below = zero if x.dtype.is_unsigned else select(x < 0, const(-1, x.dtype), zero)
    return select(x > 0, one, below)


def _relu(x: Expr) -> Expr:
    return binary(BinaryOp.MAX, x, 0)


def _np_sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-x))).astype(x.dtype)


def _np_erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[x.dtype])(x) if x.size else x


def _np_sign(x: np.ndarray) -> np.ndarray:
    return np.sign(x)


UNARY = (
    Unary("negative", np.negative, lambda x: -x, NUMBERS),
    Unary("abs", np.abs, _absolute, NUMBERS),
    Unary("sign", _np_sign, _sign, NUMBERS),
    Unary("nn.relu", lambda x: np.maximum(x, np.zeros((), x.dtype)), _relu, NUMBERS),
    Unary("copy", np.copy, lambda x: x, ANY),
    Unary("logical_not", np.logical_not, lambda x: ~x, BOOLS),
    Unary("bitwise_not", np.invert, lambda x: ~x, INTS),
    Unary("exp", np.exp, _intrinsic("exp"), FLOATS),
    Unary("exp2", np.exp2, _intrinsic("exp2"), FLOATS),
    Unary("expm1", np.expm1, _intrinsic("expm1"), FLOATS),
    Unary("log", np.log, _intrinsic("log"), FLOATS, 0.1),
    Unary("log2", np.log2, _intrinsic("log2"), FLOATS, 0.1),
    Unary("log1p", np.log1p, _intrinsic("log1p"), FLOATS, -0.9),
    Unary("sqrt", np.sqrt, _intrinsic("sqrt"), FLOATS, 0.0),
    Unary("rsqrt", lambda x: 1 / np.sqrt(x), _intrinsic("rsqrt"), FLOATS, 0.1),
    Unary("erf", _np_erf, _intrinsic("erf"), FLOATS),
    Unary("sigmoid", _np_sigmoid, _intrinsic("sigmoid"), FLOATS),
    Unary("tanh", np.tanh, _intrinsic("tanh"), FLOATS),
    Unary("sin", np.sin, _intrinsic("sin"), FLOATS),
    Unary("cos", np.cos, _intrinsic("cos"), FLOATS),
    Unary("tan", np.tan, _intrinsic("tan"), FLOATS, -1.5, 1.5),
    Unary("asin", np.arcsin, _intrinsic("asin"), FLOATS, -1, 1),
    Unary("acos", np.arccos, _intrinsic("acos"), FLOATS, -1, 1),
    Unary("atan", np.arctan, _intrinsic("atan"), FLOATS),
    Unary("sinh", np.sinh, _intrinsic("sinh"), FLOATS),
    Unary("cosh", np.cosh, _intrinsic("cosh"), FLOATS),
    Unary("asinh", np.arcsinh, _intrinsic("asinh"), FLOATS),
    Unary("acosh", np.arccosh, _intrinsic("acosh"), FLOATS, 1.0),
    Unary("atanh", np.arctanh, _intrinsic("atanh"), FLOATS, -0.9, 0.9),
    Unary("floor", np.floor, _intrinsic("floor"), FLOATS),
    Unary("ceil", np.ceil, _intrinsic("ceil"), FLOATS),
    Unary("trunc", np.trunc, _intrinsic("trunc"), FLOATS),
    Unary("round", np.rint, _intrinsic("nearbyint"), FLOATS),  # halves to even, as ONNX
    Unary("reciprocal", lambda x: 1 / x, lambda x: const(1, x.dtype) / x, FLOATS, 0.1),
    Unary("isnan", np.isnan, _intrinsic("isnan"), FLOATS, to_bool=True),
)


def _samples(row: Unary) -> Iterable[Sample]:
    for dtype in (DType.FLOAT32, DType.INT32, DType.UINT8, DType.BOOL):
        if dtype in row.dtypes:
            yield Sample((sample_array((3, 5), dtype, low=row.low, high=row.high),))
    if row.dtypes & FLOATS:
        yield Sample((sample_array((), low=row.low, high=row.high),))
        yield Sample((sample_array((7,), DType.FLOAT64, low=row.low, high=row.high),))


def _unary_op(row: Unary) -> Op:
    def infer(attrs: Attrs, types: Any) -> TensorType:
        (x,) = tensors(row.name, types, 1)
        require_dtype(row.name, 0, x, row.dtypes)
        return TensorType(x.shape, DType.BOOL) if row.to_bool else x

    reference = in_working_precision(row.numpy)
    return Op(
        row.name,
        OpPattern.ELEMWISE,
        infer,
        _elementwise(row.name, lambda attrs, x: row.element(x)),
        lambda attrs, arrays: reference(*arrays),
        samples=partial(_samples, row),
        stitchable=True,
        doc=f"Elementwise {row.name}.",
    )


def _elementwise(name: str, element: Callable[[Any, Expr], Expr]) -> Callable[..., Any]:
    def build(attrs: Any, inputs: Any, out: TensorType) -> list[Any]:
        (x,) = inputs
        return [compute(out.shape, lambda *i: element(attrs, x(*i)), name=name)]

    return build


def _attr_unary(
    name: str,
    attrs_type: type[Attrs],
    element: Callable[[Any, Expr], Expr],
    reference: Callable[[Any, np.ndarray], np.ndarray],
    result: Callable[[Any, TensorType], TensorType],
    dtypes: frozenset[DType],
    samples: Callable[[], Iterable[Sample]],
    doc: str,
) -> Op:
    """An elementwise operator with attributes."""

    def infer(attrs: Any, types: Any) -> TensorType:
        (x,) = tensors(name, types, 1)
        require_dtype(name, 0, x, dtypes)
        return result(attrs, x)

    return Op(
        name, OpPattern.ELEMWISE, infer, _elementwise(name, element),
        lambda attrs, arrays: in_working_precision(partial(reference, attrs))(*arrays),
        attrs_type, samples, stitchable=True, doc=doc,
    )  # fmt: skip


def _np_cast(attrs: CastAttrs, x: np.ndarray) -> np.ndarray:
    return np.asarray(evaluate_cast(x, attrs.dtype))


def _cast_samples() -> Iterable[Sample]:
    x = sample_array((4, 6), high=5)
    for dtype in (DType.INT32, DType.INT64, DType.UINT8, DType.BOOL, DType.FLOAT64, DType.FLOAT16):
        yield Sample((np.abs(x) if dtype.is_unsigned else x,), CastAttrs(dtype))
    yield Sample((sample_array((5,), DType.INT64, low=-300, high=300),), CastAttrs(DType.INT8))
    yield Sample((sample_array((5,), DType.BOOL),), CastAttrs(DType.FLOAT32))


def _clip(attrs: ClipAttrs, x: Expr) -> Expr:
    if attrs.a_min is not None:
        x = binary(BinaryOp.MAX, x, const(attrs.a_min, x.dtype))
    return x if attrs.a_max is None else binary(BinaryOp.MIN, x, const(attrs.a_max, x.dtype))


def _np_clip(attrs: ClipAttrs, x: np.ndarray) -> np.ndarray:
    if attrs.a_min is not None:
        x = np.maximum(x, np.asarray(attrs.a_min, x.dtype))
    return x if attrs.a_max is None else np.minimum(x, np.asarray(attrs.a_max, x.dtype))


def _isinf(attrs: IsInfAttrs, x: Expr) -> Expr:
    infinity = const(float("inf"), x.dtype)
    below = x.equal(const(-float("inf"), x.dtype)) & attrs.detect_negative
    return x.equal(infinity) & attrs.detect_positive | below


def _np_isinf(attrs: IsInfAttrs, x: np.ndarray) -> np.ndarray:
    return (np.isposinf(x) & attrs.detect_positive) | (np.isneginf(x) & attrs.detect_negative)


def _isinf_samples() -> Iterable[Sample]:
    x = np.array([1, np.inf, -np.inf, np.nan], np.float32)
    yield Sample((x,), IsInfAttrs())
    yield Sample((x,), IsInfAttrs(detect_negative=False))
    yield Sample((x,), IsInfAttrs(detect_positive=False))


def _same(attrs: Any, x: TensorType) -> TensorType:
    return x


CAST = Op(
    "cast",
    OpPattern.ELEMWISE,
    lambda attrs, types: TensorType(tensors("cast", types, 1)[0].shape, attrs.dtype),
    _elementwise("cast", lambda attrs, x: cast(x, attrs.dtype)),
    lambda attrs, arrays: _np_cast(attrs, arrays[0]),
    CastAttrs,
    _cast_samples,
    stitchable=True,
    doc="Conversion to another dtype, as ONNX Cast.",
)


def _infer_bitcast(attrs: CastAttrs, types: Any) -> TensorType:
    (x,) = tensors("bitcast", types, 1)
    if x.dtype.bits != attrs.dtype.bits or (attrs.dtype is DType.BOOL) != (x.dtype is DType.BOOL):
        raise TypeMismatch(f"bitcast: elements of {x} are none of {attrs.dtype}")
    return TensorType(x.shape, attrs.dtype)


BITCAST = Op(
    "bitcast",
    OpPattern.OPAQUE,
    _infer_bitcast,
    None,  # never a kernel
    lambda attrs, arrays: arrays[0].view(attrs.dtype.numpy),
    CastAttrs,
    lambda: (
        Sample((sample_array((3, 4)),), CastAttrs(DType.INT32)),
        Sample((sample_array((5,), DType.UINT16),), CastAttrs(DType.BFLOAT16)),
    ),
    view=lambda attrs, x: 0,
    doc="The bits of each element as another dtype of that size (ONNX BitCast).",
)
CLIP = _attr_unary(
    "clip", ClipAttrs, _clip, _np_clip, _same, NUMBERS,
    lambda: (
        Sample((sample_array((3, 4)),), ClipAttrs(-1.0, 2.0)),
        Sample((sample_array((3, 4)),), ClipAttrs(None, 0.0)),
        Sample((sample_array((9,), DType.INT32),), ClipAttrs(-1, None)),
    ),
    "Limits values to [a_min, a_max]; NaN stays NaN.",
)  # fmt: skip
LEAKY_RELU = _attr_unary(
    "nn.leaky_relu", LeakyReluAttrs,
    lambda attrs, x: select(x < 0, x * const(attrs.alpha, x.dtype), x),
    lambda attrs, x: np.where(x < 0, x * np.asarray(attrs.alpha, x.dtype), x),
    _same, FLOATS, lambda: (Sample((sample_array((3, 4)),), LeakyReluAttrs(0.1)),),
    "x where x >= 0, alpha * x elsewhere.",
)  # fmt: skip
ISINF = _attr_unary(
    "isinf", IsInfAttrs, _isinf, _np_isinf, lambda attrs, x: TensorType(x.shape, DType.BOOL),
    FLOATS, _isinf_samples, "Whether an element is one of the chosen infinities.",
)  # fmt: skip

OPS: tuple[Op, ...] = (*(_unary_op(row) for row in UNARY), CAST, BITCAST, CLIP, LEAKY_RELU, ISINF)

_ONNX_NAMES = {
    "Neg": "negative", "Abs": "abs", "Sign": "sign", "Relu": "nn.relu", "Not": "logical_not",
    "BitwiseNot": "bitwise_not", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Erf": "erf",
    "Sigmoid": "sigmoid", "Tanh": "tanh", "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin",
    "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Asinh": "asinh",
    "Acosh": "acosh", "Atanh": "atanh", "Floor": "floor", "Ceil": "ceil", "Round": "round",
    "Reciprocal": "reciprocal", "IsNaN": "isnan",
}  # fmt: skip


def _unary_importer(name: str) -> OnnxImport:
    return lambda node: node.builder.call(name, node.input(0))


def _import_cast(node: OnnxNode) -> Atom:
    node.expect(node.attr("to") is not None, "the attribute 'to' names no type")
    return cast_to(node, node.input(0), node.attr("to"))


def _import_cast_like(node: OnnxNode) -> Atom:
    return cast_to(node, node.input(0), node.type(1).dtype)


def cast_to(node: OnnxNode, x: Atom, dtype: DType) -> Atom:
    """`x` as `dtype`; itself if it is that already."""
    assert isinstance(x.type, TensorType)
    return x if x.type.dtype is dtype else node.builder.call("cast", x, dtype=dtype)


def _import_bitcast(node: OnnxNode) -> Atom:
    x, to = node.type(0), node.attr("to")
    node.expect(to is not None, "the attribute 'to' names no type")
    node.expect(to.bits == x.dtype.bits, f"elements of {x} have not the size of {to}")
    if to is DType.BOOL and x.dtype is not to:
        raise node.unsupported(f"{x.dtype} as {to}", "use Cast")
    if x.dtype in (to, DType.BOOL):  # a bool is a byte of 0 or 1
        return cast_to(node, node.input(0), to)
    return node.builder.call("bitcast", node.input(0), dtype=to)


def _import_clip(node: OnnxNode) -> Atom:
    x, b = node.input(0), node.builder
    bounds = [node.inputs[i] if node.has(i) else None for i in (1, 2)]
    if all(v is None or isinstance(v, Constant) for v in bounds):
        low, high = (v.data.item() if isinstance(v, Constant) else None for v in bounds)
        return b.call("clip", x, a_min=low, a_max=high)
    for bound, op in zip(bounds, ("maximum", "minimum"), strict=True):
        x = x if bound is None else b.call(op, x, bound)
    return x


def _import_isinf(node: OnnxNode) -> Atom:
    return node.builder.call(
        "isinf", node.input(0),
        detect_negative=bool(node.attr("detect_negative", 1)),
        detect_positive=bool(node.attr("detect_positive", 1)),
    )  # fmt: skip


ONNX: dict[str, OnnxImport] = {
    **{onnx: _unary_importer(name) for onnx, name in _ONNX_NAMES.items()},
    "Cast": _import_cast,
    "CastLike": _import_cast_like,
    "BitCast": _import_bitcast,
    "Clip": _import_clip,
    "IsInf": _import_isinf,
    "Identity": lambda node: node.input(0),
    "LeakyRelu": lambda node: node.builder.call(
        "nn.leaky_relu", node.input(0), alpha=node.attr("alpha", 0.01)
    ),
}
