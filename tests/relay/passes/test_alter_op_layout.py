"""AlterOpLayout: same results from packed weights; linear layers become one matrix product."""

from __future__ import annotations

import numpy as np
import pytest

from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Call, Function, IRModule
from tinycomp.relay.pass_infra import PassContext, Sequential
from tinycomp.relay.passes.alter_op_layout import AlterOpLayout
from tinycomp.relay.passes.fuse_ops import FuseOps

OPS = default_ops()
RNG = np.random.default_rng(0)


def tile_of(binding):
    return (2, 4) if binding.value.op.name == "nn.matmul" else (1, 2, 4)


def alter(function: Function, choose_tile=tile_of, *more) -> Function:
    passes = Sequential((AlterOpLayout(choose_tile), *more))
    return passes.run(IRModule({"main": function}), PassContext(OPS)).main


def check(function: Function) -> Function:
    altered = alter(function)
    inputs = [
        RNG.standard_normal(p.type.static_shape).astype(p.type.dtype.numpy) for p in function.params
    ]
    for a, b in zip(evaluate(function, inputs), evaluate(altered, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    return altered


def names(function: Function) -> list[str]:
    return [b.value.op.name for b in function.bindings if isinstance(b.value, Call)]


def weight(b: Builder, *shape: int):
    return b.const(RNG.standard_normal(shape).astype(np.float32))


def test_linear_layer_of_rank_three_is_one_product_with_its_epilogue():
    b = Builder(OPS)
    x = b.param("x", (2, 3, 8))
    y = b.call("nn.matmul", x, weight(b, 8, 8))
    y = b.call("add", weight(b, 1, 8), y)
    y = b.call("multiply", y, b.call("sigmoid", y))
    y = b.call("add", b.call("multiply", y, b.const([[2.0]])), x)
    f = b.finish(b.call("nn.matmul", y, weight(b, 8, 6)))
    g = check(f)
    assert names(g) == [
        "reshape", "nn.matmul_packed", "add", "sigmoid", "multiply", "multiply", "add",
        "nn.matmul_packed", "reshape",
    ]  # fmt: skip
    fused = alter(f, tile_of, FuseOps())
    kernels = [b for b in fused.bindings if isinstance(b.value.op, Function)]
    assert len(kernels) == 2


def test_heads_are_split_off_without_a_second_reshape():
    b = Builder(OPS)
    x = b.param("x", (2, 3, 8))
    y = b.call("add", b.call("nn.matmul", x, weight(b, 8, 8)), weight(b, 8))
    y = b.call("reshape", y, newshape=(2, 3, 2, 4))
    y = b.call("transpose", y, axes=(0, 2, 1, 3))
    assert names(check(b.finish(y))).count("reshape") == 2


def test_batched_matmul_with_a_variable_right_side():
    b = Builder(OPS)
    x, y = b.param("x", (2, 3, 5)), b.param("y", (2, 5, 7))
    assert names(check(b.finish(b.call("nn.matmul", x, y)))) == [
        "nn.pack_matmul",
        "nn.matmul_packed",
    ]


def test_operand_that_does_not_fit_ends_the_matrix_form():
    b = Builder(OPS)
    y = b.call("nn.matmul", b.param("x", (2, 3, 4)), weight(b, 4, 5))
    y = b.call("multiply", y, b.param("m", (2, 1, 1)))
    check(b.finish([y, b.call("mean", y, axis=(0,), keepdims=False)]))


def test_result_that_broadcasts_the_product_to_a_larger_shape():
    b = Builder(OPS)
    y = b.call("nn.matmul", b.param("x", (1, 3, 4)), weight(b, 4, 5))
    check(b.finish(b.call("add", y, b.param("m", (2, 3, 5)))))


@pytest.mark.parametrize(
    ("groups", "layout", "left"),
    [(1, "packed", 1), (8, "HWC", 8), (2, "packed", 2), (4, "packed", 2)],
)
def test_convolutions(groups, layout, left):
    b = Builder(OPS)
    x = b.param("x", (1, 5, 5, 8))
    w = weight(b, 8, 8 // groups, 3, 3)
    y = b.call(
        "nn.conv2d", x, w, padding=(1, 1, 1, 1), groups=groups, data_layout="NHWC", strides=(2, 1)
    )
    g = check(b.finish(b.call("nn.relu", y)))
    attrs = next(b.value.attrs for b in g.bindings if b.value.op.name == "nn.conv2d")
    assert (attrs.kernel_layout, attrs.groups) == (layout, left)


@pytest.mark.parametrize(("groups", "out", "left", "padded"), [(3, 3, 1, 3), (3, 15, 3, 24)])
def test_groups_that_never_fill_a_block_become_one_or_are_padded(groups, out, left, padded):
    b = Builder(OPS)
    x, w = b.param("x", (1, 5, 5, 9)), weight(b, out, 9 // groups, 1, 1)
    y = b.call("nn.conv2d", x, w, groups=groups, data_layout="NHWC")
    g = check(b.finish(b.call("nn.relu", y)))
    attrs = next(b.value.attrs for b in g.bindings if b.value.op.name == "nn.conv2d")
    assert (attrs.kernel_layout, attrs.groups, attrs.out_channels) == ("packed", left, padded)


def test_groups_are_merged_only_in_constant_weights():
    b = Builder(OPS)
    x, w = b.param("x", (1, 5, 5, 8)), b.param("w", (8, 2, 3, 3))
    f = b.finish(b.call("nn.conv2d", x, w, groups=4, data_layout="NHWC"))
    assert alter(f) is f


def test_nothing_chosen_changes_nothing():
    b = Builder(OPS)
    f = b.finish(b.call("nn.matmul", b.param("x", (2, 3, 4)), weight(b, 4, 5)))
    assert alter(f, lambda _: None) is f
    g = alter(f)
    assert alter(g) is g


def test_triangles_need_the_rows_of_the_model():
    b = Builder(OPS)
    y = b.call("nn.matmul", b.param("x", (2, 3, 4)), weight(b, 4, 5))
    check(b.finish(b.call("trilu", y, upper=False, k=0)))
