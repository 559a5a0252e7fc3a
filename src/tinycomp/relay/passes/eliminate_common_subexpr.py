"""Computing equal values once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from ..nodes import (
    Atom,
    Binding,
    Call,
    Constant,
    Function,
    Tuple,
    TupleGetItem,
    Value,
    replace_args,
)
from ..pass_infra import FunctionPass, PassContext
from ..visitor import rebuilt


@dataclass(frozen=True)
class EliminateCommonSubexpr(FunctionPass):
    """Keeps the first of several calls of one operator with equal attributes and arguments.

    Constants are equal if their content is; those larger than `constant_bytes` only if they are
    the same object.

        %0 = exp(%x)
        %1 = exp(%x)               %0 = exp(%x)
        %2 = add(%0, %1)     ->    %2 = add(%0, %0)
    """

    constant_bytes: int = 1 << 12

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        env: dict[Atom, Atom] = {}
        first: dict[Hashable, int] = {}
        output: list[Binding] = []
        for binding in function.bindings:
            value = replace_args(binding.value, [env.get(a, a) for a in binding.args])
            key = self._key(value)
            index = first.get(key) if key is not None else None
            if index is not None:
                known = output[index]
                output[index] = replace(known, span=known.span | binding.span)
                env[binding.var] = known.var
                continue
            if key is not None:
                first[key] = len(output)
            output.append(binding if value is binding.value else replace(binding, value=value))
        return rebuilt(function, output, env.get(function.result, function.result))

    def _key(self, value: Value) -> Hashable | None:
        """Equal for values that are certainly equal; None for control flow."""
        args = tuple(self._atom_key(a) for a in value.args)
        if isinstance(value, Call):
            return (value.op, value.attrs, args)  # a fused function compares by identity
        if isinstance(value, TupleGetItem):
            return (TupleGetItem, value.index, args)
        return (Tuple, args) if isinstance(value, Tuple) else None

    def _atom_key(self, atom: Atom) -> Hashable:
        if isinstance(atom, Constant) and atom.data.nbytes <= self.constant_bytes:
            return (atom.type, atom.data.tobytes())
        return atom
