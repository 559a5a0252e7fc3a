"""A of a wgmma in registers."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.cuda.nvrtc import compile_cuda, library
from tinycomp.diagnostics import TinycompError
from tinycomp.dtype import DType
from tinycomp.ir.expr import Broadcast, Load, Ramp, Var, const
from tinycomp.tir.nodes import Buffer, PrimFunc, Scope, Seq, Store
from tinycomp.tir.tile import nodes as op
from tinycomp.tir.tile.arithmetic import multiply_add
from tinycomp.tir.tile.interpreter import POLICIES, TileError, run_tile_program
from tinycomp.tir.tile.layout import (
    Major,
    MatrixDescriptor,
    Swizzle,
    WgmmaShape,
    fragment_column,
    fragment_row,
    left_element,
)

N = 32


class Small:
    """out[64, N] = A[64, k] B[N, k]^T for one wgmma, with A loaded straight to registers."""

    def __init__(self, dtype):
        shape = WgmmaShape(N, dtype)
        k, pack = shape.k, 4 // dtype.itemsize
        row = 128 // dtype.itemsize  # of B, of which the first k elements count
        self.a = Buffer("A", (const(64), const(k)), dtype)
        self.b = Buffer("B", (const(N), const(row)), dtype)
        self.out = Buffer("out", (const(64), const(N)), DType.FLOAT32)
        shared = Buffer("b_tile", (const(N * row),), dtype, Scope.SHARED, 1024)
        tile = op.SharedTile("b_tile", dtype, N * 128, 1, shared)
        map_ = op.TensorMap("b", self.b, (row, N), (128,), (row, N), Swizzle(128))
        full, write, read = op.Barrier("full", 1, 1), op.Cursor("write", 1), op.Cursor("read", 1)
        acc = op.Accumulator(shape, 1, Buffer("acc", (const(N // 2),), DType.FLOAT32, Scope.LOCAL))
        self.part = Buffer("a_part", (const(4 * pack),), dtype, Scope.LOCAL)
        thread = Var("thread")

        def at(index):
            return Ramp(index, const(1), pack) if pack > 1 else index

        loads = []
        for row_half in (0, 1):
            for k_half in (0, 1):
                e = left_element(row_half, k_half, pack)
                i = fragment_row(thread, row_half * 2)
                p = thread % 4 * pack + k_half * 4 * pack
                loads.append(
                    Store(self.part, (at(const(e)),), Load(self.a, (_wide(i, pack), at(p)), None))
                )
        stores = [
            Store(
                self.out, (fragment_row(thread, r), fragment_column(thread, r)),
                Load(acc.buffer, (const(r),), None),
            )
            for r in range(shape.registers)
        ]  # fmt: skip
        operand = op.Operand(tile, read, const(0), MatrixDescriptor(Major.K, 16, 1024))
        self.steps = (
            op.ThreadCode(Seq(tuple(loads))), op.Wait(full, read), op.WgmmaFence(),
            op.Wgmma(acc, 0, op.Fragment(self.part, 0), operand, False), op.WgmmaCommit(),
            op.WgmmaWait(0), op.ThreadCode(Seq(tuple(stores))),
        )  # fmt: skip
        load = op.TmaLoad(map_, (const(0), const(0)), tile, const(0), write, full)
        producer = op.Role(
            "producer", 0, 1, Var("warpgroup"), Var("thread"),
            Seq((op.ExpectBytes(full, write, tile.nbytes), load)), single=True, cursors=(write,),
        )  # fmt: skip
        consumer = op.Role(
            "consumer", 1, 1, Var("warpgroup"), thread, Seq(self.steps), cursors=(read,),
            accumulators=(acc,), arrays=(self.part,),
        )  # fmt: skip
        self.program = op.TileProgram(
            "small", 1, 1, Var("block"), Var("rank"), (map_,), (tile,), (full,),
            Seq((op.InitBarriers(), op.FenceBarrierInit(), op.ClusterSync())),
            (producer, consumer), Seq(()),
        )  # fmt: skip
        self.func = PrimFunc("small", (self.a, self.b, self.out), 1, self.program)

    def with_steps(self, steps):
        producer, consumer = self.program.roles
        return replace(self.program, roles=(producer, replace(consumer, body=Seq(tuple(steps)))))

    def run(self, arrays, policy=POLICIES[0], program=None):
        spaces = dict(zip(self.func.params, arrays, strict=True))
        run_tile_program(self.func, program or self.program, spaces, policy)
        return arrays[2]


def _wide(index, lanes):
    return Broadcast(index, lanes) if lanes > 1 else index


def arrays_of(case, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal([d.value for d in p.shape]).astype(p.dtype.numpy)
        for p in case.func.params
    ]


DTYPES = pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32], ids=str)


@DTYPES
@pytest.mark.parametrize("policy", POLICIES[:3], ids=str)
def test_product(dtype, policy):
    case = Small(dtype)
    arrays = arrays_of(case)
    a, b, _ = arrays
    exact = multiply_add(a, b[:, : a.shape[1]], np.zeros((64, N), np.float32))
    np.testing.assert_array_equal(case.run(arrays, policy), exact)
    np.testing.assert_allclose(
        exact, a.astype(float) @ b[:, : a.shape[1]].astype(float).T, atol=2e-2
    )


def test_registers_may_not_change_before_the_wait():
    case = Small(DType.BFLOAT16)
    fill, wait_b, fence, product, commit, wait, store = case.steps
    for steps in (
        (fill, wait_b, fence, product, commit, fill, wait, store),  # overwritten under way
        (wait_b, fence, fill, product, commit, wait, store),  # not fenced
    ):
        with pytest.raises(TileError, match=r"a_part (while|after)"):
            case.run(arrays_of(case), program=case.with_steps(steps))
    case.run(arrays_of(case), program=case.with_steps((*case.steps[:-1], fill, store)))


@DTYPES
def test_code(dtype):
    try:
        library()
    except TinycompError as error:
        pytest.skip(str(error))
    source = emit_cuda(Small(dtype).func).source
    name = {"float32": "tf32", "bfloat16": "bf16", "float16": "f16"}[str(dtype)]
    assert f"wgmma_n32_{name}_r_k(acc, a_part + 0," in source
    cubin = compile_cuda(source, "sm_90a")
    assert not re.search(r"C7\d\d\d", cubin.log)
    assert cubin.kernels["small"].spill_stores == cubin.kernels["small"].stack == 0


def test_sums_are_cut_not_rounded():
    """arXiv:2512.07004: two bits below float32, then towards zero."""
    one, half = np.ones((1, 1), np.float16), np.full((1, 1), 2.0**-12, np.float16)
    assert multiply_add(half, half * 3, np.float32([[1]])) == 1 + 2.0**-23  # 1.5 units
    assert multiply_add(half, half * 3, np.float32([[-1]])) == -1 + 1.5 * 2.0**-23
    many = np.full((1, 16), 2.0**-13, np.float16)
    assert multiply_add(many, many, np.float32([[1]])) == 1  # each is cut before they are added
    assert multiply_add(many, many * 2, np.float32([[1]])) == 1 + 2.0**-21
    assert multiply_add(one, one * np.inf, np.float32([[1]])) == np.inf
