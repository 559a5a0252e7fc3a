"""Giving symbolic dimensions their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...diagnostics import TinycompError
from ...ir.expr import Expr, as_expr, substitute, variables
from ...ir.expr import Var as DimVar
from ...types import TensorType, TupleType, Type, as_dim
from ..nodes import Atom, Binding, Call, Function, IRModule, Var, regions, replace_args
from ..pass_infra import FunctionPass, PassContext


@dataclass(frozen=True)
class DynamicToStatic(FunctionPass):
    """Replaces named dimensions by integers, in types and attributes.

    Args:
        dims: value by dimension name. Dimensions that are not named stay symbolic.

        fn (%x: float32[batch, 3])     ->     fn (%x: float32[8, 3])     with dims {"batch": 8}

    Raises:
        TinycompError: a value is negative.
    """

    dims: Mapping[str, int] = field(default_factory=dict)

    def run(self, module: IRModule, ctx: PassContext) -> IRModule:
        for name, value in self.dims.items():
            if value < 0:
                raise TinycompError(f"dimension {name} is given the negative value {value}")
        return super().run(module, ctx) if self.dims else module

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        substitution = _Substitution(self.dims)
        params = {p: substitution.var(p) for p in function.params}
        env: dict[Atom, Atom] = {**params}
        bindings: list[Binding] = []
        for binding in function.bindings:
            value = replace_args(binding.value, [env.get(a, a) for a in binding.args])
            if isinstance(value, Call) and not regions(value):
                attrs = substitution.attrs(value.attrs)
                if attrs is not value.attrs:
                    value = Call(value.op, value.args, attrs)
            var = substitution.var(binding.var)
            env[binding.var] = var
            same = var is binding.var and value is binding.value
            bindings.append(binding if same else Binding(var, value, binding.span))
        if all(a is b for a, b in zip(bindings, function.bindings, strict=True)) and all(
            a is b for a, b in env.items()
        ):
            return function
        return replace(
            function,
            params=tuple(params.values()),
            bindings=tuple(bindings),
            result=env.get(function.result, function.result),
        )


class _Substitution:
    def __init__(self, dims: Mapping[str, int]) -> None:
        self.dims = dims

    def dim(self, dim: Any) -> Any:
        if not isinstance(dim, Expr):
            return dim
        values: dict[DimVar, Expr] = {
            v: as_expr(self.dims[v.name]) for v in variables(dim) if v.name in self.dims
        }
        return as_dim(substitute(dim, values)) if values else dim

    def type(self, type_: Type) -> Type:
        """`type_` with known dimensions; types are shallow, so this may recurse."""
        if isinstance(type_, TupleType):
            return TupleType(tuple(map(self.type, type_.fields)))
        return TensorType(tuple(map(self.dim, type_.shape)), type_.dtype)

    def var(self, var: Var) -> Var:
        type_ = self.type(var.type)
        return var if type_ == var.type else Var(var.name, type_, var.span)

    def attrs(self, attrs: Any) -> Any:
        """Attributes with known dimensions; itself if none is symbolic."""
        changes: dict[str, Any] = {}
        for f in dataclasses.fields(attrs):
            old = getattr(attrs, f.name)
            new = tuple(map(self.dim, old)) if isinstance(old, tuple) else self.dim(old)
            if new != old:
                changes[f.name] = new
        return replace(attrs, **changes) if changes else attrs
