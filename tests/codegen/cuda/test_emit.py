"""CUDA C++ of kernels: readable, wide where it may be, and refused where a GPU could not run it."""

import operator

import pytest

from tinycomp import te
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.cuda.limits import STATIC_SHARED
from tinycomp.diagnostics import ScheduleError, Span
from tinycomp.dtype import DType
from tinycomp.ir.expr import Load, Var, const
from tinycomp.schedules.gpu.bind import bind_unbound
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.nodes import Alloc, Buffer, For, ForKind, PrimFunc, Scope, Store


def double(n=1024, vector=1, threads=128, dtype="float32"):
    a = te.placeholder((n,), dtype, name="A")
    b = te.compute((n,), lambda i: a[i] + a[i], name="B", span=Span(("node */ \n1",)))
    s = te.create_schedule(b.op)
    block, thread, lane = s[b].split("i", factors=[None, threads, vector])
    s[b].bind(block, "blockIdx.x")
    s[b].bind(thread, "threadIdx.x")
    if vector > 1:
        s[b].vectorize(lane)
    return s.func


def source(func, **options):
    return emit_cuda(lower_gpu(func), **options).source


def test_indices_are_int_and_nodes_are_named_in_harmless_comments():
    text = source(double())
    assert "// ONNX nodes: node */ ?1" in text
    assert "long long" not in text
    assert "#include" not in text


@pytest.mark.parametrize(
    ("dtype", "vector", "wide"),
    [("float32", 4, "Vec<float, 4>"), ("int8", 16, "Vec<signed char, 16>"),
     ("float16", 4, "Vec<unsigned short, 4>"), ("float64", 2, "Vec<double, 2>")],
)  # fmt: skip
def test_aligned_vectors_are_one_access(dtype, vector, wide):
    text = source(double(4096, vector, dtype=dtype))
    assert f"*(const {wide}*)(A + " in text
    assert f"*({wide}*)(B + " in text


def test_a_vector_that_may_be_unaligned_is_taken_apart():
    a = te.placeholder((1025,), name="A")
    b = te.compute((1024,), lambda i: a[i + 1], name="B")
    s = te.create_schedule(b.op)
    thread, lane = s[b].split("i", factor=4)
    s[b].vectorize(lane)
    s[b].bind(thread, "threadIdx.x")
    text = source(s.func)
    assert "*(const Vec" not in text
    assert "*(Vec<float, 4>*)(B + " in text


def test_a_guard_covers_the_last_block():
    text = source(double(1000, threads=256))
    assert "if ((blockIdx_x * 256 + threadIdx_x) < 1000) {" in text


def test_the_largest_block_and_grid():
    func = double(2048, threads=2048)
    with pytest.raises(ScheduleError, match=r"threadIdx\.x has extent 2048, at most 1024") as error:
        source(func)
    assert "split" in error.value.hint
    i = Var("i")
    a = Buffer("A", (const(70000),), DType.FLOAT32)
    body = Store(a, (i,), const(1.0, "float32"))
    loop = For(i, const(0), const(70000), body, ForKind.THREAD, "blockIdx.y")
    with pytest.raises(ScheduleError, match=r"blockIdx\.y has extent 70000, at most 65535"):
        emit_cuda(PrimFunc("f", (a,), 1, loop))


def shared(nbytes):
    i = Var("i")
    a = Buffer("A", (const(32),), DType.FLOAT32)
    s = Buffer("S", (const(nbytes // 4),), DType.FLOAT32, Scope.SHARED)
    body = Store(a, (i,), Load(s, (i,), None))
    loop = For(i, const(0), const(32), Alloc(s, body), ForKind.THREAD, "threadIdx.x")
    return PrimFunc("f", (a,), 1, loop)


def test_shared_memory_is_declared_or_asked_for_at_launch():
    small, large = emit_cuda(shared(1024)), emit_cuda(shared(64 * 1024))
    assert "__shared__ __align__(16) float S[256];" in small.source
    assert small.launches[0].dynamic_shared == 0
    assert "extern __shared__" in large.source
    assert large.launches[0].dynamic_shared == 64 * 1024 > STATIC_SHARED


@pytest.mark.parametrize(("arch", "limit"), [("sm_80", 163), ("sm_90a", 227), ("sm_86", 99)])
def test_shared_memory_is_limited_by_the_architecture(arch, limit):
    emit_cuda(shared(limit * 1024), arch)
    with pytest.raises(ScheduleError, match=f"{arch} has {limit * 1024}"):
        emit_cuda(shared(limit * 1024 + 16), arch)


def test_what_nothing_binds_gets_a_sound_binding():
    a, k = te.placeholder((8, 300), name="A"), te.reduce_axis((0, 300), name="k")
    rows = te.compute((8,), lambda i: te.sum(a[i, k], axis=k), name="rows")
    k2 = te.reduce_axis((0, 8), name="k")
    total = te.compute((), lambda: te.sum(rows[k2], axis=k2), name="total")
    s = te.create_schedule(total.op)
    kernel = emit_cuda(lower_gpu(bind_unbound(s.func)))
    assert [one.name for one in kernel.launches] == ["main_0", "main_1"]
    assert [one.threads for one in kernel.launches] == [256, 1]
    assert kernel.workspace_bytes == 256  # the rows, between the launches


def test_names_that_mean_something_in_cuda_are_changed():
    a = te.placeholder((4,), name="float")
    b = te.compute((4,), lambda i: te.exp(a[i]), name="expf")
    s = te.create_schedule(b.op)
    s[b].bind("i", "threadIdx.x")
    text = source(s.func)
    assert "expf_[threadIdx_x] = expf(float_[threadIdx_x]);" in text


def test_a_block_loop_inside_a_serial_one_is_refused():
    s = te.create_schedule(double_rows().op)
    stage = s[s.stages[0]]
    stage.bind("j", "blockIdx.x")
    with pytest.raises(ScheduleError, match="reorder the loops over blocks outermost"):
        lower_gpu(s.func)


def double_rows():
    a = te.placeholder((4, 8), name="A")
    return te.compute((4, 8), lambda i, j: a[i, j] * 2.0, name="B")


@pytest.mark.parametrize(("rounds", "value"), [(False, te.maximum), (True, operator.add)])
def test_what_is_only_chosen_is_not_rounded_again(rounds, value):
    """A maximum of bfloat16 is one; a sum is not."""
    a, b = (te.placeholder((64,), "bfloat16", name) for name in "ab")
    out = te.compute((64,), lambda i: value(a[i], b[i]), name="out")
    text = source(bind_unbound(te.create_schedule(out.op).func))
    assert ("= float_to_bfloat16(" in text) == rounds
    assert ("= bfloat16_bits(" in text) != rounds
