"""Long sums in slices: the same values, one launch more, more blocks."""

import numpy as np
import pytest

from tinycomp.codegen.cuda import nvrtc
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.diagnostics import TinycompError
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Function
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.schedules import build_kernel
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run

TARGET = Target.parse("cuda -arch=sm_90a")
OPS = default_ops()


def kernel_of(function, target=TARGET):
    fused = FuseOps().run_function(function, PassContext(OPS, target, 3))
    ops = (binding.value.op for binding in fused.bindings if hasattr(binding.value, "op"))
    return build_kernel(next(op for op in ops if isinstance(op, Function)), target, "product")


def matmul(a, b):
    builder = Builder(OPS, fold=False)
    result = builder.call("nn.matmul", builder.param("a", a), builder.param("b", b))
    result = builder.call("add", result, builder.param("bias", b[-1:]))
    return builder.finish(builder.call("nn.relu", result))


def conv(x, w):
    builder = Builder(OPS, fold=False)
    result = builder.call("nn.conv2d", builder.param("x", x), builder.param("w", w),
                          padding=(1, 1, 1, 1))  # fmt: skip
    return builder.finish(builder.call("add", result, builder.param("bias", (w[0], 1, 1))))


@pytest.mark.parametrize(
    "function",
    [
        matmul((32, 768), (768, 96)),
        matmul((50, 600), (600, 40)),  # slices that do not divide the sum
        matmul((2, 3, 20, 1000), (1000, 24)),
        matmul((2, 20, 1024), (2, 1024, 24)),
        conv((1, 70, 5, 5), (20, 70, 3, 3)),
        conv((2, 192, 4, 4), (32, 192, 3, 3)),
    ],
)
def test_values(function):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape).astype(np.float32) for p in function.params]
    func = kernel_of(function)
    assert len(emit_cuda(func).launches) == 2
    shapes = [[d.value for d in p.shape] for p in func.params]
    out = np.zeros(shapes[-1], np.float32)
    run(func, [*(a.reshape(s) for a, s in zip(arrays, shapes, strict=False)), out])
    (expected,) = evaluate(function, arrays)
    np.testing.assert_allclose(out.reshape(expected.shape), expected, 1e-4, 1e-4)


@pytest.mark.parametrize("sizes", [((32, 1024), (1024, 64)), ((40, 1100), (1100, 48))])
def test_tensor_cores(sizes):
    target = Target.parse("cuda -arch=sm_80")
    builder = Builder(OPS, fold=False)
    a, b = (builder.param(name, shape, "float16") for name, shape in zip("ab", sizes, strict=True))
    function = builder.finish(builder.call("nn.matmul", a, b))
    func = kernel_of(function, target)
    assert len(emit_cuda(func).launches) == 2
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(p.type.shape).astype(np.float16) for p in function.params]
    out = np.zeros((sizes[0][0], sizes[1][1]), np.float16)
    run(func, [*arrays, out])
    expected = arrays[0].astype(np.float32) @ arrays[1].astype(np.float32)
    np.testing.assert_allclose(out.astype(np.float32), expected, 2e-3, 5e-2)


def test_large_results_need_no_slices():
    assert len(emit_cuda(kernel_of(matmul((2048, 512), (512, 2048)))).launches) == 1


@pytest.mark.parametrize("function", [matmul((128, 3072), (3072, 768)),
                                      conv((1, 512, 7, 7), (512, 512, 3, 3))])  # fmt: skip
def test_machine_code_without_spills(function):
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    kernel = emit_cuda(kernel_of(function))
    assert np.prod(kernel.launches[0].grid) >= 100
    for arch in ("sm_80", "sm_90a"):
        found = nvrtc.compile_cuda(kernel.source, arch, "product.cu").kernels
        assert all(r.spill_stores == 0 and r.stack == 0 for r in found.values())
