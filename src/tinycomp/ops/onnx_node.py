"""What an operator's importer sees of an ONNX node.

The importers live beside the operators; only `tinycomp.frontend.onnx` touches protobuf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..diagnostics import ModelError, Span, UnsupportedModel
from ..relay.builder import Builder
from ..relay.nodes import Atom, Constant
from ..types import TensorType


@dataclass(frozen=True)
class OnnxNode:
    """One ONNX node (newest opset, after normalisation), its inputs already imported.

    `attrs` hold Python values: int, float, str, tuples of them, NumPy arrays; a graph attribute
    (of If, Loop, Scan) is a callable `(*atoms) -> list[Atom]`-like object made by the front end.
    An absent optional input is None. `builder` emits relay; its span is already set to this node.
    """

    op_type: str
    name: str
    inputs: tuple[Atom | None, ...]
    attrs: Mapping[str, Any]
    num_outputs: int
    builder: Builder
    domain: str = ""
    input_names: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def span(self) -> Span:
        return Span((self.name,))

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attrs.get(name, default)

    def has(self, index: int) -> bool:
        """Whether optional input `index` is present."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def input(self, index: int) -> Atom:
        """Required input `index`; ModelError if it is absent."""
        atom = self.inputs[index] if index < len(self.inputs) else None
        if atom is None:
            raise ModelError(f"{self.op_type} needs input {index}, which is absent", span=self.span)
        return atom

    def type(self, index: int) -> TensorType:
        """The tensor type of required input `index`."""
        type_ = self.input(index).type
        assert isinstance(type_, TensorType)
        return type_

    def const(self, index: int, default: Any = None) -> np.ndarray:
        """Input `index` as an array known while compiling; `default` if the input is absent.

        Raises:
            UnsupportedModel: the input depends on data.
        """
        if not self.has(index):
            if default is None:
                self.input(index)
            return np.asarray(default)
        atom = self.input(index)
        if not isinstance(atom, Constant):
            name = self.input_names[index] if index < len(self.input_names) else f"#{index}"
            raise UnsupportedModel(
                f"{self.op_type}: input {name!r} must be known while compiling, but depends on "
                "data",
                span=self.span,
                hint="give the model's symbolic dimensions with --dim NAME=VALUE or --input-shapes",
            )
        return atom.data

    def scalar(self, index: int, default: Any = None) -> Any:
        """Input `index`, one element known while compiling, as a NumPy scalar."""
        array = self.const(index, default)
        self.expect(array.size == 1, f"input {index} must be one number, found shape {array.shape}")
        return array.reshape(())[()]

    def vector(self, index: int, default: Any = None) -> list[int]:
        """Input `index`, known while compiling, as a list of ints."""
        array = self.const(index, default)
        self.expect(array.ndim <= 1, f"input {index} must be a list, found shape {array.shape}")
        return [int(v) for v in array.ravel()]

    def rank(self, index: int, *allowed: int) -> TensorType:
        """The type of input `index`, which must have one of these ranks."""
        type_ = self.type(index)
        text = " or ".join(map(str, allowed))
        self.expect(type_.rank in allowed, f"input {index} is {type_}, it must have rank {text}")
        return type_

    def axis(self, default: int, name: str = "axis", rank: int | None = None) -> int:
        """The attribute `name` as an axis, counted from the front, of input 0 or of `rank`."""
        rank = self.type(0).rank if rank is None else rank
        axis = self.attr(name, default)
        self.expect(-rank <= axis < rank, f"{name} {axis} is out of range for rank {rank}")
        return axis % rank

    def choice(self, name: str, default: str, allowed: Iterable[str]) -> str:
        """A string attribute that must be one of `allowed`."""
        value, allowed = self.attr(name, default), sorted(allowed)
        self.expect(value in allowed, f"{name} {value!r} must be one of {', '.join(allowed)}")
        return value

    def expect(self, condition: bool, message: str) -> None:
        """Refuse the node unless the condition holds.

        Raises:
            ModelError: with the operator's name before the message.
        """
        if not condition:
            raise ModelError(f"{self.op_type}: {message}", span=self.span)

    def unsupported(self, what: str, hint: str = "") -> UnsupportedModel:
        """The error to raise for a variant that is not implemented."""
        return UnsupportedModel(
            f"{self.op_type}: {what} is not supported yet", span=self.span, hint=hint
        )


OnnxImport = Callable[[OnnxNode], Atom | Sequence[Atom]]
