"""Loops over the blocks of a cluster: they combine values through each other's shared memory, and
every barrier of the cluster that is taken away is noticed."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.codegen.cuda import nvrtc
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.diagnostics import ScheduleError, TinycompError, VerifyError
from tinycomp.dtype import DType
from tinycomp.ir.expr import Call, Load, Var, const
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.gpu_memory import RaceError
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.nodes import (
    Alloc,
    Buffer,
    Evaluate,
    For,
    ForKind,
    PrimFunc,
    Scope,
    Seq,
    Store,
)
from tinycomp.tir.passes.barriers import (
    CLUSTER_ARRIVE,
    CLUSTER_BARRIER,
    CLUSTER_WAIT,
    insert_barriers,
)
from tinycomp.tir.tree import statements

TARGET = "cuda -arch=sm_90a"


def rows(m, n, reducer):
    a = te.placeholder((m, n), name="A")
    k = te.reduce_axis((0, n), name="k")
    return a, te.compute((m,), lambda i: reducer(a[i, k], axis=k), name="B")


def across_clusters(b, blocks, threads):
    """A cluster for each row, whose blocks have a contiguous part each."""
    s = te.create_schedule(b.op)
    n = b.op.reduce_axis[0].extent.value
    steps = -(-n // (blocks * threads))
    block, step, thread = s[b].split("k", factors=[blocks, steps, threads])
    s[b].reorder(block, thread, step)
    partial = s.rfactor(b, s[b].fuse(block, thread))
    block, thread = s[b].split(s[b].axes[-1], factor=threads)
    s[b].bind("i", te.thread_axis("blockIdx.x"))
    s[b].bind(thread, te.thread_axis("threadIdx.x"))
    s[b].bind(block, te.thread_axis("cluster.x"))
    s[partial].compute_at(s[b], thread)
    return s


@pytest.mark.parametrize(("blocks", "threads"), [(2, 32), (4, 64), (8, 16), (16, 8), (3, 32)])
@pytest.mark.parametrize(("reducer", "expected"), [(te.sum, np.sum), (te.max, np.max)])
def test_rows(blocks, threads, reducer, expected):
    a, b = rows(5, 1500, reducer)
    f = tinycomp.build(across_clusters(b, blocks, threads), [a, b], TARGET)
    x = np.random.default_rng(blocks).standard_normal((5, 1500), np.float32)
    out = np.empty(5, np.float32)
    f.simulate(x, out)
    np.testing.assert_allclose(out, expected(x, 1), rtol=1e-4, atol=1e-4)
    (launch,) = f.launches
    assert launch.cluster == (blocks, 1, 1)
    assert launch.grid == (5 * blocks, 1, 1)


def test_threads_with_values_of_their_own():
    """Only the blocks combine: a thread has one column in all of them."""
    a = te.placeholder((64, 48), name="A")
    k = te.reduce_axis((0, 64), name="k")
    b = te.compute((48,), lambda j: te.sum(a[k, j], axis=k), name="B")
    s = te.create_schedule(b.op)
    block, _ = s[b].split("k", nparts=4)
    partial = s.rfactor(b, block)
    j, block = s[b].axes
    s[b].bind(j, "threadIdx.x")
    s[b].bind(block, "cluster.x")
    s[partial].compute_at(s[b], block)
    x = np.random.default_rng(0).standard_normal((64, 48), np.float32)
    out = np.empty(48, np.float32)
    f = tinycomp.build(s, [a, b], TARGET)
    f.simulate(x, out)
    np.testing.assert_allclose(out, x.sum(0), rtol=1e-4, atol=1e-5)


def test_loops_have_their_serial_meaning():
    a, b = rows(3, 300, te.sum)
    x = np.random.default_rng(0).standard_normal((3, 300), np.float32)
    out = np.empty(3, np.float32)
    tinycomp.build(across_clusters(b, 4, 16), [a, b])(x, out)
    np.testing.assert_allclose(out, x.sum(1), rtol=1e-4, atol=1e-5)


def simulate(func):
    x = np.random.default_rng(1).standard_normal((5, 700), np.float32)
    out = np.empty(5, np.float32)
    run(func, [x, out])
    np.testing.assert_allclose(out, x.sum(1), rtol=1e-4, atol=1e-4)


def meetings(func):
    return [s for s in statements(func.body) if s in CLUSTER_BARRIER]


def without(func, positions):
    """`func` without some of its arrivals and waits, counted in order."""
    number = itertools.count()

    def visit(stmt):
        if isinstance(stmt, Seq):
            kept = (
                s for s in stmt.stmts if s not in CLUSTER_BARRIER or next(number) not in positions
            )
            return Seq(tuple(map(visit, kept)))
        return replace(stmt, body=visit(stmt.body)) if isinstance(stmt, For | Alloc) else stmt

    return replace(func, body=visit(func.body))


def test_every_barrier_of_the_cluster_is_needed():
    func = lower_gpu(across_clusters(rows(5, 700, te.sum)[1], 4, 32).func)
    simulate(func)
    begin, began, arrive, wait = range(4)
    assert meetings(func) == [CLUSTER_ARRIVE, CLUSTER_WAIT, CLUSTER_ARRIVE, CLUSTER_WAIT]
    with pytest.raises(VerifyError, match="may not have begun"):
        simulate(without(func, {begin, began}))
    with pytest.raises(RaceError, match="no barrier between"):
        simulate(without(func, {arrive, wait}))
    with pytest.raises(VerifyError, match="waits for an arrival"):
        simulate(without(func, {begin}))
    with pytest.raises(VerifyError, match="may not have begun"):
        simulate(without(func, {began}))
    with pytest.raises(VerifyError, match="between the arrival"):
        simulate(without(func, {wait}))


# Each block puts its numbers in its shared memory; then each reads those of the next block.
RANK, T = Var("rank"), Var("t")
MINE = Buffer("mine", (const(4), const(32)), DType.FLOAT32, Scope.CLUSTER)
A, B = (Buffer(name, (const(4), const(32)), DType.FLOAT32) for name in "AB")


def neighbours(*stmts):
    body = Alloc(MINE, Seq(stmts))
    for var, extent, thread in ((T, 32, "threadIdx.x"), (RANK, 4, "cluster.x")):
        body = For(var, const(0), const(extent), body, ForKind.THREAD, thread)
    return PrimFunc("neighbours", (A, B), 1, body)


PUT = Store(MINE, (RANK, T), Load(A, (RANK, T), None))
GET = Store(B, (RANK, T), Load(MINE, ((RANK + 1) % 4, T), None))


def shifted(func):
    a, b = np.arange(128, dtype=np.float32).reshape(4, 32), np.zeros((4, 32), np.float32)
    run(func, [a, b])
    np.testing.assert_array_equal(b, np.roll(a, -1, 0))


def test_a_block_lives_while_others_read_its_memory():
    func = insert_barriers(neighbours(PUT, GET))
    shifted(func)
    kinds = [s.value.name for s in statements(func.body) if isinstance(s, Evaluate)]
    assert kinds == ["cluster_arrive", "cluster_wait"] * 3
    shifted(neighbours(PUT, *CLUSTER_BARRIER, GET, *CLUSTER_BARRIER))
    with pytest.raises(VerifyError, match="may end while another"):
        shifted(neighbours(PUT, *CLUSTER_BARRIER, GET))


def test_a_barrier_of_the_block_does_not_order_blocks():
    barrier = Evaluate(Call("barrier", (), DType.BOOL))
    start = (*CLUSTER_BARRIER, PUT)
    with pytest.raises(RaceError, match="no barrier between"):
        shifted(neighbours(*start, barrier, GET, *CLUSTER_BARRIER))


def test_an_early_arrival_orders_nothing_in_the_block():
    shared = Buffer("S", (const(32),), DType.FLOAT32, Scope.SHARED)
    write = Store(shared, (T,), Load(A, (RANK, T), None))
    read = Store(B, (RANK, T), Load(shared, (31 - T,), None))
    for order, fails in (((CLUSTER_ARRIVE, write, CLUSTER_WAIT, read), True),
                         ((write, *CLUSTER_BARRIER, read), False)):  # fmt: skip
        func = neighbours(*order)
        func = replace(func, body=Alloc(shared, func.body))
        arrays = [np.zeros((4, 32), np.float32)] * 2
        if fails:
            with pytest.raises(RaceError):
                run(func, arrays)
        else:
            run(func, arrays)


def test_what_cannot_be_launched_or_combined_is_refused():
    a, b = rows(4, 640, te.sum)
    with pytest.raises(ScheduleError, match="at most 1 on sm_80"):
        tinycomp.build(across_clusters(b, 4, 32), [a, b], "cuda -arch=sm_80")
    with pytest.raises(ScheduleError, match="a cluster has 20 blocks, at most 16"):
        tinycomp.build(across_clusters(b, 20, 32), [a, b], TARGET)
    s = te.create_schedule(b.op)
    outer, _ = s[b].split("k", factor=32)
    with pytest.raises(ScheduleError, match="further loops of the same stage"):
        s[b].bind(outer, "cluster.x")
    with pytest.raises(ScheduleError, match="not a thread axis"):
        s[b].bind("i", "cluster.y")


def test_shared_memory_belongs_to_one_block():
    a = te.placeholder((64,), name="A")
    b = te.compute((64,), lambda i: a[i] + 1.0, name="B")
    c = te.compute((64,), lambda i: b[63 - i] * 2.0, name="C")
    s = te.create_schedule(c.op)
    row, _ = s[c].split("i", nparts=1)
    s[b].compute_at(s[c], row)
    for stage in (s[c], s[b]):
        block, thread = stage.split(stage.axes[-1], factor=16)
        stage.bind(block, "cluster.x")
        stage.bind(thread, "threadIdx.x")
    with pytest.raises(ScheduleError, match="a block of a cluster reads parts of 'B'"):
        lower_gpu(s.func)


def test_machine_code():
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    kernel = emit_cuda(lower_gpu(across_clusters(rows(4, 640, te.sum)[1], 16, 32).func), "sm_90a")
    assert "__cluster_dims__(16, 1, 1)" in kernel.source
    for arch in ("sm_90a", "sm_100"):
        cubin = nvrtc.compile_cuda(kernel.source, arch, "case.cu")
        (used,) = cubin.kernels.values()
        assert used.spill_stores == used.stack == 0
