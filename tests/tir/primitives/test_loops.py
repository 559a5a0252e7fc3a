"""split, fuse, reorder, tile: loops change, results do not."""

import pytest

from tinycomp import te


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8])
@pytest.mark.parametrize("by", ["factor", "nparts"])
def test_split(elementwise, by, size):
    s = elementwise.schedule()
    outer, inner = s["D"].split("j", **{by: size})
    assert s["D"].axis_names == ("i", "j.outer", "j.inner")
    assert (outer, inner) == s["D"].axes[1:]
    s["D"].split(inner, nparts=2)
    elementwise.check(s)


@pytest.mark.parametrize("factors", [(None, 4, 2), (2, None, 2), (2, 2, 2), (7, 1), (3, 3, None)])
def test_split_by_factors(elementwise, factors):
    s = elementwise.schedule()
    axes = s["D"].split("j", factors=factors)
    assert [a.name for a in axes] == [f"j.{n}" for n in range(len(factors))]
    elementwise.check(s)


def test_split_refusals(elementwise, refuses):
    s = elementwise.schedule()
    stage = s["D"]
    refuses(s, ['s["D"].split("j", factor=0)', "at least 1"], lambda: stage.split("j", factor=0))
    refuses(s, "at least 1, got -2", lambda: stage.split("j", nparts=-2))
    refuses(s, "at least 1, got 2.0", lambda: stage.split("j", factor=2.0))
    refuses(s, "exactly one of factor", lambda: stage.split("j"))
    refuses(s, "exactly one of factor", lambda: stage.split("j", factor=2, nparts=2))
    refuses(s, "cover 4 of 7 iterations", lambda: stage.split("j", factors=[2, 2]))
    refuses(s, "at most one of them None", lambda: stage.split("j", factors=[None, None]))
    refuses(s, ["has no axis 'x'", "its axes are i, j"], lambda: stage.split("x", factor=2))
    axis = stage.axis("j")
    stage.split(axis, factor=2)
    refuses(s, "'j' is not a loop of stage 'D'", lambda: stage.split(axis, factor=2))
    refuses(s, "has no axis 'j'", lambda: stage.split("j", factor=2))
    other = s["B"].axis("i")
    refuses(s, "belongs to another stage", lambda: stage.split(other, factor=2))
    stage.vectorize("j.inner")
    refuses(s, "already vectorized", lambda: stage.split("j.inner", factor=2))


def test_fuse(elementwise):
    s = elementwise.schedule()
    fused = s["D"].fuse("i", "j")
    assert s["D"].axis_names == ("i.j.fused",)
    s["D"].split(fused, factor=4)
    s["B"].split("j", factor=2)
    s["B"].fuse("i", "j.outer", "j.inner")
    elementwise.check(s)


def test_fuse_of_reductions(matmul):
    s = matmul.schedule()
    s["C"].split("k", factor=4)
    s["C"].fuse("k.outer", "k.inner")
    s["D"].fuse("i")
    matmul.check(s)


def test_fuse_refusals(matmul, refuses):
    s = matmul.schedule()
    stage = s["C"]
    refuses(s, ["'k' is not directly inside 'i'", "reorder"], lambda: stage.fuse("i", "k"))
    refuses(s, "'i' is not directly inside 'j'", lambda: stage.fuse("j", "i"))
    refuses(s, "reduce and spatial", lambda: stage.fuse("j", "k"))
    refuses(s, "nothing to fuse", lambda: stage.fuse())
    refuses(s, "not directly inside", lambda: stage.fuse("i", "i"))
    stage.parallel("i")
    refuses(s, "already parallel", lambda: stage.fuse("i", "j"))


@pytest.mark.parametrize(
    "order", [("k", "j", "i"), ("j", "i"), ("k", "i"), ("i", "k", "j"), ("i",), ()]
)
def test_reorder(matmul, order):
    s = matmul.schedule()
    s["C"].reorder(*order)
    matmul.check(s)
    if len(order) == 3:
        assert s["C"].axis_names == order


def test_reorder_keeps_unnamed_loops_in_place(matmul):
    s = matmul.schedule()
    s["C"].reorder("k", "i")
    assert s["C"].axis_names == ("k", "j", "i")


def test_reorder_refusals(matmul, refuses):
    s = matmul.schedule()
    refuses(s, "'i' is named twice", lambda: s["C"].reorder("i", "j", "i"))
    refuses(s, "has no axis 'z'", lambda: s["C"].reorder("i", "z"))
    s["C"].compute_at(s["D"], "i")
    # The rows of C are computed between loops i and j of D.
    refuses(s, "not nested directly in each other", lambda: s["D"].reorder("j", "i"))
    refuses(s, "not nested directly in each other", lambda: s["C"].reorder("k", "i"))
    refuses(s, "not nested directly in each other", lambda: s["D"].fuse("i", "j"))


@pytest.mark.parametrize(("x", "y"), [(2, 3), (5, 7), (1, 8)])
def test_tile(matmul, x, y):
    s = matmul.schedule()
    axes = s["C"].tile("i", "j", x, y)
    assert [a.name for a in axes] == ["i.outer", "j.outer", "i.inner", "j.inner"]
    s["C"].reorder("i.outer", "j.outer", "k", "i.inner", "j.inner")
    matmul.check(s)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1)])
def test_empty_loops(computation, shape):
    a = te.placeholder(shape, name="A")
    b = te.compute(shape, lambda i, j: a[i, j] + 1.0, name="B")
    k = te.reduce_axis((0, shape[1]), name="k")
    c = te.compute(shape[:1], lambda i: te.sum(b[i, k], axis=k), name="C")
    work = computation([a], c)
    s = work.schedule()
    s["B"].split("j", factor=3)
    s["B"].fuse("i", "j.outer")
    s["C"].split("k", nparts=2)
    s["C"].reorder("k.inner", "i")
    work.check(s)


def test_reduction_that_starts_elsewhere(computation):
    a, k = te.placeholder((9,), name="A"), te.reduce_axis((2, 9), name="k")
    work = computation([a], te.compute((), lambda: te.sum(a[k], axis=k), name="B"))
    s = work.schedule()
    s["B"].split("k", factor=3)
    s["B"].fuse("k.outer", "k.inner")
    s["B"].split("k.outer.k.inner.fused", nparts=2)
    work.check(s)


def test_names_stay_unique_in_a_stage(computation):
    a, k = te.placeholder((4, 6), name="A"), te.reduce_axis((0, 6), name="i")
    b = te.compute((4,), lambda i: te.sum(a[i, k], axis=k), name="B")
    c = te.compute((4,), lambda i: b[i] * te.const(2.0, "float32"), name="C")
    work = computation([a], c)
    s = work.schedule()
    assert s["B"].axis_names == ("i", "i_1")
    assert s["B"].axis(b.op.reduce_axis[0]).name == "i_1"
    s["B"].compute_at(s["C"], "i")
    assert s["B"].axis_names == ("i", "i_1", "i_2")
    s["B"].split("i_2", factor=4)
    work.check(s)


def test_stages_that_share_an_axis(computation):
    a, k = te.placeholder((3, 8), name="A"), te.reduce_axis((0, 8), name="k")
    b = te.compute((3,), lambda i: te.sum(a[i, k], axis=k), name="B")
    c = te.compute((3,), lambda i: te.max(a[i, k], axis=k), name="C")
    d = te.compute((3,), lambda i: b[i] + c[i], name="D")
    work = computation([a], d)
    s = work.schedule()
    s[c].split(k, factor=4)
    s[b].split(k, factor=2)
    assert s[c].axis_names == ("i", "k.outer", "k.inner")
    work.check(s)
