"""Whether a node is what its ONNX schema says: attributes, number and dtypes of its inputs.

The importers rely on it: what they read from a node is there and of the declared kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto
from onnx.defs import OpSchema

from ...diagnostics import ModelError
from ...dtype import DType
from ...types import TensorType, Type

_TYPE_NAMES = {DType.FLOAT32: "tensor(float)", DType.FLOAT64: "tensor(double)"}


@dataclass(frozen=True)
class _Rules:
    """A schema in the form that is quick to check a node against."""

    inputs: range
    required: tuple[bool, ...]
    types: tuple[frozenset[str], ...]
    attributes: dict[str, int]
    required_attributes: tuple[str, ...]

    @staticmethod
    def of(schema: OpSchema) -> _Rules:
        formal = schema.inputs
        single = OpSchema.FormalParameterOption.Single
        return _Rules(
            range(schema.min_input, schema.max_input + 1),
            tuple(p.option == single for p in formal),
            tuple(frozenset(t for t in p.types if t.startswith("tensor(")) for p in formal),
            {name: a.type.value for name, a in schema.attributes.items()},  # type: ignore[attr-defined]
            tuple(name for name, a in schema.attributes.items() if a.required),
        )


class NodeChecker:
    """Checks nodes of the ai.onnx domain in one opset; other domains have no schemas here.

    Args:
        opset: the opset of the model that the nodes are in.
    """

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._rules: dict[str, _Rules | None] = {}

    def check_form(self, node: NodeProto) -> None:
        """Check the attributes and the number of inputs.

        Raises:
            ModelError: the node breaks its schema.
        """
        rules = self._rules_of(node)
        if rules is not None:
            _check_attributes(node, rules)
            _check_inputs(node, rules)

    def check_types(self, node: NodeProto, types: Sequence[Type | None]) -> None:
        """Check the dtypes of the inputs of a node of the right form; None for an absent one.

        Raises:
            ModelError: the operator does not take such inputs.
        """
        rules = self._rules_of(node)
        for index, type_ in enumerate(types if rules is not None else ()):
            allowed = rules.types[min(index, len(rules.types) - 1)]  # type: ignore[union-attr]
            if isinstance(type_, TensorType) and _onnx_name(type_.dtype) not in allowed and allowed:
                raise ModelError(
                    f"{node.op_type}: input {index} is {type_}, its type must be one of: "
                    + ", ".join(sorted(name[7:-1] for name in allowed))
                )

    def _rules_of(self, node: NodeProto) -> _Rules | None:
        if node.domain not in ("", "ai.onnx"):
            return None
        op = node.op_type
        if op not in self._rules:
            self._rules[op] = self._find(op)
        return self._rules[op]

    def _find(self, op: str) -> _Rules | None:
        if onnx.defs.has(op, max_inclusive_version=self._opset, domain=""):
            return _Rules.of(onnx.defs.get_schema(op, self._opset, ""))
        if onnx.defs.has(op):  # some exporters use operators before the opset that brings them
            return _Rules.of(onnx.defs.get_schema(op))
        return None


def _check_attributes(node: NodeProto, rules: _Rules) -> None:
    for attribute in node.attribute:
        expected = rules.attributes.get(attribute.name)
        if expected is None:
            known = ", ".join(sorted(rules.attributes)) or "none"
            raise ModelError(f"{node.op_type} has no attribute {attribute.name!r}; it has: {known}")
        if attribute.type != expected:
            names = onnx.AttributeProto.AttributeType
            raise ModelError(
                f"{node.op_type}: attribute {attribute.name!r} must be of kind "
                f"{names.Name(expected)}, not {names.Name(attribute.type)}"
            )
    if rules.required_attributes:
        given = {a.name for a in node.attribute}
        for name in rules.required_attributes:
            if name not in given:
                raise ModelError(f"{node.op_type}: the required attribute {name!r} is missing")


def _check_inputs(node: NodeProto, rules: _Rules) -> None:
    op, count = node.op_type, len(node.input)
    if count not in rules.inputs:
        low, high = rules.inputs.start, rules.inputs.stop - 1
        wanted = f"{low}" if low == high else f"{low} or more" if high > 99 else f"{low} to {high}"
        raise ModelError(f"{op} takes {wanted} inputs, got {count}")
    for index, name in enumerate(node.input):
        if not name and rules.required[min(index, len(rules.required) - 1)]:
            raise ModelError(f"{op} needs input {index}, which is absent")


def _onnx_name(dtype: DType) -> str:
    return _TYPE_NAMES.get(dtype, f"tensor({dtype})")
