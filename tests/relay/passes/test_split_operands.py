"""Constant operands of float32 products become parts, where the choice says so."""

import numpy as np
import pytest

from tinycomp.ops import default_ops
from tinycomp.ops.matmul import MatmulAttrs
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Call, Constant
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fold_constant import FoldConstant
from tinycomp.relay.passes.split_operands import SplitOperands

OPS = default_ops()


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def layer(x_shape, weight, precision="fp32"):
    b = Builder(OPS)
    x = b.param("x", x_shape)
    return b.finish(b.call("nn.matmul", x, b.const(weight), attrs=MatmulAttrs(precision)))


def split(function, choose=lambda *_: "bf16x6"):
    ctx = PassContext(OPS)
    return FoldConstant().run_function(SplitOperands(choose).run_function(function, ctx), ctx)


def names(function):
    return [b.value.op.name for b in function.bindings if isinstance(b.value, Call)]


@pytest.mark.parametrize(
    ("x", "w"), [((5, 40), (40, 70)), ((2, 3, 40), (40, 70)), ((5, 40), (1, 1, 40, 70))]
)
@pytest.mark.parametrize(("name", "band"), [("bf16x6", 1e-6), ("tf32", 1e-3)])
def test_products(x, w, name, band):
    before = layer(x, normal(0, *w))
    after = split(before, lambda *_: name)
    assert names(after)[-1] == "nn.matmul_parts"
    assert after.ret_type == before.ret_type
    (parts,) = (a for b in after.bindings for a in b.args if isinstance(a, Constant))
    assert parts.type.nbytes <= 2 * 4 * 64 * 72  # folded
    data = normal(1, *x)
    (found,), (wanted,) = evaluate(after, [data]), evaluate(before, [data])
    assert np.abs(found - wanted).max() <= band * np.abs(wanted).max()


def test_sizes_and_precision_decide():
    asked = []

    def choose(*sizes):
        asked.append(sizes)

    before = layer((2, 3, 40), normal(0, 40, 70), "tf32")
    assert names(split(before, choose)) == ["nn.matmul"]
    assert asked == [("tf32", 6, 70, 40, True)]


def test_operands_that_are_not_constant():
    b = Builder(OPS)
    x, w = b.param("x", (5, 40)), b.param("w", (40, 70))
    before = b.finish(b.call("nn.matmul", x, w))
    after = split(before)
    assert names(after) == ["nn.split_operand", "nn.matmul_parts"]
    data, weight = normal(1, 5, 40), normal(0, 40, 70)
    weight[3] = np.inf
    (found,), (wanted,) = evaluate(after, [data, weight]), evaluate(before, [data, weight])
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weights_that_have_no_parts(value):
    weight = normal(0, 40, 70)
    weight[3, 4] = value
    assert names(split(layer((5, 40), weight))) == ["nn.matmul"]


def test_matrices_for_each_batch_stay():
    assert names(split(layer((2, 5, 40), normal(0, 2, 40, 70)))) == ["nn.matmul"]
