"""Reduction axes bound to threads: each has one value, and they are combined."""

import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.diagnostics import ScheduleError


def rows(m, n, reducer):
    a = te.placeholder((m, n), name="A")
    k = te.reduce_axis((0, n), name="k")
    return a, te.compute((m,), lambda i: reducer(a[i, k], axis=k), name="B")


def across_threads(b, threads, per_block=None):
    """As in TVM's tutorial on reductions."""
    s = te.create_schedule(b.op)
    _, ki = s[b].split(b.op.reduce_axis[0], factor=threads)
    partial = s.rfactor(b, ki)
    i = s[b].op.axis[0]
    if per_block:
        i, inner = s[b].split(i, factor=per_block)
        s[b].bind(inner, te.thread_axis("threadIdx.y"))
    s[b].bind(i, te.thread_axis("blockIdx.x"))
    s[b].bind(s[b].op.reduce_axis[0], te.thread_axis("threadIdx.x"))
    s[partial].compute_at(s[b], s[b].op.reduce_axis[0])
    return s


@pytest.mark.parametrize("threads", [2, 16, 32, 96, 256])
@pytest.mark.parametrize("per_block", [None, 3])
@pytest.mark.parametrize(("reducer", "expected"), [(te.sum, np.sum), (te.max, np.max)])
def test_rows(threads, per_block, reducer, expected):
    a, b = rows(7, 300, reducer)
    f = tinycomp.build(across_threads(b, threads, per_block), [a, b], "cuda -arch=sm_90a")
    x = np.random.default_rng(threads).standard_normal((7, 300), np.float32)
    out = np.empty(7, np.float32)
    f.simulate(x, out)
    np.testing.assert_allclose(out, expected(x, 1), rtol=1e-4, atol=1e-5)
    assert f.launches[0].block[0] == threads


def test_loops_have_their_serial_meaning():
    a, b = rows(5, 64, te.sum)
    f = tinycomp.build(across_threads(b, 16), [a, b])
    x = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    out = np.empty(5, np.float32)
    f(x, out)
    np.testing.assert_allclose(out, x.sum(1), rtol=1e-4, atol=1e-5)


def refused(bind, message, hint):
    with pytest.raises(ScheduleError, match=message) as error:
        bind()
    assert hint in error.value.hint


def test_what_threads_cannot_combine_is_refused():
    _, b = rows(4, 64, te.sum)
    s = te.create_schedule(b.op)
    ko, ki = s[b].split("k", factor=16)
    refused(lambda: s[b].bind(ko, "threadIdx.x"), "further loops of the same stage", "s.rfactor")
    refused(lambda: s[b].bind(ki, "threadIdx.y"), r"threads of threadIdx\.y do", "threadIdx.x")
    refused(lambda: s[b].bind(ki, "blockIdx.x"), "is a reduction axis", "s.rfactor")
    s = te.create_schedule(b.op)
    refused(
        lambda: s[b].bind(s[b].split("k", factor=24)[1], "threadIdx.x"),
        "24 threads cannot combine",
        "power of two",
    )


def test_the_store_predicate_of_tvm_is_implied():
    a, b = rows(4, 64, te.sum)
    texts = []
    for predicate in (False, True):
        s = across_threads(b, 16)
        if predicate:
            s[b].set_store_predicate(te.thread_axis("threadIdx.x").var.equal(0))
        texts.append(tinycomp.build(s, [a, b], "cuda -arch=sm_90a").get_source())
    assert texts[0] == texts[1]
    s = across_threads(b, 16)
    refused(
        lambda: s[b].set_store_predicate(te.thread_axis("threadIdx.x").var.equal(1)),
        "does not hold in the first iteration",
        "holds at",
    )
