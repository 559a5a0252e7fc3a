"""Schedules around te.extern: stages of hand-written statements."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.ir.expr import Load, const
from tinycomp.tir import gpu_executor
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.nodes import For, Scope, Store


def run_reverse(op, inputs, outputs):
    outputs[0][:] = inputs[0][::-1]


@pytest.fixture
def flipped(computation):
    """D = B + reverse(B) + 1 of B = 2 A, with the reversal R as an extern stage."""

    def reverse(ins, outs):
        i = te.var("i")
        store = Store(outs[0], (i,), Load(ins[0], (const(7) - i,), None))
        return For(i, const(0), const(8), store)

    a = te.placeholder((8,), name="A")
    b = te.compute((8,), lambda i: a[i] * 2.0, name="B")
    r = te.extern((8,), [b], reverse, name="R")
    c = te.compute((8,), lambda i: r[i] + b[i], name="C")
    d = te.compute((8,), lambda i: c[i] + 1.0, name="D")
    return computation([a], d, run_extern=run_reverse)


def around(s):
    s["B"].parallel("i")
    s["C"].split("i", factor=4)
    s["C"].vectorize("i.inner")


def scoped(s):
    s.set_scope("R", "local")
    s["R"].compute_root()


def attached(s):
    s["D"].split("i", factor=4)
    s["C"].compute_at("D", "i.outer")


def copied(s):
    copy = s.cache_read("R", "local", ["C"])
    s[copy].compute_at("C", "i")
    s.cache_write("B", "local")


LEGAL = {
    "around": around,
    "scoped": scoped,
    "attached": attached,
    "copied": copied,
    "inlined": lambda s: (s["B"].compute_inline(), s["C"].compute_inline()),
    "layout": lambda s: [s[n].transform_layout(lambda i: (i % 2, i // 2)) for n in "RB"],
    "threads": lambda s: [s[n].bind("i", "threadIdx.x") for n in "BCD"],
    "grouped": lambda s: s["D"].reverse_compute_inline(),
}


@pytest.mark.parametrize("name", LEGAL)
def test_what_stands_around_is_scheduled(flipped, name):
    s = flipped.schedule()
    LEGAL[name](s)
    flipped.check(s)
    result = np.zeros(8, "float32")
    gpu_executor.run(lower_gpu(s.func), [*flipped.arrays, result])
    np.testing.assert_array_equal(result, flipped.expected[0])


def test_scope_of_the_result(flipped):
    s = flipped.schedule()
    s["R"].set_scope("shared")
    assert s.buffer("R").scope is Scope.SHARED
    assert s["R"].op.name == "R"


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s["R"].compute_at("C", "i"),
        lambda s: s["R"].compute_inline(),
        lambda s: s["R"].split("i", factor=2),
        lambda s: s["R"].parallel("i"),
        lambda s: s["R"].rolling_buffer(),
        lambda s: s.cache_write("R", "local"),
        lambda s: s.cache_read("B", "local", ["R"]),
    ],
)
def test_its_statements_stay(flipped, refuses, call):
    s = flipped.schedule()
    refuses(s, "'R' is extern: its statements stay as they were written", lambda: call(s))


def test_order_is_kept(flipped, refuses):
    s = flipped.schedule()
    words = ["'C' also reads 'R', which is computed later"]
    refuses(s, words, lambda: s["C"].reverse_compute_at("B", "i"))
    refuses(s, "an extern stage reads 'B'", lambda: s["B"].compute_at("C", "i"))
