"""Products of a few rows: slices of k over blocks, the same values, and enough blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinycomp.codegen.cuda import nvrtc
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.diagnostics import TinycompError
from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Function
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.schedules import build_kernel
from tinycomp.schedules.gpu.products.skinny import choose_skinny_tile
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run

TARGET = Target.parse("cuda -arch=sm_90a")
OPS = default_ops()


def product(a, b, with_bias=False):
    builder = Builder(OPS, fold=False)
    arrays = [a, b]
    params = [builder.param(f"x{i}", x.shape, DType.of(x.dtype)) for i, x in enumerate(arrays)]
    result = builder.call("nn.matmul", *params)
    if with_bias:
        bias = builder.param("bias", b.shape[-1:], DType.of(b.dtype))
        result = builder.call("nn.relu", builder.call("add", result, bias))
    fused = FuseOps().run_function(builder.finish(result), PassContext(OPS, TARGET, 3))
    ops = (binding.value.op for binding in fused.bindings if hasattr(binding.value, "op"))
    return build_kernel(next(op for op in ops if isinstance(op, Function)), TARGET, "product")


def check(a, b, with_bias=False, tolerance=1e-5):
    func = product(a, b, with_bias)
    arrays, expected = [a, b], np.matmul(a.astype(np.float64), b.astype(np.float64))
    if with_bias:
        arrays.append(np.linspace(-2, 2, b.shape[-1]).astype(b.dtype))
        expected = np.maximum(expected + arrays[-1], 0)
    shapes = [[d.value for d in p.shape] for p in func.params]
    out = np.zeros(shapes[-1], a.dtype)
    arrays = [np.ascontiguousarray(x).reshape(s) for x, s in zip(arrays, shapes, strict=False)]
    run(func, [*arrays, out])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out.reshape(expected.shape) / scale, expected / scale, 0, tolerance)
    return func


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.sampled_from([(), (1,), (2,), (5, 1)]),
    st.integers(1, 16),
    st.sampled_from([1, 2, 10, 31, 64, 130, 260]),
    st.sampled_from([128, 129, 200, 256, 391]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["float32", "float32", "float16"]),
    st.integers(0, 100),
)
def test_any_sizes(batch, m, n, k, batched, with_bias, dtype, seed):
    rng = np.random.default_rng(seed)
    lead = batch if batched else ()
    a, b = (rng.standard_normal(s).astype(dtype) for s in ((*batch, m, k), (*lead, k, n)))
    check(a, b, with_bias, 1e-5 if dtype == "float32" else 2e-3)


@pytest.mark.parametrize("sizes", [(1, 1, 768, 768), (1, 4, 2304, 768), (12, 1, 64, 1024)])
def test_every_multiprocessor_has_work(sizes):
    batch, m, n, k = sizes
    tile = choose_skinny_tile(batch, m, n, k, 4)
    blocks = batch * -(-n // tile.columns) * tile.slices
    assert blocks >= 100
    assert tile.slices * tile.length >= k > (tile.slices - 1) * tile.length


def test_long_rows_fit_shared_memory():
    tile = choose_skinny_tile(1, 16, 50257, 12288, 4)
    assert 16 * tile.length * 4 <= 64 * 1024


def test_one_launch_if_there_is_enough_without_slices():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((1, 128)), rng.standard_normal((128, 17000))
    func = check(a.astype(np.float32), b.astype(np.float32))
    assert len(emit_cuda(func).launches) == 1


@pytest.mark.parametrize("rows", [1, 16])
def test_machine_code_without_spills(rows):
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    zeros = np.broadcast_to(np.float32(0), (rows, 768)), np.broadcast_to(np.float32(0), (768, 768))
    kernel = emit_cuda(product(*zeros, with_bias=True))
    assert "const Vec<float, 4>*)(p1" in kernel.source  # the matrix in accesses of 16 bytes
    for arch in ("sm_80", "sm_90a", "sm_100"):
        found = nvrtc.compile_cuda(kernel.source, arch, "product.cu").kernels
        assert all(r.spill_stores == 0 and r.stack == 0 for r in found.values())
