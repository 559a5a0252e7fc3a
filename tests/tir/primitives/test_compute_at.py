"""compute_at and compute_root: producers move, results do not."""

import pytest

from tinycomp import te


@pytest.mark.parametrize("factor", [1, 3, 4, 5, 13, 20])
@pytest.mark.parametrize("where", ["outer", "inner"])
def test_stencil(stencil, factor, where):
    s = stencil.schedule()
    axes = dict(zip(("outer", "inner"), s["C"].split("i", factor=factor), strict=True))
    s["B"].compute_at("C", axes[where])
    s["B"].vectorize(s["B"].axes[-1])
    stencil.check(s)


@pytest.mark.parametrize("axis", ["i.outer", "j.outer", "i.inner", "j.inner"])
def test_producer_of_a_tile(matmul, axis):
    s = matmul.schedule()
    s["D"].tile("i", "j", 2, 3)
    s["C"].compute_at(s["D"], axis)
    s["C"].reorder(s["C"].axes[-1], *s["C"].axes[-3:-1])
    matmul.check(s)


def test_tile_that_reaches_past_the_end_is_whole(computation):
    """Where operands are padded, the partial tile is computed without a guard."""
    a = te.placeholder((8,), name="A")
    b = te.compute((5,), lambda i: a[i] * 2.0, name="B")
    c = te.compute((5,), lambda i: b[i] + 1.0, name="C")
    work = computation([a], c)
    s = work.schedule()
    s["C"].split("i", factor=4)
    s["B"].compute_at("C", "i.outer")
    assert "where" not in str(s["B"].block)
    work.check(s)


def test_several_readers(computation):
    a = te.placeholder((6, 10), name="A")
    b = te.compute((6, 10), lambda i, j: a[i, j] + 1.0, name="B")
    c = te.compute((6, 9), lambda i, j: b[i, j] + b[i, j + 1], name="C")
    d = te.compute((6, 8), lambda i, j: c[i, j] * b[i, j + 2], name="D")
    work = computation([a], d)
    s = work.schedule()
    s["D"].split("j", factor=3)
    s["C"].compute_at("D", "j.outer")
    s["B"].compute_at("D", "j.outer")
    work.check(s)
    s = work.schedule()
    s["C"].compute_at("D", "i")
    s["B"].compute_at("D", "i")
    work.check(s)


def test_nested_attachment(computation):
    a = te.placeholder((20,), name="A")
    b = te.compute((20,), lambda i: a[i] + 1.0, name="B")
    c = te.compute((18,), lambda i: b[i] + b[i + 2], name="C")
    d = te.compute((16,), lambda i: c[i] * c[i + 2], name="D")
    work = computation([a], d)
    s = work.schedule()
    s["D"].split("i", factor=5)
    s["C"].compute_at("D", "i.outer")
    s["C"].split("i", factor=3)
    s["B"].compute_at("C", "i.outer_1")
    work.check(s)


def test_a_stage_with_attached_producers_stays(stencil, computation, refuses):
    a = te.placeholder((20,), name="A")
    b = te.compute((20,), lambda i: a[i] + 1.0, name="B")
    c = te.compute((18,), lambda i: b[i] + b[i + 2], name="C")
    d = te.compute((16,), lambda i: c[i] * c[i + 2], name="D")
    work = computation([a], d)
    s = work.schedule()
    s["B"].compute_at("C", "i")
    words = ["reads 'B', which is computed inside its loop 'i'", 's["B"].compute_root() first']
    refuses(s, words, lambda: s["C"].compute_at("D", "i"))
    work.check(s)
    s["B"].compute_root()
    s["C"].compute_at("D", "i")
    s["B"].compute_at("D", "i")
    work.check(s)


def test_moving_within_the_loop_of_a_producer(computation):
    a = te.placeholder((6, 8), name="A")
    b = te.compute((6, 8), lambda i, j: a[i, j] + 1.0, name="B")
    c = te.compute((6, 8), lambda i, j: b[i, 7 - j] * 2.0, name="C")
    d = te.compute((6, 8), lambda i, j: c[i, j] + 3.0, name="D")
    work = computation([a], d)
    s = work.schedule()
    s["C"].compute_at("D", "i")
    s["B"].compute_at("D", "i")
    s["C"].compute_at("D", "j")  # B stays at i, which is around j
    work.check(s)


def test_reversed_strided_and_gathered_reads(computation):
    a = te.placeholder((24,), name="A")
    index = te.placeholder((8,), "int64", name="I")
    b = te.compute((24,), lambda i: a[i] * 2.0, name="B")
    c = te.compute((8,), lambda i: b[23 - 2 * i] + b[i // 2] + b[i % 3] + b[index[i]], name="C")
    work = computation([a, index], c)
    s = work.schedule()
    s["C"].split("i", factor=3)
    s["B"].compute_at("C", "i.outer")
    work.check(s)


def test_inside_a_reduction_loop(computation):
    a = te.placeholder((5, 12), name="A")
    b = te.compute((5, 12), lambda i, k: a[i, k] + 1.0, name="B")
    k = te.reduce_axis((0, 12), name="k")
    c = te.compute((5,), lambda i: te.sum(b[i, k], axis=k), name="C")
    work = computation([a], c)
    s = work.schedule()
    s["C"].split("k", factor=5)
    s["C"].reorder("k.outer", "i", "k.inner")
    s["B"].compute_at("C", "k.outer")
    work.check(s)


def test_reduction_recomputed_per_element(matmul):
    s = matmul.schedule()
    s["C"].compute_at("D", "j")
    s["D"].vectorize("j")
    matmul.check(s)


def test_several_outputs(computation):
    a = te.placeholder((4, 9), name="A")
    k = te.reduce_axis((0, 9), name="k")
    argmax = te.comm_reducer(
        lambda x, y: (
            te.select(y[0] <= x[0], x[0], y[0]), te.select(y[0] <= x[0], x[1], y[1])
        ),
        lambda t, u: (te.const(-1e9, t), te.const(0, u)),
        name="argmax",
    )  # fmt: skip
    value, index = te.compute(
        (4,), lambda i: argmax((a[i, k], te.cast(k.var, "int64")), axis=k), name="M"
    )
    out = te.compute((4,), lambda i: value[i] + te.cast(index[i], "float32"), name="out")
    work = computation([a], out)
    s = work.schedule()
    s[value].compute_at(out, "i")
    work.check(s)


def test_refusals(matmul, refuses):
    s = matmul.schedule()
    refuses(s, ["'D' is an output", "cache_write"], lambda: s["D"].compute_at("D", "i"))
    refuses(s, "'i' is a loop of 'C' itself", lambda: s["C"].compute_at("C", "i"))
    refuses(s, "has no axis 'k'", lambda: s["C"].compute_at("D", "k"))
    wrong = s["C"].axis("k")
    refuses(s, "'k' is not a loop of stage 'D'", lambda: s["C"].compute_at("D", wrong))


def test_readers_outside(computation, refuses):
    a = te.placeholder((6,), name="A")
    b = te.compute((6,), lambda i: a[i] + 1.0, name="B")
    c = te.compute((6,), lambda i: b[i] * 2.0, name="C")
    d = te.compute((6,), lambda i: b[i] + c[i], name="D")
    s = computation([a], d).schedule()
    words = ["stage 'D' reads 'B' outside of loop 'i'", "contains all its readers"]
    refuses(s, words, lambda: s["B"].compute_at("C", "i"))
    s["D"].split("i", factor=2)
    words = "nothing inside loop 'i' reads 'D'"
    e = te.compute((6,), lambda i: a[i] * 4.0, name="E")
    two = computation([a], [d, e]).schedule()
    refuses(two, "nothing inside loop 'i' reads 'C'", lambda: two["C"].compute_at("E", "i"))


def test_compute_root_undoes_compute_at(matmul):
    s = matmul.schedule()
    before = str(s.func)
    s["C"].compute_root()
    assert str(s.func) == before
    s["C"].compute_at("D", "j")
    s["C"].compute_root()
    assert str(s.func) == before
    matmul.check(s)


def test_compute_root_refusals(computation, refuses):
    a = te.placeholder((6,), name="A")
    b = te.compute((6,), lambda i: a[i] + 1.0, name="B")
    c = te.compute((6,), lambda i: b[i] * 2.0, name="C")
    d = te.compute((6,), lambda i: c[i] * 2.0, name="D")
    work = computation([a], d)
    s = work.schedule()
    s["C"].compute_at("D", "i")
    s["B"].compute_at("D", "i")
    refuses(s, "reads 'B', which is computed inside its loop", lambda: s["C"].compute_root())
    refuses(s, "other stages are computed inside", lambda: s["D"].compute_root())
    s["B"].compute_root()
    s["C"].compute_root()
    work.check(s)
