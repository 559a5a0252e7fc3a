"""Tile programs as CUDA C++: every shape compiles for sm_90a without spills or warnings."""

import re

import pytest

from tinycomp.codegen.cuda import emit_cuda
from tinycomp.codegen.nvrtc import compile_cuda, library
from tinycomp.diagnostics import TinycompError
from tinycomp.dtype import DType
from tinycomp.ir.expr import Load, Var, const
from tinycomp.schedules.gpu.hopper_program import (
    Epilogue,
    Gathered,
    HopperTile,
    Operands,
    gemm_program,
)
from tinycomp.tir.nodes import Buffer, PrimFunc
from tinycomp.tir.tile.layout import Major


def kernel(tile, m=4000, n=4008, k=4096, dtype=DType.BFLOAT16, out=DType.BFLOAT16,
           major=Major.MN, batch=1, gathered=False):  # fmt: skip
    lead = [const(batch)] if batch > 1 else []
    sizes = (k, n) if major is Major.MN else (n, k)
    a = Buffer("A", (*lead, const(m), const(k)), dtype)
    b = Buffer("B", (*lead, *map(const, sizes)), dtype)
    bias = Buffer("bias", (const(n),), DType.FLOAT32)
    result = Buffer("out", (*lead, const(m), const(n)), out)
    at, acc = [Var(x) for x in "bij"], Var("acc", DType.FLOAT32)
    value = (acc + Load(bias, (at[2],), None)).astype(out)
    epilogue = Epilogue(result, tuple(at if batch > 1 else at[1:]), value, *at, acc)
    source = Gathered(Load(b, tuple(at[1:]), None), *at) if gathered else b
    operands = Operands(a, source, batch, m, n, k, major)
    program = gemm_program("gemm", operands, epilogue, tile, 132)
    return emit_cuda(PrimFunc("gemm", (a, b, bias, result), 1, program))


CASES = {
    "128x256 in clusters": (HopperTile(128, 256, 4, 2, 2), {}),
    "128x256": (HopperTile(128, 256, 4, 2, 1), {"dtype": DType.FLOAT16, "out": DType.FLOAT16}),
    "256x128": (HopperTile(256, 128, 4, 2, 2), {}),
    "128x192": (HopperTile(128, 192, 4, 2, 1), {"out": DType.FLOAT32}),
    "192x192, 3 consumers": (HopperTile(192, 192, 3, 3), {}),
    "128x128, 1 consumer": (HopperTile(128, 128, 5, 1), {}),
    "64x256": (HopperTile(64, 256, 4, 1, 2), {"batch": 3}),
    "64x64": (HopperTile(64, 64, 8, 1), {"k": 64}),
    "128x128 in turn": (HopperTile(128, 128, 6, 2, 2, alternate=True), {}),
    "64x256 in turn": (HopperTile(64, 256, 4, 2, 1, alternate=True), {}),
    "gathered": (HopperTile(256, 128, 4, 2, staged=False), {"gathered": True}),
    "gathered, 64 rows": (HopperTile(64, 256, 4, 1), {"gathered": True, "k": 4000}),
    "stored directly": (HopperTile(128, 256, 4, 2, 1, 8, False), {}),
    "K-major B": (HopperTile(128, 256, 4, 2, 2), {"major": Major.K}),
    "tf32": (HopperTile(128, 128, 4, 2, 2),
             {"major": Major.K, "dtype": DType.FLOAT32, "out": DType.FLOAT32}),
}  # fmt: skip


@pytest.fixture(scope="module")
def nvrtc():
    try:
        return library()
    except TinycompError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", CASES)
def test_compiles(nvrtc, name):
    tile, options = CASES[name]
    found = kernel(tile, **options)
    cubin = compile_cuda(found.source, "sm_90a")
    used = cubin.kernels["gemm"]
    assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0)
    assert used.registers * found.launches[0].threads <= 65536
    warnings = [line for line in cubin.log.splitlines() if re.search(r"C7\d\d\d|warning", line)]
    assert not warnings


def test_launch():
    (launch,) = kernel(HopperTile(128, 256, 4, 2, 2)).launches
    assert (launch.grid, launch.block, launch.cluster) == ((132, 1, 1), (384, 1, 1), (2, 1, 1))
    a, b, out = launch.maps
    assert (a.param, a.dims, a.strides, a.box) == (0, (4096, 4000), (8192,), (64, 128))
    assert (b.param, b.dims, b.box) == (1, (4008, 4096), (64, 32))  # half of the rows for each
    assert (out.param, out.box, out.swizzle) == (3, (64, 64), 128)
    assert launch.params == (2,)  # the bias; the rest is reached through the maps


def test_source():
    source = kernel(HopperTile(128, 256, 4, 2, 2)).source
    for text in (
        "__cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) gemm(",
        "const __grid_constant__ TensorMap a_map",
        "set_registers_down<40>();",
        "set_registers_up<232>();",
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16",
        ", p, 1, 1, 0, 1;",  # B transposed
        "fence_mbarrier_init();",
    ):
        assert text in source
