"""Softmax, normalisations and reductions of lines: right for any length, and read once."""

import numpy as np
import pytest

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.ops.norm import LayerNormAttrs
from tinycomp.ops.reduce import ReduceAttrs
from tinycomp.schedules.gpu import PLAIN
from tinycomp.target import Target
from tinycomp.tir.nodes import Alloc
from tinycomp.tir.tree import statements

from .. import kit

F = "float32"
LENGTHS = [1, 3, 8, 10, 31, 49, 64, 100, 384, 768, 1000, 1024, 1031, 4096, 5003]


def softmax(b, x):
    return b.call("nn.softmax", x)


def layer_norm(b, x, gamma, beta):
    return b.call("nn.layer_norm", x, gamma, beta, attrs=LayerNormAttrs())


def reduced(op, axes, keepdims=False):
    return lambda b, x: b.call(op, x, attrs=ReduceAttrs(axes, keepdims))


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("length", LENGTHS)
def test_softmax(rows, length):
    kit.check(softmax, ((rows, length), F))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("length", [7, 64, 512, 1000])
def test_softmax_of_other_types(length, dtype):
    tolerance = {"float16": 2e-3, "bfloat16": 1.6e-2, "float64": 1e-12}[dtype]
    kit.check(softmax, ((32, length), dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("length", [20_000, 40_003, 60_004, 70_001])
def test_rows_that_registers_do_not_hold(length):
    kit.check(softmax, ((2, length), F), rtol=2e-5)


@pytest.mark.parametrize(
    ("count", "length", "dtype", "blocks"),
    [(1, 4096, F, 2), (2, 50_257, F, 8), (3, 131_072, F, 8), (1, 200_000, F, 16),
     (1, 300_000, F, 16), (2, 100_000, "float16", 8)],
)  # fmt: skip
def test_rows_of_clusters(count, length, dtype, blocks):
    tolerance = 2e-3 if dtype == "float16" else 3e-5
    inputs = ((count, length), dtype)
    func = kit.check(softmax, inputs, rtol=tolerance, atol=tolerance / 100)
    (launch,) = emit_cuda(func).launches
    assert launch.cluster[0] == blocks
    (access,) = kit.find_accesses(func)
    assert access.moved <= 1.21 * access.unique


@pytest.mark.parametrize("op", ["nn.softmax", "nn.log_softmax"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 2, 50_000), F), ((3, 60_001), F), ((1, 100_000), "float16"), ((70_000,), F)],
)  # fmt: skip
def test_rows_too_long_for_the_chip_are_read_twice(op, shape, dtype):
    """Before sm_90, and beyond a cluster."""
    function = kit.fused(lambda b, x: b.call(op, x), (shape, dtype))
    target = Target.parse("cuda -arch=sm_80")
    tolerance = 2e-3 if dtype == "float16" else 2e-5
    func = kit.check_function(function, rtol=tolerance, atol=1e-6, target=target)
    assert PLAIN not in func.attrs
    size = np.prod(shape) * kit.DType(dtype).itemsize
    sites = [s for launch in kit.find_accesses(func) for s in launch.global_sites]
    assert sum(s.wanted for s in sites if s.buffer.name == "p0") <= 2.1 * size
    assert len(kit.find_accesses(kit.built(function))) == 1  # of clusters


def test_a_row_of_nothing_but_minus_infinity():
    x = np.full((1, 60_000), -np.inf, np.float32)
    func = kit.kernel(softmax, (x.shape, F), arch="sm_80")
    out = np.zeros_like(x)
    kit.run(func, [x, out])
    assert np.isnan(out).all()
    x[0, 5] = 2
    kit.run(func, [x, out])
    assert out[0, 5] == 1
    assert out.sum() == 1


def test_normalisation_of_clusters():
    kit.check(layer_norm, ((2, 70_000), F), ((70_000,), F), ((70_000,), F), rtol=3e-5, atol=2e-5)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
def test_clusters_are_for_new_machines(arch):
    func = kit.kernel(softmax, ((8, 32_768), F), arch=arch)
    (launch,) = emit_cuda(func, arch).launches
    assert (launch.cluster[0] > 1) == (arch != "sm_80")


@pytest.mark.parametrize("length", [10, 96, 768, 1024, 3000, 17_000])
def test_layer_norm(length):
    kit.check(layer_norm, ((4, 8, length), F), ((length,), F), ((length,), F), rtol=3e-5, atol=2e-5)


@pytest.mark.parametrize("op", ["sum", "max", "mean", "prod"])
@pytest.mark.parametrize("shape", [(16, 20), (3, 7, 49), (5, 2000)])
def test_reductions_of_lines(op, shape):
    low = 0.9 if op == "prod" else -1.0
    kit.check(reduced(op, (-1,)), (shape, F), rtol=2e-5, atol=2e-5, low=low, high=1.1)


@pytest.mark.parametrize(
    ("shape", "dtype", "width"),
    [((8192, 1024), F, 16), ((8192, 768), "float16", 16), ((128, 768), F, 16),
     ((4096, 64), F, 16), ((512, 8192), F, 16), ((64, 32768), F, 16), ((64, 131072), F, 16),
     ((100, 20_000), F, 16)],
)  # fmt: skip
def test_accesses(shape, dtype, width):
    (launch,) = kit.launches(softmax, (shape, dtype))
    assert all(site.width == width for site in launch.global_sites)
    assert launch.efficiency == 1.0
    assert launch.conflicts <= 1.01
    assert launch.moved <= launch.unique
    assert launch.in_flight >= 16


@pytest.mark.parametrize("length", [2, 3, 4, 5, 16, 17])
def test_short_rows_have_their_loads_in_flight(length):
    func = kit.kernel(softmax, ((1 << 20, length), F))
    (launch,) = kit.find_accesses(func)
    assert launch.in_flight * 2048 >= 20_000
    assert launch.moved <= 1.45 * launch.unique
    assert not launch.shared_sites
    kit.check(softmax, ((1 << 15, length), F))


@pytest.mark.parametrize("count", [16, 128, 2048, 100_000])
def test_rows_are_spread_over_the_gpu(count):
    (launch,) = kit.launches(softmax, ((count, 768), F))
    assert launch.blocks >= min(count, 128)
    assert launch.blocks * launch.threads <= 2 * count * 768


def test_special_values():
    func = kit.kernel(softmax, ((4, 100), F))
    x = np.zeros((4, 100), np.float32)
    x[0, 7], x[1, 99], x[2, :] = np.nan, np.inf, -np.inf
    out = np.zeros_like(x)
    kit.run(func, [x, out])
    assert np.isnan(out[:3]).any(axis=1).all()
    np.testing.assert_allclose(out[3], 0.01, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 6, 96), (1, 16, 768)])
def test_what_all_rows_share_is_no_part_of_a_row(shape):
    """Widened scales of a normalisation are read where they are used, not into an array of each
    thread."""
    inputs = (shape, "float16"), (shape[-1:], "float16"), (shape[-1:], "float16")

    def layer(b, x, scale, shift):
        return b.call("nn.layer_norm", x, scale, shift, attrs=LayerNormAttrs())

    func = kit.check(layer, *inputs, rtol=4e-3, atol=4e-3)
    held = [s.buffer.name for s in statements(func.body) if isinstance(s, Alloc)]
    assert not [name for name in held if name.startswith(("p1", "p2"))]
