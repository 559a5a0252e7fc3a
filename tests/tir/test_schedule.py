"""A schedule is a value: its steps print, travel, hash and replay."""

import json

import numpy as np
import pytest

from tinycomp import te
from tinycomp.diagnostics import ScheduleError
from tinycomp.tir.interpreter import run
from tinycomp.tir.primitives.split import Split
from tinycomp.tir.schedule import Schedule, create_schedule


def matmul(m, n, k):
    a, b = te.placeholder((m, k), name="A"), te.placeholder((k, n), name="B")
    r = te.reduce_axis((0, k), name="k")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="C")
    return [a, b], te.compute((m, n), lambda i, j: c[i, j] * 2.0, name="D")


def tiled(s):
    io, jo, _, ji = s["D"].tile("i", "j", 2, 4)
    s["D"].parallel(io)
    cached = s.cache_write("C", "local")
    s["C"].compute_at("D", jo)
    s[cached].compute_at("C", "i")
    _, inner = s[cached].split("k", factors=[None, 3])
    part = s.rfactor(cached, inner)
    s.set_scope(part, "local")
    left = s.cache_read("A", "shared", [part])
    s[left].pragma("i0", "note", 3)
    s["D"].vectorize(ji)
    return s


def result(s, inputs, shape):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-4, 5, [d.value for d in t.shape]).astype("float32") for t in inputs]
    out = np.empty(shape, "float32")
    run(s.func, [*arrays, out])
    np.testing.assert_array_equal(out, arrays[0] @ arrays[1] * 2)


def test_trace_rebuilds():
    inputs, out = matmul(4, 8, 6)
    s = tiled(create_schedule(out, inputs))
    assert s.trace().splitlines()[:4] == [
        "def apply(s):",
        '    s["D"].split("i", factor=2)',
        '    s["D"].split("j", factor=4)',
        '    s["D"].reorder("i.outer", "j.outer", "i.inner", "j.inner")',
    ]
    scope = {}
    exec(s.trace(), scope)
    again = create_schedule(out, inputs)
    scope["apply"](again)
    assert again.show() == s.show()
    assert again.steps == s.steps
    result(again, inputs, (4, 8))


def test_empty_trace():
    inputs, out = matmul(2, 2, 2)
    scope = {}
    exec(create_schedule(out, inputs).trace(), scope)
    assert scope["apply"](None) is None


def test_json_and_hash():
    inputs, out = matmul(4, 8, 6)
    s = tiled(create_schedule(out, inputs))
    steps = Schedule.from_json(s.to_json())
    assert steps == s.steps
    assert isinstance(steps[0], Split)
    assert len(set(steps)) > 5  # hashable
    again = create_schedule(out, inputs)
    again.replay(steps)
    assert (again.to_json(), again.hash()) == (s.to_json(), s.hash())
    empty = create_schedule(out, inputs).hash()
    assert empty == "c172c7c225542843406d3ee94d9eece39b44126f922a7f7fb1e75aacbeed5d95"
    assert empty != s.hash()


@pytest.mark.parametrize("shape", [(4, 8, 6), (5, 7, 3), (1, 1, 1), (13, 9, 11)])
def test_replay_on_another_shape(shape):
    inputs, out = matmul(4, 8, 6)
    s = tiled(create_schedule(out, inputs))
    inputs, out = matmul(*shape)
    other = create_schedule(out, inputs)
    other.replay(s.steps)
    assert other.steps == s.steps
    result(other, inputs, shape[:2])


def test_replay_failure_names_the_step_and_changes_nothing():
    inputs, out = matmul(4, 8, 6)
    s = create_schedule(out, inputs)
    s["D"].split("i", factor=2)
    s.cache_write("C", "local")
    s["D"].split("j", factors=[2, 4])
    inputs, out = matmul(4, 10, 6)
    other = create_schedule(out, inputs)
    before = other.show()
    with pytest.raises(ScheduleError, match=r"step 3 of 3 cannot be replayed: .*cover 8 of 10"):
        other.replay(s.steps)
    assert (other.show(), other.steps, other.stages) == (before, (), ["C", "D"])
    with pytest.raises(ScheduleError, match="no such stage"):
        other["C.local"]
    a = te.placeholder((4,), name="A")
    b = te.compute((4,), lambda x: a[x] + 1.0, name="D")
    with pytest.raises(ScheduleError, match=r'step 1 of 3 .*s\["D"\].split\("i".*no axis'):
        create_schedule(b, [a]).replay(s.steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a schedule of format"),
        ('{"format": 99, "steps": []}', "not a schedule of format"),
        ('{"format": 1, "steps": [{"step": "spilt"}]}', "no schedule step 'spilt'"),
        ('{"format": 1, "steps": [7]}', "no schedule step None"),
        ('{"format": 1, "steps": [{"step": "split", "stage": "B", "by": 1}]}', "lacks"),
        ('{"format": 1, "steps": [{"step": "split", "stage": "B", "axis": 7}]}', "no axis 7"),
        ('{"format": 1}', "no steps"),
    ],
)
def test_damaged_json(text, message):
    a = te.placeholder((4,), name="A")
    s = create_schedule(te.compute((4,), lambda i: a[i] + 1.0, name="B"), [a])
    with pytest.raises(ScheduleError, match=message):
        s.replay(Schedule.from_json(text))


def test_stage_lookup():
    inputs, out = matmul(2, 2, 2)
    s = create_schedule(out, inputs)
    assert s[out].block_name == s["D"].block_name == "D"
    assert s[out].op is out.op
    with pytest.raises(ScheduleError, match="input or belongs to another schedule"):
        s[inputs[0]]
    with pytest.raises(ScheduleError, match="stages are C, D"):
        s["X"]
    cached = s.cache_write(out, "local")
    assert [a.name for a in s[cached].op.axis] == [a.name for a in out.op.axis]


def test_an_inlined_stage_is_gone():
    a = te.placeholder((4,), name="A")
    b = te.compute((4,), lambda i: a[i] + 1.0, name="B")
    s = create_schedule(te.compute((4,), lambda i: b[i] * 2.0, name="C"), [a])
    s["B"].compute_inline()
    for call in (lambda: s["B"].split("i", factor=2), lambda: s["B"].compute_inline()):
        with pytest.raises(ScheduleError, match="it was inlined"):
            call()


def test_steps_of_a_value_do_not_change():
    inputs, out = matmul(4, 8, 6)
    s = create_schedule(out, inputs)
    s["D"].split("i", factor=2)
    steps = s.steps
    s["D"].split("j", factor=2)
    assert len(steps) == 1
    assert json.loads(s.to_json())["steps"][0] == steps[0].to_dict()


def test_excerpts_are_short():
    a = te.placeholder((2,) * 12, name="A")
    s = create_schedule(te.compute((2,) * 12, lambda *i: a(*i) + 1.0, name="B"), [a])
    for n in range(12):
        s["B"].split(f"i{n}", factor=2)
    with pytest.raises(ScheduleError) as caught:
        s["B"].split("i9.inner", factor=0)
    lines = caught.value.excerpt.splitlines()
    assert len(lines) == 17
    assert any("for i9.inner in" in line for line in lines)
