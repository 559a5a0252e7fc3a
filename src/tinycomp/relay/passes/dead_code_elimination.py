"""Removal of what nobody reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..nodes import Binding, Function, If, Var, While
from ..pass_infra import FunctionPass, PassContext
from ..visitor import rebuilt, remove_dead_bindings


@dataclass(frozen=True)
class DeadCodeElimination(FunctionPass):
    """Removes unused bindings, and operands that no branch or loop body reads.

    %0 = exp(%x)
    %1 = nn.relu(%x)      ->     %1 = nn.relu(%x)
    %1                           %1
    """

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        bindings = [_prune_operands(b) for b in function.bindings]
        return remove_dead_bindings(rebuilt(function, bindings, function.result))


def _prune_operands(binding: Binding) -> Binding:
    value = binding.value
    if isinstance(value, If):
        functions, args, first = (value.then_branch, value.else_branch), value.operands, 0
    elif isinstance(value, While):
        functions, args, first = (value.condition, value.body), value.captured, len(value.init)
    else:
        return binding
    read = set[Var]()
    for function in functions:
        read.update(a for b in function.bindings for a in b.args if isinstance(a, Var))
        if isinstance(function.result, Var):
            read.add(function.result)
    kept = [i for i in range(len(args)) if any(f.params[first + i] in read for f in functions)]
    if len(kept) == len(args):
        return binding
    new_args = tuple(args[i] for i in kept)
    a, b = (
        replace(f, params=(*f.params[:first], *(f.params[first + i] for i in kept)))
        for f in functions
    )
    if isinstance(value, If):
        return replace(binding, value=If(value.condition, a, b, new_args))
    return replace(binding, value=While(a, b, value.init, new_args))
