"""inject_virtual_threads: the loop text that comes out, and equal results on CPUs and GPUs."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.ir.expr import Load, Var, const
from tinycomp.target import Target
from tinycomp.te.interpreter import evaluate
from tinycomp.tir import gpu_executor
from tinycomp.tir.interpreter import run
from tinycomp.tir.lower import lower
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.nodes import Alloc, For, ForKind, If, Seq, Store
from tinycomp.tir.passes.virtual_threads import inject_virtual_threads
from tinycomp.tir.schedule import create_schedule
from tinycomp.tir.verify import verify


def virtual(var, extent, body, start=0):
    return For(var, const(start), const(extent), body, ForKind.THREAD, "vthread")


def outer_products(kit):
    """for v: for k: S = B[k]; T = A[v, k]; C[v] += T * S, with S and T allocated inside."""
    a, b, c = kit.buffer("A", 5, 8), kit.buffer("B", 8), kit.buffer("C", 5)
    s, t = kit.buffer("S", 1), kit.buffer("T", 1)
    v, k, zero = Var("v"), Var("k"), const(0)
    body = Seq((
        Store(s, (zero,), Load(b, (k,), None)),
        Store(t, (zero,), Load(a, (v, k), None)),
        Store(c, (v,), Load(c, (v,), None) + Load(t, (zero,), None) * Load(s, (zero,), None)),
    ))  # fmt: skip
    nest = virtual(v, 3, Alloc(s, Alloc(t, kit.loop(k, 8, body))), start=2)
    return kit.func(nest, a, b, c)


def test_the_loop_moves_inwards_past_what_is_shared(kit):
    func = kit.same(outer_products(kit), inject_virtual_threads)
    assert str(func.body) == "\n".join([
        "alloc S: float32[1]",
        "alloc T: float32[3, 1]",
        "for k in range(8):",
        "    S[0] = B[k]",
        "    for v in unrolled(2, 5):",
        "        T[v - 2, 0] = A[v, k]",
        "    for v in unrolled(2, 5):",
        "        C[v] = C[v] + T[v - 2, 0] * S[0]",
    ])  # fmt: skip


def test_an_init_is_kept_apart_for_each(kit):
    """A start value is the same for all virtual threads, but each has its own accumulator."""
    a, c, t = kit.buffer("A", 4, 8), kit.buffer("C", 4), kit.buffer("T", 1)
    v, k, zero = Var("v"), Var("k"), const(0)
    total = Load(t, (zero,), None)
    body = Seq((
        Store(t, (zero,), const(0.0, "float32")),
        kit.loop(k, 8, Store(t, (zero,), total + Load(a, (v, k), None))),
        Store(c, (v,), total),
    ))  # fmt: skip
    func = kit.same(kit.func(virtual(v, 4, Alloc(t, body)), a, c), inject_virtual_threads)
    assert "alloc T: float32[4, 1]" in str(func.body)
    assert "for v in unrolled(4):\n    T[v, 0] = 0f32" in str(func.body)


def test_conditions(kit):
    """One that all share stays outside; one of each virtual thread is tested by each."""
    b, v, i = kit.buffer("B", 4, 6), Var("v"), Var("i")
    one, two = (Store(b, (v, i), const(x, "float32")) for x in (1.0, 2.0))
    body = If(i < 3, If(v < i, one), two)
    func = kit.same(kit.func(virtual(v, 4, kit.loop(i, 6, body)), b), inject_virtual_threads)
    inside = func.body.body
    assert inside.condition is (i < 3)
    assert isinstance(inside.then, For)
    assert isinstance(inside.then.body, If)


def test_loops_whose_length_differs_stay_inside(kit):
    b, v, i = kit.buffer("B", 4, 6), Var("v"), Var("i")
    nest = kit.loop(i, v + 1, Store(b, (v, i), const(1.0, "float32")))
    func = kit.same(kit.func(virtual(v, 4, nest), b), inject_virtual_threads)
    assert str(func.body).startswith("for v in unrolled(4):\n    for i in range(v + 1):")


def test_two_axes(kit):
    b, x, y, k = kit.buffer("B", 3, 2, 5), Var("x"), Var("y"), Var("k")
    leaf = kit.loop(k, 5, Store(b, (x, y, k), const(1.0, "float32")))
    func = kit.same(kit.func(virtual(x, 3, virtual(y, 2, leaf)), b), inject_virtual_threads)
    lines = [line.strip() for line in str(func.body).splitlines()]
    assert lines[0] == "for k in range(5):"
    assert sorted(lines[1:3]) == ["for x in unrolled(3):", "for y in unrolled(2):"]


def test_a_statement_that_is_there_twice(kit):
    """As partition leaves it: both copies allocate the same buffer."""
    c, t = kit.buffer("C", 4), kit.buffer("T", 1)
    v, zero = Var("v"), const(0)
    once = Alloc(t, Seq((
        Store(t, (zero,), Load(c, (v,), None) + 1.0),
        Store(c, (v,), Load(t, (zero,), None) * 2.0),
    )))  # fmt: skip
    func = kit.same(kit.func(virtual(v, 4, Seq((once, once))), c), inject_virtual_threads)
    assert str(func.body).count("alloc T: float32[4, 1]") == 2


def test_without_virtual_threads_nothing_changes(matmul):
    assert inject_virtual_threads(matmul) is matmul


def product(extent, shared):
    """C = A @ B in tiles, with virtual threads over rows."""
    n = 24
    a, b = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B")
    k = te.reduce_axis((0, n), name="k")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    s = create_schedule(c, [a, b])
    local = s.cache_write(c, "local")
    copy = s.cache_read(a, "shared", [local]) if shared else None
    bi, bj, i, j = s[c].tile("i", "j", 12, 8)
    v, i = s[c].split(i, nparts=extent)
    s[c].reorder(bi, bj, v, i, j)
    for axis, thread in ((bi, "blockIdx.y"), (bj, "blockIdx.x"), (v, "vthread"),
                         (i, "threadIdx.x")):  # fmt: skip
        s[c].bind(axis, thread)
    s[local].compute_at(s[c], i)
    outer, inner = s[local].split("k", factor=5)
    s[local].reorder(outer, inner, "i", "j")
    if copy is not None:
        s[copy].compute_at(s[local], outer)
    return s, [a, b], c


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("extent", [1, 2, 5])
def test_products(extent, shared):
    """Tiles of 12 rows among 5 virtual threads: some have fewer rows."""
    s, inputs, c = product(extent, shared)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-4, 5, (24, 24)).astype("float32") for _ in inputs]
    (expected,) = evaluate([c], dict(zip(inputs, arrays, strict=True)))
    on_cpu, on_gpu = lower(s.func, Target.parse("llvm -mcpu=x86-64-v3")), lower_gpu(s.func)
    for func, execute in ((on_cpu, run), (on_gpu, gpu_executor.run)):
        verify(func, lowered=True)
        assert "vthread" not in str(func)
        result = np.zeros((24, 24), "float32")
        execute(func, [*arrays, result])
        np.testing.assert_array_equal(result, expected)


def test_accumulators_of_virtual_threads_live_together():
    s, _, _ = product(2, True)
    text = str(lower_gpu(s.func))
    assert "C.local: float32[2, 1, 8] in local" in text
    assert text.count("barrier()") == 2  # not one for each virtual thread
