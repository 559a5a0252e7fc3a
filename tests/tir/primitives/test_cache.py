"""cache_read, cache_write, set_scope, compute_inline, rfactor."""

import pytest

from tinycomp import te
from tinycomp.ir.expr import if_then_else


def test_cache_write(matmul):
    s = matmul.schedule()
    cached = s.cache_write("C", "local")
    assert s[cached].axis_names == ("i", "j", "k")
    assert s["C"].axis_names == ("i", "j")
    s["C"].split("j", factor=4)
    s[cached].compute_at("C", "j.outer")
    s[cached].reorder("k", *s[cached].axes[-3:-1])
    matmul.check(s)


def test_cache_write_twice_and_with_shaped_loops(matmul):
    s = matmul.schedule()
    s["C"].split("j", factor=4)
    first = s.cache_write("C", "local")
    assert s[first].axis_names == ("i", "j.outer", "j.inner", "k")
    second = s.cache_write("C", "local")
    third = s.cache_write(second, "shared")
    assert [first.name, second.name, third.name] == ["C.local", "C.local_1", "C.local_1.shared"]
    matmul.check(s)


def test_cache_write_of_a_stage_with_attached_producers(matmul):
    s = matmul.schedule()
    s["C"].compute_at("D", "i")
    cached = s.cache_write("D", "local")
    assert s["D"].axis_names == ("i", "j")
    assert s[cached].axis_names == ("i", "j")
    matmul.check(s)


def test_cache_write_refusals(matmul, refuses):
    s = matmul.schedule()
    refuses(
        s, ["'register' is not a memory scope", "local"], lambda: s.cache_write("C", "register")
    )
    s["C"].compute_at("D", "i")
    words = ["computed inside the loops of 'D'", "before compute_at"]
    refuses(s, words, lambda: s.cache_write("C", "local"))


@pytest.mark.parametrize("scope", ["local", "shared", "warp", "global"])
def test_cache_read(matmul, scope):
    s = matmul.schedule()
    a, b = matmul.inputs
    s["C"].tile("i", "j", 2, 4)
    left = s.cache_read(a, scope, ["C"])
    right = s.cache_read(b, scope, "C")
    s[left].compute_at("C", "i.outer")
    s[right].compute_at("C", "j.outer")
    matmul.check(s)


def test_cache_read_of_a_stage_for_one_of_its_readers(computation):
    a = te.placeholder((6,), name="A")
    b = te.compute((6,), lambda i: a[i] + 1.0, name="B")
    c = te.compute((6,), lambda i: b[5 - i] * 2.0, name="C")
    d = te.compute((6,), lambda i: b[i] + c[i], name="D")
    work = computation([a], d)
    s = work.schedule()
    first = s.cache_read(b, "local", [d])
    second = s.cache_read(b, "local", [c])
    assert (first.name, second.name) == ("B.local", "B.local_1")
    s[first].compute_at(d, "i")
    s[second].vectorize("i0")
    work.check(s)


def test_cache_read_refusals(matmul, refuses):
    s = matmul.schedule()
    a, _ = matmul.inputs
    refuses(s, "'D' does not read 'A'", lambda: s.cache_read(a, "local", ["D"]))
    refuses(s, "'C' computes 'C' itself", lambda: s.cache_read("C", "local", ["C"]))
    refuses(s, "no readers", lambda: s.cache_read(a, "local", []))
    refuses(s, "no buffer 'Z'", lambda: s.cache_read("Z", "local", ["C"]))
    s["C"].compute_at("D", "i")
    words = ["computed inside the loops of its readers", "before compute_at"]
    refuses(s, words, lambda: s.cache_read("C", "local", ["D"]))


def test_set_scope(matmul, refuses):
    s = matmul.schedule()
    s["C"].compute_at("D", "i")
    s["C"].set_scope("local")
    assert str(s.buffer("C").scope) == "local"
    matmul.check(s)
    refuses(s, ["parameter of 'main'", "cache_write"], lambda: s["D"].set_scope("local"))
    refuses(s, "not a memory scope", lambda: s["C"].set_scope("texture"))


def test_inline(computation):
    a = te.placeholder((6, 8), name="A")
    b = te.compute((6, 8), lambda i, j: if_then_else(j < 4, a[i, j], 0.0), name="B")
    c = te.compute((8, 6), lambda i, j: b[j, i] + b[j, 7 - i], name="C")
    d = te.compute((8, 6), lambda i, j: c[i, j] * c[i, j], name="D")
    work = computation([a], d)
    s = work.schedule()
    s["B"].split("j", factor=3)
    s["C"].compute_inline()
    s["B"].compute_inline()
    assert s.stages == ["D"]
    work.check(s)


def test_inline_into_a_reduction_and_with_attached_producer(computation):
    a = te.placeholder((6, 8), name="A")
    b = te.compute((6, 8), lambda i, j: a[i, j] + 1.0, name="B")
    c = te.compute((6, 8), lambda i, j: b[i, j] * 2.0, name="C")
    k = te.reduce_axis((0, 8), name="k")
    d = te.compute((6,), lambda i: te.sum(c[i, k], axis=k), name="D")
    work = computation([a], d)
    s = work.schedule()
    s["B"].compute_at("C", "i")
    s["C"].compute_inline()
    work.check(s)
    s["B"].compute_at("D", "k")
    work.check(s)


def test_inline_of_several_outputs(computation):
    a = te.placeholder((6,), name="A")
    x, y = te.compute((6,), lambda i: (a[i] + 1.0, a[i] * 2.0), name="P")
    c = te.compute((6,), lambda i: x[5 - i] - y[i], name="C")
    work = computation([a], c)
    s = work.schedule()
    s[x].compute_inline()
    work.check(s)


def test_inline_refusals(matmul, refuses):
    s = matmul.schedule()
    words = ['s["C"].compute_inline()', "is a reduction", "compute_at"]
    refuses(s, words, lambda: s["C"].compute_inline())
    refuses(s, "'D' is an output", lambda: s["D"].compute_inline())


@pytest.mark.parametrize("factor", [1, 4, 8, 16])
@pytest.mark.parametrize("which", ["outer", "inner"])
def test_rfactor(rows, factor, which):
    s = rows.schedule()
    axes = dict(zip(("outer", "inner"), s["B"].split("k", factor=factor), strict=True))
    partial = s[s.rfactor("B", axes[which])]
    lane = f"k.{which}"
    assert partial.axis_names[0] == lane
    partial.reorder(*(n for n in partial.axis_names if n != lane), lane)
    partial.vectorize(lane)
    rows.check(s)


def test_rfactor_of_a_tiled_stage(rows):
    s = rows.schedule()
    s["B"].split("i", factor=2)
    s["B"].split("k", factor=4)
    partial = s[s.rfactor("B", "k.inner")]
    partial.compute_at("B", "i.outer")
    rows.check(s)


def test_rfactor_twice(computation):
    a = te.placeholder((4, 30), name="A")
    k = te.reduce_axis((0, 30), name="k")
    work = computation([a], te.compute((4,), lambda i: te.max(a[i, k], axis=k), name="B"))
    s = work.schedule()
    s["B"].split("k", factors=[None, 4, 2])
    first = s.rfactor("B", "k.2")
    second = s.rfactor(first, "k.1")
    assert second.name == "B.rf.rf"
    s[second].parallel("k.1")
    work.check(s)


def test_rfactor_inside_a_consumer(computation):
    a = te.placeholder((4, 12), name="A")
    k = te.reduce_axis((0, 12), name="k")
    b = te.compute((4,), lambda i: te.sum(a[i, k], axis=k), name="B")
    c = te.compute((4, 3), lambda i, j: b[i] * 2.0, name="C")
    work = computation([a], c)
    s = work.schedule()
    s["B"].compute_at("C", "i")
    s["B"].split("k", factor=4)
    partial = s.rfactor("B", "k.inner")
    s.set_scope(partial, "local")
    work.check(s)


def test_rfactor_of_a_conditional_reduction(computation):
    a = te.placeholder((4, 12), name="A")
    k = te.reduce_axis((0, 12), name="k")
    out = te.compute((4,), lambda i: te.sum(a[i, k], axis=k, where=a[i, k] > 0.0), name="B")
    work = computation([a], out)
    s = work.schedule()
    s["B"].split("k", factor=4)
    s.rfactor("B", "k.inner")
    work.check(s)
