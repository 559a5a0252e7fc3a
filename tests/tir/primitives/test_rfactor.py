"""rfactor: reductions of one value and of several, by their combiner."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.tir import gpu_executor
from tinycomp.tir.lower_gpu import lower_gpu


def argmax(value, k):
    """Values and indices; the lower index wins a tie."""

    def better(x, y):
        first = te.any(x[0] > y[0], te.all(te.equal(x[0], y[0]), x[1] < y[1]))
        return te.select(first, x[0], y[0]), te.select(first, x[1], y[1])

    worst = lambda v, i: (te.min_value(v), te.max_value(i))  # noqa: E731
    return te.comm_reducer(better, worst, name="argmax")((value, k), axis=k)


def moments(value, k):
    """Count, mean and sum of squared deviations, merged as Chan, Golub, LeVeque (1979) do."""

    def merge(x, y):
        count = x[0] + y[0]
        delta = y[1] - x[1]
        share = y[0] / te.maximum(count, 1.0)
        return count, x[1] + delta * share, x[2] + y[2] + delta * delta * x[0] * share

    start = lambda *types: tuple(te.const(0.0, t) for t in types)  # noqa: E731
    one, zero = te.const(1.0, value.dtype), te.const(0.0, value.dtype)
    return te.comm_reducer(merge, start, name="moments")((one, value, zero), axis=k)


def rows_of(computation, reduce, n=5, m=23):
    a, k = te.placeholder((n, m), name="A"), te.reduce_axis((0, m), name="k")
    return computation([a], te.compute((n,), lambda i: reduce(a[i, k], k), name="R"))


@pytest.mark.parametrize("factor", [1, 4, 23])
@pytest.mark.parametrize("which", ["k.outer", "k.inner"])
@pytest.mark.parametrize("reduce", [argmax, moments])
def test_several_values(computation, reduce, which, factor):
    work = rows_of(computation, reduce)
    s = work.schedule()
    s["R"].split("k", factor=factor)
    handles = s.rfactor(work.outputs[0], which)
    assert [h.name for h in handles] == [f"R.v{i}.rf" for i in range(len(work.outputs))]
    partial = s[handles[1]]  # every handle means the stage
    assert partial.block_name == "R.v0.rf"
    assert partial.axis_names[0] == which
    partial.parallel(which)
    work.check(s)


@pytest.mark.parametrize("reduce", [argmax, moments])
def test_several_values_twice_and_moved(computation, reduce):
    work = rows_of(computation, reduce)
    s = work.schedule()
    s["R"].split("k", factors=[None, 3, 2])
    first = s.rfactor("R", "k.2")
    second = s.rfactor(first[0], "k.1")
    s[second[0]].unroll("k.1")
    s[first[0]].compute_at("R", "i")
    work.check(s)


def test_of_fused_axes(computation):
    a = te.placeholder((4, 6, 5), name="A")
    k, r = te.reduce_axis((0, 6), name="k"), te.reduce_axis((0, 5), name="r")
    work = computation([a], te.compute((4,), lambda i: te.sum(a[i, k, r], axis=[k, r]), name="B"))
    s = work.schedule()
    s["B"].split(s["B"].fuse("k", "r"), factor=8)
    partial = s[s.rfactor("B", "k.r.fused.inner")]
    partial.reorder("i", "k.r.fused.outer", "k.r.fused.inner")
    partial.vectorize("k.r.fused.inner")
    work.check(s)


def test_reducer_that_is_no_operator(computation):
    a, k = te.placeholder((4, 12), name="A"), te.reduce_axis((0, 12), name="k")
    longest = te.comm_reducer(
        lambda x, y: te.select(te.abs(x) < te.abs(y), y, te.select(te.abs(y) < te.abs(x), x,
                               te.maximum(x, y))), lambda t: te.const(0, t), name="longest",
    )  # fmt: skip
    work = computation([a], te.compute((4,), lambda i: longest(a[i, k], axis=k), name="Q"))
    s = work.schedule()
    s["Q"].split("k", factor=5)
    s.rfactor("Q", "k.inner")
    work.check(s)


def test_conditional_tuple(computation):
    a, k = te.placeholder((4, 12), name="A"), te.reduce_axis((0, 12), name="k")
    pair = te.comm_reducer(
        lambda x, y: (x[0] + y[0], te.maximum(x[1], y[1])),
        lambda t, u: (te.const(0, t), te.const(-99, u)),
    )
    out = te.compute((4,), lambda i: pair((a[i, k], a[i, k]), axis=k, where=k >= i), name="P")
    work = computation([a], out)
    s = work.schedule()
    s["P"].split("k", factor=5)
    s.rfactor(out[0], "k.inner")
    work.check(s)


@pytest.mark.parametrize("place", [0, 1, 2, -1, -2, -3])
def test_place_of_the_factored_axis(computation, place):
    a, k = te.placeholder((3, 12, 4), name="A"), te.reduce_axis((0, 12), name="k")
    work = computation([a], te.compute((3, 4), lambda i, j: te.sum(a[i, k, j], axis=k), name="B"))
    s = work.schedule()
    s["B"].split("k", factor=5)
    name = s.rfactor("B", "k.inner", factor_axis=place).name
    shape = [3, 4]
    shape.insert(place % 3, 5)
    assert [d.value for d in s.buffer(name).shape] == shape
    work.check(s)


def test_on_a_gpu(computation):
    """Threads hold partial results; one merges them. Scratch exists in both nests."""
    work = rows_of(computation, argmax, 3, 100)
    s = work.schedule()
    s["R.v0"].split("k", factor=32)
    partial = s.rfactor("R.v0", "k.inner")[0]
    s["R.v0"].bind("i", "blockIdx.x")
    s[partial].compute_at("R.v0", "i")
    s[partial].bind("k.inner", "threadIdx.x")
    func = lower_gpu(s.func)
    results = [np.zeros(3, t.dtype.numpy) for t in work.outputs]
    gpu_executor.run(func, [*work.arrays, *results])
    for result, expected in zip(results, work.expected, strict=True):
        np.testing.assert_array_equal(result, expected)
    source = emit_cuda(func).source
    assert source.count("float R_v0_new") == source.count("long long R_v1_new") == 2


def test_refusals(rows, matmul, refuses):
    s = rows.schedule()
    words = ['s.rfactor("B", "i")', "'i' is not a reduction axis of 'B'"]
    refuses(s, words, lambda: s.rfactor("B", "i"))
    refuses(s, "factor_axis 2 is no dimension", lambda: s.rfactor("B", "k", 2))
    refuses(s, ["factor_axis=-3", "which have 2"], lambda: s.rfactor("B", "k", -3))
    s = matmul.schedule()
    s["C"].split("k", factor=2)
    s["C"].reorder("k.outer", "i", "j", "k.inner")
    shared = s.cache_read(matmul.inputs[0], "local", ["C"])
    s[shared].compute_at("C", "k.outer")
    refuses(s, "inside the reduction loop 'k.outer'", lambda: s.rfactor("C", "k.inner"))
