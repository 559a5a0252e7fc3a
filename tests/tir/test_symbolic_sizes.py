"""Schedules over symbolic sizes: one lowering, interpreted at several sizes, equals NumPy."""

from dataclasses import replace

import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.diagnostics import InputError, ScheduleError
from tinycomp.ir.expr import IntImm
from tinycomp.target import Target
from tinycomp.tir.interpreter import run
from tinycomp.tir.lower import lower
from tinycomp.tir.nodes import For, ForKind, If
from tinycomp.tir.sizes import bind_sizes, evaluate
from tinycomp.tir.tree import statements
from tinycomp.tir.verify import verify

AVX512 = replace(Target.host(), vector_bits=512)


def elementwise():
    n = te.var("n")
    a = te.placeholder((n,), name="A")
    b = te.compute((n,), lambda i: a[i] * 2.0 + 1.0, name="B")
    s = te.create_schedule(b)
    outer, inner = s[b].split("i", factor=16)
    s[b].parallel(outer)
    s[b].vectorize(inner)
    return s, [a, b], lambda a: a * 2 + 1


def padded():
    """A window of three with zeros around: guards on both sides."""
    n = te.var("n")
    a = te.placeholder((n,), name="A")
    p = te.compute(
        (n + 2,), lambda i: te.if_then_else((i >= 1) & (i < n + 1), a[i - 1], 0.0), name="P"
    )
    b = te.compute((n,), lambda i: p[i] + p[i + 1] + p[i + 2], name="B")
    s = te.create_schedule(b)
    s[p].compute_inline()
    _, inner = s[b].split("i", factor=4)
    s[b].unroll(inner)

    def expected(a):
        wide = np.pad(a, 1)
        return wide[:-2] + wide[1:-1] + wide[2:]

    return s, [a, b], expected


def row_sums():
    n, m = te.var("n"), te.var("m")
    a, k = te.placeholder((n, m), name="A"), te.reduce_axis((0, m), name="k")
    b = te.compute((n,), lambda i: te.sum(a[i, k], axis=k), name="B")
    s = te.create_schedule(b)
    _, inner = s[b].split("k", factor=8)
    part = s.rfactor(b, inner)
    s[part].compute_at(s[b], "i")
    s[part].reorder("k.outer", "k.inner")
    s[part].vectorize("k.inner")
    return s, [a, b], lambda a: a.sum(1)


def matmul(tile=(6, 32)):
    n, m, l = te.var("n"), te.var("m"), te.var("l")
    a, b = te.placeholder((n, l), name="A"), te.placeholder((l, m), name="B")
    k = te.reduce_axis((0, l), name="k")
    c = te.compute((n, m), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    s = te.create_schedule(c)
    local = s.cache_write(c, "local")
    read = s.cache_read(b, "local", [local])
    outer, columns, _, inner = s[c].tile("i", "j", *tile)
    s[local].compute_at(s[c], columns)
    i, j, k = s[local].axes[-3:]
    k_outer, k_inner = s[local].split(k, factor=4)
    s[local].reorder(k_outer, k_inner, i, j)
    s[read].compute_at(s[local], k_outer)
    s[local].vectorize(j)
    s[local].unroll(i)
    s[c].vectorize(inner)
    s[c].parallel(outer)
    return s, [a, b, c], lambda a, b: a @ b


def softmax():
    n, m = te.var("n"), te.var("m")
    x = te.placeholder((n, m), name="X")
    k, r = te.reduce_axis((0, m), name="k"), te.reduce_axis((0, m), name="r")
    top = te.compute((n,), lambda i: te.max(x[i, k], axis=k), name="top")
    e = te.compute((n, m), lambda i, j: te.exp(x[i, j] - top[i]), name="e")
    total = te.compute((n,), lambda i: te.sum(e[i, r], axis=r), name="total")
    out = te.compute((n, m), lambda i, j: e[i, j] / total[i], name="out")
    s = te.create_schedule(out)
    s[out].parallel("i")
    for stage in (total, e, top):
        s[stage].compute_at(s[out], "i")
    for stage in (e, out):
        _, inner = s[stage].split(s[stage].axes[-1], factor=8)
        s[stage].vectorize(inner)

    def expected(x):
        e = np.exp(x - x.max(1, keepdims=True, initial=-np.inf))
        return e / e.sum(1, keepdims=True)

    return s, [x, out], expected


def scan():
    n, m = te.var("n"), te.var("m")
    x = te.placeholder((m, n), name="X")
    state = te.placeholder((m, n), name="S")
    init = te.compute((1, n), lambda t, i: te.const(1.0, "float32"), name="first")
    update = te.compute((m, n), lambda t, i: state[t - 1, i] * 0.5 + x[t, i], name="next")
    out = te.scan(init, update, state, inputs=[x])
    s = te.create_schedule(out)
    _, inner = s[update].split(s[update].axes[-1], factor=4)
    s[update].vectorize(inner)

    def expected(x):
        out = np.ones_like(x)
        for t in range(1, len(x)):
            out[t] = out[t - 1] * 0.5 + x[t]
        return out

    return s, [x, out], expected


def transposed():
    """Stages at the root: an intermediate of symbolic size in the workspace."""
    n, m = te.var("n"), te.var("m")
    a = te.placeholder((n, m), name="A")
    b = te.compute((n, m), lambda i, j: a[i, j] + 1.0, name="B")
    c = te.compute((m, n), lambda i, j: b[j, i] * 2.0, name="C")
    s = te.create_schedule(c)
    fused = s[b].fuse("i", "j")
    outer, inner = s[b].split(fused, factor=8)
    s[b].vectorize(inner)
    s[b].parallel(outer)
    s[c].tile("i", "j", 4, 4)
    return s, [a, c], lambda a: (a.T + 1) * 2


ONE, TWO = [(0,), (1,), (3,), (16,), (17,), (64,), (100,)], [(0, 3), (1, 1), (5, 8), (16, 33)]
CASES = {
    elementwise: ONE,
    padded: ONE,
    row_sums: [*TWO, (3, 0), (2, 100)],
    matmul: [((0, 3), (3, 2)), ((1, 1), (1, 1)), ((6, 8), (8, 32)), ((13, 7), (7, 70)),
             ((5, 0), (0, 9)), ((12, 9), (9, 64))],
    softmax: [(0, 3), (1, 1), (5, 8), (16, 33)],
    scan: [(0, 3), (1, 1), (2, 3), (5, 8), (7, 13)],
    transposed: [*TWO, (4, 0)],
}  # fmt: skip
PAIRS = [(case, shape) for case, shapes in CASES.items() for shape in shapes]


def arrays(shapes, seed=0):
    rng = np.random.default_rng(seed)
    shapes = shapes if shapes and isinstance(shapes[0], tuple) else (shapes,)
    return [rng.standard_normal(s).astype("float32") for s in shapes]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_every_level_equals_numpy_at_every_size(case):
    schedule, _, reference = case()
    lowered = lower(schedule.func, AVX512)
    verify(schedule.func)
    verify(lowered, lowered=True)
    for shapes in CASES[case]:
        inputs = arrays(shapes)
        expected = reference(*inputs)
        nothing = any(0 in a.shape for a in inputs)  # blocks start sums in their first iteration
        for func in (lowered,) if nothing else (schedule.func, lowered):
            got = np.zeros(expected.shape, "float32")
            run(func, [*inputs, got])
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_one_code_runs_at_every_size(case):
    schedule, args, reference = case()
    for threads in (1, 2):
        f = tinycomp.build(schedule, args, num_threads=threads)
        code = f.get_source("ll")
        for shapes in CASES[case]:
            inputs = arrays(shapes)
            expected = reference(*inputs)
            got = np.full(expected.shape, np.nan, "float32")
            f(*inputs, got)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        assert f.get_source("ll") is code


def loops_of(func):
    return [s for s in statements(func.body) if isinstance(s, For)]


def test_the_interior_runs_without_guards():
    schedule, _, _ = elementwise()
    outer = schedule.func.body
    schedule.func = replace(schedule.func, body=replace(outer, kind=ForKind.SERIAL))
    func = lower(schedule.func, AVX512)
    interior, rest = loops_of(func)
    assert str(interior.extent) == "n // 16"
    assert interior.body.predicate is None
    assert rest.body.predicate is not None
    assert not any(isinstance(s, If) for s in statements(func.body))


def test_a_size_declared_as_a_multiple_needs_no_guard():
    n = te.var("n")
    a = te.placeholder((n * 16,), name="A")
    b = te.compute((n * 16,), lambda i: a[i] + 1.0, name="B")
    s = te.create_schedule(b)
    s[b].split("i", factor=8)
    assert "likely" not in str(s.func)
    assert str(loops_of(s.func)[0].extent) == "n * 2"
    f = tinycomp.build(s, [a, b])
    x, y = np.ones(48, "float32"), np.empty(48, "float32")
    f(x, y)  # n is 3, from the shape
    assert (y == 2).all()
    with pytest.raises(InputError, match="the size n of main is not known"):
        f(np.ones(40, "float32"), np.empty(40, "float32"))


def test_sizes_from_shapes():
    n, m = te.var("n"), te.var("m")
    sizes = bind_sizes([(n * 16, 48), (m + n, 10), (n, 3)])
    assert (sizes[n], sizes[m]) == (3, 7)
    assert bind_sizes([(n * 16, 40)]) == {}
    assert evaluate((n + 7) // 8, {n: 9}) == 2


def test_a_size_that_only_a_loop_has_is_an_argument():
    n, k = te.var("n"), te.var("k")
    a, r = te.placeholder((n,), name="A"), te.reduce_axis((0, k), name="r")
    b = te.compute((n,), lambda i: te.sum(a[i] + te.cast(r, "float32"), axis=r), name="B")
    s = te.create_schedule(b)
    f = tinycomp.build(s, [k, a, b])
    x, y = np.zeros(3, "float32"), np.empty(3, "float32")
    f(4, x, y)
    assert (y == 6).all()
    with pytest.raises(InputError, match="size k of main is -1"):
        f(-1, x, y)
    with pytest.raises(InputError, match="size k of main is not known"):
        tinycomp.build(s, [a, b])(x, y)


def test_what_must_be_constant_is_refused():
    n = te.var("n")
    a = te.placeholder((n,), name="A")
    b = te.compute((n,), lambda i: a[i] + 1.0, name="B")
    s = te.create_schedule(b)
    s[b].vectorize("i")
    with pytest.raises(ScheduleError, match="vectorized loop 'i' has the extent n") as error:
        tinycomp.build(s, [a, b])
    assert "split it by a constant" in (error.value.hint or "")
    f = tinycomp.build(s, [a, b], specialize=True)
    x, y = np.zeros(9, "float32"), np.empty(9, "float32")
    f(x, y)
    assert (y == 1).all()
    s = te.create_schedule(b)
    s[b].bind("i", "threadIdx.x")
    with pytest.raises(ScheduleError, match=r"'i', bound to threadIdx.x, has the extent n"):
        tinycomp.build(s, [a, b], target="cuda -arch=sm_90a")


def test_the_extent_of_a_known_loop_is_constant():
    schedule, _, _ = matmul()
    kinds = (ForKind.VECTORIZED, ForKind.UNROLLED)
    inner = [s for s in loops_of(schedule.func) if s.kind in kinds]
    assert inner
    assert all(isinstance(s.extent, IntImm) for s in inner)


def tiled_on_gpu():
    """Tiles of both operands in shared memory, filled by all threads of a block."""
    n, m, l = te.var("n"), te.var("m"), te.var("l")
    a, b = te.placeholder((n, l), name="A"), te.placeholder((l, m), name="B")
    k = te.reduce_axis((0, l), name="k")
    c = te.compute((n, m), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    s = te.create_schedule(c)
    shared = [s.cache_read(t, "shared", [c]) for t in (a, b)]
    local = s.cache_write(c, "local")
    by, bx, ty, tx = s[c].tile("i", "j", 8, 8)
    for axis, tag in ((by, "blockIdx.y"), (bx, "blockIdx.x"), (ty, "threadIdx.y"),
                      (tx, "threadIdx.x")):  # fmt: skip
        s[c].bind(axis, tag)
    s[local].compute_at(s[c], tx)
    outer, _ = s[local].split("k", factor=8)
    for tile in shared:
        s[tile].compute_at(s[local], outer)
        rows, columns = s[tile].axes[-2:]
        s[tile].bind(rows, "threadIdx.y")
        s[tile].bind(columns, "threadIdx.x")
    return s, [a, b, c], lambda a, b: a @ b


def rows_on_gpu():
    """A block for each row, whose threads share its sum."""
    n, m = te.var("n"), te.var("m")
    a, k = te.placeholder((n, m), name="A"), te.reduce_axis((0, m), name="k")
    b = te.compute((n,), lambda i: te.sum(a[i, k], axis=k), name="B")
    s = te.create_schedule(b)
    _, inner = s[b].split("k", factor=32)
    part = s.rfactor(b, inner)
    s[b].bind("i", "blockIdx.x")
    s[b].bind(s[b].axes[-1], "threadIdx.x")
    s[part].compute_at(s[b], s[b].axes[-1])
    return s, [a, b], lambda a: a.sum(1)


def two_launches():
    """A stage between launches, in a workspace of symbolic size."""
    n, m = te.var("n"), te.var("m")
    a = te.placeholder((n, m), name="A")
    b = te.compute((n, m), lambda i, j: a[i, j] + 1.0, name="B")
    c = te.compute((m, n), lambda i, j: b[j, i] * 2.0, name="C")
    return te.create_schedule(c), [a, c], lambda a: (a.T + 1) * 2


GPU = {
    elementwise: ONE,
    tiled_on_gpu: [s for s in CASES[matmul] if s[0][0] * s[1][1]],
    rows_on_gpu: [(1, 1), (3, 0), (5, 31), (2, 100)],
    two_launches: [(1, 1), (5, 8), (16, 33), (0, 3)],
}


@pytest.mark.parametrize("case", GPU, ids=lambda c: c.__name__)
def test_threads_of_one_program_at_every_size(case):
    schedule, args, reference = case()
    f = tinycomp.build(schedule, args, target="cuda -arch=sm_90a")
    source = f.get_source()
    assert "const int n" in source
    for shapes in GPU[case]:
        inputs = arrays(shapes)
        expected = reference(*inputs)
        got = np.full(expected.shape, np.nan, "float32")
        f.simulate(*inputs, got)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        assert f.get_source() is source
