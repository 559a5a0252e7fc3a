"""Protobuf tensors and attributes as Python values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from ...diagnostics import ModelError, UnsupportedModel
from ...dtype import DType

_ONNX_NAME = {DType.FLOAT32: "FLOAT", DType.FLOAT64: "DOUBLE"}
_FROM_ONNX = {TensorProto.DataType.Value(_ONNX_NAME.get(d, d.upper())): d for d in DType}
# Sub-byte integers are held one per byte; what reads them (DequantizeLinear) sees the same numbers.
_WIDENED = {"int4": np.int8, "uint4": np.uint8, "int2": np.int8, "uint2": np.uint8}
_DTYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype"})


def dtype_of(elem_type: int, what: str) -> DType:
    """The DType of a TensorProto element type; UnsupportedModel naming `what` otherwise."""
    if elem_type not in _FROM_ONNX:
        names = TensorProto.DataType.items()
        name = next((n for n, v in names if v == elem_type), str(elem_type))
        raise UnsupportedModel(f"{what} has element type {name.lower()}, which is not supported")
    return _FROM_ONNX[elem_type]


def array_of(tensor: TensorProto) -> np.ndarray:
    """The array in a tensor; ModelError if its data does not fill its shape."""
    what = f"tensor {tensor.name!r}"
    if tensor.data_type not in TensorProto.DataType.values():
        raise ModelError(f"{what} has the unknown element type {tensor.data_type}")
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"{what} has a negative dimension: {list(tensor.dims)}")
    if tensor.data_type in _FROM_ONNX and tensor.HasField("raw_data"):
        dtype = _FROM_ONNX[tensor.data_type].numpy
        try:
            return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))
        except ValueError:
            pass  # reported below
    elif tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        dtype_of(tensor.data_type, what)
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{what} of shape {list(tensor.dims)} has damaged data: {error}") from None
    if array.dtype.name in _WIDENED:
        return array.astype(_WIDENED[array.dtype.name])
    dtype_of(helper.np_dtype_to_tensor_dtype(array.dtype), what)
    return array


def attribute_value(
    attribute: AttributeProto, subgraph: Callable[[onnx.GraphProto], Any], node: str
) -> Any:
    """An attribute as int, float, str, array, a tuple of them, or `subgraph(graph)`."""
    kind = attribute.type
    if kind == AttributeProto.INT:
        if attribute.name in _DTYPE_ATTRIBUTES:
            return (
                dtype_of(attribute.i, f"attribute {attribute.name!r} of node {node!r}")
                if attribute.i
                else None
            )
        return attribute.i
    if kind == AttributeProto.FLOAT:
        return attribute.f
    if kind == AttributeProto.STRING:
        return attribute.s.decode("utf-8", "replace")
    if kind == AttributeProto.TENSOR:
        return array_of(attribute.t)
    if kind == AttributeProto.GRAPH:
        return subgraph(attribute.g)
    if kind == AttributeProto.INTS:
        return tuple(attribute.ints)
    if kind == AttributeProto.FLOATS:
        return tuple(attribute.floats)
    if kind == AttributeProto.STRINGS:
        return tuple(s.decode("utf-8", "replace") for s in attribute.strings)
    raise UnsupportedModel(
        f"attribute {attribute.name!r} of node {node!r} is of an unsupported kind"
    )
