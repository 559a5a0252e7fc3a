"""Schedules as TVM's users write them: `s[X].op.axis`, tuples of outputs, thread axes."""

import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.diagnostics import ScheduleError
from tinycomp.tir.schedule import Schedule


def argmax():
    def combine(x, y):
        first = x[1] >= y[1]
        return te.if_then_else(first, x[0], y[0]), te.if_then_else(first, x[1], y[1])

    def identity(index, value):
        return te.const(-1, index), te.min_value(value)

    return te.comm_reducer(combine, identity, name="argmax")


def rows(m, n):
    index = te.placeholder((m, n), "int32", name="index")
    value = te.placeholder((m, n), "float32", name="value")
    k = te.reduce_axis((0, n), "k")
    out = te.compute((m,), lambda i: argmax()((index[i, k], value[i, k]), axis=k), name="T")
    return index, value, *out


def test_reduction_with_rfactor():
    A = te.placeholder((6, 64), name="A")
    k = te.reduce_axis((0, 64), name="k")
    B = te.compute((6,), lambda i: te.sum(A[i, k], axis=k), name="B")
    s = te.create_schedule(B.op)
    _, ki = s[B].split(B.op.reduce_axis[0], factor=16)
    BF = s.rfactor(B, ki)
    assert [a.name for a in s[BF].op.axis] == ["i", "k.inner"]
    s[BF].compute_at(s[B], s[B].op.axis[0])
    s[B].unroll(s[B].op.reduce_axis[0])
    a, b = np.random.default_rng(0).random((6, 64), np.float32), np.empty(6, np.float32)
    tinycomp.build(s, [A, B])(a, b)
    np.testing.assert_allclose(b, a.sum(1), rtol=1e-5)


def test_cached_stage_has_the_reduction_axes():
    A = te.placeholder((8, 8), name="A")
    k = te.reduce_axis((0, 8), name="k")
    C = te.compute((8, 8), lambda i, j: te.sum(A[i, k] * A[k, j], axis=k), name="C")
    s = te.create_schedule(C.op)
    CL = s.cache_write(C, "local")
    assert s[C].op.reduce_axis == ()
    *_, yi, _ = s[C].tile(*s[C].op.axis, 4, 4)
    s[CL].compute_at(s[C], yi)
    s[CL].split(s[CL].op.reduce_axis[0], factor=2)
    a, c = np.random.default_rng(1).random((8, 8), np.float32), np.empty((8, 8), np.float32)
    tinycomp.build(s, [A, C])(a, c)
    np.testing.assert_allclose(c, a @ a, rtol=1e-5)


def test_cache_write_of_all_outputs():
    index, value, T0, T1 = rows(5, 13)
    s = te.create_schedule(T0.op)
    first, second = s.cache_write([T0, T1], "local")
    assert len(s.stages) == 2
    s[first].compute_at(s[T0], s[T0].op.axis[0])
    assert s[first].block is s[second].block
    v = np.random.default_rng(2).random((5, 13), np.float32)
    i = np.tile(np.arange(13, dtype=np.int32), (5, 1))
    where, what = np.empty(5, np.int32), np.empty(5, np.float32)
    tinycomp.build(s, [index, value, T0, T1])(i, v, where, what)
    np.testing.assert_array_equal(where, v.argmax(1))
    np.testing.assert_array_equal(what, v.max(1))
    again = te.create_schedule(T0.op)
    again.replay(Schedule.from_json(s.to_json()))
    assert str(again.func) == str(s.func)


def test_cache_write_of_several_stages_is_refused():
    A = te.placeholder((4,), name="A")
    B = te.compute((4,), lambda i: A[i] + 1.0, name="B")
    C = te.compute((4,), lambda i: B[i] + 1.0, name="C")
    s = te.create_schedule(C.op)
    with pytest.raises(ScheduleError, match="B, C are different stages"):
        s.cache_write([B, C])


def test_axis_separator_changes_nothing():
    A = te.placeholder((8, 8), name="A")
    B = te.compute((8, 8), lambda i, j: A[i, j] + 1.0, name="B")
    C = te.compute((8, 8), lambda i, j: B[i, j] * 2.0, name="C")
    texts = []
    for separator in ([], [te.AXIS_SEPARATOR]):
        s = te.create_schedule(C.op)
        s[B].transform_layout(lambda i, j, extra=separator: [i // 4, j, *extra, i % 4])
        texts.append(str(s.func))
    assert texts[0] == texts[1]


def test_extern_takes_its_dtype_from_the_inputs():
    A = te.placeholder((4,), "int32", name="A")
    B = te.placeholder((4,), "float32", name="B")
    assert te.extern((2,), [A], lambda ins, outs: None).dtype == "int32"
    two = te.extern([(2,), (3,)], [A, B], lambda ins, outs: None, dtype=["int8", "bool"])
    assert [(t.dtype, len(t.shape)) for t in two] == [("int8", 1), ("bool", 1)]
    with pytest.raises(TypeError, match="give dtype="):
        te.extern((2,), [A, B], lambda ins, outs: None)
    with pytest.raises(TypeError, match="2 outputs, but 1 dtypes"):
        te.extern([(2,), (3,)], [A], lambda ins, outs: None, dtype=["int8"])


def test_the_axis_of_another_stage_is_refused():
    A = te.placeholder((8, 8), name="A")
    B = te.compute((8, 8), lambda i, j: A[i, j] + 1.0, name="B")
    C = te.compute((8, 8), lambda i, j: B[j, i] * 2.0, name="C")
    s = te.create_schedule(C.op)
    with pytest.raises(ScheduleError, match="'i' is not a loop of stage 'C': it belongs to"):
        s[B].compute_at(s[C], B.op.axis[0])
