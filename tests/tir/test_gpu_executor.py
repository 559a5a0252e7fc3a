"""The executor of GPU loop IR: right results, and every removed barrier is noticed."""

from dataclasses import replace

import numpy as np
import pytest

from tinycomp import te
from tinycomp.diagnostics import ExecutionError, VerifyError
from tinycomp.dtype import DType
from tinycomp.ir.expr import Call, Load, Var, const
from tinycomp.ir.node import rewrite
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.gpu_memory import RaceError
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.nodes import (
    Alloc,
    Buffer,
    Evaluate,
    For,
    ForKind,
    If,
    PrimFunc,
    Scope,
    Seq,
    Store,
)
from tinycomp.tir.passes.barriers import BARRIER, is_barrier
from tinycomp.tir.tree import statements

T = Var("t")
S = Buffer("S", (const(64),), DType.FLOAT32, Scope.SHARED)
A, B = (Buffer(name, (const(64),), DType.FLOAT32) for name in "AB")


def tiled_matmul(n=32, tile=16):
    """Two shared tiles and a loop over them: three barriers' worth of dependences."""
    a, b = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B")
    k = te.reduce_axis((0, n), name="k")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    s = te.create_schedule(c.op)
    local = s.cache_write(c, "local")
    copies = [s.cache_read(t, "shared", [local]) for t in (a, b)]
    by, bx, ty, tx = s[c].tile("i", "j", tile, tile)
    for axis, thread in ((by, "blockIdx.y"), (bx, "blockIdx.x"), (ty, "threadIdx.y"),
                         (tx, "threadIdx.x")):  # fmt: skip
        s[c].bind(axis, thread)
    s[local].compute_at(s[c], bx)
    i, j, k = s[local].axes[-3:]
    ko, ki = s[local].split(k, factor=tile)
    s[local].reorder(ko, i, j, ki)
    s[local].bind(i, "threadIdx.y")
    s[local].bind(j, "threadIdx.x")
    for copy in copies:
        s[copy].compute_at(s[local], ko)
        y, x = s[copy].axes[-2:]
        s[copy].bind(y, "threadIdx.y")
        s[copy].bind(x, "threadIdx.x")
    return lower_gpu(s.func)


def row_sum(n=100, threads=64):
    """Partial results of threads, combined by shuffles and through shared memory."""
    a, k = te.placeholder((5, n), name="A"), te.reduce_axis((0, n), name="k")
    total = te.compute((5,), lambda i: te.sum(a[i, k], axis=k), name="total")
    out = te.compute((5, n), lambda i, j: a[i, j] / total[i], name="out")
    s = te.create_schedule(out.op)
    row = s[out].axes[0]
    s[out].bind(row, "blockIdx.x")
    _, x = s[out].split("j", factor=threads)
    s[out].bind(x, "threadIdx.x")
    s[total].compute_at(s[out], row)
    _, x = s[total].split("k", factor=threads)
    partial = s.rfactor(total, x)
    s[total].pragma(s[total].axes[-1], "reduce_threads")
    s[partial].bind(x, "threadIdx.x")
    return lower_gpu(s.func)


def transposed_tile():
    a = te.placeholder((33, 70), name="A")
    out = te.compute((70, 33), lambda i, j: a[j, i], name="out")
    s = te.create_schedule(out.op)
    bi, bj, y, x = s[out].tile("i", "j", 16, 16)
    copy = s.cache_read(a, "shared", [out])
    for axis, thread in ((bi, "blockIdx.y"), (bj, "blockIdx.x"), (y, "threadIdx.y"),
                         (x, "threadIdx.x")):  # fmt: skip
        s[out].bind(axis, thread)
    s[copy].compute_at(s[out], bj)
    y, x = s[copy].axes[-2:]
    s[copy].bind(y, "threadIdx.y")
    s[copy].bind(x, "threadIdx.x")
    return lower_gpu(s.func)


KERNELS = {"matmul": tiled_matmul, "row_sum": row_sum, "transpose": transposed_tile}


def arguments(func):
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal([d.value for d in b.shape]).astype(b.dtype.numpy) for b in func.params
    ]


def without_barrier(func, number):
    """`func` without its barrier of that number, in text order."""
    barriers = [s for s in statements(func.body) if isinstance(s, Seq)]
    count = -1
    for sequence in barriers:
        for position, stmt in enumerate(sequence.stmts):
            count += is_barrier(stmt)
            if is_barrier(stmt) and count == number:
                kept = Seq(sequence.stmts[:position] + sequence.stmts[position + 1 :])
                return replace(
                    func,
                    body=rewrite(
                        func.body, lambda s, old=sequence, new=kept: new if s is old else s
                    ),
                )
    return None


def test_results():
    func = tiled_matmul()
    a, b, c = arguments(func)
    run(func, [a, b, c])
    np.testing.assert_allclose(c, a @ b, rtol=1e-5, atol=1e-5)
    func = row_sum()
    a, out = arguments(func)
    run(func, [a, out])
    np.testing.assert_allclose(out, a / a.sum(axis=1, keepdims=True), rtol=1e-4)
    func = transposed_tile()
    a, out = arguments(func)
    run(func, [a, out])
    assert np.array_equal(out, a.T)


@pytest.mark.parametrize(("name", "count"), [("matmul", 2), ("row_sum", 1), ("transpose", 1)])
def test_every_removed_barrier_is_a_race(name, count):
    func = KERNELS[name]()
    arrays = arguments(func)
    run(func, arrays)
    for number in range(count):
        broken = without_barrier(func, number)
        assert broken is not None
        with pytest.raises(RaceError, match="no barrier between them"):
            run(broken, arrays)
    assert without_barrier(func, count) is None


def threads(body, extent=64):
    return PrimFunc(
        "f", (A, B), 1, For(T, const(0), const(extent), body, ForKind.THREAD, "threadIdx.x")
    )


def load(buffer, index):
    return Load(buffer, (index,), None)


def execute(body, extent=64):
    a, b = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    run(threads(Alloc(S, body), extent), [a, b])
    return b


COPY = Store(S, (T,), load(A, T))


def test_what_another_thread_wrote_needs_a_barrier():
    reverse = Store(B, (T,), load(S, 63 - T))
    with pytest.raises(RaceError, match=r"S\[63\] races: thread 0 .* reads it"):
        execute(Seq((COPY, reverse)))
    assert execute(Seq((COPY, BARRIER, reverse)))[0] == 63


def test_what_another_thread_read_is_not_overwritten_without_a_barrier():
    shifted = Store(B, (T,), load(S, (T + 1) % 64))
    again = Store(S, (T,), const(0.0, DType.FLOAT32))
    with pytest.raises(RaceError, match="writes it"):
        execute(Seq((COPY, BARRIER, shifted, again)))
    execute(Seq((COPY, BARRIER, shifted, BARRIER, again)))


def test_two_threads_may_not_write_one_element():
    with pytest.raises(RaceError, match="writes it"):
        execute(Store(B, (T // 2,), load(A, T)))


def test_blocks_may_not_share_what_one_writes():
    block, i = Var("b"), Var("i")
    body = Store(B, (i,), load(B, 63 - i))
    func = PrimFunc("f", (B,), 1, For(i, const(0), const(64), body, ForKind.THREAD, "blockIdx.x"))
    with pytest.raises(RaceError, match="block"):
        run(func, [np.zeros(64, np.float32)])
    del block


def test_bounds_are_checked():
    with pytest.raises(VerifyError, match=r"A\[64\] is out of bounds"):
        execute(Store(B, (T,), load(A, T + 1)))
    with pytest.raises(VerifyError, match="out of bounds"):
        execute(Store(B, (T + 5,), load(A, T)))
    guarded = If(T < 63, Store(B, (T,), load(A, T + 1)))
    assert execute(guarded)[0] == 1


def test_reading_what_was_never_written():
    with pytest.raises(VerifyError, match="never written"):
        execute(Store(B, (T,), load(S, T)))


def test_a_barrier_that_not_all_threads_reach():
    with pytest.raises(VerifyError, match="not reached by all threads"):
        execute(If(T < 32, Seq((BARRIER, COPY))))


def test_a_shuffle_reads_only_threads_that_take_part():
    value = Call("shuffle_xor", (load(A, T), const(1)), DType.FLOAT32)
    assert execute(Store(B, (T,), value))[:4].tolist() == [1, 0, 3, 2]
    with pytest.raises(VerifyError, match="shuffle"):
        execute(If(T < 33, Store(B, (T,), value)))


def test_choices_evaluate_the_side_taken_only():
    side = te.if_then_else(T < 63, load(A, T + 1), const(0.0, DType.FLOAT32))
    assert execute(Store(B, (T,), side))[62:].tolist() == [63, 0]


def test_an_index_out_of_range_is_an_execution_error():
    place = Call("checked_index", (T + 1, const(64)), DType.INT64)
    with pytest.raises(ExecutionError, match="index 64"):
        execute(Store(B, (T,), load(A, place)))
    execute(Evaluate(Call("prefetch", (load(A, T + 100),), DType.FLOAT32)))


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_the_cuda_source_does_the_same_with_real_threads(name, tmp_path):
    from tinycomp.codegen.cuda.emit import emit_cuda

    from ..codegen.cuda.host import HostKernel, all_aligned

    func = KERNELS[name]()
    arrays = all_aligned(arguments(func))
    wanted = [a.copy() for a in arrays]
    run(func, wanted)
    assert HostKernel(emit_cuda(func), tmp_path)(*arrays) == 0
    np.testing.assert_allclose(arrays[-1], wanted[-1], rtol=1e-5, atol=1e-5)
