"""Attention of 16-bit operands on tensor cores: values on the executor, and machine code."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tinycomp.codegen.cuda import nvrtc
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.diagnostics import TinycompError, VerifyError
from tinycomp.dtype import DType
from tinycomp.ir.node import rewrite
from tinycomp.ops import default_ops
from tinycomp.ops.fused_attention import AttentionAttrs
from tinycomp.relay.builder import Builder
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.schedules.gpu import default_gpu_schedule
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.interpreter import run as interpret
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.nodes import Evaluate, For, Seq
from tinycomp.tir.tree import replace_stmt, statements

OPS = default_ops()
OP = OPS["nn.attention"]
HEADS = (0, 2, 1, 3)


def scheduled(arrays, attrs, arch="sm_80"):
    """The schedule itself, so that an error in it shows instead of a plain one in its place."""
    target = Target.parse(f"cuda -arch={arch}")
    builder = Builder(OPS, fold=False)
    params = [builder.param(f"x{i}", a.shape, DType.of(a.dtype)) for i, a in enumerate(arrays)]
    function = builder.finish(builder.call(OP, *params, attrs=attrs))
    fused = FuseOps().run_function(function, PassContext(OPS, target, 3))
    return default_gpu_schedule(fused.bindings[0].value.op, target, "attention").func


def draw(seed, *shape, dtype="float16"):
    return np.random.default_rng(seed).standard_normal(shape).astype(DType(dtype).numpy)


def check(arrays, attrs, execute=lambda func, arrays: run(lower_gpu(func), arrays)):
    func = scheduled(arrays, attrs)
    out = np.zeros([d.value for d in func.params[-1].shape], arrays[0].dtype)
    execute(func, [*arrays, out])
    with np.errstate(all="ignore"):
        expected = OP.reference(attrs, arrays)
    tolerance = 5e-3 if arrays[0].dtype == np.float16 else 4e-2
    np.testing.assert_allclose(
        out.astype(np.float32), expected.astype(np.float32), tolerance, tolerance
    )
    source = emit_cuda(lower_gpu(func), "sm_80").source
    assert "mma.sync" in source
    assert "ldmatrix" in source


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_element_types(dtype):
    arrays = [draw(i, 1, 2, n, 64, dtype=dtype) for i, n in enumerate((40, 128, 128))]
    check(arrays, AttentionAttrs(0.125))


def test_any_sizes_and_layouts():
    arrays = [draw(0, 1, 35, 2, 72), draw(1, 1, 131, 1, 72), draw(2, 1, 131, 1, 40)]
    check(arrays, AttentionAttrs(0.1, 96, -math.inf, False, HEADS, HEADS, HEADS, HEADS))
    arrays = [draw(0, 1, 3, 17, 5), draw(1, 1, 3, 5, 20), draw(2, 1, 3, 20, 19)]
    check(arrays, AttentionAttrs(0.3, k_axes=(0, 1, 3, 2)))


@pytest.mark.parametrize("zero_hidden", [False, True])
def test_masks(zero_hidden):
    visible = np.random.default_rng(3).random((33, 70)) < 0.5
    visible[3] = visible[20, :65] = False
    added = np.random.default_rng(4).standard_normal((1, 2, 1, 70)).astype(np.float32)
    arrays = [draw(i, 1, 2, n, 16) for i, n in enumerate((33, 70, 70))]
    check([*arrays, visible, added], AttentionAttrs(0.25, zero_hidden=zero_hidden))


def test_a_finite_fill_shows_what_causal_hid():
    """A row whose mask is false everywhere is the mean of all values."""
    visible = np.ones((1, 1, 10, 130), bool)
    visible[0, 0, 2] = False
    arrays = [draw(i, 1, 1, n, 16) for i, n in enumerate((10, 130, 130))]
    check([*arrays, visible], AttentionAttrs(0.25, causal=3, fill=-1e9))


def test_loops_mean_the_same_before_lowering():
    arrays = [draw(i, 1, 1, n, 16) for i, n in enumerate((20, 66, 66))]
    check(arrays, AttentionAttrs(0.25), interpret)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(
    ("heads", "length", "depth", "causal"), [(12, 197, 64, None), (64, 2048, 128, 0)]
)
def test_machine_code_without_spills(arch, heads, length, depth, causal):
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    arrays = [np.broadcast_to(np.zeros((), np.float16), (1, heads, length, depth))] * 3
    func = lower_gpu(scheduled(arrays, AttentionAttrs(0.1, causal), arch))
    cubin = nvrtc.compile_cuda(emit_cuda(func, arch).source, arch, "attention.cu")
    assert all(r.spill_stores == 0 and r.stack == 0 for r in cubin.kernels.values())


@pytest.mark.parametrize("shared", [1, 2, 3])
def test_few_queries_of_many_keys(shared):
    """Blocks share the keys, and heads with the same keys are rows of one tile, where their number
    divides those of a warp."""
    arrays = [draw(0, 1, 2 * shared, 2, 32), draw(1, 1, 2, 330, 32), draw(2, 1, 2, 330, 24)]
    visible = np.random.default_rng(3).random((1, 2 * shared, 2, 330)) < 0.5
    visible[..., 100:260] = False
    visible[:, 0, 1] = False
    attrs = AttentionAttrs(0.2, causal=320, zero_hidden=True)
    check([*arrays, visible], attrs)
    check(arrays, AttentionAttrs(0.2, causal=290))
    launches = emit_cuda(lower_gpu(scheduled([*arrays, visible], attrs)), "sm_80").launches
    assert len(launches) == 2
    assert launches[0].grid[0] == 3 * 2 * (3 if shared == 3 else 1)


def test_packed_heads_of_several_tiles_of_queries():
    arrays = [draw(0, 2, 9, 4, 16), draw(1, 2, 33, 2, 16), draw(2, 2, 33, 2, 16)]
    check(arrays, AttentionAttrs(0.2, 20, -math.inf, False, HEADS, HEADS, HEADS, HEADS))


def test_copies_ahead_of_time_are_waited_for():
    arrays = [draw(i, 1, 1, n, 16) for i, n in enumerate((16, 190, 190))]
    func = lower_gpu(scheduled(arrays, AttentionAttrs(0.25)))
    out = np.zeros((1, 1, 16, 16), np.float16)
    expected = OP.reference(AttentionAttrs(0.25), arrays).astype(np.float32)
    loops = [s for s in statements(func.body) if isinstance(s, For) and s.var.name == "tile"]
    waits = [
        s for s in statements(loops[0])
        if isinstance(s, Evaluate) and s.value.name in ("async_wait", "barrier")
    ]  # fmt: skip
    assert [s.value.name for s in waits] == ["async_wait", "barrier"]
    for wait in waits:
        broken = replace_stmt(func, loops[0], without(loops[0], wait))
        try:
            run(broken, [*arrays, out])
        except VerifyError:
            continue
        assert not np.allclose(out.astype(np.float32), expected, 5e-3, 5e-3), wait


def without(loop, stmt):
    body = rewrite(loop.body, lambda node: Seq(()) if node == stmt else node)
    return replace(loop, body=body)
