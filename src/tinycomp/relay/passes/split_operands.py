"""SplitOperands: right operands of float32 products in the parts that tensor cores take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..nodes import Atom, Constant, Function
from ..pass_infra import FunctionPass, PassContext
from ..pattern import Graph, Match, Rule, is_op, rewrite, tensor, wildcard

ChooseSplit = Callable[[str, int, int, int, bool], str | None]
"""(precision, rows, columns, length of the sum, whether the right operand is constant) -> the name
of a split; None: leave the product."""

_left, _right = wildcard().has_dtype("float32"), wildcard().has_dtype("float32")
_product = is_op("nn.matmul")(_left, _right)


@dataclass(frozen=True)
class SplitOperands(FunctionPass):
    """Rewrites products whose right operand is one matrix.

    nn.matmul(x, W)  ->  nn.matmul_parts(x, nn.split_operand(W))

    A constant is split when constants are folded; one with infinities or NaN is left whole.
    """

    choose: ChooseSplit

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        return rewrite([Rule("split operand", _product, self._matmul)], function, ctx.ops)

    def _matmul(self, graph: Graph, match: Match) -> Atom | None:
        right, out = match[_right], tensor(match[_product])
        constant = isinstance(right, Constant)
        if not out.is_static or not tensor(right).is_static:
            return None
        *lead, k, n = tensor(right).static_shape
        if math.prod(lead) != 1 or (constant and not np.isfinite(right.data).all()):
            return None
        binding = graph.producer(match[_product])
        assert binding is not None
        precision = binding.value.attrs.precision  # type: ignore[union-attr]
        *batch, _ = out.static_shape
        split = self.choose(precision, math.prod(batch), n, k, constant)
        if split is None:
            return None
        call = graph.builder.call
        matrix = call("reshape", right, newshape=(k, n)) if lead else right
        parts = call("nn.split_operand", matrix, split=split, finite=constant)
        x = match[_left]
        extra = len(lead) - (tensor(x).rank - 2)
        if extra > 0:  # the result has the weight's leading ones
            x = call("reshape", x, newshape=(*(1,) * extra, *tensor(x).static_shape))
        return call("nn.matmul_parts", x, parts, split=split, finite=constant, k=k, n=n)
