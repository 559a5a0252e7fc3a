"""Matmuls and convolutions in a 16-bit format, the rest in float32."""

from __future__ import annotations

from dataclasses import dataclass

from ...dtype import DType
from ...types import TensorType
from ..nodes import Atom, Binding, Call, Function
from ..pass_infra import FunctionPass, PassContext
from ..pattern import op_name, tensor
from ..visitor import ExprMutator

_HEAVY = frozenset({"nn.matmul", "nn.conv2d", "nn.conv3d", "nn.conv2d_transpose"})


@dataclass(frozen=True)
class ToMixedPrecision(FunctionPass):
    """Rounds the operands and results of matmuls and convolutions to float16 or bfloat16.

    Sums are still accumulated in float32. Constant weights are stored rounded, in half the
    memory. Inputs and outputs of the function keep their types. Not part of any default pipeline,
    since results differ by the format's precision.

        %0 = nn.matmul(%x, W)     ->     %0 = cast(%x, dtype="bfloat16")
                                         %1 = nn.matmul(%0, W in bfloat16)
                                         %2 = cast(%1, dtype="float32")
    """

    dtype: DType = DType.BFLOAT16

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        return _Mutator(ctx, self.dtype).run(function)


class _Mutator(ExprMutator):
    def __init__(self, ctx: PassContext, dtype: DType) -> None:
        super().__init__(ctx.ops)
        self.dtype = dtype
        self.rounded: dict[Atom, Atom] = {}

    def begin(self) -> None:
        self.rounded = {}
        self.builder.fold_limit = 1 << 40  # a rounded weight is smaller than the weight

    def visit_call(self, binding: Binding, call: Call) -> Atom:
        if op_name(call) not in _HEAVY or not all(map(_is_float32, call.args)):
            return self.keep(binding, call)
        assert not isinstance(call.op, Function)
        args = [self._round(a) for a in call.args]
        result = self.builder.call(call.op, *args, attrs=call.attrs)
        return self.builder.call("cast", result, dtype=tensor(binding.var).dtype)

    def _round(self, atom: Atom) -> Atom:
        if atom not in self.rounded:
            self.rounded[atom] = self.builder.call("cast", atom, dtype=self.dtype)
        return self.rounded[atom]


def _is_float32(atom: Atom) -> bool:
    return isinstance(atom.type, TensorType) and atom.type.dtype is DType.FLOAT32
