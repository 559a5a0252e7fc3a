"""Recurrences: the interpreter, the loop IR's interpreter and compiled code agree with NumPy."""

import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.diagnostics import ScheduleError
from tinycomp.te.interpreter import evaluate
from tinycomp.tir import interpreter


def check(schedule, inputs, outputs, arrays, expected):
    feeds = dict(zip(inputs, arrays, strict=True))
    for got, want in zip(evaluate(outputs, feeds), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    compiled = [np.empty(w.shape, "float32") for w in expected]
    tinycomp.build(schedule, [*inputs, *outputs])(*arrays, *compiled)
    loops = [np.empty(w.shape, "float32") for w in expected]
    by_name = dict(zip((t.name for t in inputs), arrays, strict=True))
    params = schedule.func.params[: len(inputs)]
    interpreter.run(schedule.func, [*(by_name[b.name] for b in params), *loops])
    for got, again, want in zip(compiled, loops, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(again, want, rtol=1e-5, atol=1e-6)


def rnn(times=6, n=5):
    x = te.placeholder((times, n), name="X")
    w = te.placeholder((n, n), name="W")
    state = te.placeholder((times, n), name="state")
    k = te.reduce_axis((0, n), name="k")
    init = te.compute((1, n), lambda t, i: x[0, i], name="init")
    mixed = te.compute(
        (times, n), lambda t, i: te.sum(state[t - 1, k] * w[k, i], axis=k), name="mixed"
    )
    update = te.compute((times, n), lambda t, i: te.tanh(mixed[t, i] + x[t, i]), name="update")
    hidden = te.scan(init, update, state, [x, w], name="H")
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype("float32") for s in ((times, n), (n, n))]
    rows = [arrays[0][0]]
    for t in range(1, times):
        rows.append(np.tanh(rows[-1] @ arrays[1] + arrays[0][t]))
    return x, w, init, mixed, update, hidden, arrays, np.array(rows)


def test_recurrent_net():
    x, w, *_, hidden, arrays, expected = rnn()
    check(te.create_schedule(hidden), [x, w], [hidden], arrays, [expected])


def test_stages_inside_are_scheduled():
    x, w, init, mixed, update, hidden, arrays, expected = rnn(times=5, n=19)
    s = te.create_schedule(hidden)
    s[init].compute_inline()
    s[update].compute_inline()
    i = mixed.op.axis[1]
    outer, inner = s[mixed].split(i, factor=8)
    s[mixed].reorder(outer, mixed.op.reduce_axis[0], inner)
    s[mixed].vectorize(inner)
    s[hidden].parallel(s[hidden].axes[-1])
    check(s, [x, w], [hidden], arrays, [expected])


def test_a_stage_inside_is_computed_at_its_reader():
    x, w, _, mixed, update, hidden, arrays, expected = rnn()
    s = te.create_schedule(hidden)
    s[mixed].compute_at(s[update], update.op.axis[1])
    check(s, [x, w], [hidden], arrays, [expected])


def test_time_cannot_be_parallel():
    *_, hidden, _, _ = rnn()
    s = te.create_schedule(hidden)
    with pytest.raises(ScheduleError, match="time of a scan"):
        s[hidden].parallel(hidden.op.scan_axis)


def test_result_feeds_other_stages_and_input_projection_stays_outside():
    x, w, *_, hidden, arrays, expected = rnn()
    out = te.compute(hidden.shape, lambda t, i: hidden[t, i] * 2.0, name="out")
    s = te.create_schedule(out)
    assert s.stages[-1] == "out"
    check(s, [x, w], [out], arrays, [expected * 2])


def test_two_states_take_their_values_at_once():
    times = 8
    a, b = te.placeholder((times,), name="a"), te.placeholder((times,), name="b")
    start = te.placeholder((2,), name="start")
    first_a = te.compute((1,), lambda t: start[0])
    first_b = te.compute((1,), lambda t: start[1])
    next_a = te.compute((times,), lambda t: b[t - 1], name="next_a")
    next_b = te.compute((times,), lambda t: a[t - 1] + b[t - 1], name="next_b")
    fa, fb = te.scan([first_a, first_b], [next_a, next_b], [a, b], name="fib")
    s = te.create_schedule([fa, fb])
    fib = np.array([1, 1, 2, 3, 5, 8, 13, 21, 34], "float32")
    check(s, [start], [fa, fb], [np.array([1, 1], "float32")], [fib[:8], fib[1:9]])
    assert s[fa].block_name != s[fb].block_name


def test_looking_two_steps_back_with_two_first_rows():
    times = 7
    x, state = te.placeholder((times, 3), name="X"), te.placeholder((times, 3), name="state")
    init = te.compute((2, 3), lambda t, i: x[t, i])
    update = te.compute((times, 3), lambda t, i: state[t - 1, 2 - i] - state[t - 2, i] + x[t, i])
    out = te.scan(init, update, state, name="S")
    data = np.random.default_rng(1).standard_normal((times, 3)).astype("float32")
    rows = [data[0], data[1]]
    for t in range(2, times):
        rows.append(rows[-1][::-1] - rows[-2] + data[t])
    check(te.create_schedule(out), [x], [out], [data], [np.array(rows)])


def test_refusals():
    x, state = te.placeholder((5, 3), name="X"), te.placeholder((5, 3), name="state")
    init = te.compute((1, 3), lambda t, i: x[0, i], name="init")

    def scan(update, **other):
        return te.scan(other.get("init", init), update, state, name="S")

    with pytest.raises(TypeError, match="not proven to be before t"):
        scan(te.compute((5, 3), lambda t, i: state[t, i] + 1.0, name="now"))
    with pytest.raises(TypeError, match="before the first row"):
        scan(te.compute((5, 3), lambda t, i: state[t - 2, i] + 1.0, name="early"))
    with pytest.raises(TypeError, match="must have one shape"):
        scan(te.compute((4, 3), lambda t, i: state[t - 1, i], name="short"))
    with pytest.raises(TypeError, match="dtypes"):
        scan(te.compute((5, 3), lambda t, i: te.cast(state[t - 1, i], "float64"), name="wide"))
    inner = te.compute((5, 3), lambda t, i: state[t - 1, i] * 2.0, name="inner")
    with pytest.raises(TypeError, match="make it a state to look back"):
        scan(te.compute((5, 3), lambda t, i: inner[t - 1, i] + state[t - 1, i], name="late"))
    with pytest.raises(TypeError, match="reads no state"):
        scan(te.compute((5, 3), lambda t, i: x[t, i], name="constant"))


def test_what_is_inside_cannot_be_read_from_outside():
    *_, update, hidden, _, _ = rnn()
    outside = te.compute(hidden.shape, lambda t, i: update[t, i] + hidden[t, i], name="outside")
    with pytest.raises(ScheduleError, match="exists only inside the scan 'H'"):
        te.create_schedule(outside)
