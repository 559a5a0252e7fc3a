"""Bringing a model to one form: functions inlined, newest opset, weights set aside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, checker, inliner, shape_inference, version_converter

from ...diagnostics import ModelError, Span, UnsupportedModel
from .check import NodeChecker
from .graphs import all_graphs, newest_opset, node_name
from .values import array_of

# Tensors above this many bytes do not go through the version converter, which copies and
# serialises the whole model (and cannot at 2 GB). Small ones may be attributes it must read.
SET_ASIDE_BYTES = 1024
_CONVERSION_ERRORS = (  # what the converter's C++ raises for nodes that it cannot read or convert
    RuntimeError,
    ValueError,
    checker.ValidationError,
    shape_inference.InferenceError,
    version_converter.ConvertError,
)
_CHANGED_IN_13 = frozenset({"Softmax", "LogSoftmax", "Hardmax"})  # axis meant "from here on"


@dataclass(frozen=True)
class Normalized:
    """A model whose large weights are in `weights`; `input_names` are the original inputs."""

    graph: GraphProto
    weights: dict[str, np.ndarray]
    input_names: frozenset[str]
    opset: int


def normalize(model: ModelProto) -> Normalized:
    """The model in the newest opset, with local functions inlined. `model` is not changed."""
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise UnsupportedModel(f"initializer {name!r} is sparse, which is not supported")
    _check_opset(model)
    skeleton, weights = _set_aside(model)
    if skeleton.functions:
        skeleton = inliner.inline_local_functions(skeleton)
    _check_nodes(skeleton)
    skeleton = _convert(skeleton, weights)
    names = frozenset(i.name for i in skeleton.graph.input) - weights.keys()
    return Normalized(skeleton.graph, weights, names, opset_of(skeleton))


def opset_of(model: ModelProto) -> int:
    """The ai.onnx opset of a model; 1 if it imports none."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def _check_opset(model: ModelProto) -> None:
    if opset_of(model) > newest_opset():
        raise UnsupportedModel(
            f"the model uses opset {opset_of(model)}; the newest known here is {newest_opset()}",
            hint="update the onnx package, or export the model with an older opset",
        )


def _check_nodes(skeleton: ModelProto) -> None:
    """Refuse nodes of the wrong form first: onnx's converter reads attributes unchecked."""
    checker = NodeChecker(opset_of(skeleton))
    for graph in all_graphs(skeleton.graph):
        for index, node in enumerate(graph.node):
            try:
                checker.check_form(node)
            except ModelError as error:
                error.span = Span((node_name(node, index),))
                raise


def _set_aside(model: ModelProto) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """A copy without the large initializers, and these as arrays."""
    skeleton = ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _copy_field(skeleton, field, value)
    skeleton.ir_version = min(max(model.ir_version, 4), onnx.IR_VERSION)
    weights: dict[str, np.ndarray] = {}
    for field, value in model.graph.ListFields():
        if field.name == "initializer":
            for tensor in value:
                if tensor.ByteSize() > SET_ASIDE_BYTES:
                    weights[tensor.name] = array_of(tensor)
                else:
                    skeleton.graph.initializer.append(tensor)
        else:
            _copy_field(skeleton.graph, field, value)
    return skeleton, weights


def _copy_field(target: object, field: object, value: object) -> None:
    name = field.name  # type: ignore[attr-defined]
    if hasattr(value, "extend") or (
        hasattr(value, "MergeFrom") and not hasattr(value, "ListFields")
    ):
        getattr(target, name).MergeFrom(value)
    elif hasattr(value, "ListFields"):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)


def _convert(skeleton: ModelProto, weights: dict[str, np.ndarray]) -> ModelProto:
    """`skeleton` in the newest opset that its operators convert to."""
    if opset_of(skeleton) >= newest_opset() or not _needs_conversion(skeleton):
        return skeleton
    declared = {i.name for i in skeleton.graph.input}
    stand_ins = [name for name in weights if name not in declared]
    for name in stand_ins:
        array = weights[name]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        info = onnx.helper.make_tensor_value_info(name, kind, array.shape)
        skeleton.graph.input.append(info)
    try:
        return version_converter.convert_version(skeleton, newest_opset())
    except _CONVERSION_ERRORS as error:
        _check_unconverted(skeleton, error)
        return skeleton


def _needs_conversion(skeleton: ModelProto) -> bool:
    """Whether some operator changed between the model's opset and the newest one."""
    opset = opset_of(skeleton)
    types = {
        n.op_type for g in all_graphs(skeleton.graph) for n in g.node if n.domain in ("", "ai.onnx")
    }
    return any(_since(op, opset) != _since(op, newest_opset()) for op in types)


def _check_unconverted(skeleton: ModelProto, error: Exception) -> None:
    """Refuse a model that could not be converted and would mean another thing as it is."""
    opset = opset_of(skeleton)
    for graph in all_graphs(skeleton.graph):
        for index, node in enumerate(graph.node):
            if node.domain not in ("", "ai.onnx") or not _since(node.op_type, newest_opset()):
                continue
            known = onnx.defs.get_schema(node.op_type).attributes
            old_form = any(a.name not in known for a in node.attribute)
            if old_form or (node.op_type in _CHANGED_IN_13 and opset < 13):
                reason = str(error).strip().splitlines()
                raise UnsupportedModel(
                    f"{node.op_type} has the form of opset {opset}, and the model could not be "
                    f"converted to opset {newest_opset()}: {reason[-1] if reason else error!r}",
                    span=Span((node_name(node, index),)),
                    hint="export the model with a newer opset",
                ) from None


def _since(op_type: str, opset: int) -> int:
    if not onnx.defs.has(op_type, max_inclusive_version=opset, domain=""):
        return 0
    return onnx.defs.get_schema(op_type, max_inclusive_version=opset, domain="").since_version
