import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.diagnostics import ExecutionError, InputError, TinycompError


def matmul(m, k, n):
    a, b = te.placeholder((m, k), name="A"), te.placeholder((k, n), name="B")
    r = te.reduce_axis((0, k), name="k")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="C")
    return a, b, c


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def double(n=8):
    a = te.placeholder((n,), name="A")
    b = te.compute((n,), lambda i: a[i] * 2.0, name="B")
    return a, b, te.create_schedule(b)


def test_arguments_in_any_order():
    a, b, c = matmul(5, 7, 6)
    s = te.create_schedule(c.op)
    x, y, out = random(5, 7), random(7, 6, seed=1), np.empty((5, 6), "float32")
    assert tinycomp.build(s, [c, b, a])(out, y, x) is None
    np.testing.assert_allclose(out, x @ y, rtol=1e-5)


def test_create_schedule_takes_operations_and_tensors():
    *_, c = matmul(2, 2, 2)
    for outputs in (c, c.op, [c], [c.op], (c, c.op)):
        assert te.create_schedule(outputs).stages == ["C"]


def test_lower_prints_loops():
    a, b, s = double()
    lowered = tinycomp.lower(s, [a, b], name="twice")
    assert str(lowered).startswith("def twice(A: float32[8]) -> (B: float32[8]):")
    assert "block" not in str(lowered)
    assert 'block("B")' in str(tinycomp.lower(s, [a, b], simple_mode=True))
    assert lowered.func.num_outputs == 1
    out = np.empty(8, "float32")
    tinycomp.build(lowered)(np.ones(8, "float32"), out)
    assert out.tolist() == [2.0] * 8


def test_wrong_argument_lists():
    a, b, c = matmul(2, 2, 2)
    d = te.compute((2, 2), lambda i, j: c[i, j] + 1.0, name="D")
    s = te.create_schedule(d)
    with pytest.raises(TinycompError, match="args lacks 'B', 'D'"):
        tinycomp.lower(s, [a])
    with pytest.raises(TinycompError, match="'C' is neither an input nor an output"):
        tinycomp.lower(s, [a, b, c, d])
    with pytest.raises(TinycompError, match="given twice"):
        tinycomp.lower(s, [a, a, b, d])
    with pytest.raises(TinycompError, match="not part of this schedule"):
        tinycomp.lower(s, [a, b, te.placeholder((3,))])
    with pytest.raises(TinycompError, match="build needs args"):
        tinycomp.build(s)


def test_wrong_arrays():
    a, b, s = double()
    f = tinycomp.build(s, [a, b])
    x, y = np.ones(8, "float32"), np.empty(8, "float32")
    with pytest.raises(InputError, match=r"takes 2 arguments \(A, B\), got 1"):
        f(x)
    with pytest.raises(InputError, match="dtype float64, expected float32"):
        f(x.astype("float64"), y)
    with pytest.raises(InputError, match=r"shape \[7\], expected \[8\]"):
        f(x[:7], y)
    with pytest.raises(InputError, match="expected 1 dimensions"):
        f(x.reshape(2, 4), y)
    with pytest.raises(InputError, match="not dense"):
        f(np.ones(16, "float32")[::2], y)
    with pytest.raises(InputError, match="shares memory"):
        f(x, x)
    with pytest.raises(InputError, match="not an array"):
        f([1.0] * 8, y)
    y.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        f(x, y)


class Foreign:
    """An array of another library, which only knows DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack():
    a, b, s = double()
    x, y = np.arange(8, dtype="float32"), np.empty(8, "float32")
    tinycomp.build(s, [a, b])(Foreign(x), Foreign(y))
    np.testing.assert_array_equal(y, x * 2)


@pytest.mark.parametrize("specialize", [False, True])
def test_symbolic_sizes_and_scalars(specialize):
    n, alpha = te.var("n"), te.var("alpha", "float32")
    a = te.placeholder((n, 3), name="A")
    b = te.compute((n * 2, 3), lambda i, j: a[i // 2, j] * alpha, name="B")
    s = te.create_schedule(b)
    _, inner = s[b].split(b.op.axis[0], factor=4)
    s[b].unroll(inner)
    f = tinycomp.build(s, [n, alpha, a, b], specialize=specialize)
    assert "n" in f.get_source("tir")
    if specialize:
        with pytest.raises(TinycompError, match="call it once"):
            f.get_source("ll")
    for size in (1, 3, 8, 3, 0):
        x, y = random(size, 3), np.empty((size * 2, 3), "float32")
        f(size, 1.5, x, y)
        np.testing.assert_array_equal(y, np.repeat(x, 2, 0) * np.float32(1.5))
    assert ("i64 %n0" in f.get_source("ll")) != specialize
    with pytest.raises(InputError, match="makes n = 3"):
        f(4, 1.0, random(3, 3), np.empty((6, 3), "float32"))
    with pytest.raises(InputError, match=r"expected \[6, 3\]"):
        f(3, 1.0, random(3, 3), np.empty((7, 3), "float32"))


def test_parallel_loops_and_threads():
    a, b, c = matmul(33, 20, 40)
    s = te.create_schedule(c)
    s[c].parallel(c.op.axis[0])
    for threads in (1, 2, 3):
        f = tinycomp.build(s, [a, b, c], num_threads=threads)
        x, y, out = random(33, 20), random(20, 40, seed=1), np.empty((33, 40), "float32")
        f(x, y, out)
        np.testing.assert_allclose(out, x @ y, rtol=1e-4, atol=1e-5)


def test_workspace_of_intermediate_stages():
    a, b, c = matmul(64, 64, 64)
    d = te.compute((64, 64), lambda i, j: c[j, i] + 1.0, name="D")
    f = tinycomp.build(te.create_schedule(d), [a, b, d])
    x, y, out = random(64, 64), random(64, 64, seed=1), np.empty((64, 64), "float32")
    f(x, y, out)
    np.testing.assert_allclose(out, (x @ y).T + 1, rtol=1e-4, atol=1e-4)


def test_checked_index_is_an_error_and_the_next_call_is_fine():
    table, index = te.placeholder((4,), name="T"), te.placeholder((2,), "int64", "I")
    out = te.compute((2,), lambda i: table[te.call("checked_index", index[i], 4)], name="O")
    f = tinycomp.build(te.create_schedule(out), [table, index, out])
    values, result = np.arange(4, dtype="float32"), np.empty(2, "float32")
    with pytest.raises(ExecutionError, match="out of range"):
        f(values, np.array([0, 9]), result)
    f(values, np.array([3, -1]), result)
    np.testing.assert_array_equal(result, [3, 3])


def test_extern():
    from tinycomp.ir.expr import Load, const
    from tinycomp.tir.nodes import For, Store

    a, i = te.placeholder((6,), name="A"), te.var("i")

    def reverse(ins, outs):
        value = Load(ins[0], (5 - i,), None)
        return For(i, const(0), const(6), Store(outs[0], (i,), value))

    (r,) = te.extern([(6,)], [a], reverse, "R", ["float32"])
    out = te.compute((6,), lambda i: r[i] + 1.0, name="O")
    x, y = np.arange(6, dtype="float32"), np.empty(6, "float32")
    tinycomp.build(te.create_schedule(out), [a, out])(x, y)
    np.testing.assert_array_equal(y, x[::-1] + 1)


def test_time_evaluator():
    a, b, s = double(64)
    f = tinycomp.build(s, [a, b])
    x, y = np.ones(64, "float32"), np.empty(64, "float32")
    result = f.time_evaluator(number=3, repeat=4)(x, y)
    assert len(result.results) == 4
    assert result.number == 3
    assert 0 < result.min <= result.median <= result.max
    assert result.spread >= 0
    assert "median" in str(result)
    longer = f.time_evaluator(f.entry_name, None, number=1, repeat=2, min_repeat_ms=2.0)(x, y)
    assert longer.number > 1
    assert f.time_evaluator(repeat=2, flush_cache=True)(x, y).number == 1
    with pytest.raises(TinycompError, match="at least 1"):
        f.time_evaluator(number=0)


def test_sources():
    a, b, s = double()
    f = tinycomp.build(s, [a, b], name="twice")
    assert "define void @twice" in f.get_source("ll")
    assert "twice:" in f.get_source("asm")
    assert "def twice" in f.get_source("tir")
    with pytest.raises(TinycompError, match="unknown form"):
        f.get_source("cuda")


def test_other_machines_code_can_be_looked_at():
    a, b, s = double(64)
    s[b].vectorize(s[b].split(b.op.axis[0], factor=4)[1])
    f = tinycomp.build(s, [a, b], target="llvm -mcpu=cortex-a72")
    assert "fadd" in f.get_source("asm") or "fmul" in f.get_source("asm")
    with pytest.raises(InputError, match="aarch64"):
        f(np.ones(64, "float32"), np.empty(64, "float32"))


def test_register_spills_are_counted():
    def tile(rows):
        a, b, c = matmul(rows, 64, 64)
        s = te.create_schedule(c)
        local = s.cache_write(c, "local")
        i, j = s[c].axes
        j, v = s[c].split(j, factor=32)
        s[c].reorder(j, i, v)
        s[c].unroll(i)
        s[c].vectorize(v)
        s[local].compute_at(s[c], j)
        i, jj, k = s[local].axes[-3:]
        s[local].reorder(k, i, jj)
        s[local].unroll(i)
        s[local].vectorize(jj)
        return tinycomp.build(s, [a, b, c], target="llvm -mcpu=skylake-avx512").spills()

    assert (tile(8).spills, tile(8).reloads) == (0, 0)
    assert "no vector registers" in str(tile(8))
    crowded = tile(24)  # 48 accumulators for 32 registers
    assert crowded.spills + crowded.reloads > 0
    assert crowded.loops[0].depth >= 1
    assert "main" in str(crowded)
