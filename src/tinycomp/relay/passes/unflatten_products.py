"""UnflattenProducts: a product of flattened rows takes the shape that its reader wants."""

from __future__ import annotations

from dataclasses import dataclass

from ..nodes import Atom, Binding, Call, Function
from ..op import OpSet
from ..pass_infra import FunctionPass, PassContext
from ..pattern import op_name, tensor
from ..visitor import ExprMutator, Uses, remove_dead_bindings


@dataclass(frozen=True)
class UnflattenProducts(FunctionPass):
    """Moves a reshape of the rows of a product in front of it, where reshapes cancel and do not
    stand between the product and the elementwise work after it.

        %0 = reshape(%x, newshape=(64, 768))          %0 = nn.matmul(%x, W)
        %1 = nn.matmul(%0, W)                    ->   %1 = add(%0, %x)
        %2 = reshape(%1, newshape=(1, 64, 768))
        %3 = add(%2, %x)
    """

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        return remove_dead_bindings(_Mutator(ctx.ops, function).run(function))


class _Mutator(ExprMutator):
    def __init__(self, ops: OpSet, function: Function) -> None:
        super().__init__(ops)
        self.uses = Uses(function)

    def visit_call(self, binding: Binding, call: Call) -> Atom:
        product = self.uses.producer(binding.args[0]) if op_name(call) == "reshape" else None
        if product is None or not isinstance(product.value, Call):
            return self.keep(binding, call)
        result, flat = tensor(binding.var), tensor(product.var)
        alone = op_name(product.value) == "nn.matmul" and self.uses.count(product.var) == 1
        if not alone or flat.rank != 2 or result.rank < 3 or result.shape[-1] != flat.shape[-1]:
            return self.keep(binding, call)
        rows, matrix = (self.map(a) for a in product.value.args)
        self.builder.span |= product.span
        shape = (*result.shape[:-1], tensor(rows).shape[-1])
        rows = self.builder.call("reshape", rows, newshape=shape)
        return self.builder.call("nn.matmul", rows, matrix)
