"""Operators that are simpler when a model only infers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..nodes import Atom, Binding, Call, Constant, Function
from ..pass_infra import FunctionPass, PassContext
from ..pattern import op_name, tensor
from ..visitor import ExprMutator


@dataclass(frozen=True)
class SimplifyInference(FunctionPass):
    """Batch normalisation with known statistics becomes a multiplication and an addition.

        nn.batch_norm(%x, gamma, beta, mean, var)     ->     add(multiply(%x, scale), shift)

    with scale = gamma / sqrt(var + epsilon) and shift = beta - mean * scale, computed in float64
    and shaped [C, 1, ...]. Statistics that are not constant are computed in the graph.
    """

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        calls = (b.value for b in function.bindings if isinstance(b.value, Call))
        if not any(op_name(call) == "nn.batch_norm" for call in calls):
            return function
        return _Mutator(ctx.ops).run(function)


class _Mutator(ExprMutator):
    def visit_call(self, binding: Binding, call: Call) -> Atom:
        if op_name(call) != "nn.batch_norm":
            return self.keep(binding, call)
        x, *parameters = call.args
        shape = (-1, *(1,) * (tensor(x).rank - 2))
        attrs: Any = call.attrs
        epsilon: float = attrs.epsilon
        if all(isinstance(p, Constant) for p in parameters):
            scale, shift = self._constants([p.data for p in parameters], epsilon, x, shape)  # type: ignore[union-attr]
        else:
            scale, shift = self._computed(parameters, epsilon, shape)
        return self.builder.call("add", self.builder.call("multiply", x, scale), shift)

    def _constants(
        self, arrays: list[np.ndarray], epsilon: float, x: Atom, shape: tuple[int, ...]
    ) -> tuple[Atom, Atom]:
        gamma, beta, mean, var = (a.astype(np.float64) for a in arrays)
        scale = gamma / np.sqrt(var + epsilon)
        shift = beta - mean * scale
        dtype = tensor(x).dtype
        return (
            self.builder.const(scale.reshape(shape), dtype),
            self.builder.const(shift.reshape(shape), dtype),
        )

    def _computed(
        self, parameters: list[Atom], epsilon: float, shape: tuple[int, ...]
    ) -> tuple[Atom, Atom]:
        call = self.builder.call
        gamma, beta, mean, var = parameters
        epsilon_ = self.builder.const(epsilon, tensor(var).dtype)
        scale = call("multiply", gamma, call("rsqrt", call("add", var, epsilon_)))
        shift = call("subtract", beta, call("multiply", mean, scale))
        full = (*tensor(gamma).shape, *shape[1:])
        return call("reshape", scale, newshape=full), call("reshape", shift, newshape=full)
