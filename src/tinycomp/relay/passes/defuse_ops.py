"""DefuseOps: the inverse of FuseOps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..nodes import Atom, Binding, Call, Function, Var, replace_args
from ..pass_infra import FunctionPass, PassContext


@dataclass(frozen=True)
class DefuseOps(FunctionPass):
    """Puts the bodies of primitive functions back in place of their calls."""

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        env: dict[Atom, Atom] = {}
        bindings: list[Binding] = []
        changed = False
        for binding in function.bindings:
            value = replace_args(binding.value, [env.get(a, a) for a in binding.args])
            if isinstance(value, Call) and isinstance(value.op, Function) and value.op.is_primitive:
                env[binding.var] = _inline(binding.var, value.op, value.args, bindings)
                changed = True
            else:
                kept = binding if value is binding.value else replace(binding, value=value)
                bindings.append(kept)
        if not changed:
            return function
        result = env.get(function.result, function.result)
        return replace(function, bindings=tuple(bindings), result=result)


def _inline(var: Var, body: Function, args: tuple[Atom, ...], bindings: list[Binding]) -> Atom:
    """Append the body's bindings under new variables; its result, which is `var` if it can be."""
    local: dict[Atom, Atom] = dict(zip(body.params, args, strict=True))
    for binding in body.bindings:
        is_last = binding.var is body.result
        new = (
            var
            if is_last
            else Var(f"{var.name}_{binding.var.name}", binding.var.type, binding.span)
        )
        value = replace_args(binding.value, [local.get(a, a) for a in binding.args])
        bindings.append(Binding(new, value, binding.span))
        local[binding.var] = new
    return local.get(body.result, body.result)
