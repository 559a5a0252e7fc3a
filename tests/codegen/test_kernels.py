"""Loops, buffers, register tiles, parallel loops, other targets."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from tests.codegen.helpers import Kernel, buffer, load, loop, store

from tinycomp.codegen.jit import pool_runtime
from tinycomp.codegen.llvm import assembly, compile_kernels, emit_kernel
from tinycomp.codegen.threadpool import emit_threadpool
from tinycomp.diagnostics import InternalError, TinycompError
from tinycomp.dtype import DType
from tinycomp.ir.expr import Broadcast, Call, Ramp, Var, const
from tinycomp.target import Target
from tinycomp.tir.nodes import Alloc, Evaluate, For, ForKind, If, PrimFunc, Scope, Seq

ZERO = const(0.0, "float32")


def register_tile(rows: int, vectors: int, lanes: int, depth: int) -> PrimFunc:
    """C = A B for one tile, as lowering writes it: accumulators in C.local, k outside."""
    columns = vectors * lanes
    a, b, c = (
        buffer("A", (rows, depth)),
        buffer("B", (depth, columns)),
        buffer("C", (rows, columns)),
    )
    local, k = buffer("C.local", (rows, columns), scope=Scope.LOCAL), Var("k")
    tiles = [
        (const(i), Ramp(const(j * lanes), const(1), lanes))
        for i in range(rows)
        for j in range(vectors)
    ]
    zero = [store(local, t, Broadcast(ZERO, lanes)) for t in tiles]
    update = [
        store(local, t, load(local, *t) + Broadcast(load(a, t[0], k), lanes) * load(b, k, t[1]))
        for t in tiles
    ]
    back = [store(c, t, load(local, *t)) for t in tiles]
    body = Seq((*zero, loop(k, depth, Seq(tuple(update))), *back))
    return PrimFunc("tile", (a, b, c), 1, Alloc(local, body))


@pytest.mark.parametrize("shape", [(6, 4), (12, 2)])
def test_register_tile(shape: tuple[int, int]) -> None:
    target = Target.host()
    lanes = target.lanes(DType.FLOAT32)
    func = register_tile(*shape, lanes, 64)
    rng = np.random.default_rng(0)
    a, b = rng.random((shape[0], 64), "f"), rng.random((64, shape[1] * lanes), "f")
    c = np.empty((shape[0], shape[1] * lanes), "f")
    Kernel(func)(a, b, c)
    np.testing.assert_allclose(c, a @ b, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 4), (12, 2)])
def test_register_tile_stays_in_registers(shape: tuple[int, int]) -> None:
    target = Target.parse("llvm -mcpu=skylake-avx512 -mtriple=x86_64-unknown-linux-gnu")
    text = assembly(emit_kernel(register_tile(*shape, 16, 64), target).llvm_text, target)
    assert text.count("vfmadd") == shape[0] * shape[1]
    assert "rsp)" not in text


def test_loop_bounds_and_if() -> None:
    """A triangle: the inner extent depends on the outer variable, and may be 0."""
    out, i, j = buffer("o", (5, 5), "int64"), Var("i"), Var("j")
    row = If(j.equal(0), store(out, (i, j), const(7)), store(out, (i, j), i * 10 + j))
    body = loop(i, 5, For(j, const(0), i, row))
    got = np.full((5, 5), -1)
    Kernel(PrimFunc("f", (out,), 1, body))(got)
    want = [
        [7 if c == 0 and c < r else r * 10 + c if c < r else -1 for c in range(5)] for r in range(5)
    ]
    assert got.tolist() == want


@pytest.mark.parametrize("dtype", list(DType))
def test_predicated_and_strided_access(dtype: DType) -> None:
    source, out = buffer("a", (32,), dtype), buffer("o", (3, 16), dtype)
    lane = Ramp(const(0), const(1), 16)
    strided = Ramp(const(1), const(2), 16)
    body = Seq((
        store(out, (const(0), lane), load(source, strided, predicate=lane < 9)),
        store(out, (const(1), lane), load(source, lane, predicate=lane < 5), lane < 7),
        store(out, (const(2), Ramp(const(15), const(-1), 16)), load(source, lane)),
    ))  # fmt: skip
    a = (np.arange(1, 33) % 2 == 0) if dtype is DType.BOOL else np.arange(1, 33).astype(dtype.numpy)
    got = np.ones((3, 16), dtype.numpy)
    Kernel(PrimFunc("f", (source, out), 1, body))(a, got)
    want = np.ones((3, 16), dtype.numpy)
    want[0] = np.where(np.arange(16) < 9, a[1::2], np.zeros(1, dtype.numpy))
    want[1, :7] = np.where(np.arange(7) < 5, a[:7], np.zeros(1, dtype.numpy))
    want[2] = a[15::-1]
    np.testing.assert_array_equal(got, want)


def test_scalar_predicates() -> None:
    source, out, i = buffer("a", (4,)), buffer("o", (4,)), Var("i")
    value = load(source, i + (i // 2) * (1 << 40), predicate=i < 2) + 1.0
    Kernel(PrimFunc("f", (source, out), 1, loop(i, 4, store(out, (i,), value, i < 3))))(
        np.arange(4, dtype="f"), got := np.full(4, -1, "f")
    )
    assert got.tolist() == [1, 2, 1, -1]


@pytest.mark.parametrize("scope", [Scope.LOCAL, Scope.GLOBAL])
@pytest.mark.parametrize("size", [8, 100_000])
def test_alloc(scope: Scope, size: int) -> None:
    source, out = buffer("a", (size,)), buffer("o", (size,))
    temporary, i = buffer("t", (size,), scope=scope), [Var(f"i{n}") for n in range(2)]
    body = Alloc(temporary, Seq((
        loop(i[0], size, store(temporary, (i[0],), load(source, i[0]) * 2.0)),
        loop(i[1], size, store(out, (i[1],), load(temporary, size - 1 - i[1]))),
    )))  # fmt: skip
    kernel = Kernel(PrimFunc("f", (source, out), 1, body))
    assert (kernel.ir.workspace_bytes > 0) == (scope is Scope.GLOBAL or size > 65536)
    a, got = np.arange(size, dtype="f"), np.empty(size, "f")
    kernel(a, got)
    assert (got == a[::-1] * 2).all()


def parallel_function(count: int) -> PrimFunc:
    """Rows summed through a buffer that every thread has for itself, then one shared buffer."""
    source, out = buffer("a", (count, 8)), buffer("o", (count,))
    private, shared = buffer("row", (8,)), buffer("sums", (count,))
    i, j, k, m = (Var(n) for n in "ijkm")
    row = Alloc(private, Seq((
        loop(j, 8, store(private, (j,), load(source, i, j) * 2.0)),
        store(shared, (i,), ZERO),
        loop(k, 8, store(shared, (i,), load(shared, i) + load(private, k))),
    )))  # fmt: skip
    copy = loop(m, count, store(out, (m,), load(shared, m)), ForKind.PARALLEL)
    body = Alloc(shared, Seq((loop(i, count, row, ForKind.PARALLEL), copy)))
    return PrimFunc("f", (source, out), 1, body)


@pytest.mark.parametrize("count", [1, 2, 5, 1000])
def test_parallel(count: int) -> None:
    kernel = Kernel(parallel_function(count))
    assert kernel.ir.workspace_bytes_per_thread == 64
    a = np.random.default_rng(0).random((count, 8), "f")
    results = []
    for threads in (1, 2, 3, 7):
        got = np.zeros(count, "f")
        kernel(a, got, num_threads=threads)
        results.append(got)
    np.testing.assert_allclose(results[0], 2 * a.sum(1), rtol=1e-5)
    assert all((r == results[0]).all() for r in results)


def check_parallel(kernel: Kernel, repeats: int, threads: int = 3) -> bool:
    a = np.random.default_rng(1).random((500, 8), "f")
    ok = True
    for _ in range(repeats):
        got = np.zeros(500, "f")
        kernel(a, got, num_threads=threads)
        ok &= np.allclose(got, 2 * a.sum(1), rtol=1e-5)
    return ok


def test_several_callers() -> None:
    kernel = Kernel(parallel_function(500))
    results: list[bool] = []
    callers = [
        threading.Thread(target=lambda: results.append(check_parallel(kernel, 100)))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [True] * 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_fork() -> None:
    """A child starts its own workers; the parent's go on."""
    kernel = Kernel(parallel_function(500))
    assert check_parallel(kernel, 3)
    child = os.fork()
    if child == 0:
        before = len(os.listdir("/proc/self/task"))
        ok = check_parallel(kernel, 20) and len(os.listdir("/proc/self/task")) == before + 2
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert check_parallel(kernel, 3)


def test_parallel_failure_is_reported() -> None:
    index, out, i = buffer("x", (100,), "int64"), buffer("o", (100,), "int64"), Var("i")
    value = Call("checked_index", (load(index, i), const(10)), DType.INT64)
    kernel = Kernel(
        PrimFunc("f", (index, out), 1, loop(i, 100, store(out, (i,), value), ForKind.PARALLEL))
    )
    x = np.zeros(100, "i8")
    assert kernel.ir.can_fail
    assert kernel(x, np.empty(100, "i8"), num_threads=2) == 0
    x[77] = 10
    assert kernel(x, np.empty(100, "i8"), num_threads=2) == 1


def test_nested_parallel_runs_serially_and_captures_variables() -> None:
    out = buffer("o", (3, 4, 5), "int64")
    i, j, k = (Var(n) for n in "ijk")
    inner = loop(k, 5, store(out, (i, j, k), i * 100 + j * 10 + k), ForKind.PARALLEL)
    body = loop(i, 3, loop(j, 4, inner, ForKind.PARALLEL))
    got = np.zeros((3, 4, 5), "i8")
    Kernel(PrimFunc("f", (out,), 1, body))(got, num_threads=2)
    x, y, z = np.indices((3, 4, 5))
    assert (got == x * 100 + y * 10 + z).all()


def test_deep_nesting() -> None:
    out = buffer("o", (1,), "int64")
    body = store(out, (const(0),), load(out, 0) + 1)
    for n in range(2000):
        body = If(load(out, 0) < n + 5000, body) if n % 2 else Seq((body,))
    got = np.zeros(1, "i8")
    Kernel(PrimFunc("f", (out,), 1, body), opt=0)(got)
    assert got[0] == 1


def test_prefetch() -> None:
    source, i = buffer("a", (64,)), Var("i")
    body = Seq((
        Evaluate(Call("prefetch", (load(source, 16),), DType.FLOAT32)),
        loop(i, 64, store(source, (i,), const(1.0, "float32"))),
    ))  # fmt: skip
    func = PrimFunc("f", (source,), 1, body)
    assert "prefetch" in assembly(emit_kernel(func, Target.host()).llvm_text, Target.host())


@pytest.mark.parametrize(
    "options",
    ["-mcpu=x86-64-v3", "-mcpu=x86-64", "-mcpu=neoverse-n1 -mtriple=aarch64-unknown-linux-gnu"],
)
def test_cross_compilation(options: str) -> None:
    target = Target.parse(f"llvm {options}")
    lanes = target.lanes(DType.FLOAT32)
    text = emit_kernel(register_tile(4, 2, lanes, 16), target).llvm_text
    data, out = buffer("a", (lanes,)), buffer("o", (lanes,), "bfloat16")
    lane = Ramp(const(0), const(1), lanes)
    value = Call("tanh", (load(data, lane),), DType.FLOAT32).astype("bfloat16")
    other = emit_kernel(PrimFunc("g", (data, out), 1, store(out, (lane,), value)), target)
    code = compile_kernels([text, other.llvm_text, emit_threadpool(target)], target)
    assert code[:4] == b"\x7fELF"
    assert int.from_bytes(code[18:20], "little") == (183 if "aarch64" in target.triple else 62)


def test_errors() -> None:
    out = buffer("o", (4,))
    vectorized = loop(Var("i"), 4, store(out, (const(0),), ZERO), ForKind.VECTORIZED)
    with pytest.raises(InternalError, match="not lowered"):
        emit_kernel(PrimFunc("f", (out,), 1, vectorized), Target.host())
    with pytest.raises(TinycompError, match="does not support"):
        compile_kernels([""], Target("llvm", triple="z80-none"))
    with pytest.raises(TinycompError, match="no thread pool"):
        emit_threadpool(Target("llvm", triple="x86_64-apple-darwin"))


def test_pool_is_shared() -> None:
    assert pool_runtime() is pool_runtime()
