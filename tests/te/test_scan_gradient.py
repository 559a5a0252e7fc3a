"""te.gradient through scans, against central differences."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.ir.expr import Load, as_int
from tinycomp.target import Target
from tinycomp.te.interpreter import evaluate
from tinycomp.tir.interpreter import run
from tinycomp.tir.lower import lower
from tinycomp.tir.nodes import Store
from tinycomp.tir.schedule import create_schedule

from .test_gradient import check, random, tensor

T, N = 5, 3


def cumulative():
    x, s = tensor(T, N, name="X"), tensor(T, N, name="S")
    init = te.compute((1, N), lambda t, i: x[0, i] * x[0, i], name="init")
    update = te.compute((T, N), lambda t, i: s[t - 1, i] * x[t, i] + x[t, i], name="update")
    return te.scan(init, update, s, [x], name="total"), {x: random(T, N)}


def recurrent():
    """h[t] = tanh(W h[t - 1] + x[t]), with the product in a stage of its own."""
    x, w, s = tensor(T, N, name="X"), tensor(N, N, name="W"), tensor(T, N, name="S")
    first, k = tensor(N, name="h0"), te.reduce_axis((0, N), name="k")
    init = te.compute((1, N), lambda t, i: first[i], name="init")
    mixed = te.compute((T, N), lambda t, i: te.sum(s[t - 1, k] * w[k, i], axis=k), name="mixed")
    update = te.compute((T, N), lambda t, i: te.tanh(mixed[t, i] + x[t, i]), name="update")
    out = te.scan(init, update, s, [x], name="hidden")
    return out, {x: random(T, N), w: random(N, N, seed=2), first: random(N, seed=3)}


def second_order():
    """Two rows to start with; two distances; an input read backwards."""
    x, s = tensor(T, N, name="X"), tensor(T, N, name="S")
    init = te.compute((2, N), lambda t, i: x[t, i] + 1.0, name="init")
    update = te.compute(
        (T, N),
        lambda t, i: s[t - 1, i] * s[t - 2, N - 1 - i] * 0.5 + x[T - 1 - t, i] * x[t, 0],
        name="update",
    )
    return te.scan(init, update, s, [x], name="series"), {x: random(T, N)}


def guarded():
    x, s = tensor(T, N, name="X"), tensor(T, N, name="S")
    init = te.compute((1, N), lambda t, i: x[0, i], name="init")
    update = te.compute(
        (T, N),
        lambda t, i: s[t - 1, i] * 0.5 + te.if_then_else(t >= 3, s[t - 3, i] * x[t, i], 1.0),
        name="update",
    )
    return te.scan(init, update, s, [x], name="delayed"), {x: random(T, N)}


def largest():
    """A maximum inside of the scan: of the row before."""
    x, s, k = tensor(T, N, name="X"), tensor(T, N, name="S"), te.reduce_axis((0, N), name="k")
    init = te.compute((1, N), lambda t, i: x[0, i], name="init")
    top = te.compute((T,), lambda t: te.max(s[t - 1, k], axis=k), name="top")
    update = te.compute((T, N), lambda t, i: top[t] * 0.5 + x[t, i] * s[t - 1, i], name="update")
    return te.scan(init, update, s, [x], name="S"), {x: random(T, N)}


CASES = [cumulative, recurrent, second_order, guarded, largest]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_against_differences(case):
    out, feeds = case()
    check(out, feeds)


@pytest.mark.parametrize("case", [cumulative, second_order], ids=lambda case: case.__name__)
def test_of_something_after_the_scan(case):
    scan, feeds = case()
    k = te.reduce_axis((0, T), name="k")
    out = te.compute((N,), lambda i: te.sum(te.exp(scan[k, i]), axis=k), name="out")
    check(out, feeds)


@pytest.mark.parametrize("which", [0, 1])
def test_two_states(which):
    """As in an LSTM: the second state reads the first one at the same time, through a stage."""
    x = tensor(T, N, name="X")
    a, b = tensor(T, N, name="a"), tensor(T, N, name="b")
    first = [te.compute((1, N), lambda t, i: x[0, i], name=f"init{n}") for n in range(2)]
    cell = te.compute(
        (T, N), lambda t, i: a[t - 1, i] * te.sigmoid(b[t - 1, i]) + x[t, i], name="cell"
    )
    hidden = te.compute((T, N), lambda t, i: te.tanh(cell[t, i]) * b[t - 1, i], name="hidden")
    outs = te.scan(first, [cell, hidden], [a, b], [x], name="lstm")
    check(outs[which], {x: random(T, N)})
    both = te.compute((T, N), lambda t, i: outs[0][t, i] * outs[1][t, i], name="both")
    check(both, {x: random(T, N)})


def test_a_state_that_nothing_reads():
    x, a, b = tensor(T, name="X"), tensor(T, name="a"), tensor(T, name="b")
    first = [te.compute((1,), lambda t: x[0], name=f"init{n}") for n in range(2)]
    one = te.compute((T,), lambda t: a[t - 1] * x[t], name="one")
    two = te.compute((T,), lambda t: a[t - 1] + x[t], name="two")
    outs = te.scan(first, [one, two], [a, b], [x], name="pair")
    check(outs[1], {x: random(T)})


def test_jacobian():
    out, feeds = cumulative()
    (x,) = feeds
    (jacobian,) = te.gradient(out, x)
    assert [as_int(d) for d in jacobian.shape] == [T, N, T, N]
    head = te.placeholder((T, N), "float64", "head")
    weights = random(T, N, seed=5)
    (by_head,) = evaluate(te.gradient(out, x, head), {**feeds, head: weights})
    (whole,) = evaluate([jacobian], feeds)
    np.testing.assert_allclose(np.einsum("ti,tisj->sj", weights, whole), by_head)


def test_scan_after_scan():
    inner, feeds = cumulative()
    s = tensor(T, N, name="S2")
    init = te.compute((1, N), lambda t, i: inner[0, i], name="init2")
    update = te.compute((T, N), lambda t, i: s[t - 1, i] * 0.5 + inner[t, i] * inner[t, 0])
    check(te.scan(init, update, s, [inner], name="outer"), feeds)


def test_the_gradient_compiles():
    """As loops: a scan forwards and a scan backwards, before and after lowering."""
    out, feeds = recurrent()
    head = te.placeholder(out.shape, "float64", "head")
    inputs = list(feeds)
    grads = te.gradient(out, inputs, head)
    arrays = [*feeds.values(), random(T, N, seed=7)]
    expected = evaluate(grads, dict(zip([*inputs, head], arrays, strict=True)))
    s = create_schedule(grads, [*inputs, head])
    for func in (s.func, lower(s.func, Target.parse("llvm -mcpu=x86-64-v3"))):
        results = [np.zeros_like(e) for e in expected]
        run(func, [*arrays, *results])
        for result, want in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, want)


def test_refusals():
    x, s = tensor(8, name="X"), tensor(8, name="S")
    init = te.compute((2,), lambda t: x[t], name="init")
    update = te.compute((8,), lambda t: s[t - 1 - t % 2] + x[t], name="update")
    pairs = te.scan(init, update, s, [x], name="pairs")
    with pytest.raises(TypeError, match=r"update of scan pairs reads .* not a fixed number"):
        te.gradient(pairs, x)
    first = lambda ins, outs: Store(outs[0], (te.const(0),), Load(ins[0], (te.const(0),), None))  # noqa: E731
    out = te.extern((1,), [x], first, name="first", dtype="float64")
    with pytest.raises(TypeError, match=r"first is extern.*te.compute"):
        te.gradient(out, x)
