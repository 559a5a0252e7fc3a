"""A fused relay function as tensor expressions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..diagnostics import InternalError
from ..dtype import DType
from ..ir.expr import Cast, Load, const
from ..relay.nodes import Atom, Call, Constant, Function, Tuple, TupleGetItem
from ..relay.op import Op, OpPattern
from ..te.tensor import ComputeOp, Tensor, compute, is_reduction, placeholder, tensor_of
from ..types import TensorType, Type

Compute = Callable[[Any, Sequence[Tensor], Any], list[Tensor] | None]


def to_te(
    function: Function, computes: Mapping[str, Compute] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Input placeholders, one per parameter, and the output tensors of a primitive function.

    Operators are expanded by `computes`, where that has an expansion for a target that is not
    None, else by their `Op.compute`; spans go along. What elementwise operators of 16-bit floats
    give stays float32 as long as only such operators read it: inside a kernel it is not rounded
    (excess precision, as XLA allows itself by default).
    """
    special = computes or {}
    wide = ExcessPrecision()
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
            type_ = binding.var.type
            exact = wide.exact(value.op, arguments, type_)
            if exact is not None:
                values[binding.var] = [exact]
                continue
            short = wide.applies(value.op, arguments, type_)
            if short:
                assert isinstance(type_, TensorType)
                arguments = [wide.widened(t) for t in arguments]
                type_ = replace(type_, dtype=_WIDE)
            own = special.get(value.op.name)
            found = own(value.attrs, arguments, type_) if own else None
            if found is None:
                found = value.op.compute(value.attrs, arguments, type_)
            if short:
                found = [wide.rounded(found[0], binding.var.type.dtype)]  # type: ignore[union-attr]
            values[binding.var] = found
        else:
            raise InternalError(f"a primitive function may not contain {type(value).__name__}")
    outputs = [_own_stage(t, inputs) for t in tensors(function.result)]
    return inputs, outputs


_WIDE = DType.FLOAT32


class ExcessPrecision:
    """Float32 values behind 16-bit tensors of one kernel."""

    def __init__(self) -> None:
        self._wide: dict[Tensor, Tensor] = {}

    def applies(self, op: Op, arguments: Sequence[Tensor], type_: Type) -> bool:
        """Whether an operator computes a 16-bit float from 16-bit floats: arithmetic, or what may
        share a kernel with it row by row."""
        return (
            isinstance(type_, TensorType)
            and _is_short(type_.dtype)
            and (op.pattern <= OpPattern.BROADCAST or op.stitchable)
            and not op.view
            and all(t.dtype in (type_.dtype, DType.BOOL) for t in arguments)
            and any(t.dtype is type_.dtype for t in arguments)
        )

    def exact(self, op: Op, arguments: Sequence[Tensor], type_: Type) -> Tensor | None:
        """The result of a cast back to float32, if that is known; None for all else."""
        if op.name == "cast" and isinstance(type_, TensorType) and type_.dtype is _WIDE:
            return self._wide.get(arguments[0])
        return None

    def widened(self, tensor: Tensor) -> Tensor:
        """A 16-bit tensor in float32, before it was rounded if that was in this kernel."""
        if not _is_short(tensor.dtype):
            return tensor
        if tensor not in self._wide:
            exact = _before_rounding(tensor)
            if exact is None:
                exact = compute(
                    tensor.shape, lambda *i: tensor(*i).astype(_WIDE), name=f"{tensor.name}_wide"
                )
            self._wide[tensor] = exact
        return self._wide[tensor]

    def rounded(self, tensor: Tensor, dtype: DType) -> Tensor:
        """A float32 tensor in 16 bits, for readers that need it so."""
        short = compute(
            tensor.shape, lambda *i: tensor(*i).astype(dtype), name=f"{tensor.name}_cast"
        )
        self._wide[short] = tensor
        return short


def _is_short(dtype: DType) -> bool:
    return dtype.is_float and dtype.bits == 16


def _before_rounding(tensor: Tensor) -> Tensor | None:
    """The float32 sums that `ops.window.stored` rounded to this tensor; None for others."""
    if not isinstance(tensor.op, ComputeOp):
        return None
    body = tensor.op.body[0]
    if not isinstance(body, Cast) or not isinstance(body.value, Load):
        return None
    source = tensor_of(body.value)
    same = body.value.indices == tuple(a.var for a in tensor.op.axis)
    return source if same and is_reduction(source.op) and source.dtype is _WIDE else None


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
