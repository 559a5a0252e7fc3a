"""Softmax and normalisations over inner axes: right, and read once in whole lines."""

import random

import pytest

from tinycomp.ops.reduce import ReduceAttrs
from tinycomp.ops.softmax import SoftmaxAttrs
from tinycomp.schedules.gpu import PLAIN

from .. import kit

F = "float32"


def softmax(axis, op="nn.softmax"):
    return lambda b, x: b.call(op, x, attrs=SoftmaxAttrs(axis))


SMALL = [
    ((3, 5, 7), 1), ((2, 21, 40), 1), ((4, 64, 6, 6), 1), ((70, 33), 0), ((2, 3, 4, 5), 2),
    ((2, 300, 130), 1), ((1, 2, 1000), 1), ((1500, 12), 0), ((2, 9000, 3), 1), ((1, 1, 8), 1),
    ((5, 1, 1, 8), 1), ((3, 16, 2, 50), 1), ((6, 4, 1), 1),
]  # fmt: skip


@pytest.mark.parametrize("op", ["nn.softmax", "nn.log_softmax"])
@pytest.mark.parametrize(("shape", "axis"), SMALL)
def test_softmax(op, shape, axis):
    func = kit.check(softmax(axis, op), (shape, F), rtol=2e-5, atol=2e-6)
    assert PLAIN not in func.attrs


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_types(dtype):
    tolerance = {"float16": 2e-3, "bfloat16": 1.6e-2, "float64": 1e-12}[dtype]
    kit.check(softmax(1), ((2, 24, 320), dtype), rtol=tolerance, atol=tolerance)


def standardise(axes):
    """Normalisation over some axes, as models have it over channels in NCHW."""
    attrs = ReduceAttrs(axes, True)

    def make(b, x):
        centred = b.call("subtract", x, b.call("mean", x, attrs=attrs))
        variance = b.call("mean", b.call("multiply", centred, centred), attrs=attrs)
        return b.call("divide", centred, b.call("sqrt", b.call("add", variance, b.const(1e-5, F))))

    return make


def variance(axes):
    def make(b, x):
        centred = b.call("subtract", x, b.call("mean", x, attrs=ReduceAttrs(axes, True)))
        return b.call("mean", b.call("multiply", centred, centred), attrs=ReduceAttrs(axes))

    return make


AXES = [
    ((2, 21, 6, 8), (1,)), ((3, 40, 5, 5), (2, 3)), ((1, 64, 4, 4), (1,)), ((4, 2, 3, 70), (1, 2)),
    ((33, 50), (0,)), ((1, 1, 300), (2,)), ((2, 3, 1, 9), (2, 3)), ((2, 1, 12, 7), (1,)),
    ((5, 6, 7, 8), (1, 2, 3)), ((1, 9, 1, 40), (0, 1)),
]  # fmt: skip


@pytest.mark.parametrize("make", [standardise, variance])
@pytest.mark.parametrize(("shape", "axes"), AXES)
def test_normalisations_of_any_axes_are_one_kernel(make, shape, axes):
    func = kit.check(make(axes), (shape, F), rtol=1e-4, atol=1e-5)
    assert PLAIN not in func.attrs
    assert len(kit.find_accesses(func)) == 1


def test_an_affine_normalisation_over_channels():
    def make(b, x, scale, shift):
        return b.call("add", b.call("multiply", standardise((1,))(b, x), scale), shift)

    kit.check(make, ((2, 48, 6, 10), F), ((48, 1, 1), F), ((48, 1, 1), F), rtol=1e-4, atol=1e-5)
    func = kit.kernel(make, ((16, 96, 56, 56), F), ((96, 1, 1), F), ((96, 1, 1), F))
    (launch,) = kit.find_accesses(func)
    large = [s for s in launch.global_sites if s.buffer.name == "p0" or s.verb == "store"]
    assert all(site.width == 16 and site.efficiency == 1 for site in large)
    assert sum(site.moved for site in large) <= 1.05 * launch.unique


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((8, 64, 128, 128), 1), ((1, 21, 512, 512), 1), ((4, 16, 4, 8400), 1), ((64, 7, 7, 2048), 1),
     ((16, 8, 32, 1024), 2), ((1, 2, 1024, 1024), 1), ((2, 1280, 64, 64), 1)],
)  # fmt: skip
def test_accesses(shape, axis):
    func = kit.kernel(softmax(axis), (shape, F))
    assert PLAIN not in func.attrs
    (launch,) = kit.find_accesses(func)
    assert launch.moved <= 1.01 * launch.unique
    assert launch.efficiency >= 0.99
    assert launch.conflicts <= 1.05
    if shape[1] < 1000:
        assert all(site.width == 16 for site in launch.global_sites)
    assert launch.in_flight * min(launch.threads * launch.blocks // 132, 2048) >= 20_000


@pytest.mark.parametrize("seed", range(30))
def test_random_chains(seed):
    """Elementwise work and reductions over the same one or two axes, of any shape."""
    rng = random.Random(seed)
    shape = tuple(rng.choice([1, 2, 3, 5, 8, 17, 40]) for _ in range(rng.randint(2, 4)))
    count = rng.randint(1, min(2, len(shape)))
    first = rng.randint(0, len(shape) - count)
    axes = tuple(range(first, first + count))
    steps = [rng.choice(["shift", "scale", "centre", "softmax"]) for _ in range(3)]
    dropped = rng.random() < 0.5
    scale = tuple(d if rng.random() < 0.5 else 1 for d in shape)

    def make(b, x, y, z):
        for step in steps:
            if step == "centre":
                x = b.call("subtract", x, b.call("mean", x, attrs=ReduceAttrs(axes, True)))
            elif step == "softmax" and count == 1:
                x = b.call("nn.softmax", x, attrs=SoftmaxAttrs(first))
            else:
                x = b.call("multiply", x, z) if step == "scale" else b.call("add", x, y)
        if dropped:
            x = b.call("sum", b.call("multiply", x, x), attrs=ReduceAttrs(axes))
        return b.call("tanh", x)

    inputs = (shape, F), (shape, F), (scale, F)
    for function in kit.all_fused(make, *inputs):
        func = kit.check_function(function, rtol=1e-4, atol=1e-5)
        assert PLAIN not in func.attrs
