"""Attention as one kernel: any sizes and masks, every level of the loop IR, and machine code."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinycomp.codegen.cuda import nvrtc
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.diagnostics import TinycompError
from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.ops.fused_attention import AttentionAttrs
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Function
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.schedules import build_kernel
from tinycomp.schedules.gpu import default_gpu_schedule
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.interpreter import run as interpret
from tinycomp.tir.nodes import Alloc
from tinycomp.tir.tree import statements

TARGET = Target.parse("cuda -arch=sm_90a")
OPS = default_ops()
OP = OPS["nn.attention"]
HEADS = (0, 2, 1, 3)


def primitive(arrays, attrs) -> Function:
    builder = Builder(OPS, fold=False)
    params = [builder.param(f"x{i}", a.shape, DType.of(a.dtype)) for i, a in enumerate(arrays)]
    function = builder.finish(builder.call(OP, *params, attrs=attrs))
    fused = FuseOps().run_function(function, PassContext(OPS, TARGET, 3))
    return fused.bindings[0].value.op


def check(arrays, attrs, rtol=1e-4, atol=1e-5):
    func = build_kernel(primitive(arrays, attrs), TARGET, "attention")
    out = np.zeros([d.value for d in func.params[-1].shape], func.params[-1].dtype.numpy)
    run(func, [*arrays, out])
    with np.errstate(all="ignore"):
        expected = OP.reference(attrs, arrays)
    np.testing.assert_allclose(out.astype(np.float64), expected.astype(np.float64), rtol, atol)
    return func


def draw(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


LENGTH = st.sampled_from([1, 2, 5, 15, 16, 17, 31, 33, 64, 65, 70])
DEPTH = st.sampled_from([1, 3, 4, 8, 16, 17, 20, 33, 64, 72])


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 2), st.sampled_from([1, 2]), st.sampled_from([1, 3])),
    st.tuples(LENGTH, LENGTH, DEPTH, DEPTH),
    st.sampled_from([None, 0, 3]),
    st.lists(st.tuples(st.booleans(), st.tuples(*[st.booleans()] * 4)), max_size=2),
    st.tuples(*[st.sampled_from([(0, 1, 2, 3), HEADS, (0, 1, 3, 2)])] * 4),
    st.integers(0, 100),
)
def test_sizes_masks_and_layouts(lead, sizes, causal, masks, axes, seed):
    rng = np.random.default_rng(seed)
    (batch, kv_heads, group), (n, m, depth, v_depth) = lead, sizes
    heads = kv_heads * group
    logical = [(batch, heads, n, depth), (batch, kv_heads, m, depth), (batch, kv_heads, m, v_depth)]
    arrays = []
    for shape, order in zip(logical, axes, strict=False):
        stored = [0] * 4
        for place, extent in zip(order, shape, strict=True):
            stored[place] = extent
        arrays.append(draw(rng, *stored))
    for boolean, ones in masks:
        full = (batch, heads, n, m)
        shape = tuple(1 if one else d for one, d in zip(ones, full, strict=True))
        arrays.append(rng.random(shape) < 0.8 if boolean else draw(rng, *shape))
    q_axes, k_axes, v_axes, out_axes = axes
    check(arrays, AttentionAttrs(0.3, causal, -math.inf, False, q_axes, k_axes, v_axes, out_axes))


def test_rows_that_see_nothing():
    """-inf everywhere gives NaN as in softmax, or 0 where that is asked for; a large negative
    number gives the mean of the values."""
    rng = np.random.default_rng(0)
    arrays = [draw(rng, 1, 1, 20, 8), draw(rng, 1, 1, 70, 8), draw(rng, 1, 1, 70, 8)]
    visible = np.ones((20, 70), bool)
    visible[3] = visible[7, :64] = visible[9, 1:] = False
    for attrs in (AttentionAttrs(), AttentionAttrs(zero_hidden=True), AttentionAttrs(fill=-1e9)):
        check([*arrays, visible], attrs)
    added = np.where(visible, 0, -np.inf).astype(np.float32)
    check([*arrays, added], AttentionAttrs())
    check([*arrays, added], AttentionAttrs(causal=0, zero_hidden=True))


def test_large_scores_do_not_overflow():
    rng = np.random.default_rng(0)
    q, k, v = (draw(rng, 1, 2, 40, 16) for _ in range(3))
    check([100 * q, 100 * k, v], AttentionAttrs(), rtol=1e-3)


@pytest.mark.parametrize(("queries", "causal"), [(1, None), (20, 5)])
def test_few_queries_share_many_keys_among_blocks(queries, causal):
    rng = np.random.default_rng(0)
    arrays = [draw(rng, 1, 4, queries, 8), draw(rng, 1, 2, 700, 8), draw(rng, 1, 2, 700, 6)]
    visible = rng.random((1, 1, queries, 700)) < 0.5
    visible[..., 64:400] = False
    visible[..., : queries // 2, :] = False
    for attrs in (AttentionAttrs(1, causal), AttentionAttrs(1, causal, zero_hidden=True)):
        func = check([*arrays, visible], attrs)
    launches = emit_cuda(func).launches
    assert len(launches) == 2
    assert launches[0].grid[0] >= 16


@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 2e-3), ("float64", 1e-5)])
def test_other_element_types(dtype, rtol):
    rng = np.random.default_rng(0)
    arrays = [draw(rng, 1, 2, 20, 24, dtype=dtype) for _ in range(3)]
    check([*arrays, draw(rng, 20, dtype=dtype)], AttentionAttrs(0.2), rtol, rtol)


def test_loops_mean_the_same_before_lowering():
    rng = np.random.default_rng(0)
    arrays = [draw(rng, 1, 2, 18, 6), draw(rng, 1, 2, 67, 6), draw(rng, 1, 2, 67, 5)]
    attrs = AttentionAttrs(0.5, causal=50)
    func = default_gpu_schedule(primitive(arrays, attrs), TARGET, "attention").func
    out = np.zeros((1, 2, 18, 5), np.float32)
    interpret(func, [*arrays, out])
    np.testing.assert_allclose(out, OP.reference(attrs, arrays), 1e-4, 1e-5)


def test_slices_are_read_in_place():
    """The operands as parts of one wide projection."""
    builder = Builder(OPS, fold=False)
    wide = builder.param("wide", (1, 20, 3 * 32))
    parts = []
    for start in (0, 32, 64):
        part = builder.call(
            "strided_slice", wide, begin=(0, 0, start), end=(1, 20, start + 32), strides=(1, 1, 1)
        )
        parts.append(builder.call("reshape", part, newshape=(1, 20, 2, 16)))
    attrs = AttentionAttrs(0.25, None, -math.inf, False, HEADS, HEADS, HEADS, HEADS)
    function = builder.finish(builder.call(OP, *parts, attrs=attrs))
    fused = FuseOps().run_function(function, PassContext(OPS, TARGET, 3))
    (binding,) = fused.bindings
    func = build_kernel(binding.value.op, TARGET, "attention")
    x = draw(np.random.default_rng(0), 1, 20, 96)
    out = np.zeros((1, 20, 2, 16), np.float32)
    run(func, [x, out])
    operands = [x[..., i : i + 32].reshape(1, 20, 2, 16) for i in (0, 32, 64)]
    np.testing.assert_allclose(out, OP.reference(attrs, operands), 1e-4, 1e-5)
    assert "const Vec<float, 4>*)(p0" in emit_cuda(func).source


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
@pytest.mark.parametrize(
    ("heads", "length", "depth", "causal"),
    [(12, 197, 64, None), (64, 2048, 128, 0), (8, 1, 64, None), (200, 100, 80, None),
     (4, 300, 256, None)],
)  # fmt: skip
def test_machine_code_without_spills(arch, heads, length, depth, causal):
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    shape = (1, heads, length, depth)
    arrays = [np.broadcast_to(np.float32(0), shape)] * 3
    target = Target.parse(f"cuda -arch={arch}")
    func = build_kernel(primitive(arrays, AttentionAttrs(0.1, causal)), target, "attention")
    scores = heads * length * length
    for stmt in statements(func.body):  # nothing as large as the scores
        if isinstance(stmt, Alloc):
            assert math.prod(d.value for d in stmt.buffer.shape) < max(scores, 64 * 300)
    kernel = emit_cuda(func, arch)
    cubin = nvrtc.compile_cuda(kernel.source, arch, "attention.cu")
    assert all(r.spill_stores == 0 and r.stack == 0 for r in cubin.kernels.values())
    assert all(launch.shared_bytes <= 99 * 1024 for launch in kernel.launches)
