"""argmax and argmin: some threads for each result, and the right one of equal values."""

import numpy as np
import pytest

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.ops import default_ops
from tinycomp.ops.reduce import ArgReduceAttrs
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Function
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.schedules import build_kernel
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run

from .. import kit

TARGET = Target.parse("cuda -arch=sm_90a")
OPS = default_ops()


def check(name, shape, **attrs):
    builder = Builder(OPS, fold=False)
    result = builder.call(name, builder.param("x", shape), **attrs)
    fused = FuseOps().run_function(builder.finish(result), PassContext(OPS, TARGET, 3))
    ops = (binding.value.op for binding in fused.bindings if hasattr(binding.value, "op"))
    func = build_kernel(next(op for op in ops if isinstance(op, Function)), TARGET, "best")
    x = np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32)  # repeats
    shapes = [[d.value for d in p.shape] for p in func.params]
    out = np.zeros(shapes[1], np.int64)
    run(func, [x.reshape(shapes[0]), out])
    expected = OPS[name].reference(OPS[name].attrs_type(**attrs), [x])
    np.testing.assert_array_equal(out.reshape(expected.shape), expected)
    return emit_cuda(func).launches[0]


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3, 100), 1),
        ((1, 5000), 1),
        ((2, 70, 4), 1),
        ((2050, 2), 0),
        ((90,), 0),
        ((4, 20), 1),
        ((300, 3), 1),
        ((2, 5, 400), 1),
        ((40_000, 3), 0),
        ((33_000,), 0),
        ((2, 20_001), 1),
    ],
)
def test_values(name, last, shape, axis):
    check(name, shape, axis=axis, keepdims=False, select_last=last)


SHAPES = [
    ((8, 19, 128, 128), 1), ((64, 65536), 1), ((1 << 20, 4), 1), ((16, 64, 64, 64), 1),
    ((2048, 2048), 0), ((1 << 22,), 0), ((10_000, 80), 1),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_accesses(shape, axis):
    func = kit.kernel(
        lambda b, x: b.call("argmax", x, attrs=ArgReduceAttrs(axis)), (shape, "float32")
    )
    first, *rest = kit.find_accesses(func)
    assert first.moved <= 1.1 * first.unique
    assert first.efficiency >= 0.95
    assert first.in_flight * min(first.threads * first.blocks // 132, 2048) >= 16_000
    assert all(launch.moved < 0.02 * first.moved for launch in rest)


def test_threads():
    attrs = {"axis": 1, "keepdims": True, "select_last": False}
    assert check("argmax", (1, 100_000), **attrs).grid[0] == 6  # parts
    short = check("argmax", (4, 20, 6), **attrs)  # a thread for each result
    assert short.grid[0] == 1
    assert short.shared_bytes == 0
