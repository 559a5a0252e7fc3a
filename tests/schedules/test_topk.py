"""Sorted elements as hand-written loops, on CPUs and (by the executor) on GPUs."""

import numpy as np
import pytest

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.dtype import DType
from tinycomp.ir.expr import Load, const
from tinycomp.ops import default_ops
from tinycomp.ops.topk import TopkAttrs
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import IRModule
from tinycomp.schedules.loops import loop
from tinycomp.schedules.sort_records import Records
from tinycomp.tir.interpreter import run
from tinycomp.tir.nodes import Buffer, PrimFunc, Seq, Store

from .gpu import kit

OPS = default_ops()
NUMBERS = [d for d in DType if d is not DType.BOOL]
# (shape, axis, k): lists and digits on the CPU, one tile, kept parts and merges on the GPU
CASES = [
    ((3, 40), 1, 1), ((5, 40), 1, 5), ((2, 33, 3), 1, 33), ((2, 1030, 2), 1, 1030),
    ((6000,), 0, 70), ((6000,), 0, 5999), ((2, 6000), 1, 3000), ((0, 4), 1, 2), ((1, 1), 0, 1),
]  # fmt: skip


def data(shape, dtype, seed=0):
    """Few different values, so that many are equal, and the special ones."""
    rng, dtype = np.random.default_rng(seed), DType(dtype)
    if dtype.is_float:
        special = [np.nan, 0.0, -0.0, np.inf, -np.inf]
        x, few = rng.integers(-20, 20, shape) / 4, rng.choice(special, shape)
    else:
        info = np.iinfo(dtype.numpy)
        x, few = rng.integers(0, 99, shape).astype(dtype.numpy), rng.choice(
            np.array([info.min, info.max, info.max - 1], dtype.numpy), shape
        )  # fmt: skip
    return np.where(rng.uniform(size=shape) < 0.2, few, x).astype(dtype.numpy)


def agrees(got, x, attrs):
    for result, wanted in zip(got, OPS["topk"].reference(attrs, [x]), strict=True):
        result = result.reshape(wanted.shape)
        assert result.dtype == wanted.dtype
        np.testing.assert_array_equal(result.astype(np.float64), wanted.astype(np.float64))


def on_cpu(x, attrs, threads=2):
    builder = Builder(OPS, fold=False)
    param = builder.param("x", x.shape, DType.of(x.dtype))
    function = builder.finish(builder.call("topk", param, attrs=attrs))
    module = IRModule({"main": function}, ("x",))
    compiled = compile_with(Config(cache=False), module, num_threads=threads)
    return list(compiled.run({"x": x}).values())


def on_gpu(x, attrs):
    func = kit.kernel(lambda b, x: b.call("topk", x, attrs=attrs), (x.shape, DType.of(x.dtype)))
    return kit.outputs(func, x)


@pytest.mark.parametrize(("shape", "axis", "k"), CASES)
def test_cpu(shape, axis, k):
    for n, dtype in enumerate(["float32", "int64"]):
        x, attrs = data(shape, dtype), TopkAttrs(k, axis, n == 0)
        agrees(on_cpu(x, attrs), x, attrs)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_cpu_dtypes(dtype):
    x = data((2, 100), dtype)
    for attrs in (TopkAttrs(100, 1), TopkAttrs(3, 1, False)):
        agrees(on_cpu(x, attrs), x, attrs)


@pytest.mark.parametrize(("shape", "axis", "k"), CASES)
def test_gpu(shape, axis, k):
    x, attrs = data(shape, "float32"), TopkAttrs(k, axis, k % 2 == 0)
    agrees(on_gpu(x, attrs), x, attrs)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_gpu_dtypes(dtype):
    x, attrs = data((3, 50), dtype), TopkAttrs(50, 1, dtype.bits < 32)
    agrees(on_gpu(x, attrs), x, attrs)


def test_gpu_merges_pairs():
    """Records of two fields in more than one tile, and a last run without a partner."""
    x, attrs = data((5000,), "float64"), TopkAttrs(4999, 0)
    agrees(on_gpu(x, attrs), x, attrs)


def test_launches():
    def launches(shape, k):
        made = kit.kernel(lambda b, x: b.call("topk", x, k=k, axis=1), (shape, "float32"))
        return [launch.grid[0] for launch in emit_cuda(made).launches]

    assert launches((64, 1000), 5) == [64]
    assert launches((64, 100), 5) == [8]  # eight lines in a block
    assert launches((32, 50257), 50) == [32 * 13, 32]  # tiles, and what they keep
    assert launches((1, 1 << 14), 1 << 14) == [4, 16, 16]  # tiles, and two times merged


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("descending", [False, True])
def test_digits_are_those_of_the_key(dtype, descending):
    """The digits, the lowest first, are what is to be compared, as unsigned numbers."""
    records = Records(dtype, descending)
    values = data((50,), dtype)
    values = values[np.argsort(values.astype(np.float64) if dtype.is_float else values)]
    count = records.key_bits // 8
    x = Buffer("x", (const(50),), dtype)
    out = Buffer("out", (const(50), const(count)), DType.INT64)

    def digits_of(i):
        record = records.record(Load(x, (i,), None), i)
        digits = (records.digit(record, d, 8) for d in range(count))
        return Seq(tuple(Store(out, (i, const(d)), digit) for d, digit in enumerate(digits)))

    func = PrimFunc("digits", (x, out), 1, loop("i", 50, digits_of))
    digits = np.zeros((50, count), np.int64)
    run(func, [values, digits])
    keys = [int(sum(int(digit) << 8 * d for d, digit in enumerate(row))) for row in digits]
    expected = sorted(keys, reverse=descending)
    assert keys == expected
    same = values[1:] == values[:-1]
    assert all(a == b for a, b, equal in zip(keys, keys[1:], same, strict=False) if equal)
