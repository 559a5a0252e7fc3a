"""The graph IR: Relay's vocabulary in A-normal form.

A `Function` is a flat list of `Binding`s, each giving a `Var` the value of one operation whose
arguments are variables or constants. Nested functions (branches, loop bodies, fused groups) are
closed: what they use comes in through their parameters. So nothing is deep, and passes are loops.

    fn (%x: float32[1, 3]) {
      %0: float32[1, 3] = relu(%x)
      %0
    }
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..diagnostics import NO_SPAN, Span
from ..dtype import DType
from ..types import TensorType, Type
from .op import Attrs, Op


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Var:
    """A named value: a parameter or the result of a binding. Compares by identity."""

    name: str
    type: Type
    span: Span = NO_SPAN

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Constant:
    """An array known while compiling. Compares by identity; `data` is not to be written to."""

    data: np.ndarray
    span: Span = NO_SPAN

    @property
    def type(self) -> TensorType:
        return TensorType(self.data.shape, DType.of(self.data.dtype))

    def __repr__(self) -> str:
        return f"const {self.type}"


Atom = Var | Constant


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Call:
    """An operator, or a fused function, applied to arguments."""

    op: Op | Function
    args: tuple[Atom, ...]
    attrs: Attrs


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tuple:
    fields: tuple[Atom, ...]

    @property
    def args(self) -> tuple[Atom, ...]:
        return self.fields


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TupleGetItem:
    tuple: Atom
    index: int

    @property
    def args(self) -> tuple[Atom, ...]:
        return (self.tuple,)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class If:
    """`then_branch(*operands)` if the bool `condition` holds, else `else_branch(*operands)`."""

    condition: Atom
    then_branch: Function
    else_branch: Function
    operands: tuple[Atom, ...]

    @property
    def args(self) -> tuple[Atom, ...]:
        return (self.condition, *self.operands)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class While:
    """`state = init; while condition(*state, *captured): state = body(*state, *captured)`.

    The value is the tuple of the final state. `condition` returns a scalar bool, `body` a tuple
    of the types of `init`.
    """

    condition: Function
    body: Function
    init: tuple[Atom, ...]
    captured: tuple[Atom, ...] = ()

    @property
    def args(self) -> tuple[Atom, ...]:
        return self.init + self.captured


Value = Call | Tuple | TupleGetItem | If | While


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Binding:
    """`var = value`. The span names the ONNX nodes that the value comes from."""

    var: Var
    value: Value
    span: Span = NO_SPAN

    @property
    def args(self) -> tuple[Atom, ...]:
        """The variables and constants that the value reads."""
        return self.value.args


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Function:
    """Parameters, bindings in order of evaluation, and the result (a Var or Constant).

    A function of several results binds a Tuple and returns it. `attrs["primitive"]` marks a fused
    group that becomes one kernel; `attrs["name"]` names it.
    """

    params: tuple[Var, ...]
    bindings: tuple[Binding, ...]
    result: Atom
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ret_type(self) -> Type:
        return self.result.type

    @property
    def is_primitive(self) -> bool:
        return bool(self.attrs.get("primitive"))

    def __str__(self) -> str:
        from .text import function_text  # the printer imports this module

        return function_text(self)

    __repr__ = __str__


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class IRModule:
    """Functions by name; "main" is the model.

    `input_names` and `output_names` are those of the ONNX model, which may be any text.
    """

    functions: Mapping[str, Function]
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def main(self) -> Function:
        return self.functions["main"]

    def __str__(self) -> str:
        from .text import module_text

        return module_text(self)

    __repr__ = __str__


def regions(value: Value) -> tuple[Function, ...]:
    """The functions nested in a value: branches, loop parts, the body of a fused call."""
    if isinstance(value, If):
        return (value.then_branch, value.else_branch)
    if isinstance(value, While):
        return (value.condition, value.body)
    if isinstance(value, Call) and isinstance(value.op, Function):
        return (value.op,)
    return ()


def replace_args(value: Value, args: Sequence[Atom]) -> Value:
    """`value` with other arguments, in the order of `value.args`; itself if all are the same."""
    args = tuple(args)
    if len(args) == len(value.args) and all(a is b for a, b in zip(args, value.args, strict=True)):
        return value
    if isinstance(value, Call):
        return Call(value.op, args, value.attrs)
    if isinstance(value, Tuple):
        return Tuple(args)
    if isinstance(value, TupleGetItem):
        return TupleGetItem(args[0], value.index)
    if isinstance(value, If):
        return If(args[0], value.then_branch, value.else_branch, args[1:])
    count = len(value.init)
    return While(value.condition, value.body, args[:count], args[count:])


def all_functions(root: Function) -> Iterator[Function]:
    """`root` and every function nested in it, outer before inner. Iterative."""
    stack = [root]
    while stack:
        function = stack.pop()
        yield function
        for binding in reversed(function.bindings):
            stack.extend(reversed(regions(binding.value)))
