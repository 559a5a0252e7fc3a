"""Scheduled functions keep their meaning through the whole lowering."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.ir.expr import call, if_then_else
from tinycomp.ir.node import preorder
from tinycomp.target import Target
from tinycomp.te.reducers import max as reduce_max
from tinycomp.te.reducers import sum as reduce_sum
from tinycomp.tir.interpreter import run
from tinycomp.tir.lower import lower
from tinycomp.tir.nodes import For, ForKind, If
from tinycomp.tir.schedule import create_schedule
from tinycomp.tir.verify import verify

AVX2 = Target.parse("llvm -mcpu=x86-64-v3")  # 8 floats


def lowered(schedule):
    func = lower(schedule.func, AVX2)
    verify(func, lowered=True)
    kinds = {s.kind for s in preorder(func.body) if isinstance(s, For)}
    assert kinds <= {ForKind.SERIAL, ForKind.PARALLEL}
    return func


def outputs(func, *inputs):
    shape = [d.value for d in func.params[-1].shape]
    result = np.zeros(shape, func.params[-1].dtype.numpy)
    run(func, [*inputs, result])
    return result


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("m", "n", "k"), [(24, 32, 5), (13, 16, 3), (5, 21, 4), (1, 7, 1), (19, 40, 2)]
)
def test_register_tile(m, n, k):
    mr, nr = 6, 16
    blocks = -(-n // nr)
    a = te.placeholder((m, k), name="A")
    b = te.placeholder((blocks, k, nr), name="B")
    r = te.reduce_axis((0, k), name="k")
    c = te.compute(
        (m, n), lambda i, j: reduce_sum(a[i, r] * b[j // nr, r, j % nr], axis=r), name="C"
    )
    d = te.compute((m, n), lambda i, j: c[i, j] + 1.0, name="D")
    s = create_schedule(d, [a, b])
    io, ii = s[d].split("i", mr)
    jo, ji = s[d].split("j", nr)
    s[d].reorder(jo, io, ii, ji)
    s[c].compute_at(s[d], io)
    i, j, kk = s[c].axes[-3:]
    s[c].reorder(kk, i, j)
    s[c].unroll(i)
    s[c].vectorize(j)
    s[d].unroll(ii)
    s[d].vectorize(ji)
    s[d].parallel(jo)
    func = lowered(s)
    x, y = floats(m, k), floats(blocks, k, nr, seed=1)
    expected = x @ y.transpose(1, 0, 2).reshape(k, -1)[:, :n] + 1
    np.testing.assert_allclose(outputs(func, x, y), expected, rtol=1e-5, atol=1e-5)
    for loop in (s for s in preorder(func.body) if isinstance(s, For)):
        if loop.var.name == "k":  # the hot loop has no guard
            assert not any(isinstance(n, If) for n in preorder(loop))


def padded_convolution(h, w, ci, co):
    x = te.placeholder((h, w, ci), name="X")
    k = te.placeholder((3, 3, ci, co), name="K")
    pad = te.compute(
        (h + 2, w + 2, ci),
        lambda y, z, c: if_then_else(
            (y >= 1) & (y < h + 1) & (z >= 1) & (z < w + 1), x[y - 1, z - 1, c], 0.0
        ),
        name="pad",
    )
    r, q, c = (te.reduce_axis((0, e), name=n) for e, n in ((3, "r"), (3, "q"), (ci, "c")))
    out = te.compute(
        (h, w, co),
        lambda y, z, o: reduce_sum(pad[y + r, z + q, c] * k[r, q, c, o], axis=(r, q, c)),
        name="conv",
    )
    relu = te.compute((h, w, co), lambda y, z, o: te_max(out[y, z, o]), name="relu")
    return x, k, pad, out, relu


def te_max(value):
    return if_then_else(value > 0.0, value, 0.0)


def convolve(x, k):
    h, w, _ = x.shape
    p = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    parts = [p[r : r + h, q : q + w] @ k[r, q] for r in range(3) for q in range(3)]
    return np.maximum(sum(parts), 0)


@pytest.mark.parametrize("mode", ["inline", "tile", "root"])
@pytest.mark.parametrize(("h", "w", "co"), [(5, 7, 8), (4, 9, 12), (3, 4, 5)])
def test_padded_convolution(mode, h, w, co):
    x, k, pad, conv, relu = padded_convolution(h, w, 3, co)
    s = create_schedule(relu, [x, k])
    wo, wi = s[relu].split("z", 4)
    oo, oi = s[relu].split("o", 8)
    s[relu].reorder("y", wo, oo, wi, oi)
    s[conv].compute_at(s[relu], oo)
    y, z, o, r, q, c = s[conv].axes[-6:]
    s[conv].reorder(r, q, c, y, z, o)
    s[conv].unroll(z)
    s[conv].vectorize(o)
    s[relu].unroll(wi)
    s[relu].vectorize(oi)
    if mode == "inline":
        s[pad].compute_inline()
        s[relu].parallel("y")
    elif mode == "tile":
        s[pad].compute_at(s[relu], wo)
        s[pad].vectorize(s[pad].axes[-1])
        s[relu].parallel(s[relu].fuse("y", wo))
    func = lowered(s)
    a, b = floats(h, w, 3), floats(3, 3, 3, co, seed=1)
    np.testing.assert_allclose(outputs(func, a, b), convolve(a, b), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["serial", "parallel", "fused", "vectorized"])
def test_concatenation(kind):
    a, b, c = (te.placeholder((6, n), name=f"A{n}") for n in (5, 16, 3))
    out = te.compute(
        (6, 24),
        lambda i, j: if_then_else(j < 5, a[i, j], if_then_else(j < 21, b[i, j - 5], c[i, j - 21])),
        name="concat",
    )
    s = create_schedule(out, [a, b, c])
    if kind == "parallel":
        s[out].reorder("j", "i")
        s[out].parallel("j")
    elif kind == "fused":
        s[out].parallel(s[out].fuse("i", "j"))
    elif kind == "vectorized":
        s[out].vectorize("j")
    func = lowered(s)
    arrays = floats(6, 5), floats(6, 16, seed=1), floats(6, 3, seed=2)
    np.testing.assert_array_equal(outputs(func, *arrays), np.concatenate(arrays, axis=1))
    if kind == "serial":
        assert "if" not in str(func.body)


@pytest.mark.parametrize("n", [1, 7, 8, 30, 50, 100])
def test_softmax_rows(n):
    x = te.placeholder((4, n), name="X")
    k1, k2 = te.reduce_axis((0, n), name="k"), te.reduce_axis((0, n), name="k")
    top = te.compute((4,), lambda i: reduce_max(x[i, k1], axis=k1), name="top")
    e = te.compute((4, n), lambda i, j: call("exp", x[i, j] - top[i]), name="e")
    total = te.compute((4,), lambda i: reduce_sum(e[i, k2], axis=k2), name="total")
    out = te.compute((4, n), lambda i, j: e[i, j] / total[i], name="out")
    s = create_schedule(out, [x])
    s[out].parallel("i")
    for stage in (total, e, top):
        s[stage].compute_at(s[out], "i")
    s[out].vectorize("j")
    s[e].vectorize(s[e].axes[-1])
    func = lowered(s)
    a = floats(4, n)
    expected = np.exp(a - a.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(outputs(func, a), expected, rtol=1e-5)


def test_rfactor_and_fused_reduction_loop():
    x = te.placeholder((3, 20), name="X")
    k = te.reduce_axis((0, 20), name="k")
    out = te.compute((3,), lambda i: reduce_sum(x[i, k], axis=k), name="out")
    s = create_schedule(out, [x])
    _, ki = s[out].split("k", 8)
    partial = s.rfactor(out, ki)
    s[partial].vectorize(s[partial].axes[-1] if "k.inner" in s[partial].axis_names[-1] else ki)
    a = floats(3, 20)
    np.testing.assert_allclose(outputs(lowered(s), a), a.sum(1), rtol=1e-5)


def test_symbolic_extent():
    n = te.var("n")
    x = te.placeholder((n,), name="X")
    out = te.compute((n,), lambda i: x[i] * 2.0, name="out")
    s = create_schedule(out, [x])
    io, ii = s[out].split("i", 8)
    s[out].vectorize(ii)
    s[out].parallel(io)
    func = lower(s.func, AVX2)
    verify(func, lowered=True)
    for size in (1, 8, 13):
        a, result = floats(size), np.zeros(size, np.float32)
        run(func, [a, result])
        np.testing.assert_array_equal(result, a * 2)
