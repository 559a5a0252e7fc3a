"""decompose_reduction, partition, transform_layout, pad, normalize, groups and hints."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.diagnostics import ScheduleError
from tinycomp.tir.nodes import ForKind


@pytest.mark.parametrize("order", [("i", "j", "k"), ("i", "k", "j"), ("k", "i", "j")])
def test_decompose(matmul, order):
    s = matmul.schedule()
    s["C"].reorder(*order)
    for axis in order[: order.index("k") + 1]:
        t = matmul.schedule()
        t["C"].reorder(*order)
        init = t["C"].decompose_reduction(axis)
        assert init.name == "C.init"
        if "j" in t[init].axis_names:
            t[init].vectorize("j")
        matmul.check(t)


def test_decompose_of_a_guarded_reduction_inside_a_consumer(matmul):
    s = matmul.schedule()
    s["D"].tile("i", "j", 2, 4)
    s["C"].compute_at("D", "j.outer")
    s["C"].split("k", factor=4)
    s["C"].decompose_reduction("i")
    s["C"].reorder("k.outer", "i", "j", "k.inner")
    matmul.check(s)


def test_decompose_refusals(matmul, refuses):
    s = matmul.schedule()
    s["C"].reorder("k", "i", "j")
    words = ["'i' is inside reduction loop 'k'", "choose 'k'"]
    refuses(s, words, lambda: s["C"].decompose_reduction("i"))
    refuses(s, "is not a reduction", lambda: s["D"].decompose_reduction("i"))
    s["C"].decompose_reduction("k")
    refuses(s, "was taken apart", lambda: s["C"].decompose_reduction("k"))
    refuses(s, "was taken apart", lambda: s["C"].compute_at("D", "i"))
    refuses(s, "was taken apart", lambda: s["C"].compute_root())
    refuses(s, "was taken apart", lambda: s.cache_write("C", "local"))
    refuses(s, "was taken apart", lambda: s.rfactor("C", "k"))
    s = matmul.schedule()
    s["C"].compute_at("D", "j")
    refuses(s, "other stages are computed inside", lambda: s["C"].decompose_reduction("j"))


@pytest.mark.parametrize("point", [1, 4, 6])
@pytest.mark.parametrize("axis", ["i", "j", "k"])
def test_partition(matmul, axis, point):
    s = matmul.schedule()
    tail = s["C"].partition(axis, min(point, 4))
    assert tail.name == "C.tail"
    matmul.check(s)


def test_partition_of_an_outer_reduction_loop(matmul):
    s = matmul.schedule()
    s["C"].reorder("k", "i", "j")
    tail = s["C"].partition("k", 4)
    s["C"].unroll("k")
    s[tail].split("k", factor=2)
    s[tail].vectorize("j")
    matmul.check(s)


def test_partition_around_attached_stages(stencil):
    s = stencil.schedule()
    s["C"].split("i", factor=4)
    s["B"].compute_at("C", "i.outer")
    tail = s["C"].partition("i.outer", 3)
    s["C"].parallel("i.outer")
    assert s.stages == ["B", "C", "B.tail", "C.tail"]
    s[tail].unroll("i.inner")
    stencil.check(s)


def test_partition_refusals(matmul, refuses):
    s = matmul.schedule()
    refuses(s, "not inside of the 5 iterations", lambda: s["C"].partition("i", 5))
    refuses(s, "not inside of the 5 iterations", lambda: s["C"].partition("i", 0))
    s["C"].partition("i", 2)
    refuses(s, "'C.tail' writes the same buffer", lambda: s["C"].compute_at("D", "i"))
    s["D"].parallel("i")
    refuses(s, "is parallel", lambda: s["D"].partition("i", 2))


@pytest.mark.parametrize(
    "index_map",
    [
        lambda i, j: (j, i),
        lambda i, j: (j // 4, i, j % 4),
        lambda i, j: i * 7 + j,
        lambda i, j: (i // 2, j // 3, i % 2, j % 3),
        lambda i, j: (i, 6 - j),
        lambda i, j: (i, j, 0),
    ],
)
def test_transform_layout(matmul, index_map):
    s = matmul.schedule()
    s["D"].split("j", factor=4)
    s["C"].compute_at("D", "i")
    s["C"].transform_layout(index_map)
    matmul.check(s)
    assert "transform_layout(lambda i0, " in s.trace()
    scope = {}
    exec(s.trace(), scope)
    again = matmul.schedule()
    scope["apply"](again)
    assert again.show() == s.show()


def test_transform_layout_of_a_packed_copy(matmul):
    s = matmul.schedule()
    _, b = matmul.inputs
    packed = s.cache_read(b, "global", ["C"])
    s[packed].transform_layout(lambda k, j: (j // 4, k, j % 4))
    s["C"].split("j", factor=4)
    s["C"].vectorize("j.inner")
    matmul.check(s)


def test_transform_layout_refusals(matmul, refuses):
    s = matmul.schedule()
    stage = s["C"]
    refuses(s, "would share a place", lambda: stage.transform_layout(lambda i, j: (i, j // 2)))
    words = "takes values from -5 to"
    refuses(s, words, lambda: stage.transform_layout(lambda i, j: (i, j - 5)))
    refuses(s, "is a parameter", lambda: s["D"].transform_layout(lambda i, j: (j, i)))
    with pytest.raises(ScheduleError, match="not an index expression"):
        stage.transform_layout(lambda i, j: (i, te.select(j < 3, j, i)))
    stage.transform_layout(lambda i, j: (j, i))
    words = ["does not store at its own axes", "before transform_layout"]
    refuses(s, words, lambda: stage.compute_at("D", "i"))
    refuses(s, words[0], lambda: s.cache_write("C", "local"))


@pytest.mark.parametrize(("axis", "multiple"), [("i", 4), ("j", 8), ("k", 4), ("k", 1), ("i", 5)])
def test_pad(matmul, axis, multiple):
    s = matmul.schedule()
    s["C"].pad(axis, multiple)
    s["C"].split(axis, factor=multiple)
    assert "where" not in str(s["C"].block)
    matmul.check(s)


def test_pad_then_place_and_factor(matmul):
    s = matmul.schedule()
    s["C"].pad("k", 4)
    s["C"].pad("j", 4)
    s["C"].split("k", factor=4)
    s.rfactor("C", "k.outer")
    matmul.check(s)
    s = matmul.schedule()
    s["C"].pad("j", 4)
    s["D"].split("j", factor=4)
    s["C"].compute_at("D", "j.outer")
    matmul.check(s)


def test_pad_refusals(matmul, refuses):
    s = matmul.schedule()
    refuses(s, ["is an output", "cache_write"], lambda: s["D"].pad("j", 4))
    refuses(s, "at least 1, got 0", lambda: s["C"].pad("j", 0))
    s["C"].split("j", factor=2)
    refuses(s, "not a whole axis", lambda: s["C"].pad("j.outer", 8))


def test_normalize(computation):
    a, k = te.placeholder((9,), name="A"), te.reduce_axis((2, 9), name="k")
    work = computation([a], te.compute((), lambda: te.sum(a[k], axis=k), name="B"))
    s = work.schedule()
    tail = s["B"].partition("k", 3)
    assert s.normalize() is s
    assert [str(l.min) for name in ("B", tail.name) for l in s.loops(name)] == ["0", "0"]
    work.check(s)


def test_group(computation):
    a = te.placeholder((16,), name="A")
    b = te.compute((16,), lambda i: a[i] * 2.0, name="B")
    c = te.compute((15,), lambda i: b[i] + b[i + 1], name="C")
    d = te.compute((14,), lambda i: c[i] * c[i + 1], name="D")
    e = te.compute((14,), lambda i: d[i] - 1.0, name="E")
    work = computation([a], e)
    s = work.schedule()
    s["E"].split("i", factor=4)
    group = s.create_group(outputs=d, inputs=b)
    assert [t.name for t in group.members] == ["C", "D"]
    group.compute_at(s["E"], "i.outer")
    work.check(s)
    group.compute_root()
    assert s.stages == ["B", "C", "D", "E"]
    everything = s.create_group(outputs=d, inputs=b, include_inputs=True)
    everything.compute_at(e, "i.inner")
    work.check(s)
    with pytest.raises(ScheduleError, match="no stage lies between"):
        s.create_group(outputs=b, inputs=c)


def test_group_moves_as_one_or_not_at_all(computation, refuses):
    a = te.placeholder((16,), name="A")
    b = te.compute((16,), lambda i: a[i] * 2.0, name="B")
    c = te.compute((16,), lambda i: b[i] + 1.0, name="C")
    d = te.compute((16,), lambda i: c[i] + b[i], name="D")
    e = te.compute((16,), lambda i: d[i] + b[i], name="E")
    s = computation([a], e).schedule()
    s["E"].split("i", factor=4)
    group = s.create_group(outputs=d, inputs=b, include_inputs=True)
    s["D"].compute_at("E", "i.outer")
    refuses(s, "is a loop of 'D' itself", lambda: group.compute_at("D", "i"))


def test_hints_change_no_result(matmul):
    s = matmul.schedule()
    a, b = matmul.inputs
    s["C"].compute_at("D", "i")
    shared = s.cache_read(a, "shared", ["C"])
    s[shared].compute_at("D", "i")
    s[shared].storage_align("i0", 32, 1)
    s[shared].double_buffer()
    s["C"].reorder("k", "j")
    s["C"].vectorize("j")
    s["C"].prefetch(b, "k", offset=2)
    s["C"].pragma("k", "unroll_explicit", False)
    assert s[shared].block.annotations["storage_align"] == ("i0", 32, 1)
    matmul.check(s)


def test_hint_refusals(matmul, refuses):
    s = matmul.schedule()
    refuses(s, ["'D' is an output", "cache_write"], lambda: s["D"].double_buffer())
    refuses(s, "is an output", lambda: s["D"].storage_align("i", 32, 1))
    refuses(s, "do not say a stride", lambda: s["C"].storage_align("i", 32, 32))
    refuses(s, "has no axis 'z'", lambda: s["C"].storage_align("z", 32, 1))
    refuses(s, "no buffer 'Z'", lambda: s["C"].prefetch("Z", "k"))
    refuses(s, "at least 1, got 0", lambda: s["C"].prefetch("A", "k", 0))


@pytest.mark.parametrize("extent", [2, 16])
def test_virtual_threads(computation, extent):
    a = te.placeholder((64,), name="A")
    b = te.compute((64,), lambda i: a[i] + 1.0, name="B")
    work = computation([a], b)
    s = work.schedule()
    outer, inner = s["B"].split("i", nparts=extent)
    s["B"].bind(outer, te.thread_axis("vthread"))
    s["B"].bind(inner, te.thread_axis((0, 64 // extent), "threadIdx.x"))
    assert all(l.kind is ForKind.THREAD for l in s.loops("B"))
    work.check(s)


def dot(lanes, dtype="float32"):
    x, y = te.placeholder((lanes,), dtype, name="x"), te.placeholder((lanes,), dtype, name="y")
    k = te.reduce_axis((0, lanes), name="k")
    z = te.compute((), lambda: te.sum(x[k] * y[k], axis=k), name="dot")

    def emit(ins, outs):
        total = outs[0][()]
        for n in range(lanes):
            total = total + ins[0][n] * ins[1][n]
        return None, outs[0].store(te.const(0, dtype)), outs[0].store(total)

    return te.decl_tensor_intrin(z, emit, name=f"dot{lanes}")


def transposed_matmul(computation, m=5, n=6, k=8):
    a, b = te.placeholder((m, k), name="A"), te.placeholder((n, k), name="B")
    r = te.reduce_axis((0, k), name="k")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[j, r], axis=r), name="C")
    return computation([a, b], te.compute((m, n), lambda i, j: c[i, j] + 1.0, name="D"))


@pytest.mark.parametrize("factor", [4, 8])
def test_tensorize_a_dot_product(computation, factor):
    work = transposed_matmul(computation)
    s = work.schedule()
    s["C"].split("k", factor=factor)
    s["C"].tensorize("k.inner", dot(factor))
    s["C"].parallel("i")
    work.check(s)
    assert f's["C"].tensorize("k.inner", "dot{factor}")' in s.trace()


def test_tensorize_inside_a_consumer_and_with_reduction_outside(computation):
    work = transposed_matmul(computation)
    s = work.schedule()
    s["D"].split("j", factor=4)
    s["C"].compute_at("D", "j.outer")
    s["C"].split("k", factor=4)
    s["C"].reorder("k.outer", s["C"].axes[-4], s["C"].axes[-3])
    s["C"].tensorize("k.inner", dot(4))
    work.check(s)


def test_tensorize_a_decomposed_reduction(computation):
    work = transposed_matmul(computation)
    s = work.schedule()
    s["C"].split("k", factor=4)
    s["C"].decompose_reduction("k.outer")
    with pytest.raises(ScheduleError, match="was taken apart"):
        s["C"].tensorize("k.inner", dot(4))


def outer_product(m, n):
    x, y = te.placeholder((m, 1), name="x"), te.placeholder((1, n), name="y")
    k = te.reduce_axis((0, 1), name="k")
    z = te.compute((m, n), lambda i, j: te.sum(x[i, k] * y[k, j], axis=k), name="outer")

    def emit(ins, outs):
        from tinycomp.tir.nodes import Seq

        rows = []
        for i in range(m):
            old = outs[0].vload([i, 0], n)
            rows.append(outs[0].vstore(old + ins[0][i, 0] * ins[1].vload([0, 0], n), [i, 0]))
        return None, None, Seq(tuple(rows))

    return te.decl_tensor_intrin(z, emit)


def test_tensorize_an_outer_product(computation):
    """The intrinsic has no reset: the loops' own initialisation is kept."""
    a, b = te.placeholder((4, 6), name="A"), te.placeholder((6, 16), name="B")
    k = te.reduce_axis((0, 6), name="k")
    c = te.compute((4, 16), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    work = computation([a, b], c)
    s = work.schedule()
    s["C"].tile("i", "j", 2, 8)
    s["C"].reorder("i.outer", "j.outer", "k", "i.inner", "j.inner")
    s["C"].tensorize("i.inner", outer_product(2, 8))
    work.check(s)


def test_tensorize_a_whole_reduction(rows):
    x, k = te.placeholder((11,), name="x"), te.reduce_axis((0, 11), name="k")
    z = te.compute((), lambda: te.sum(x[k], axis=k), name="total")

    def emit(ins, outs):
        total = ins[0][0]
        for n in range(1, 11):
            total = total + ins[0][n]
        return outs[0].store(total)

    s = rows.schedule()
    s["B"].tensorize("k", te.decl_tensor_intrin(z, emit))
    assert "init" not in str(s["B"].block)
    rows.check(s)


def test_tensorize_refusals(computation, refuses):
    work = transposed_matmul(computation)
    s = work.schedule()
    stage = s["C"]
    words = ["do not match intrinsic 'dot4'", "its reduce axes are k: 4, the loops k: 8"]
    refuses(s, words, lambda: stage.tensorize("k", dot(4)))
    refuses(s, "spatial axes are none, the loops j: 6", lambda: stage.tensorize("j", dot(8)))
    stage.split("k", factor=4)
    refuses(s, "cannot lie in", lambda: stage.tensorize("k.inner", dot(4, "float64")))
    x, k = te.placeholder((4,), name="x"), te.reduce_axis((0, 4), name="k")
    square = te.compute((), lambda: te.sum(x[k] * x[k], axis=k), name="square")
    intrin = te.decl_tensor_intrin(square, lambda ins, outs: outs[0].store(ins[0][0]))
    refuses(s, "would be two parts of memory", lambda: stage.tensorize("k.inner", intrin))
    y = te.placeholder((4,), name="y")
    summed = te.compute((), lambda: te.sum(x[k] + y[k], axis=k), name="plus")
    intrin = te.decl_tensor_intrin(summed, lambda ins, outs: outs[0].store(ins[0][0]))
    refuses(s, "is not x[k] + y[k]", lambda: stage.tensorize("k.inner", intrin))
    no_update = te.decl_tensor_intrin(dot(4).op, lambda ins, outs: outs[0].store(ins[0][0]))
    refuses(s, "no statement that accumulates", lambda: stage.tensorize("k.inner", no_update))
    wrong = te.decl_tensor_intrin(dot(4).op, lambda ins, outs: 3, name="wrong")
    refuses(s, "must return a statement", lambda: stage.tensorize("k.inner", wrong))
    refuses(s, "knows no intrinsic 'dot9'", lambda: stage.tensorize("k.inner", "dot9"))
    odd = transposed_matmul(computation, k=10).schedule()
    odd["C"].split("k", factor=4)
    refuses(odd, ["guarded", "pad the axis"], lambda: odd["C"].tensorize("k.inner", dot(4)))


def test_strided_operands_do_not_match(matmul, refuses):
    s = matmul.schedule()
    s["C"].split("k", factor=2)
    words = ["does not run along operand y[k]", "cache_read"]
    refuses(s, words, lambda: s["C"].tensorize("k.inner", dot(2)))


def test_intrinsics_are_computes_of_placeholders():
    x = te.placeholder((4,), name="x")
    y = te.compute((4,), lambda i: x[i] + 1.0, name="y")
    z = te.compute((4,), lambda i: y[i] + 1.0, name="z")
    for op in (x, z):
        with pytest.raises(TypeError, match="compute of placeholders"):
            te.decl_tensor_intrin(op, lambda ins, outs: None)


def test_big_layouts_are_not_enumerated(computation):
    a = te.placeholder((4096, 2048), name="A")
    b = te.compute((4096, 2048), lambda i, j: a[i, j] * 2.0, name="B")
    from tinycomp.tir.schedule import create_schedule

    s = create_schedule(te.compute((1,), lambda i: b[i, i], name="C"), [a])
    with pytest.raises(ScheduleError, match="too many to compare"):
        s["B"].transform_layout(lambda i, j: (j, i))
    assert np.prod((4096, 2048)) > 1 << 22
