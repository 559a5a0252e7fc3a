"""Attention on small tiles, for the interpreter of tile programs."""

import math
from typing import Any

import numpy as np

from tinycomp.dtype import DType
from tinycomp.ir.expr import const
from tinycomp.ops import default_ops
from tinycomp.ops.fused_attention import AttentionAttrs
from tinycomp.schedules.gpu.attention.online_softmax import OnlineSoftmax
from tinycomp.schedules.gpu.attention.program import AttentionTile, Heads, attention_program
from tinycomp.tir.nodes import Buffer, PrimFunc
from tinycomp.tir.tile.interpreter import Policy, run_tile_program

OP = default_ops()["nn.attention"]
SMALL = AttentionTile(1, 32, 2)


def _shapes() -> dict[str, tuple[tuple[int, ...], dict[str, Any]]]:
    """Heads, queries, keys and elements of a head."""
    alone = {"tile": AttentionTile(1, 112, 4), "dtype": DType.BFLOAT16}
    return {
        "64": ((4, 500, 1000, 64), {"tile": AttentionTile(2, 128, 3)}),
        "64, one consumer": ((4, 197, 197, 64), alone),
        "128": ((4, 500, 1000, 128), {"tile": AttentionTile(2, 128, 2), "dtype": DType.BFLOAT16}),
        "128, causal": ((4, 500, 1000, 128), {"tile": AttentionTile(2, 128, 2), "causal": 400}),
        "256, stored directly": ((2, 300, 500, 256), {"tile": AttentionTile(2, 64, 2, False)}),
        "80 and 112": ((2, 300, 500, 80), {"tile": AttentionTile(2, 112, 2), "v_depth": 112}),
        "many tiles for a block": ((8, 300, 200, 64), {"tile": AttentionTile(2, 64, 2)}),
    }


SHAPES = _shapes()
"""Tiles of every kind, with the options of an Attention."""


class Attention:
    """softmax(q k^T * scale) v for q [heads, queries, depth] as a tile program.

    Results are compared with those in float32 within `tolerance`.
    """

    tolerance = 2e-2

    def __init__(
        self, heads, queries, keys, depth, tile=SMALL, *, v_depth=0, blocks=2,
        causal=None, dtype=DType.FLOAT16, data=True,
    ):  # fmt: skip
        v_depth = v_depth or depth
        attrs = AttentionAttrs(1 / math.sqrt(depth), causal)
        shapes = {
            "q": (1, heads, queries, depth), "k": (1, heads, keys, depth),
            "v": (1, heads, keys, v_depth), "out": (1, heads, queries, v_depth),
        }  # fmt: skip
        buffers = {n: Buffer(n, tuple(const(d) for d in s), dtype) for n, s in shapes.items()}
        operands = [
            Heads(buffers[n], s, (math.prod(s), s[2] * s[3], s[3])) for n, s in shapes.items()
        ]
        softmax = OnlineSoftmax(attrs, (), DType.FLOAT32, queries, keys, (tile.queries, tile.keys))
        self.program = attention_program("attention", *operands, softmax, tile, blocks)
        self.func = PrimFunc("attention", tuple(buffers.values()), 1, self.program)
        if not data:
            return
        rng = np.random.default_rng(queries + keys + depth)
        self.arrays = {
            b: rng.standard_normal(shapes[n]).astype(dtype.numpy) for n, b in buffers.items()
        }
        self.out = buffers["out"]
        with np.errstate(invalid="ignore"):
            expected = OP.reference(attrs, list(self.arrays.values())[:3])
        self.expected = expected.astype(np.float32)

    def run(self, policy=None, program=None):
        """The result, or the error that the interpreter reports."""
        out = self.arrays[self.out]
        out[...] = np.nan
        run_tile_program(self.func, program or self.program, self.arrays, policy)
        return out.astype(np.float32)

    def is_right(self, policy=None, program=None):
        got = self.run(policy, program)
        return np.allclose(got, self.expected, self.tolerance, self.tolerance, True)

    def check(self, *policies):
        for policy in policies or (Policy(),):
            np.testing.assert_allclose(
                self.run(policy), self.expected, self.tolerance, self.tolerance
            )
