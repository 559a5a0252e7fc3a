"""The meaning of graph IR: every operator by its NumPy reference."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from ..diagnostics import InputError, InternalError
from ..dtype import DType
from ..types import TensorType, TupleType, Type
from .nodes import (
    Atom,
    Binding,
    Constant,
    Function,
    If,
    IRModule,
    Tuple,
    TupleGetItem,
    Var,
    While,
)

_Frame = Generator[tuple[Function, Sequence[Any]], Any, Any]


def evaluate(program: IRModule | Function, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The results of a function (of "main", for a module), in order.

    Args:
        inputs: one array per parameter, of its dtype and shape.

    Returns:
        One array per result; a function that returns no tuple has one result.

    Raises:
        InputError: the inputs do not fit the parameters.

    Branches, loops and fused functions run on an explicit stack of frames.
    """
    function = program.main if isinstance(program, IRModule) else program
    arrays = [np.asarray(array) for array in inputs]  # NumPy scalars are arrays of rank 0
    _check_inputs(function, arrays)
    stack = [_run(function, arrays)]
    result: Any = None
    with np.errstate(all="ignore"):
        while stack:
            try:
                callee, args = stack[-1].send(result)
            except StopIteration as finished:
                stack.pop()
                result = finished.value
            else:
                stack.append(_run(callee, args))
                result = None
    return list(result) if isinstance(result, tuple) else [result]


def _check_inputs(function: Function, inputs: Sequence[np.ndarray]) -> None:
    if len(inputs) != len(function.params):
        raise InputError(f"{len(function.params)} inputs expected, {len(inputs)} given")
    for param, array in zip(function.params, inputs, strict=True):
        if not _fits(array, param.type):
            raise InputError(
                f"input %{param.name} must be {param.type}, not {array.dtype}{list(array.shape)}"
            )


def _fits(value: Any, type_: Type) -> bool:
    """Whether a value has a type; symbolic dimensions fit any extent."""
    if isinstance(type_, TupleType):
        return (
            isinstance(value, tuple)
            and len(value) == len(type_.fields)
            and all(map(_fits, value, type_.fields))
        )
    return (
        isinstance(value, np.ndarray)
        and DType.of(value.dtype) is type_.dtype
        and value.ndim == type_.rank
        and all(
            not isinstance(d, int) or d == n for d, n in zip(type_.shape, value.shape, strict=True)
        )
    )


def _run(function: Function, args: Sequence[Any]) -> _Frame:
    """Evaluate one function; yields the calls of nested functions, is sent their results."""
    env: dict[Atom, Any] = dict(zip(function.params, args, strict=True))
    last_use = _last_uses(function)
    for index, binding in enumerate(function.bindings):
        values = [a.data if isinstance(a, Constant) else env[a] for a in binding.args]
        result = yield from _apply(binding, values)
        if not _fits(result, binding.var.type):
            raise InternalError(f"%{binding.var.name}: the result is not {binding.var.type}")
        env[binding.var] = result
        for arg in binding.args:
            if last_use.get(arg) == index:
                env.pop(arg, None)
    result = function.result
    return result.data if isinstance(result, Constant) else env[result]


def _last_uses(function: Function) -> dict[Atom, int]:
    last: dict[Atom, int] = {}
    for index, binding in enumerate(function.bindings):
        last.update((arg, index) for arg in binding.args if isinstance(arg, Var))
    last.pop(function.result, None)
    return last


def _apply(binding: Binding, values: list[Any]) -> _Frame:
    value = binding.value
    if isinstance(value, Tuple):
        return tuple(values)
    if isinstance(value, TupleGetItem):
        return values[0][value.index]
    if isinstance(value, If):
        return (yield (value.then_branch if bool(values[0]) else value.else_branch), values[1:])
    if isinstance(value, While):
        count = len(value.init)
        state, captured = tuple(values[:count]), values[count:]
        while bool((yield value.condition, [*state, *captured])):
            state = yield value.body, [*state, *captured]
        return state
    if isinstance(value.op, Function):
        return (yield value.op, values)
    result = value.op.reference(value.attrs, values)
    if isinstance(binding.var.type, TensorType):
        return np.asarray(result)
    return tuple(np.asarray(part) for part in result)
