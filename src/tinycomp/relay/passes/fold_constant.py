"""Evaluation of what is known while compiling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...diagnostics import InternalError, Span
from ...dtype import DType
from ...types import TensorType, TupleType
from ..nodes import (
    Atom,
    Binding,
    Call,
    Constant,
    Function,
    If,
    Tuple,
    TupleGetItem,
    Value,
    Var,
    replace_args,
)
from ..pass_infra import FunctionPass, PassContext
from ..visitor import rebuilt, remove_dead_bindings


@dataclass(frozen=True)
class FoldConstant(FunctionPass):
    """Replaces calls of which all arguments are constant by their results.

    Args:
        growth_limit: results of more elements than this are kept as calls, unless they have no
            more bytes than the arguments twice: packing a large weight is folded, broadcasting a
            scalar to a large array is not.

        %0 = add(const(2), const(3))
        %1 = multiply(%x, %0)          ->     %1 = multiply(%x, const(5))
    """

    growth_limit: int = 1 << 16

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        return _Folder(self.growth_limit).run(function)


class _Folder:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.env: dict[Atom, Atom] = {}
        self.tuples: dict[Atom, tuple[Atom, ...]] = {}  # fields of tuples that are known

    def run(self, function: Function) -> Function:
        output: list[Binding] = []
        for binding in function.bindings:
            value = replace_args(binding.value, [self.env.get(a, a) for a in binding.args])
            if isinstance(value, If):
                inlined = self._chosen_branch(value, output)
                if inlined is not None:
                    self.env[binding.var] = inlined
                    continue
            folded = self._fold(binding, value)
            if folded is not None:
                self.env[binding.var] = folded
            else:
                same = value is binding.value
                output.append(binding if same else Binding(binding.var, value, binding.span))
        result = self.env.get(function.result, function.result)
        return remove_dead_bindings(rebuilt(function, output, result))

    def _fold(self, binding: Binding, value: Value) -> Atom | None:
        """The atom that the value is; None if it has to be computed."""
        if isinstance(value, TupleGetItem):
            fields = self.tuples.get(value.tuple)
            return fields[value.index] if fields is not None else None
        if isinstance(value, Tuple):
            self.tuples[binding.var] = value.fields
            return None
        if not isinstance(value, Call) or isinstance(value.op, Function) or not value.args:
            return None
        arrays = [a.data for a in value.args if isinstance(a, Constant)]
        if len(arrays) < len(value.args) or not self._affordable(binding, arrays):
            return None
        with np.errstate(all="ignore"):
            result = value.op.reference(value.attrs, arrays)
        type_ = binding.var.type
        if isinstance(type_, TensorType):
            return _constant(result, type_, value, binding.span)
        self.tuples[binding.var] = tuple(
            _constant(part, field, value, binding.span)
            for part, field in zip(result, type_.fields, strict=True)
        )
        return None

    def _affordable(self, binding: Binding, arrays: list[np.ndarray]) -> bool:
        type_ = binding.var.type
        fields = type_.fields if isinstance(type_, TupleType) else (type_,)
        if not all(isinstance(f, TensorType) and f.is_static for f in fields):
            return False
        results = [f for f in fields if isinstance(f, TensorType)]
        small = sum(f.size for f in results) <= self.limit
        return small or sum(f.nbytes for f in results) <= 2 * sum(a.nbytes for a in arrays)

    def _chosen_branch(self, value: If, output: list[Binding]) -> Atom | None:
        """The result of the branch that a constant condition selects, inlined into `output`."""
        if not isinstance(value.condition, Constant):
            return None
        branch = value.then_branch if bool(value.condition.data) else value.else_branch
        inner: dict[Atom, Atom] = dict(zip(branch.params, value.operands, strict=True))
        for binding in branch.bindings:
            copy = replace_args(binding.value, [inner.get(a, a) for a in binding.args])
            var = Var(binding.var.name, binding.var.type, binding.var.span)
            output.append(Binding(var, copy, binding.span))
            inner[binding.var] = var
        return inner.get(branch.result, branch.result)


def _constant(result: object, type_: object, call: Call, span: Span) -> Constant:
    array = np.ascontiguousarray(result) if np.ndim(result) else np.asarray(result)  # type: ignore[arg-type]
    if TensorType(array.shape, DType.of(array.dtype)) != type_:
        raise InternalError(
            f"{call.op!r}: the reference gave {array.dtype}{list(array.shape)}, its type is {type_}"
        )
    return Constant(array, span)
