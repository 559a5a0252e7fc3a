"""ConvertLayout: same results, and transposes only where the network begins and ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Atom, Call, Function, IRModule
from tinycomp.relay.pass_infra import PassContext, Sequential
from tinycomp.relay.passes.convert_layout import ConvertLayout
from tinycomp.relay.passes.layouts import (
    compose,
    inverse,
    keeps_order,
    reshape_blocks,
    reshaped_layout,
)

OPS = default_ops()
RNG = np.random.default_rng(0)


def convert(function: Function) -> Function:
    module = IRModule({"main": function})
    return Sequential((ConvertLayout(),)).run(module, PassContext(OPS)).main


def names(function: Function) -> list[str]:
    return [b.value.op.name for b in function.bindings if isinstance(b.value, Call)]


def check(function: Function, transposes: int) -> Function:
    converted = convert(function)
    inputs = [
        RNG.standard_normal(p.type.static_shape).astype(p.type.dtype.numpy) for p in function.params
    ]
    for a, b in zip(evaluate(function, inputs), evaluate(converted, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert names(converted).count("transpose") == transposes, converted
    assert all(
        b.value.attrs.data_layout == "NHWC"
        for b in converted.bindings
        if isinstance(b.value, Call) and b.value.op.name == "nn.conv2d"
    )
    return converted


def weight(b: Builder, *shape: int) -> Atom:
    return b.const(RNG.standard_normal(shape).astype(np.float32) * 0.3)


def conv(b: Builder, x: Atom, out: int, size: int = 3, groups: int = 1, bias: bool = True) -> Atom:
    p = size // 2
    w = weight(b, out, x.type.shape[1] // groups, size, size)
    y = b.call("nn.conv2d", x, w, padding=(p, p, p, p), groups=groups)
    return b.call("add", y, weight(b, out, 1, 1)) if bias else y


def test_residual_network_with_pooling_and_a_classifier():
    b = Builder(OPS)
    x = b.param("x", (2, 3, 8, 8))
    y = b.call("nn.relu", conv(b, x, 8))
    y = b.call("nn.max_pool2d", y, pool_size=(2, 2), strides=(2, 2))
    z = conv(b, b.call("nn.relu", conv(b, y, 8)), 8, groups=8)
    y = b.call("nn.relu", b.call("add", z, y))
    y = b.call("clip", y, a_min=0.0, a_max=6.0)
    y = b.call("mean", y, axis=(2, 3), keepdims=True)
    y = b.call("reshape", y, newshape=(2, 8))
    check(b.finish(b.call("nn.matmul", y, weight(b, 8, 5))), transposes=1)


def test_squeeze_and_excitation():
    b = Builder(OPS)
    y = conv(b, b.param("x", (1, 3, 6, 6)), 8)
    s = b.call("mean", y, axis=(2, 3), keepdims=True)
    s = b.call("sigmoid", conv(b, b.call("nn.relu", conv(b, s, 2, 1)), 8, 1))
    check(b.finish(conv(b, b.call("multiply", y, s), 4)), transposes=2)


def test_concatenation_slices_and_channel_softmax():
    b = Builder(OPS)
    x = b.param("x", (1, 4, 6, 6))
    y = b.call("concatenate", conv(b, x, 4), conv(b, x, 2), x, axis=1)
    y = b.call("strided_slice", y, begin=(0, 1, 0, 0), end=(1, 9, 6, 5), strides=(1, 2, 1, 1))
    y = b.call("nn.lrn", b.call("nn.softmax", y, axis=1), size=3)
    y = b.call("where", b.call("greater", y, b.const(0.5)), y, b.const(0.0))
    y = b.call("cast", y, dtype=DType.FLOAT32)
    check(b.finish(conv(b, y, 3, bias=False)), transposes=2)


def test_patch_embedding_needs_no_transpose_after_the_convolution():
    b = Builder(OPS)
    y = conv(b, b.param("x", (2, 3, 8, 8)), 6)
    y = b.call("reshape", y, newshape=(2, 6, 64))
    y = b.call("transpose", y, axes=(0, 2, 1))
    check(b.finish(b.call("nn.matmul", y, weight(b, 6, 5))), transposes=1)


def test_one_dimensional_convolutions_stay_in_one_layout():
    b = Builder(OPS)
    y = b.param("x", (2, 4, 10))
    for _ in range(3):
        y = conv(b, b.call("reshape", y, newshape=(2, 4, 1, 10)), 4)
        y = b.call("nn.relu", b.call("reshape", y, newshape=(2, 4, 10)))
        y = b.call("add", y, weight(b, 4, 1))
    check(b.finish(y), transposes=2)


def test_channel_shuffle_costs_one_transpose():
    b = Builder(OPS)
    y = conv(b, b.param("x", (1, 3, 5, 5)), 8)
    y = b.call("reshape", y, newshape=(1, 2, 4, 5, 5))
    y = b.call("transpose", y, axes=(0, 2, 1, 3, 4))
    y = b.call("reshape", y, newshape=(1, 8, 5, 5))
    check(b.finish(conv(b, y, 4)), transposes=3)


def test_pixel_shuffle_costs_one_transpose():
    b = Builder(OPS)
    y = conv(b, b.param("x", (1, 3, 5, 5)), 8)
    y = b.call("reshape", y, newshape=(1, 2, 2, 2, 5, 5))
    y = b.call("transpose", y, axes=(0, 1, 4, 2, 5, 3))
    check(b.finish(b.call("reshape", y, newshape=(1, 2, 10, 10))), transposes=2)


def test_a_model_that_is_already_channels_last():
    b = Builder(OPS)
    x = b.call("transpose", b.param("x", (1, 6, 6, 3)), axes=(0, 3, 1, 2))
    y = b.call("transpose", conv(b, x, 4), axes=(0, 2, 3, 1))
    check(b.finish(b.call("nn.relu", y)), transposes=0)


def test_values_used_in_both_layouts_are_transposed_once():
    b = Builder(OPS)
    x = b.param("x", (1, 3, 4, 4))
    y = conv(b, x, 3)
    flat = b.call("reshape", y, newshape=(1, 48))
    again = b.call("reshape", y, newshape=(48,))
    check(b.finish([flat, again, conv(b, y, 2), x]), transposes=3)


def test_constants_and_variables_of_lower_rank():
    b = Builder(OPS)
    y = conv(b, b.param("x", (2, 3, 4, 5)), 3)
    y = b.call("add", y, weight(b, 4, 5))
    y = b.call("multiply", y, weight(b, 1, 3, 1, 1))
    y = b.call("add", y, b.param("c", (3, 1, 1)))
    y = b.call("multiply", y, b.param("s", ()))
    y = b.call("add", y, b.param("w", (4, 5)))
    check(b.finish(y), transposes=2)


@pytest.mark.parametrize("axes", [(1,), (2, 3), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("keepdims", [True, False])
def test_reductions(axes, keepdims):
    b = Builder(OPS)
    y = conv(b, b.param("x", (2, 3, 4, 5)), 3)
    f = b.finish(b.call("max", y, axis=axes, keepdims=keepdims))
    g = convert(f)
    x = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(evaluate(f, [x])[0], evaluate(g, [x])[0], rtol=1e-4, atol=1e-4)


def test_nothing_to_convert():
    b = Builder(OPS)
    f = b.finish(b.call("transpose", b.param("x", (2, 3)), axes=(1, 0)))
    assert convert(f) is f


def test_converting_twice_changes_nothing():
    b = Builder(OPS)
    f = convert(b.finish(conv(b, b.param("x", (1, 3, 4, 4)), 2)))
    assert convert(f) is f


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_reshaped_layout_is_right_where_it_answers(data):
    factors = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))

    def grouped() -> tuple[int, ...]:
        cuts = data.draw(st.lists(st.booleans(), min_size=len(factors), max_size=len(factors)))
        shape = [factors[0]]
        for factor, cut in zip(factors[1:], cuts[1:], strict=True):
            shape = [*shape, factor] if cut else [*shape[:-1], shape[-1] * factor]
        return tuple(shape)

    old, new = grouped(), grouped()
    layout = tuple(data.draw(st.permutations(range(len(old)))))
    after = reshaped_layout(old, new, layout)
    value = np.arange(np.prod(old)).reshape(old)
    if after is not None:
        direct = value.reshape(new).transpose(after)
        np.testing.assert_array_equal(value.transpose(layout).reshape(direct.shape), direct)
    np.testing.assert_array_equal(value.transpose(layout).transpose(inverse(layout)), value)
    other = tuple(data.draw(st.permutations(range(len(old)))))
    both = value.transpose(compose(layout, other))
    np.testing.assert_array_equal(value.transpose(layout).transpose(other), both)
    if keeps_order(old, layout):
        np.testing.assert_array_equal(value.transpose(layout).ravel(), value.ravel())


def test_reshape_blocks_without_partner():
    assert reshape_blocks((0, 3), (3, 0)) is None
    assert reshape_blocks((), (1,)) is None


def test_resizing_padding_and_repeating():
    b = Builder(OPS)
    y = conv(b, b.param("x", (1, 3, 4, 5)), 4)
    y = b.call("image.resize", y, axes=(2, 3), size=(8, 7), scales=(2.0, 1.4), mode="linear")
    y = b.call("nn.pad", y, pad_width=((0, 0), (1, 0), (0, 2), (0, 0)), mode="edge")
    y = b.call("tile", y, reps=(1, 1, 2, 1))
    check(b.finish(conv(b, y, 2)), transposes=2)


def test_operators_that_look_at_the_place_get_their_own_layout():
    b = Builder(OPS)
    y = conv(b, b.param("x", (1, 3, 5, 5)), 4)
    y = b.call("trilu", y, upper=True, k=0)
    y = conv(b, y, 4)
    stats = [b.const(np.full(4, v, np.float32)) for v in (2.0, 0.5, 0.1, 1.5)]
    check(b.finish(b.call("nn.batch_norm", y, *stats)), transposes=4)
