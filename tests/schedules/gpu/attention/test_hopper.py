"""Which attention becomes a tile program, and that it gives the reference's results."""

import math

import numpy as np
import pytest

from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.ops.fused_attention import AttentionAttrs
from tinycomp.relay.builder import Builder
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.schedules import build_kernel
from tinycomp.schedules.gpu.attention.hopper import choose_attention_tile
from tinycomp.schedules.gpu.attention.program import AttentionTile
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.tile.nodes import TileProgram
from tinycomp.tir.tile.verify import verify_tile_program

from .cases import Attention

OPS = default_ops()
OP = OPS["nn.attention"]
HEADS = (0, 2, 1, 3)
TARGET = Target.parse("cuda -arch=sm_90a")


def built(arrays, attrs, target=TARGET):
    builder = Builder(OPS, fold=False)
    params = [builder.param(f"x{i}", a.shape, DType.of(a.dtype)) for i, a in enumerate(arrays)]
    function = builder.finish(builder.call(OP, *params, attrs=attrs))
    fused = FuseOps().run_function(function, PassContext(OPS, target, 3))
    return build_kernel(fused.bindings[0].value.op, target, "attention")


def draw(seed, *shape, dtype="float16"):
    return np.random.default_rng(seed).standard_normal(shape).astype(DType(dtype).numpy)


def check(arrays, attrs):
    func = built(arrays, attrs)
    assert isinstance(func.body, TileProgram)
    out = np.zeros([d.value for d in func.params[-1].shape], arrays[0].dtype)
    run(func, [*arrays, out])
    with np.errstate(all="ignore"):
        expected = OP.reference(attrs, arrays)
    tolerance = 5e-3 if arrays[0].dtype == np.float16 else 4e-2
    np.testing.assert_allclose(
        out.astype(np.float32), expected.astype(np.float32), tolerance, tolerance
    )
    return func


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_element_types(dtype):
    check(
        [draw(i, 2, 1, n, 64, dtype=dtype) for i, n in enumerate((70, 50, 50))],
        AttentionAttrs(0.125),
    )


def test_layouts_and_groups_of_heads():
    """Heads inside of rows, and two query heads for each head of the keys."""
    arrays = [draw(0, 2, 65, 4, 32), draw(1, 2, 77, 2, 32), draw(2, 2, 77, 2, 48)]
    check(arrays, AttentionAttrs(0.2, 12, -math.inf, False, HEADS, HEADS, HEADS, HEADS))


@pytest.mark.parametrize("zero_hidden", [False, True])
@pytest.mark.parametrize("keys", [70, 71])
def test_masks(zero_hidden, keys):
    visible = np.random.default_rng(3).random((66, keys)) < 0.5
    visible[3] = visible[20, :65] = False
    added = np.random.default_rng(4).standard_normal((1, 2, 1, keys)).astype(np.float32)
    arrays = [draw(i, 1, 2, n, 16) for i, n in enumerate((66, keys, keys))]
    check([*arrays, visible, added], AttentionAttrs(0.25, zero_hidden=zero_hidden))
    check([*arrays, visible], AttentionAttrs(0.25, zero_hidden=zero_hidden))


def test_masks_that_hide_by_a_large_number_and_negative_scales():
    visible = np.random.default_rng(3).random((1, 1, 64, 40)) < 0.5
    visible[0, 0, 5] = False
    arrays = [draw(i, 1, 1, n, 16) for i, n in enumerate((64, 40, 40))]
    check([*arrays, visible], AttentionAttrs(0.25, fill=-1e9))
    check([*arrays, np.where(visible, 0, -np.inf).astype(np.float16)], AttentionAttrs(0.25))
    check(arrays, AttentionAttrs(-0.5, 0))
    check(arrays, AttentionAttrs(-0.5))
    check([*arrays, visible], AttentionAttrs(0.25, causal=-20, fill=-1e9))  # un-hides whole rows


def test_large_scores_do_not_overflow():
    q, k, v = (draw(i, 1, 1, 64, 16) for i in range(3))
    check([30 * q, 30 * k, v], AttentionAttrs(1.0))


def test_slices_are_read_in_place():
    """The operands as parts of one wide projection."""
    builder = Builder(OPS, fold=False)
    wide = builder.param("wide", (1, 80, 3 * 32), DType.BFLOAT16)
    parts = []
    for start in (0, 32, 64):
        part = builder.call(
            "strided_slice", wide, begin=(0, 0, start), end=(1, 80, start + 32), strides=(1, 1, 1)
        )
        parts.append(builder.call("reshape", part, newshape=(1, 80, 2, 16)))
    attrs = AttentionAttrs(0.25, None, -math.inf, False, HEADS, HEADS, HEADS, HEADS)
    function = builder.finish(builder.call(OP, *parts, attrs=attrs))
    (binding,) = FuseOps().run_function(function, PassContext(OPS, TARGET, 3)).bindings
    func = build_kernel(binding.value.op, TARGET, "attention")
    assert isinstance(func.body, TileProgram)
    assert [map.offset for map in func.body.maps] == [0, 64, 128, 0]
    x = draw(0, 1, 80, 96, dtype="bfloat16")
    out = np.zeros((1, 80, 2, 16), x.dtype)
    run(func, [x, out])
    operands = [x[..., i : i + 32].reshape(1, 80, 2, 16) for i in (0, 32, 64)]
    expected = OP.reference(attrs, operands).astype(np.float32)
    np.testing.assert_allclose(out.astype(np.float32), expected, 4e-2, 4e-2)


@pytest.mark.parametrize(
    ("shapes", "attrs"),
    [
        ([(1, 2, 100, 24)] * 3, {}),  # heads of no multiple of 16
        ([(1, 2, 100, 272)] * 3, {}),  # and over 256
        ([(1, 2, 20, 64)] * 3, {}),  # few queries
        ([(1, 2, 100, 64), (1, 2, 64, 100), (1, 2, 100, 64)], {"k_axes": (0, 1, 3, 2)}),
    ],
)
def test_others_are_left_to_other_schedules(shapes, attrs):
    arrays = [np.broadcast_to(np.float16(0), s) for s in shapes]
    assert not isinstance(built(arrays, AttentionAttrs(**attrs)).body, TileProgram)


@pytest.mark.parametrize("depth", range(16, 257, 48))
@pytest.mark.parametrize("v_depth", [16, 64, 128, 192, 256])
@pytest.mark.parametrize("heads", [1, 500])
def test_every_tile_fits(depth, v_depth, heads):
    tile = choose_attention_tile(heads, 2048, 2000, depth, v_depth)
    assert tile.stages >= 2
    assert tile.keys >= 48
    verify_tile_program(Attention(2, 2048, 2000, depth, tile, v_depth=v_depth, data=False).program)


def test_tiles_of_keys_are_of_equal_size():
    assert choose_attention_tile(16, 500, 130, 64, 64).keys == 80
    assert choose_attention_tile(16, 500, 5, 64, 64) == AttentionTile(1, 16, 4)
