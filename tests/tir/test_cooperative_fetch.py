"""Shared tiles that the threads of a block compute together, inside their own loops, as in TVM."""

import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.codegen.cuda.nvrtc import library
from tinycomp.diagnostics import ScheduleError, TinycompError


def matmul(m, n, k):
    a, b = te.placeholder((m, k), name="A"), te.placeholder((k, n), name="B")
    axis = te.reduce_axis((0, k), "k")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, axis] * b[axis, j], axis=axis), name="C")
    return a, b, c


def tiled(a, b, c, tile=4, threads=4, step=4):
    """The stages of a matmul in tiles, with the copies inside the loops over threads."""
    s = te.create_schedule(c.op)
    copies = [s.cache_read(t, "shared", [c]) for t in (a, b)]
    result = s.cache_write(c, "local")
    i, j = s[c].op.axis
    by, i = s[c].split(i, factor=tile * threads)
    bx, j = s[c].split(j, factor=tile * threads)
    vy, i = s[c].split(i, nparts=2)
    ty, i = s[c].split(i, nparts=threads)
    tx, j = s[c].split(j, nparts=threads)
    s[c].reorder(by, bx, vy, ty, tx, i, j)
    for axis, thread in zip((by, bx, vy, ty, tx), (
        "blockIdx.y", "blockIdx.x", "vthread", "threadIdx.y", "threadIdx.x"
    ), strict=True):  # fmt: skip
        s[c].bind(axis, te.thread_axis(thread))
    s[result].compute_at(s[c], tx)
    ko, ki = s[result].split(s[result].op.reduce_axis[0], factor=step)
    s[result].reorder(ko, ki, *s[result].op.axis)
    for copy in copies:
        s[copy].compute_at(s[result], ko)
    return s, copies, ko


def distribute(s, copies, threads=4):
    for copy in copies:
        y, x = s[copy].op.axis
        ty, y = s[copy].split(y, nparts=threads)
        tx, x = s[copy].split(x, nparts=threads)
        s[copy].reorder(ty, tx, y, x)
        s[copy].bind(ty, "threadIdx.y")
        s[copy].bind(tx, "threadIdx.x")


def check(s, a, b, c, target="cuda -arch=sm_90a"):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal([int(str(d)) for d in t.shape], np.float32) for t in (a, b))
    out = np.empty((x.shape[0], y.shape[1]), np.float32)
    f = tinycomp.build(s, [a, b, c], target)
    (f.simulate if target.startswith("cuda") else f)(x, y, out)
    np.testing.assert_allclose(out, x @ y, rtol=1e-4, atol=1e-5)
    return f


@pytest.mark.parametrize(("m", "n", "k"), [(32, 32, 16), (16, 48, 4), (20, 35, 7), (1, 1, 1)])
@pytest.mark.parametrize("together", [True, False])
def test_matmul(m, n, k, together):
    a, b, c = matmul(m, n, k)
    s, copies, _ = tiled(a, b, c)
    if together:
        distribute(s, copies)
    check(s, a, b, c)
    check(s, a, b, c, "llvm")


def test_a_tile_holds_what_all_threads_read():
    s, copies, _ = tiled(*matmul(32, 32, 16))
    extents = [[int(str(l.extent)) for l in s.loops(copy.name)[-2:]] for copy in copies]
    assert extents == [[16, 4], [4, 16]]  # tile * threads rows of A, as many columns of B


def test_tiles_are_between_barriers():
    a, b, c = matmul(32, 32, 16)
    s, copies, _ = tiled(a, b, c)
    distribute(s, copies)
    f = check(s, a, b, c)
    text = f.get_source()
    assert text.count("__syncthreads()") == 2
    assert "__shared__" in text
    try:
        library()
    except TinycompError:
        return
    (used,) = f.resources.values()
    assert used.spill_stores == used.stack == 0


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_stage_of_each_thread_is_not_computed_together(scope):
    a = te.placeholder((8, 8), name="A")
    b = te.compute((8, 8), lambda i, j: a[i, j] + 1.0, name="B")
    c = te.compute((8, 8), lambda i, j: b[i, j] * 2.0, name="C")
    s = te.create_schedule(c.op)
    s.set_scope(b, scope)
    s[c].bind(c.op.axis[0], "threadIdx.x")
    s[b].compute_at(s[c], c.op.axis[0])
    with pytest.raises(
        ScheduleError, match="nested, and the latter is bound to threadIdx"
    ) as error:
        s[b].bind(s[b].op.axis[1], "threadIdx.x")
    assert "shared" in error.value.hint


def test_reader_is_placed_first():
    a, _, c = matmul(8, 8, 8)
    s = te.create_schedule(c.op)
    shared = s.cache_read(a, "shared", [c])
    local = s.cache_read(shared, "local", [c])
    with pytest.raises(ScheduleError, match=r"nothing inside loop 'j' reads 'A\.shared'") as error:
        s[shared].compute_at(s[c], c.op.axis[1])
    assert f"'{local.name}' reads it" in error.value.hint
