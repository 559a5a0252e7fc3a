"""Which products become tile programs by default, with what is fused behind them."""

import numpy as np
import pytest

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.dtype import DType
from tinycomp.kernels import kernel_name
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Call, Function
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.schedules import build_kernel
from tinycomp.schedules.gpu.hopper.operands import HopperTile
from tinycomp.schedules.gpu.hopper.tiles import (
    Task,
    blocks_of,
    choose_hopper_tile,
    estimated_seconds,
)
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.nodes import Alloc
from tinycomp.tir.tile.nodes import TileProgram

TARGET = Target.parse("cuda -arch=sm_90a")
OPS = default_ops()
HALF = DType.FLOAT16


def built(make, *types, target=TARGET):
    """The first kernel of what `make(builder, *params)` gives."""
    builder = Builder(OPS, fold=False)
    params = [builder.param(f"x{i}", shape, dtype) for i, (shape, dtype) in enumerate(types)]
    graph = builder.finish(make(builder, *params))
    function = FuseOps().run_function(graph, PassContext(OPS, target, 3))
    kernels = [b.value.op for b in function.bindings if isinstance(b.value, Call)]
    first = next(k for k in kernels if isinstance(k, Function))
    return build_kernel(first, target, kernel_name(first))


def executed(func):
    rng = np.random.default_rng(3)
    arrays = [
        rng.integers(-2, 3, [d.value for d in p.shape]).astype(p.dtype.numpy) for p in func.params
    ]
    run(func, arrays)
    return [a.astype(np.float32) for a in arrays]


def linear(b, x, w, bias, residual):
    y = b.call("nn.relu", b.call("add", b.call("nn.matmul", x, w), bias))
    return b.call("add", y, residual)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_linear_layer_with_its_epilogue(dtype):
    shapes = (2, 100, 96), (96, 136), (136,), (2, 100, 136)
    func = built(linear, *((s, dtype) for s in shapes))
    assert isinstance(func.body, TileProgram)
    x, w, bias, residual, out = executed(func)
    exact = np.maximum((x @ w).astype(dtype.numpy).astype(np.float32) + bias, 0) + residual
    np.testing.assert_array_equal(out, exact.astype(dtype.numpy).astype(np.float32))
    assert emit_cuda(func).launches[0].cluster[0] in (1, 2)


def test_batches():
    func = built(
        lambda b, x, y: b.call("nn.matmul", x, y), ((3, 72, 40), HALF), ((3, 40, 56), HALF)
    )
    assert isinstance(func.body, TileProgram)
    x, y, out = executed(func)
    np.testing.assert_array_equal(out, x @ y)


def test_one_left_matrix_for_all_batches():
    func = built(lambda b, x, y: b.call("nn.matmul", x, y), ((72, 40), HALF), ((2, 40, 56), HALF))
    assert isinstance(func.body, TileProgram)
    x, y, out = executed(func)
    np.testing.assert_array_equal(out, x @ y)


def windows_product(x, w, strides, padding):
    top, left, bottom, right = padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (kh, kw), (sh, sw) = w.shape[2:], strides
    height, width = (x.shape[2] - kh) // sh + 1, (x.shape[3] - kw) // sw + 1
    taps = [
        x[:, :, r : r + (height - 1) * sh + 1 : sh, s : s + (width - 1) * sw + 1 : sw]
        for r in range(kh)
        for s in range(kw)
    ]
    flat = w.reshape(*w.shape[:2], -1)
    return sum(np.einsum("oc,nchw->nohw", flat[..., t], tap) for t, tap in enumerate(taps))


@pytest.mark.parametrize(
    ("x", "w", "strides", "padding", "maps"),
    [
        ((2, 16, 7, 7), (72, 16, 3, 3), (1, 1), (1, 1, 1, 1), 1),  # images side by side
        ((1, 16, 15, 15), (64, 16, 3, 3), (2, 2), (1, 1, 1, 1), 1),
        ((2, 24, 8, 8), (64, 24, 1, 1), (1, 1), (0, 0, 0, 0), 3),  # by TMA alone
        ((2, 24, 7, 7), (64, 24, 1, 1), (1, 1), (0, 0, 0, 0), 1),  # pixels are no whole 16 bytes
        ((1, 8, 35, 34), (64, 8, 2, 3), (1, 1), (0, 0, 0, 0), 2),  # image by image
    ],
)
def test_convolutions(x, w, strides, padding, maps):
    def layer(b, x, w, bias, residual):
        y = b.call("nn.conv2d", x, w, strides=strides, padding=padding)
        return b.call("nn.relu", b.call("add", b.call("add", y, bias), residual))

    out = windows_product(np.zeros(x), np.zeros(w), strides, padding).shape
    func = built(layer, *((s, HALF) for s in (x, w, (1, w[0], 1, 1), out)))
    assert isinstance(func.body, TileProgram)
    assert len(emit_cuda(func).launches[0].maps) == maps
    image, weights, bias, residual, got = executed(func)
    exact = windows_product(image, weights, strides, padding) + bias + residual
    np.testing.assert_array_equal(got, np.maximum(exact, 0))


def nhwc(x):
    return np.ascontiguousarray(np.transpose(x, (0, 2, 3, 1)))


@pytest.mark.parametrize(
    ("x", "w", "strides", "padding", "dilation"),
    [
        ((2, 16, 7, 7), (72, 16, 3, 3), (1, 1), (1, 1, 1, 1), 1),
        ((1, 72, 15, 14), (64, 72, 3, 3), (2, 2), (1, 1, 1, 1), 1),  # channels in two steps
        ((1, 8, 12, 13), (64, 8, 3, 2), (1, 2), (0, 1, 2, 0), 1),  # one side more than the other
        ((1, 16, 11, 11), (8, 16, 3, 3), (1, 1), (2, 2, 2, 2), 2),
        ((3, 24, 8, 8), (40, 24, 1, 1), (2, 2), (0, 0, 0, 0), 1),
        ((2, 24, 8, 8), (64, 24, 1, 1), (1, 1), (0, 0, 0, 0), 1),  # a product of matrices
    ],
)
def test_convolutions_channels_last(x, w, strides, padding, dilation):
    """TMA finds the windows, with zeros around images."""

    def layer(b, x, w, bias, residual):
        y = b.call(
            "nn.conv2d", x, w, strides=strides, padding=padding, dilation=(dilation,) * 2,
            data_layout="NHWC", kernel_layout="packed", out_channels=o, kernel_size=kernel,
            tile=(1, 1, 1),
        )  # fmt: skip
        return b.call("nn.relu", b.call("add", b.call("add", y, bias), residual))

    (n, c, height, width), (o, _, *kernel) = x, w
    spread = np.zeros((*w[:2], *((k - 1) * dilation + 1 for k in kernel)))
    out = nhwc(windows_product(np.zeros(x), spread, strides, padding)).shape
    shapes = (n, height, width, c), (o, *kernel, c, 1), (o,), out
    func = built(layer, *((s, HALF) for s in shapes))
    first = emit_cuda(func).launches[0].maps[0]
    assert bool(first.lower) == (w[2:] != (1, 1) or strides != (1, 1))
    image, weights, bias, residual, got = executed(func)
    spread[:, :, ::dilation, ::dilation] = np.transpose(weights[..., 0], (0, 3, 1, 2))
    image = np.transpose(image, (0, 3, 1, 2))
    exact = nhwc(windows_product(image, spread, strides, padding)) + bias + residual
    np.testing.assert_array_equal(got, np.maximum(exact, 0))


def test_long_sums_in_a_cluster():
    """Few tiles and long sums: the blocks of a cluster share them, in one launch."""
    func = built(linear, *((s, HALF) for s in ((72, 1000), (1000, 136), (136,), (72, 136))))
    assert isinstance(func.body, TileProgram)
    (launch,) = emit_cuda(func).launches
    assert launch.cluster[0] > 2
    assert len(launch.maps) == 2  # the result is stored without
    x, w, bias, residual, out = executed(func)
    np.testing.assert_array_equal(out, np.maximum(x @ w + bias, 0) + residual)


def test_very_long_sums_in_slices():
    """One tile: clusters alone are too few, so slices go to memory, and one launch adds them."""
    func = built(linear, *((s, HALF) for s in ((40, 8192), (8192, 32), (32,), (40, 32))))
    assert isinstance(func.body, Alloc)
    kernel = emit_cuda(func)
    first, second = kernel.launches
    assert kernel.workspace_bytes >= 4 * 40 * 32 * 2
    assert (first.cluster[0] > 1, second.maps) == (True, ())
    x, w, bias, residual, out = executed(func)
    np.testing.assert_allclose(out, np.maximum(x @ w + bias, 0) + residual, 1e-3)


def test_windows_in_slices():
    shapes = (1, 128, 5, 5), (64, 128, 3, 3)
    func = built(
        lambda b, x, w: b.call("nn.conv2d", x, w, padding=(1, 1, 1, 1)),
        *((s, HALF) for s in shapes),
    )
    assert isinstance(func.body, Alloc)
    image, weights, out = executed(func)
    exact = windows_product(image, weights, (1, 1), (1, 1, 1, 1))
    np.testing.assert_array_equal(out, exact)


@pytest.mark.parametrize(("m", "n", "k"), [(200, 136, 208), (40, 24, 1040), (64, 30, 64)])
def test_bytes(m, n, k):
    """uint8 by int8 in int32, and what follows in float32."""

    def layer(b, x, w, scale):
        y = b.call("nn.matmul_bytes", x, w, n=n, tile=(1, 1))
        return b.call("multiply", b.call("cast", y, dtype=DType.FLOAT32), scale)

    func = built(layer, ((m, k), DType.UINT8), ((n, k // 4, 4), DType.INT8), ((n,), DType.FLOAT32))
    assert isinstance(func.body, TileProgram)
    assert "wgmma" in emit_cuda(func).source
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (m, k)).astype("u1"), rng.integers(-128, 128, (n, k)).astype("i1")
    scale, out = rng.integers(1, 3, n).astype("f4"), np.zeros((m, n), "f4")
    run(func, [x, w.reshape(n, k // 4, 4), scale, out])
    exact = x.astype("i4") @ w.astype("i4").T
    np.testing.assert_array_equal(out, exact.astype("f4") * scale)


def matmul(b, x, y):
    return b.call("nn.matmul", x, y)


@pytest.mark.parametrize(
    ("types", "target"),
    [
        ((((72, 41), HALF), ((41, 56), HALF)), TARGET),  # rows of 82 bytes
        ((((72, 40), HALF), ((40, 57), HALF)), TARGET),
        ((((32, 40), HALF), ((40, 56), HALF)), TARGET),  # fewer rows than a wgmma has
        ((((72, 40), DType.FLOAT32), ((40, 56), DType.FLOAT32)), TARGET),
        ((((2, 1, 72, 40), HALF), ((1, 3, 40, 56), HALF)), TARGET),  # batches of both sides
        ((((72, 40), HALF), ((40, 56), HALF)), Target.parse("cuda -arch=sm_80")),
    ],
)
def test_others_keep_their_schedule(types, target):
    assert not isinstance(built(matmul, *types, target=target).body, TileProgram)


def test_operands_computed_in_the_kernel():
    def cast_first(b, x, y):
        return b.call("nn.matmul", b.call("nn.relu", x), y)

    func = built(cast_first, ((72, 40), HALF), ((40, 56), HALF))
    assert func is not None


def test_choice_fills_the_machine():
    """Large products get the largest tiles, in clusters; small ones more blocks."""
    assert choose_hopper_tile(Task(1, 8192, 8192, 8192)) == HopperTile(128, 256, 4, 2, 2)
    for sizes in ((128, 768, 3072), (512, 512, 4096), (49, 512, 4608)):
        small = Task(1, *sizes, narrow=True)
        assert 120 <= blocks_of(choose_hopper_tile(small), small)[0] <= 132
    for sizes in ((1, 128, 768, 768), (12, 384, 384, 64), (1, 64, 8, 8)):
        task = Task(*sizes)
        plain = HopperTile(128, 256, 4, 2, 1)
        chosen = choose_hopper_tile(task)
        assert estimated_seconds(chosen, task) <= estimated_seconds(plain, task)
