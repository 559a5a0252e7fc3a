"""A fused relay function as tensor expressions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..diagnostics import InternalError
from ..ir.expr import const
from ..relay.nodes import Atom, Call, Constant, Function, Tuple, TupleGetItem
from ..relay.op import Op
from ..te.tensor import ComputeOp, Tensor, compute, placeholder
from ..types import TensorType

Compute = Callable[[Any, Sequence[Tensor], Any], list[Tensor] | None]


def to_te(
    function: Function, computes: Mapping[str, Compute] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Input placeholders, one per parameter, and the output tensors of a primitive function.

    Operators are expanded by `computes`, where that has an expansion for a target that is not
    None, else by their `Op.compute`; spans go along.
    """
    special = computes or {}
    values: dict[Atom, list[Tensor]] = {}
    inputs: list[Tensor] = []
    for param in function.params:
        assert isinstance(param.type, TensorType)
        tensor = placeholder(param.type.static_shape, param.type.dtype, f"p{len(inputs)}")
        inputs.append(tensor)
        values[param] = [tensor]

    def tensors(atom: Atom) -> list[Tensor]:
        if isinstance(atom, Constant) and atom not in values:
            values[atom] = [_scalar(atom)]
        return values[atom]

    for binding in function.bindings:
        value = binding.value
        if isinstance(value, Tuple):
            values[binding.var] = [t for field in value.fields for t in tensors(field)]
        elif isinstance(value, TupleGetItem):
            values[binding.var] = [tensors(value.tuple)[value.index]]
        elif isinstance(value, Call) and isinstance(value.op, Op):
            if value.op.compute is None:
                raise InternalError(
                    f"{value.op.name} has no tensor expression; a pass should have removed it"
                )
            arguments = [t for a in value.args for t in tensors(a)]
            own = special.get(value.op.name)
            found = own(value.attrs, arguments, binding.var.type) if own else None
            if found is None:
                found = value.op.compute(value.attrs, arguments, binding.var.type)
            values[binding.var] = found
        else:
            raise InternalError(f"a primitive function may not contain {type(value).__name__}")
    outputs = [_own_stage(t, inputs) for t in tensors(function.result)]
    return inputs, outputs


def _scalar(constant: Constant) -> Tensor:
    """A constant of one element as a stage that later disappears into its readers."""
    if constant.data.size != 1:
        raise InternalError(
            f"a constant of shape {constant.data.shape} inside a primitive function"
        )
    value = const(constant.data.reshape(()).item(), constant.type.dtype)
    return compute(constant.data.shape, lambda *i: value, name="scalar")


def _own_stage(tensor: Tensor, inputs: list[Tensor]) -> Tensor:
    """An output that is an input itself gets a copying stage."""
    if tensor in inputs:
        return compute(tensor.shape, lambda *i: tensor(*i), name="copy")
    return tensor


def consumers(outputs: list[Tensor], ops: list[ComputeOp]) -> Mapping[ComputeOp, list[ComputeOp]]:
    """The compute stages that read each compute stage."""
    readers: dict[ComputeOp, list[ComputeOp]] = {op: [] for op in ops}
    for op in ops:
        for tensor in op.inputs:
            if isinstance(tensor.op, ComputeOp) and op not in readers[tensor.op]:
                readers[tensor.op].append(op)
    return readers
