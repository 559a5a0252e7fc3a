"""Products as tile programs, with operands of small integers: exact in every dtype."""

import numpy as np

from tinycomp.dtype import DType
from tinycomp.ir.expr import Load, Var, const
from tinycomp.schedules.gpu.hopper.operands import Epilogue, Gathered, HopperTile, Operands
from tinycomp.schedules.gpu.hopper.program import gemm_program
from tinycomp.tir.nodes import Buffer, PrimFunc
from tinycomp.tir.tile.interpreter import Policy, run_tile_program
from tinycomp.tir.tile.layout import Major


class Product:
    """out[b, i, j] = sum_k A[b, i, k] B[b, k, j] (+ bias[j]) as a tile program."""

    def __init__(
        self, m, n, k, tile, *, batch=1, blocks=4, dtype=DType.BFLOAT16, out=DType.FLOAT32,
        b_major=Major.MN, bias=False, gathered=False, data=True, right=None,
    ):  # fmt: skip
        b_major = Major.K if gathered else b_major  # each thread reads its elements of [n, k]
        lead = [const(batch)] if batch > 1 else []
        b_shape = (const(k), const(n)) if b_major is Major.MN else (const(n), const(k))
        self.b_major = b_major
        self.a = Buffer("A", (*lead, const(m), const(k)), dtype)
        self.b = Buffer("B", (*lead, *b_shape), right or dtype)
        self.bias = Buffer("bias", (const(n),), DType.FLOAT32)
        self.out = Buffer("out", (*lead, const(m), const(n)), out)
        b, i, j, acc = Var("b"), Var("i"), Var("j"), Var("acc", DType.FLOAT32)
        if right is not None:
            acc = Var("acc", DType.INT32)
        value = acc.astype(DType.FLOAT32) + Load(self.bias, (j,), None) if bias else acc
        value = value if out is value.dtype else value.astype(out)
        index = (b, i, j) if batch > 1 else (i, j)
        epilogue = Epilogue(self.out, index, value, b, i, j, acc)
        source = self.b
        if gathered:
            gb, gk, gj = Var("gb"), Var("gk"), Var("gj")
            at = (gb, gj, gk) if batch > 1 else (gj, gk)
            source = Gathered(Load(self.b, at, None), gb, gk, gj)
        operands = Operands(self.a, source, batch, m, n, k, b_major)
        self.program = gemm_program("product", operands, epilogue, tile, blocks)
        params = (self.a, self.b, self.bias, self.out)
        self.func = PrimFunc("product", params, 1, self.program)
        if not data:
            return
        rng = np.random.default_rng(m + n + k)
        self.arrays = {
            p: rng.integers(-4, 5, [d.value for d in p.shape]).astype(p.dtype.numpy) for p in params
        }
        a, w = (self.arrays[x].astype(np.float32) for x in (self.a, self.b))
        self.expected = a @ (w if b_major is Major.MN else np.swapaxes(w, -1, -2))
        self.expected = self.expected + self.arrays[self.bias] * bias

    def run(self, policy=None, program=None):
        """The result, or the error that the interpreter reports."""
        out = self.arrays[self.out]
        out[...] = np.nan
        run_tile_program(self.func, program or self.program, self.arrays, policy)
        return out.astype(np.float32)

    def check(self, *policies):
        """The interpreter gives the exact result under each policy."""
        expected = self.expected.astype(self.out.dtype.numpy).astype(np.float32)
        for policy in policies or (Policy(),):
            np.testing.assert_array_equal(self.run(policy), expected)


SHAPES = {
    "128x256 in clusters": (HopperTile(128, 256, 4, 2, 2), {}),
    "128x256": (HopperTile(128, 256, 4, 2, 1), {"dtype": DType.FLOAT16, "out": DType.FLOAT16}),
    "256x128": (HopperTile(256, 128, 4, 2, 2), {"out": DType.BFLOAT16}),
    "128x192": (HopperTile(128, 192, 4, 2, 1), {}),
    "192x192, 3 consumers": (HopperTile(192, 192, 3, 3), {}),
    "128x128, 1 consumer": (HopperTile(128, 128, 5, 1), {}),
    "64x256": (HopperTile(64, 256, 4, 1, 2), {"batch": 3}),
    "64x64": (HopperTile(64, 64, 8, 1), {}),
    "128x128 in turn": (HopperTile(128, 128, 6, 2, 2, alternate=True), {"out": DType.BFLOAT16}),
    "64x256 in turn": (HopperTile(64, 256, 4, 2, 1, alternate=True), {}),
    "gathered": (HopperTile(256, 128, 4, 2, staged=False), {"gathered": True}),
    "gathered, 64 rows": (HopperTile(64, 256, 4, 1), {"gathered": True}),
    "stored directly": (HopperTile(128, 256, 4, 2, 1, 8, False), {"out": DType.BFLOAT16}),
    "sum in a cluster": (HopperTile(64, 64, 4, 1, split=4), {"out": DType.BFLOAT16}),
    "sum in a cluster, 2 consumers": (
        HopperTile(128, 32, 4, 2, split=8),
        {"b_major": Major.K, "out": DType.BFLOAT16},
    ),
    "bytes": (
        HopperTile(128, 128, 4, 2, 2),
        {"b_major": Major.K, "dtype": DType.UINT8, "right": DType.INT8, "out": DType.INT32},
    ),
    "K-major B": (HopperTile(128, 256, 4, 2, 2), {"b_major": Major.K}),
    "tf32": (HopperTile(128, 128, 4, 2, 2), {"b_major": Major.K, "dtype": DType.FLOAT32}),
}
"""Tiles of every kind, with the options of a Product."""
