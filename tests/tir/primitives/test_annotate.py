"""vectorize, unroll, parallel, bind, pragma."""

import pytest

from tinycomp import te
from tinycomp.tir.nodes import ForKind


@pytest.mark.parametrize("kind", ["vectorize", "unroll", "parallel"])
@pytest.mark.parametrize("axis", ["i", "j"])
def test_marks(elementwise, kind, axis):
    s = elementwise.schedule()
    getattr(s["B"], kind)(axis)
    getattr(s["D"], kind)(axis)
    elementwise.check(s)


def test_unroll_of_a_reduction(rows):
    s = rows.schedule()
    s["B"].split("k", factor=4)
    s["B"].unroll("k.inner")
    rows.check(s)


@pytest.mark.parametrize("order", [("i", "j", "k"), ("k", "i", "j"), ("j", "k", "i")])
def test_vectors_around_a_reduction(matmul, order):
    s = matmul.schedule()
    s["C"].reorder(*order)
    s["C"].vectorize("j")
    s["C"].parallel("i")
    matmul.check(s)


@pytest.mark.parametrize("call", ["vectorize", "parallel"])
def test_reductions_do_not_run_at_once(rows, refuses, call):
    s = rows.schedule()
    words = [f's["B"].{call}("k")', "'k' is a reduction axis", "rfactor"]
    refuses(s, words, lambda: getattr(s["B"], call)("k"))
    s["B"].split("k", factor=4)
    refuses(s, "'k.inner' is a reduction axis", lambda: getattr(s["B"], call)("k.inner"))
    refuses(s, "further loops of the same stage", lambda: s["B"].bind("k.outer", "threadIdx.x"))


def test_a_loop_runs_in_one_way(elementwise, refuses):
    s = elementwise.schedule()
    s["D"].parallel("i")
    refuses(s, "already parallel", lambda: s["D"].vectorize("i"))
    refuses(s, ["are nested", "fuse the two loops"], lambda: s["D"].parallel("j"))
    s["D"].parallel("i")  # saying it again changes nothing
    elementwise.check(s)
    other = elementwise.schedule()
    other["D"].parallel("j")
    refuses(other, "are nested", lambda: other["D"].parallel("i"))


def test_bind(elementwise):
    s = elementwise.schedule()
    outer, inner = s["D"].split("j", factor=4)
    s["D"].bind("i", "blockIdx.x")
    s["D"].bind(outer, "vthread")
    s["D"].bind(inner, "threadIdx.x")
    assert [l.kind for l in s.loops("D")] == [ForKind.THREAD] * 3
    elementwise.check(s)


def test_cooperative_copy(computation):
    """Threads copy rows of A to shared memory, then all read what all copied."""
    a = te.placeholder((8, 12), name="A")
    b = te.compute((8, 12), lambda i, j: a[i, 11 - j] * 2.0, name="B")
    work = computation([a], b)
    s = work.schedule()
    shared = s.cache_read(a, "shared", [b])
    s[b].bind("i", "blockIdx.x")
    outer, inner = s[b].split("j", factor=4)
    s[b].reorder(inner, outer)
    s[shared].compute_at(b, "i")
    copy_outer, copy_inner = s[shared].split(s[shared].axes[-1], factor=4)
    s[shared].reorder(copy_inner, copy_outer)
    s[b].bind(inner, "threadIdx.x")
    s[shared].bind(copy_inner, "threadIdx.x")
    assert copy_outer in s[shared].axes
    assert outer in s[b].axes
    work.check(s)


def test_bind_refusals(matmul, refuses):
    s = matmul.schedule()
    refuses(s, "'lane' is not a thread axis", lambda: s["D"].bind("i", "lane"))
    s["D"].bind("i", "threadIdx.x")
    refuses(s, "are nested", lambda: s["D"].bind("j", "threadIdx.x"))
    refuses(s, "already thread", lambda: s["D"].bind("i", "threadIdx.y"))
    s = matmul.schedule()
    outer, inner = s["D"].split("j", factor=4)
    s["C"].compute_at("D", outer)
    s["D"].bind(inner, "threadIdx.x")
    words = ["threadIdx.x has extent 4 at loop 'j.inner'", "'i_1' has extent 1"]
    refuses(s, words, lambda: s["C"].bind("i_1", "threadIdx.x"))
    s["C"].bind("j", "threadIdx.x")
    matmul.check(s)


def test_pragma(elementwise):
    s = elementwise.schedule()
    s["D"].pragma("i", "auto_unroll_max_step", 16)
    assert s.loops("D")[0].annotations["auto_unroll_max_step"] == 16
    elementwise.check(s)


def test_all_iterations_write_the_same(computation, refuses):
    """The loop over i recomputes B for each i, into memory that is its own: fine."""
    a = te.placeholder((6,), name="A")
    b = te.compute((6,), lambda j: a[j] + 1.0, name="B")
    c = te.compute((4, 6), lambda i, j: b[j] * 2.0, name="C")
    work = computation([a], c)
    s = work.schedule()
    s[b].compute_at(c, "i")
    s[c].parallel("i")
    s[b].vectorize(s[b].axes[-1])
    work.check(s)
