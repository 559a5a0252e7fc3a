"""Reductions over any axes: right, coalesced, and spread over the whole GPU."""

import pytest

from tinycomp.ops.reduce import ReduceAttrs

from .. import kit

F = "float32"


def reduced(op, axes, keepdims=False):
    return lambda b, x: b.call(op, x, attrs=ReduceAttrs(axes, keepdims))


SMALL = [
    ((40,), (0,)), ((300, 7), (0,)), ((7, 300), (0, 1)), ((5, 6, 7), (1,)), ((5, 60, 7), (0, 1)),
    ((4, 9, 8, 6), (0, 2, 3)), ((4, 3, 20, 24), (2, 3)), ((3, 500, 33), (1,)), ((70, 3), (0,)),
    ((6, 50, 64), (1,)), ((2, 100, 1), (1,)), ((1, 1, 5), (0,)),
]  # fmt: skip


@pytest.mark.parametrize("op", ["sum", "max", "mean"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(("shape", "axes"), SMALL)
def test_values(op, shape, axes, keepdims):
    kit.check(reduced(op, axes, keepdims), (shape, F), rtol=2e-5, atol=2e-5)


LARGE = [
    ((512, 1024), (0, 1)), ((3, 200_004), (1,)), ((1_000_003,), (0,)), ((20_000, 32), (0,)),
    ((30_000, 3), (0,)), ((8, 3, 120, 120), (0, 2, 3)), ((4096, 100), (0,)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "axes"), LARGE)
def test_values_of_much_data(shape, axes):
    kit.check(reduced("sum", axes), (shape, F), rtol=2e-5, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float16", "int8", "int64", "float64"])
def test_types(dtype):
    tolerance = 3e-3 if dtype == "float16" else 1e-6
    kit.check(reduced("sum", (0,)), ((300, 40), dtype), rtol=tolerance, atol=tolerance, high=2.0)
    kit.check(reduced("max", (1,)), ((30, 400), dtype))


def test_with_work_around_it():
    def norm(b, x):
        return b.call("mean", b.call("abs", x), attrs=ReduceAttrs((0,)))

    kit.check(norm, ((400, 48), F), rtol=2e-5)
    kit.check(norm, ((400_000,), F), rtol=2e-5)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((8192, 8192), (0, 1)), ((1 << 26,), (0,)), ((16, 1 << 20), (1,)), ((8192, 1000), (0,)),
        ((65536, 128), (0,)), ((32, 64, 112, 112), (0, 2, 3)), ((64, 49, 768), (1,)),
        ((64, 2048, 7, 8), (2, 3)), ((4096, 4096), (1,)), ((1 << 20, 64), (1,)),
        ((1 << 20, 4), (1,)), ((32, 64, 112, 112), (1, 3)), ((8192, 8192), (0,)),
    ],
)  # fmt: skip
def test_large_reductions_read_once_with_all_of_the_gpu(shape, axes):
    first, *rest = kit.launches(reduced("sum", axes), (shape, F))
    (read,) = [s for s in first.global_sites if s.buffer.name == "p0"]
    assert read.efficiency >= 0.95
    assert first.moved <= 1.06 * first.unique
    assert first.blocks >= 132
    assert first.threads * first.blocks >= 132 * 256
    assert first.in_flight >= 16
    assert first.in_flight * min(2048, first.blocks * first.threads // 132) >= 16_000
    assert first.conflicts <= 1.05
    assert all(launch.moved < 0.1 * first.moved for launch in rest)
