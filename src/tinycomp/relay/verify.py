"""The rules of graph IR, checked.

Every variable is defined once, before its use and in the function that uses it; every binding has
the type that its operator infers; nested functions are closed and take what they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..diagnostics import TypeMismatch, VerifyError
from ..types import TupleType, Type
from .nodes import (
    Atom,
    Binding,
    Function,
    If,
    IRModule,
    Tuple,
    TupleGetItem,
    Value,
    Var,
    While,
    all_functions,
)


def verify_module(module: IRModule) -> None:
    """Check every function of a module; VerifyError names the binding that breaks a rule."""
    if "main" not in module.functions:
        raise VerifyError("the module has no function 'main'")
    for function in module.functions.values():
        verify_function(function)
    main = module.main
    if module.input_names and len(module.input_names) != len(main.params):
        raise VerifyError(
            f"{len(module.input_names)} input names for {len(main.params)} parameters of main"
        )


def verify_function(root: Function) -> None:
    """Check a function and all functions nested in it."""
    seen: set[Function] = set()
    for function in all_functions(root):
        if function not in seen:
            seen.add(function)
            _verify_one(function)


def _verify_one(function: Function) -> None:
    defined: set[Var] = set()
    for param in function.params:
        if param in defined:
            raise VerifyError(f"parameter %{param.name} occurs twice")
        defined.add(param)
    for binding in function.bindings:
        for arg in binding.args:
            if isinstance(arg, Var) and arg not in defined:
                raise _error(binding, f"uses %{arg.name}, which is not defined before it here")
        if binding.var in defined:
            raise _error(binding, "is defined twice")
        defined.add(binding.var)
        try:
            expected = infer_type(binding.value)
        except TypeMismatch as error:
            raise _error(binding, f"is ill-typed: {error.message}") from error
        if expected != binding.var.type:
            raise _error(binding, f"has type {binding.var.type}, its value has type {expected}")
    if isinstance(function.result, Var) and function.result not in defined:
        raise VerifyError(f"the result %{function.result.name} is not defined in its function")


def _error(binding: Binding, problem: str) -> VerifyError:
    from .text import binding_text

    return VerifyError(
        f"%{binding.var.name} {problem}", span=binding.span, excerpt=binding_text(binding)
    )


def infer_type(value: Value) -> Type:
    """The type of a value from those of its arguments.

    Raises:
        TypeMismatch: the arguments do not fit.
    """
    if isinstance(value, Tuple):
        return TupleType(_types(value.fields))
    if isinstance(value, TupleGetItem):
        type_ = value.tuple.type
        if not isinstance(type_, TupleType) or not 0 <= value.index < len(type_.fields):
            raise TypeMismatch(f"{type_} has no field {value.index}")
        return type_.fields[value.index]
    if isinstance(value, If):
        return _infer_if(value)
    if isinstance(value, While):
        return _infer_while(value)
    if isinstance(value.op, Function):
        _check_arguments(value.op, value.args, "the function")
        return value.op.ret_type
    return value.op.infer(value.attrs, _types(value.args))


def _infer_if(value: If) -> Type:
    _check_condition(value.condition.type, "the condition of If")
    for branch, what in ((value.then_branch, "then"), (value.else_branch, "else")):
        _check_arguments(branch, value.operands, f"the {what} branch")
    if value.then_branch.ret_type != value.else_branch.ret_type:
        raise TypeMismatch(
            f"the branches return {value.then_branch.ret_type} and {value.else_branch.ret_type}"
        )
    return value.then_branch.ret_type


def _infer_while(value: While) -> Type:
    for part, what in ((value.condition, "condition"), (value.body, "body")):
        _check_arguments(part, value.args, f"the {what} of While")
    _check_condition(value.condition.ret_type, "what the condition of While returns")
    state = TupleType(_types(value.init))
    if value.body.ret_type != state:
        raise TypeMismatch(f"the state is {state}, the body returns {value.body.ret_type}")
    return state


def _types(atoms: Iterable[Atom]) -> tuple[Type, ...]:
    return tuple(a.type for a in atoms)


def _check_arguments(function: Function, args: Sequence[Atom], what: str) -> None:
    if _types(args) != _types(function.params):
        expected = ", ".join(str(p.type) for p in function.params)
        given = ", ".join(str(a.type) for a in args)
        raise TypeMismatch(f"{what} takes ({expected}), but is given ({given})")


def _check_condition(type_: Type, what: str) -> None:
    if isinstance(type_, TupleType) or type_.dtype != "bool" or type_.rank != 0:
        raise TypeMismatch(f"{what} must be a scalar bool, not {type_}")
