"""reverse_compute_at and reverse_compute_inline: consumers move to their producers."""

import pytest

from tinycomp import te
from tinycomp.ir.expr import if_then_else


@pytest.mark.parametrize("axis", ["i.outer", "j.outer", "i.inner", "j.inner"])
@pytest.mark.parametrize("factors", [(2, 4), (3, 3), (5, 7), (1, 1)])
def test_into_a_tile(matmul, axis, factors):
    s = matmul.schedule()
    s["C"].tile("i", "j", *factors)
    s["C"].reorder("i.outer", "j.outer", "i.inner", "j.inner", "k")
    s["D"].reverse_compute_at("C", axis)
    matmul.check(s)


def test_into_a_fused_and_parallel_loop(matmul):
    s = matmul.schedule()
    fused = s["C"].fuse("i", "j")
    s["C"].parallel(fused)
    s["D"].reverse_compute_at(s["C"], fused)
    matmul.check(s)


def test_shifted_and_reduced_reads(computation):
    a = te.placeholder((6, 12), name="A")
    b = te.compute((6, 12), lambda i, j: a[i, j] * 2.0, name="B")
    k = te.reduce_axis((0, 12), name="k")
    c = te.compute((5,), lambda i: te.sum(b[i + 1, k], axis=k), name="C")
    work = computation([a], c)
    for axis in ("i", "j.outer", "j.inner"):
        s = work.schedule()
        s["B"].split("j", factor=5)
        s["C"].reverse_compute_at("B", axis)
        work.check(s)
    s = work.schedule()
    s["B"].parallel("j")
    s["C"].reverse_compute_at("B", "i")
    work.check(s)


def test_stages_after_it_still_read_it(computation):
    a = te.placeholder((6, 8), name="A")
    b = te.compute((6, 8), lambda i, j: a[i, j] * 2.0, name="B")
    c = te.compute((8, 6), lambda i, j: b[j, i] + 1.0, name="C")
    d = te.compute((8, 6), lambda i, j: c[7 - i, j] + b[j, i], name="D")
    work = computation([a], d)
    s = work.schedule()
    s["B"].split("j", factor=3)
    s["C"].reverse_compute_at("B", "j.outer")
    work.check(s)


def test_refusals(matmul, computation, refuses):
    s = matmul.schedule()
    s["C"].reorder("i", "k", "j")
    words = ['s["D"].reverse_compute_at("C", "k")', "complete only after its reduction loop 'k'"]
    refuses(s, words, lambda: s["D"].reverse_compute_at("C", "k"))
    refuses(s, "only after its reduction", lambda: s["D"].reverse_compute_at("C", "j"))
    refuses(s, "is a loop of 'D' itself", lambda: s["D"].reverse_compute_at("D", "j"))
    refuses(s, "reads nothing that is computed", lambda: s["C"].reverse_compute_at("D", "j"))


def test_reads_that_cannot_be_followed(stencil, computation, refuses):
    s = stencil.schedule()
    words = ["reads 'B' at [i + 1] and [i] and [i + 3]", "elementwise"]
    refuses(s, words[1], lambda: s["C"].reverse_compute_at("B", "i"))
    a = te.placeholder((9,), name="A")
    b = te.compute((9,), lambda i: a[i] * 2.0, name="B")
    c = te.compute((9,), lambda i: if_then_else(i > 0, b[i - 1], 0.0), name="C")
    padded = computation([a], c).schedule()
    words = "reads outside of 'B' under a condition"
    refuses(padded, words, lambda: padded["C"].reverse_compute_at("B", "i"))


def test_parallel_loops_do_not_reduce(computation, refuses):
    a = te.placeholder((6, 8), name="A")
    b = te.compute((6, 8), lambda i, j: a[i, j] * 2.0, name="B")
    k = te.reduce_axis((0, 6), name="k")
    c = te.compute((8,), lambda j: te.sum(b[k, j], axis=k), name="C")
    work = computation([a], c)
    s = work.schedule()
    s["B"].parallel("i")
    words = "would reduce over the parallel loop 'i'"
    refuses(s, words, lambda: s["C"].reverse_compute_at("B", "i"))
    s = work.schedule()
    s["C"].reverse_compute_at("B", "i")
    refuses(s, "'i' is a reduction axis", lambda: s["B"].parallel("i"))
    work.check(s)


def test_inputs_that_come_later(computation, refuses):
    a = te.placeholder((6,), name="A")
    b = te.compute((6,), lambda i: a[i] * 2.0, name="B")
    x = te.compute((6,), lambda i: a[i] + 5.0, name="X")
    c = te.compute((6,), lambda i: b[i] + x[i], name="C")
    s = computation([a], c).schedule()
    words = "also reads 'X', which is computed later"
    refuses(s, words, lambda: s["C"].reverse_compute_at("B", "i"))
    s["X"].compute_inline()
    s["C"].reverse_compute_at("B", "i")


def test_inline_keeps_the_loops_of_the_producer(computation):
    a = te.placeholder((6, 10), name="A")
    b = te.compute((6, 10), lambda i, j: a[i, j] * 2.0, name="B")
    c = te.compute((10, 6), lambda i, j: b[j, i] + b[j, i] * b[j, i], name="C")
    work = computation([a], c)
    s = work.schedule()
    s["B"].split("j", factor=4)
    s["B"].vectorize("j.inner")
    s["C"].reverse_compute_inline()
    assert s.stages == ["C"]
    assert s["C"].axis_names == ("i", "j.outer", "j.inner")
    s["C"].parallel("i")
    work.check(s)


def test_inline_refusals(matmul, stencil, computation, refuses):
    s = matmul.schedule()
    refuses(s, "'C' is a reduction", lambda: s["D"].reverse_compute_inline())
    refuses(s, "is a reduction and needs loops", lambda: s["C"].reverse_compute_inline())
    s = stencil.schedule()
    refuses(s, "not each element once", lambda: s["C"].reverse_compute_inline())
    refuses(s, "must read exactly one other stage", lambda: s["B"].reverse_compute_inline())
    a = te.placeholder((6,), name="A")
    b = te.compute((6,), lambda i: a[i] * 2.0, name="B")
    c = te.compute((6,), lambda i: b[i] + 1.0, name="C")
    d = te.compute((6,), lambda i: b[i] + c[i], name="D")
    s = computation([a], d).schedule()
    refuses(s, "read by other stages too", lambda: s["C"].reverse_compute_inline())
    s = computation([a], [c, b]).schedule()
    refuses(s, "'B' is an output", lambda: s["C"].reverse_compute_inline())
