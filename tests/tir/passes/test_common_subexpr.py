"""Elementary functions that several stores need are computed once; results stay."""

import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.ir.expr import Call
from tinycomp.ir.node import preorder
from tinycomp.target import Target
from tinycomp.tir.interpreter import run
from tinycomp.tir.lower import lower
from tinycomp.tir.passes.common_subexpr import common_subexpr
from tinycomp.tir.passes.lower_blocks import lower_blocks
from tinycomp.tir.passes.simplify import simplify

N = 13


def two_outputs():
    a = te.placeholder((N,), name="A")
    b, c = te.compute((N,), lambda i: (te.exp(a[i]) + 1.0, te.exp(a[i]) * te.tanh(a[i])), name="B")
    return a, b, c


def calls(func, name):
    """How often a function is called, in a tree without sharing between statements."""
    found = 0
    stack = [func.body]
    while stack:
        node = stack.pop()
        found += isinstance(node, Call) and node.name == name
        stack += node.children()
    return found


def plain(s):
    return simplify(lower_blocks(s.func))


def test_one_call_for_two_stores():
    _, b, _ = two_outputs()
    before = plain(te.create_schedule(b.op))
    after = common_subexpr(before)
    assert (calls(before, "exp"), calls(after, "exp"), calls(after, "tanh")) == (2, 1, 1)
    x = np.linspace(-2, 2, N, dtype=np.float32)
    out = np.empty((2, N), np.float32)
    run(after, [x, out[0], out[1]])
    np.testing.assert_allclose(out, [np.exp(x) + 1, np.exp(x) * np.tanh(x)], rtol=1e-5)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("target", ["llvm", "cuda -arch=sm_90a"])
def test_compiled(vector, target):
    a, b, c = two_outputs()
    s = te.create_schedule(b.op)
    if vector:
        s[b].vectorize(s[b].split("i", factor=4)[1])
    x = np.linspace(-2, 2, N, dtype=np.float32)
    out = np.empty((2, N), np.float32)
    f = tinycomp.build(s, [a, b, c], target)
    (f if target == "llvm" else f.simulate)(x, out[0], out[1])
    np.testing.assert_allclose(out, [np.exp(x) + 1, np.exp(x) * np.tanh(x)], rtol=1e-5)


def test_inner_and_outer_calls():
    a = te.placeholder((N,), name="A")
    b, _, _ = te.compute(
        (N,),
        lambda i: (te.log(te.exp(a[i]) + 1.0), te.exp(a[i]), te.log(te.exp(a[i]) + 1.0) * 2.0),
        name="B",
    )
    after = common_subexpr(plain(te.create_schedule(b.op)))
    assert (calls(after, "exp"), calls(after, "log")) == (1, 1)


def test_a_store_to_what_is_read_keeps_both():
    a = te.placeholder((N,), name="A")
    b = te.compute((N,), lambda i: te.exp(a[i]), name="B")
    c, _ = te.compute((N,), lambda i: (te.exp(b[i]), te.exp(b[i]) + 1.0), name="C")
    s = te.create_schedule(c.op)
    s[b].compute_at(s[c], "i")
    func = lower(s.func, Target.host())
    assert calls(func, "exp") == 2  # of A and of B
    x = np.linspace(-1, 1, N, dtype=np.float32)
    out = np.empty((2, N), np.float32)
    run(func, [x, out[0], out[1]])
    np.testing.assert_allclose(out[0], np.exp(np.exp(x)), rtol=1e-5)


def test_what_a_condition_guards_stays_there():
    a = te.placeholder((N,), name="A")

    def both(i):
        guarded = te.if_then_else(i < N - 1, te.exp(a[i + 1]), te.const(0.0, "float32"))
        return guarded, guarded + 1.0

    b, _ = te.compute((N,), both, name="B")
    before = plain(te.create_schedule(b.op))
    after = common_subexpr(before)
    assert after is before
    assert any(isinstance(n, Call) and n.name == "exp" for n in preorder(after.body))
