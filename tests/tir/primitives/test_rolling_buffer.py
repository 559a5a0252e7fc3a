"""rolling_buffer: circular buffers between a producer and the loops of its consumers."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.ir.expr import as_int
from tinycomp.tir import gpu_executor
from tinycomp.tir.interpreter import run
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.nodes import Store
from tinycomp.tir.tree import statements


def blur(computation, h=12, w=9):
    """C = a 3 x 3 sum of A, rows first, over a producer B of [h + 2, w]."""
    a = te.placeholder((h + 2, w + 2), name="A")
    b = te.compute((h + 2, w), lambda y, x: a[y, x] + a[y, x + 1] + a[y, x + 2], name="B")
    c = te.compute((h, w), lambda y, x: b[y, x] + b[y + 1, x] + b[y + 2, x], name="C")
    return computation([a], c)


def pool(x, length, stride, k, name):
    shape = (length, x.shape[1])
    return te.compute(shape, lambda y, c: te.max(x[y * stride + k, c], axis=k), name=name)


def pools(computation, n=3, kernel=3, stride=2, size=47):
    """Three max pools of rows, each over the one before."""
    x = te.placeholder((size, n), name="A")
    tensors = [x]
    for name in "BCD":
        before = tensors[-1]
        k = te.reduce_axis((0, kernel), name="k")
        length = (as_int(before.shape[0]) - kernel) // stride + 1
        tensors.append(pool(before, length, stride, k, name))
    return computation([x], tensors[-1])


def stores(func, inputs, name):
    """How many elements of the buffer a run stores."""
    from tinycomp.tir.interpreter import _Compiler

    count = sum(isinstance(s, Store) and s.buffer.name == name for s in statements(func.body))
    assert count
    lines = []

    class Counting(_Compiler):
        def store(self, stmt):
            super().store(stmt)
            if stmt.buffer.name == name:
                self.globals["count"] = lines
                self.emit("count.append(0)")

    results = [np.zeros([d.value for d in b.shape], b.dtype.numpy) for b in func.params[-1:]]
    program = Counting(check_initialized=True).compile(func)
    program(*inputs, *results)
    return len(lines)


def test_each_element_is_computed_once(stencil):
    s = stencil.schedule()
    s["C"].split("i", factor=4)
    s["B"].compute_at("C", "i.outer")
    assert stores(s.func, stencil.arrays, "B") == 25  # 7, 7, 7 and 4
    s["B"].rolling_buffer()
    assert stores(s.func, stencil.arrays, "B") == 16
    assert [d.value for d in s.buffer("B").shape] == [7]
    stencil.check(s)


@pytest.mark.parametrize("factor", [1, 2, 5, 13])
def test_one_dimension(stencil, factor, refuses):
    s = stencil.schedule()
    s["C"].split("i", factor=factor)
    s["B"].compute_at("C", "i.outer")
    if factor == 13:
        refuses(s, ["'i.outer'", "one iteration"], lambda: s["B"].rolling_buffer())
        return
    s["B"].rolling_buffer("i.outer")
    s["B"].split("i", factor=2)
    s["B"].unroll("i.inner")
    stencil.check(s)


@pytest.mark.parametrize("axis", [None, "y.outer", "x.outer"])
def test_tiles_roll_along_either_axis(computation, axis):
    work = blur(computation)
    s = work.schedule()
    s["C"].tile("y", "x", 4, 3)
    s["B"].compute_at("C", "x.outer")
    if axis == "x.outer":  # columns do not overlap: B has the horizontal windows inside
        s = work.schedule()
        s["C"].tile("y", "x", 4, 3)
        s["C"].reorder("x.outer", "y.outer", "y.inner", "x.inner")
        s["B"].compute_at("C", "y.outer")
        axis = "y.outer"
    s["B"].rolling_buffer(axis)
    s["B"].vectorize("x")
    assert [d.value for d in s.buffer("B").shape] == [6, 9]
    work.check(s)


@pytest.mark.parametrize("order", ["CB", "BC"])
def test_chain_of_pools(computation, order):
    work = pools(computation)
    s = work.schedule()
    s["C"].compute_at("D", "y")
    s["B"].compute_at("D", "y")
    before = stores(s.func, work.arrays, "B")
    for name in order:
        s[name].rolling_buffer()
    assert [s.buffer(n).shape[0].value for n in "BC"] == [7, 3]
    work.check(s)
    # Of 7 rows of B, an iteration reuses 3 of the one before.
    assert stores(s.func, work.arrays, "B") < before


def test_inside_a_parallel_loop_and_of_an_inner_consumer(computation):
    work = pools(computation)
    s = work.schedule()
    s["D"].split("y", nparts=2)
    s["D"].parallel("y.outer")
    s["C"].compute_at("D", "y.inner")
    s["C"].rolling_buffer("y.inner")
    s["B"].compute_at("C", "y")
    s["B"].rolling_buffer("y")
    work.check(s)


def test_of_a_reduction_with_its_start_apart(computation):
    work = pools(computation)
    s = work.schedule()
    s["C"].compute_at("D", "y")
    s["C"].rolling_buffer()
    start = s["C"].decompose_reduction(s["C"].axes[-1])
    s[start].vectorize("c")
    work.check(s)


def test_loops_are_split_and_fused_afterwards(computation):
    work = blur(computation)
    s = work.schedule()
    s["B"].compute_at("C", "y")
    s["B"].rolling_buffer()
    s["C"].split("y", factor=5)
    s["C"].unroll("y.inner")
    work.check(s)


def test_on_a_gpu(computation):
    """Threads own columns, and keep the rows of their window in registers."""
    work = blur(computation)
    s = work.schedule()
    s["C"].reorder("x", "y")
    s["C"].bind("x", "threadIdx.x")
    s["B"].compute_at("C", "y")
    s["B"].rolling_buffer("y")
    func = lower_gpu(s.func)
    result = np.zeros((12, 9), "float32")
    gpu_executor.run(func, [*work.arrays, result])
    np.testing.assert_array_equal(result, work.expected[0])
    assert "alloc B: float32[3, 1] in local" in str(func)


def test_refusals(stencil, computation, refuses):
    s = stencil.schedule()
    refuses(s, ["'B' is computed as a whole", "compute_at"], lambda: s["B"].rolling_buffer())
    refuses(s, "'C' is an output", lambda: s["C"].rolling_buffer())
    refuses(s, "has no axis 'z'", lambda: s["B"].rolling_buffer("z"))
    s["C"].split("i", factor=4)
    s["B"].compute_at("C", "i.outer")
    refuses(s, "it is the stage's own loop", lambda: s["B"].rolling_buffer("i"))
    s["B"].split("i", factor=2)
    refuses(s, ["split or fused", "right after compute_at"], lambda: s["B"].rolling_buffer())

    work = pools(computation, kernel=2)
    s = work.schedule()
    s["C"].compute_at("D", "y")
    refuses(s, "windows of 2 that move by 2 do not overlap", lambda: s["C"].rolling_buffer())

    work = blur(computation)
    s = work.schedule()
    s["C"].parallel("y")
    s["B"].compute_at("C", "y")
    refuses(s, "the loop is parallel", lambda: s["B"].rolling_buffer())


def test_what_rolls_holds_its_loops(computation, refuses):
    work = blur(computation)
    s = work.schedule()
    s["C"].split("y", factor=4)
    s["B"].compute_at("C", "y.inner")
    s["B"].rolling_buffer("y.inner")
    keeps = "keeps what it computed from one iteration of 'y.inner' to the next"
    refuses(s, keeps, lambda: s["C"].parallel("y.inner"))
    refuses(s, keeps, lambda: s["C"].bind("y.inner", "threadIdx.x"))
    refuses(s, keeps, lambda: s["C"].bind("y.inner", "vthread"))
    refuses(s, keeps, lambda: s["C"].partition("y.inner", 2))
    refuses(s, keeps, lambda: s["C"].reorder("y.inner", "y.outer"))
    refuses(s, "moves with 'y.outer'", lambda: s["C"].bind("y.outer", "threadIdx.x"))
    refuses(s, "its buffer rolls", lambda: s["B"].compute_root())
    refuses(s, "its buffer rolls", lambda: s["B"].compute_at("C", "y.outer"))
    refuses(s, "its buffer rolls", lambda: s["B"].compute_inline())
    refuses(s, "keeps what it computed already", lambda: s["B"].rolling_buffer())
    refuses(s, "keeps what it computed already", lambda: s["B"].set_store_predicate(["x", 1, "<"]))
    s["C"].parallel("y.outer")
    s["C"].vectorize("x")
    work.check(s)


def test_a_reader_does_not_leave(computation, refuses):
    a = te.placeholder((16,), name="A")
    b = te.compute((16,), lambda i: a[i] * 2.0, name="B")
    c = te.compute((14,), lambda i: b[i] + b[i + 2], name="C")
    d = te.compute((14,), lambda i: c[i] + 1.0, name="D")
    s = computation([a], d).schedule()
    s["B"].compute_at("C", "i")
    s["B"].rolling_buffer()
    refuses(s, "reads what 'B' keeps", lambda: s["C"].compute_inline())


def test_without_numbers(computation, refuses):
    """Windows of unknown extent, or that move backwards."""
    a = te.placeholder((16,), name="A")
    b = te.compute((16,), lambda i: a[i] * 2.0, name="B")
    c = te.compute((14,), lambda i: b[13 - i] + b[15 - i], name="C")
    s = computation([a], c).schedule()
    s["B"].compute_at("C", "i")
    refuses(s, "does not move forwards", lambda: s["B"].rolling_buffer())
    n = te.var("n")
    a = te.placeholder((n + 2,), name="A")
    b = te.compute((n + 2,), lambda i: a[i] * 2.0, name="B")
    c = te.compute((n,), lambda i: b[i] + b[i + 2], name="C")
    s = te.create_schedule(c.op)
    s["B"].compute_at("C", "i")
    s["B"].rolling_buffer()
    values = np.arange(9, dtype="float32")
    result = np.zeros(7, "float32")
    run(s.func, [values, result])
    np.testing.assert_array_equal(result, values[:-2] * 2 + values[2:] * 2)
