"""Products on tensor cores: any sizes and dtypes against NumPy, fused work, machine code."""

import numpy as np
import pytest
from tests.schedules.gpu.product_cases import OPS, TARGET, execute, kernel, lowered, matmul

from tinycomp.codegen.cuda.access import find_accesses
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.cuda.nvrtc import compile_cuda, library
from tinycomp.diagnostics import TinycompError
from tinycomp.dtype import DType
from tinycomp.kernels import kernel_name
from tinycomp.ops.conv import Conv2dAttrs
from tinycomp.ops.matmul import MatmulAttrs
from tinycomp.ops.matmul_bytes import MatmulBytesAttrs
from tinycomp.pipeline import default_pipeline
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Call, Function, IRModule
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.layouts import pack_bytes
from tinycomp.schedules import build_kernel
from tinycomp.schedules.gpu import PLAIN
from tinycomp.schedules.gpu.products.matmul_bytes import choose_gpu_byte_tile
from tinycomp.schedules.gpu.products.tensor_cores import choose_warp_tile, shared_bytes
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.nodes import Evaluate
from tinycomp.tir.tensor_intrinsics.warp import MMA
from tinycomp.tir.tree import statements


def product(a, b, dtype, **options):
    return matmul(a, b, dtype, precision="tf32" if dtype == "float32" else "fp32", **options)


def uses_tensor_cores(func):
    calls = (s.value for s in statements(func.body) if isinstance(s, Evaluate))
    return any(getattr(call, "name", "") in MMA for call in calls)


def close(got, want, dtype):
    """Within the rounding of operands and result; sums are float32."""
    unit = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-11}[dtype]
    scale = np.abs(want).max() + 1
    np.testing.assert_allclose(got, want, 4 * unit, 4 * unit * scale)


SIZES = [(64, 64, 64), (1, 1, 1), (16, 8, 16), (17, 131, 67), (8, 64, 520), (100, 72, 200),
         (130, 96, 64), (37, 40, 1), (9, 3, 129)]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_matmul_of_any_size(sizes, dtype):
    m, n, k = sizes
    func = product((m, k), (k, n), dtype)
    (a, b, c), got = execute(func)
    close(got, np.maximum(a @ b + c, 0), dtype)
    assert uses_tensor_cores(func) or m <= 16  # of a few rows there are other schedules


@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 20, 40), (3, 40, 24)), ((2, 3, 20, 16), (16, 24)), ((2, 1, 9, 16), (1, 3, 16, 10))],
    ids=str,
)
def test_batches(a, b):
    func = product(a, b, "float16", bias=False)
    arrays, got = execute(func)
    close(got, arrays[0] @ arrays[1], "float16")
    assert uses_tensor_cores(func)


CONVOLUTIONS = [
    # x, w, strides, padding, groups
    ((1, 16, 9, 9), (24, 16, 3, 3), (1, 1), (1, 1, 1, 1), 1),
    ((2, 3, 13, 11), (8, 3, 5, 3), (2, 1), (2, 0, 2, 1), 1),
    ((1, 32, 8, 8), (64, 32, 1, 1), (1, 1), (0, 0, 0, 0), 1),
    ((2, 32, 6, 6), (32, 16, 3, 3), (1, 1), (1, 1, 1, 1), 2),
]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: "x".join(map(str, c[1])))
def test_convolutions(case, dtype):
    x, w, strides, padding, groups = case
    attrs = Conv2dAttrs(
        strides=strides, padding=padding, groups=groups, kernel_size=w[2:],
        precision="tf32" if dtype == "float32" else "fp32",
    )  # fmt: skip
    func = kernel(
        [x, w], dtype, lambda call, x, w: call("nn.relu", call("nn.conv2d", x, w, attrs=attrs))
    )
    assert uses_tensor_cores(func)
    (a, b), got = execute(func)
    want = OPS["nn.conv2d"].reference(attrs, [a.reshape(x), b.reshape(w)])
    close(got.reshape(want.shape), np.maximum(want, 0), dtype)


CHANNELS_LAST = [
    # x, w as OIHW, strides, padding
    ((1, 9, 10, 16), (24, 16, 3, 3), (1, 1), (1, 1, 1, 1)),
    ((2, 13, 11, 3), (8, 3, 5, 3), (2, 1), (2, 0, 2, 1)),
    ((1, 12, 12, 32), (64, 32, 1, 1), (1, 1), (0, 0, 0, 0)),
]


@pytest.mark.parametrize("packed", [False, True], ids=["OIHW", "packed"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("case", CHANNELS_LAST, ids=lambda c: "x".join(map(str, c[1])))
def test_convolutions_with_channels_last(case, dtype, packed):
    x, (o, i, kh, kw), strides, padding = case
    attrs = Conv2dAttrs(
        strides=strides, padding=padding, data_layout="NHWC", out_channels=o, kernel_size=(kh, kw),
        kernel_layout="packed" if packed else "OIHW", tile=(1, 1, o),
        precision="tf32" if dtype == "float32" else "fp32",
    )  # fmt: skip
    w = (1, kh, kw, i, o) if packed else (o, i, kh, kw)
    func = kernel([x, w], dtype, lambda call, x, w: call("nn.conv2d", x, w, attrs=attrs))
    assert uses_tensor_cores(func)
    if i == 16:  # windows are copied in vectors, ahead of time; packed weights too
        assert emit_cuda(func).source.count("cp_async<16>(") == 3 * (1 + packed)
    (a, b), got = execute(func)
    want = OPS["nn.conv2d"].reference(attrs, [a.reshape(x), b.reshape(w)])
    close(got.reshape(want.shape), want, dtype)


@pytest.mark.parametrize("sizes", [(64, 64, 128), (33, 50, 200), (17, 24, 68), (5, 9, 4)], ids=str)
def test_products_of_bytes(sizes):
    m, n, k = sizes
    attrs = MatmulBytesAttrs(n=n, tile=choose_gpu_byte_tile(m, n))
    builder = Builder(OPS, fold=False)
    x = builder.param("x", (m, k), DType.UINT8)
    w = builder.param("w", (n, k // 4, 4), DType.INT8)
    func = lowered(builder, builder.call(OPS["nn.matmul_bytes"], x, w, attrs=attrs))
    assert uses_tensor_cores(func)
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (m, k)).astype(np.uint8)
    b = rng.integers(-128, 128, (k, n)).astype(np.int8)
    out = np.zeros((m, n), np.int32)
    run(func, [a, pack_bytes(b, 1), out])
    np.testing.assert_array_equal(out, a.astype(np.int64) @ b.astype(np.int64))


def test_widened_bytes_come_to_tensor_cores():
    """What quantised models do: bytes minus a zero point, by constant weights, in int32."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-100, 100, (64, 40)).astype(np.int32)
    builder = Builder(OPS)
    x = builder.param("x", (3, 20, 64), DType.INT8)
    centred = builder.call(
        OPS["subtract"], builder.call(OPS["cast"], x, dtype=DType.INT32),
        builder.const(7, DType.INT32),
    )  # fmt: skip
    out = builder.call(OPS["nn.matmul"], centred, builder.const(weights))
    module = IRModule({"main": builder.finish(out)})
    fused = default_pipeline(3, TARGET).run(module, PassContext(OPS, TARGET, 3))
    calls = [b.value.op for b in fused.main.bindings if isinstance(b.value, Call)]
    funcs = [build_kernel(c, TARGET, kernel_name(c)) for c in calls if isinstance(c, Function)]
    assert any(uses_tensor_cores(func) for func in funcs)


def test_tf32_is_only_used_where_it_is_asked_for():
    attrs = MatmulAttrs()
    func = kernel(
        [(64, 64), (64, 64)], "float32", lambda call, x, w: call("nn.matmul", x, w, attrs=attrs)
    )
    assert not uses_tensor_cores(func)
    (a, b), got = execute(func)
    np.testing.assert_allclose(got, a @ b, 1e-5, 1e-5)


def test_tf32_rounds_to_nearest():
    """Truncated operands would be biased by half a unit."""
    func = product((64, 512), (512, 64), "float32", bias=False)
    rng = np.random.default_rng(0)
    a, b = (np.abs(rng.standard_normal(s)).astype(np.float32) for s in ((64, 512), (512, 64)))
    out = np.zeros((64, 64), np.float32)
    run(func, [a, b, out])
    exact = a.astype(np.float64) @ b
    assert abs((out / exact - 1).mean()) < 1e-5  # truncation would give 5e-4


def test_older_architectures_have_other_kernels():
    old = Target.parse("cuda -arch=sm_75")
    func = matmul((64, 128), (128, 64), "float16", old)
    assert not uses_tensor_cores(func)
    assert "cp.async" not in emit_cuda(func, "sm_75").source


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT32])
@pytest.mark.parametrize("shared", [99, 163, 227])
def test_chosen_tiles_fit(dtype, shared):
    for batch, m, n, k in [
        (1, 4096, 4096, 4096),
        (1, 8, 8, 8),
        (12, 128, 128, 64),
        (1, 1, 9000, 33),
    ]:
        tile = choose_warp_tile(batch, m, n, k, dtype, shared * 1024)
        assert shared_bytes(tile, dtype) <= shared * 1024
        assert tile.threads <= 256
        assert tile.warp[0] % 16 == tile.warp[1] % 16 == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_is_accessed_without_conflicts(dtype):
    """Every access of a large product: no bank twice, whole sectors."""
    (launch,) = find_accesses(product((1024, 1024), (1024, 1024), dtype))
    for site in launch.sites:
        assert site.conflicts == 1.0 or site.buffer.scope != "shared", str(site)
        assert site.efficiency == 1.0, str(site)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_machine_code(arch, dtype):
    try:
        library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    func = product((4096, 4096), (4096, 4096), dtype)
    code = emit_cuda(func, arch)
    (launch,) = code.launches
    (used,) = compile_cuda(code.source, arch).kernels.values()
    assert "cp.async.cg.shared.global" in code.source
    assert "mma.sync" in code.source
    assert used.spill_stores == used.spill_loads == used.stack == 0
    assert used.registers * launch.threads <= 65536


@pytest.mark.parametrize(("n", "channels", "outputs"), [(1, 96, 24), (1, 200, 48), (3, 40, 96)])
def test_convolutions_of_single_pixels(n, channels, outputs):
    """Squeeze and excitation: products of as many rows as there are images."""
    attrs = Conv2dAttrs(
        data_layout="NHWC", kernel_layout="packed", out_channels=outputs, kernel_size=(1, 1),
        tile=(1, 1, outputs),
    )  # fmt: skip
    shapes = [(n, 1, 1, channels), (1, 1, 1, channels, outputs), (outputs,)]
    func = kernel(
        shapes, "float16",
        lambda call, x, w, b: call("add", call("nn.conv2d", x, w, attrs=attrs), b),
    )  # fmt: skip
    assert PLAIN not in func.attrs
    (x, w, b), got = execute(func)
    close(
        got.reshape(n, -1),
        x.reshape(n, -1) @ w.reshape(channels, outputs) + b.reshape(-1),
        "float16",
    )
