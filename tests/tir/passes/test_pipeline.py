"""Software pipelines: right for every number of iterations, and nothing in them is superfluous."""

from dataclasses import replace

import numpy as np
import pytest
from tests.tir.tensor_intrinsics.products import warp_product

from tinycomp import te
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.cuda.nvrtc import compile_cuda, library
from tinycomp.diagnostics import ScheduleError, TinycompError, VerifyError
from tinycomp.ir.expr import Call, Load, const
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.gpu_memory import RaceError
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.nodes import Alloc, Async, Evaluate, For, ForKind, Scope, Seq, Store
from tinycomp.tir.passes.visit import rewriter
from tinycomp.tir.schedule import Schedule
from tinycomp.tir.tree import replace_stmt, statements
from tinycomp.tir.verify import verify


def scaled_product(steps, depth=0, factor=1.0, n=16, double=()):
    """c = (factor a) b by threads of their own; a factor must pass through registers."""
    k = 8 * steps
    a, b = te.placeholder((n, k), name="A"), te.placeholder((k, n), name="B")
    tile = te.compute((n, k), lambda i, p: a[i, p] * factor, name="T") if factor != 1.0 else a
    p = te.reduce_axis((0, k), name="k")
    c = te.compute((n, n), lambda i, j: te.sum(tile[i, p] * b[p, j], axis=p), name="C")
    s = te.create_schedule(c.op)
    if factor != 1.0:
        s.set_scope(tile, "shared")
        left = tile
    else:
        left = s.cache_read(a, "shared", [c])
    right = s.cache_read(b, "shared", [c])
    i, j, p = s[c].axes
    i, ii = s[c].split(i, factor=8)
    step, p = s[c].split(p, factor=8)
    s[c].reorder(i, step, ii, j, p)
    s[c].bind(i, "blockIdx.x")
    s[c].bind(ii, "threadIdx.y")
    s[c].bind(j, "threadIdx.x")
    for copy in (left, right):
        s[copy].compute_at(s[c], step)
        fused = s[copy].fuse(*s[copy].axes[-2:])
        _, y, x = s[copy].split(fused, factors=[None, 8, 16])
        s[copy].bind(y, "threadIdx.y")
        s[copy].bind(x, "threadIdx.x")
    if depth:
        s[c].pipeline(step, depth)
    for copy in double:
        s[{"left": left, "right": right}[copy]].double_buffer()
    return s, k


def check(func, k, factor=1.0, n=16, **options):
    rng = np.random.default_rng(k)
    a, b = rng.standard_normal((n, k), "float32"), rng.standard_normal((k, n), "float32")
    out = np.zeros((n, n), np.float32)
    run(func, [a, b, out], **options)
    np.testing.assert_allclose(out, factor * a @ b, 1e-4, 1e-4)


@pytest.mark.parametrize("factor", [1.0, 2.0], ids=["async", "registers"])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_every_number_of_iterations(depth, factor):
    for steps in (1, 2, depth - 1, depth, depth + 1, 2 * depth + 1):
        schedule, k = scaled_product(steps, depth, factor)
        func = lower_gpu(schedule.func)
        verify(func, lowered=True)
        check(func, k, factor)
        asyncs = [s for s in statements(func.body) if isinstance(s, Async)]
        assert bool(asyncs) is (steps > 1)  # one iteration is no loop


def test_versions_in_shared_memory():
    schedule, _ = scaled_product(8, 3)
    shapes = {
        s.buffer.name: [d.value for d in s.buffer.shape]
        for s in statements(lower_gpu(schedule.func).body)
        if isinstance(s, Alloc) and s.buffer.scope is Scope.SHARED
    }
    assert shapes == {"A.shared": [3, 16, 8], "B.shared": [3, 8, 16]}


@pytest.mark.parametrize("double", [("left",), ("right",), ("left", "right")], ids=str)
def test_double_buffer(double):
    schedule, k = scaled_product(5, double=double)
    func = lower_gpu(schedule.func)
    check(func, k)
    ranks = {
        s.buffer.name: len(s.buffer.shape)
        for s in statements(func.body)
        if isinstance(s, Alloc) and s.buffer.scope is Scope.SHARED
    }
    assert ranks == {"A.shared": 2 + ("left" in double), "B.shared": 2 + ("right" in double)}


def synchronisation(func):
    """The barriers, waits and commits of a function."""
    return [
        s
        for s in statements(func.body)
        if isinstance(s, Evaluate)
        and isinstance(s.value, Call)
        and s.value.name in ("barrier", "async_wait", "async_commit")
    ]


def without(func, position):
    """`func` without one statement of its main loop."""
    loop = main_loop(func)
    stmts = loop.body.stmts
    body = Seq(stmts[:position] + stmts[position + 1 :])
    return replace_stmt(func, loop, replace(loop, body=body))


def main_loop(func):
    return next(s for s in statements(func.body) if isinstance(s, For) and s.var.name == "k.outer")


def test_nothing_that_synchronises_can_be_left_out():
    schedule, k = scaled_product(7, 3)
    func = lower_gpu(schedule.func)
    loop = main_loop(func)
    marks = [
        n for n, s in enumerate(loop.body.stmts) if any(s is one for one in synchronisation(func))
    ]
    names = [loop.body.stmts[n].value.name for n in marks]
    assert names == ["async_wait", "barrier", "async_commit"]
    for position in marks:
        with pytest.raises((VerifyError, RaceError)):
            check(without(func, position), k)
    check(func, k)


def test_a_wait_for_too_few_is_noticed():
    schedule, k = scaled_product(7, 3)
    func = lower_gpu(schedule.func)

    def change(node):
        if isinstance(node, Call) and node.name == "async_wait":
            return Call("async_wait", (node.args[0] + 1,), node.dtype)
        return node

    with pytest.raises(VerifyError, match="was never written"):
        check(replace(func, body=rewriter(change)(func.body)), k)


def test_one_version_too_few_is_a_race():
    schedule, k = scaled_product(7, 3)
    func = lower_gpu(schedule.func)

    def change(node):  # every version is the first
        source = getattr(node, "source", None) if isinstance(node, Load) else None
        if source is not None and source.scope is Scope.SHARED:
            return Load(source, (const(0), *node.indices[1:]), node.predicate)
        if isinstance(node, Store) and node.buffer.scope is Scope.SHARED:
            return replace(node, indices=(const(0), *node.indices[1:]))
        return node

    with pytest.raises((RaceError, VerifyError)):
        check(replace(func, body=rewriter(change)(func.body)), k)


def test_a_pipeline_inside_another_loop_starts_when_all_have_finished():
    """Several tiles of one block: the first copies of the next must wait for the last reads."""
    schedule, k = scaled_product(4, 3)
    loop = next(
        s for s in statements(schedule.func.body)
        if isinstance(s, For) and s.thread == "blockIdx.x"
    )  # fmt: skip
    serial = replace(loop, kind=ForKind.SERIAL, thread="")
    check(lower_gpu(replace_stmt(schedule.func, loop, serial)), k)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_tensor_cores_in_a_pipeline(dtype):
    schedule = warp_product(dtype, steps=5)
    schedule["C"].pipeline("k.0", 3)
    func = lower_gpu(schedule.func)
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 8, [d.value for d in x.shape]).astype(x.dtype.numpy)
            for x in func.params[:2])  # fmt: skip
    out = np.zeros([d.value for d in func.params[2].shape], func.params[2].dtype.numpy)
    run(func, [a, b, out])
    np.testing.assert_array_equal(out, 2 * (a.astype("int64") @ b.astype("int64").T))


def test_the_step_prints_travels_and_is_checked():
    schedule, _ = scaled_product(4, 3)
    assert 's["C"].pipeline("k.outer", depth=3)' in schedule.trace()
    other, k = scaled_product(9)
    for step in schedule.steps:
        if step.NAME == "pipeline":
            other.do(Schedule.from_json(schedule.to_json())[-1])
    check(lower_gpu(other.func), k)
    with pytest.raises(ScheduleError, match="2 to 16 iterations"):
        schedule["C"].pipeline("k.outer", 1)
    with pytest.raises(ScheduleError, match="is thread"):
        schedule["C"].pipeline("j", 2)
    empty, _ = scaled_product(4)
    empty["C"].pipeline("k.inner", 2)
    with pytest.raises(ScheduleError, match="fills a shared buffer"):
        lower_gpu(empty.func)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
def test_machine_code(arch):
    try:
        library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    schedule = warp_product("bfloat16", steps=5, depth=64)
    schedule["C"].pipeline("k.0", 3)
    kernel = emit_cuda(lower_gpu(schedule.func), arch)
    assert kernel.source.count("cp_async<16>(") == 6  # two operands: twice ahead, and in the loop
    assert "async_wait<1>();" in kernel.source
    (used,) = compile_cuda(kernel.source, arch).kernels.values()
    assert used.spill_stores == used.spill_loads == used.stack == 0
