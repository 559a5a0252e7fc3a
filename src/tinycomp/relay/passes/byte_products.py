"""ByteProducts: products of widened bytes with constant weights, on bytes.

Quantised models multiply (a - za) with (b - zb), which the importer widens to int32. Where the
weights b - zb fit int8, instructions that add four products of bytes to each lane do it:

    matmul(cast(a) - za, w)  ->  matmul_bytes(a, pack(w)) - za * colsum(w)

int8 activations become uint8 by adding 128, which za then has too. All is exact in int32.
(Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, section 2.3.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...dtype import DType
from ...types import TensorType
from ..nodes import Atom, Call, Constant, Function
from ..pass_infra import FunctionPass, PassContext
from ..pattern import Graph, Match, Rule, is_constant, is_op, op_name, rewrite, tensor, wildcard
from .layouts import QUAD, pack_bytes

ChooseByteTile = Callable[[int, int], tuple[int, int] | None]
"""(rows, columns) of the product -> those of a register tile; None to leave the product."""

_left, _weights = wildcard().has_dtype("int32"), is_constant().has_dtype("int32")
_product = is_op("nn.matmul")(_left, _weights)


@dataclass(frozen=True)
class ByteProducts(FunctionPass):
    """Rewrites products whose weights are a constant matrix with a multiple of four rows."""

    choose_tile: ChooseByteTile

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        return rewrite([Rule("byte product", _product, self._build)], function, ctx.ops)

    def _build(self, graph: Graph, match: Match) -> Atom | None:
        weights, out = match[_weights], tensor(match[_product])
        assert isinstance(weights, Constant)
        found = _bytes(graph, match[_left])
        if found is None or not _fits(weights.data) or not out.is_static or not out.size:
            return None
        x, zero = found
        call, data = graph.builder.call, weights.data.astype(np.int8)
        k, n = data.shape
        rows = math.prod(out.static_shape[:-1])
        tile = self.choose_tile(rows, n)
        if tile is None:
            return None
        x = call("reshape", x, newshape=(rows, k))
        shift = 0
        if tensor(x).dtype is DType.INT8:
            flipped = call("bitwise_xor", x, graph.builder.const(-128, DType.INT8))
            x, shift = call("cast", flipped, dtype=DType.UINT8), 128
        packed = graph.builder.const(pack_bytes(data, tile[1]))
        result = call("nn.matmul_bytes", x, packed, n=n, tile=tile)
        sums = data.sum(0, dtype=np.int32)
        if isinstance(zero, Constant):
            zero, shift = None, shift + int(zero.data.reshape(()))
        if zero is not None:
            total = call("reshape", zero, newshape=())
            if shift:
                total = call("add", total, graph.builder.const(shift, DType.INT32))
            result = call("subtract", result, call("multiply", total, graph.builder.const(sums)))
        elif shift:
            result = call("subtract", result, graph.builder.const(sums * np.int32(shift)))
        return call("reshape", result, newshape=out.static_shape)


def _bytes(graph: Graph, atom: Atom) -> tuple[Atom, Atom | None] | None:
    """The bytes that an int32 value is made of, and what is subtracted from all of them."""
    value = _call(graph, atom)
    zero: Atom | None = None
    if value is not None and op_name(value) == "subtract":
        atom, zero = value.args
        if not isinstance(zero.type, TensorType) or zero.type.size != 1:
            return None
        value = _call(graph, atom)
    if value is None or op_name(value) != "cast":
        return None
    (x,) = value.args
    return (x, zero) if tensor(x).dtype in (DType.UINT8, DType.INT8) else None


def _call(graph: Graph, atom: Atom) -> Call | None:
    binding = graph.producer(atom)
    return binding.value if binding is not None and isinstance(binding.value, Call) else None


def _fits(weights: np.ndarray) -> bool:
    return (
        weights.ndim == 2
        and weights.size > 0
        and weights.shape[0] % QUAD == 0
        and bool(weights.min() >= -128)
        and bool(weights.max() <= 127)
    )
