"""Parallel branches become one wide operator, with the same results."""

from __future__ import annotations

import numpy as np
import pytest

from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Call, Function, IRModule
from tinycomp.relay.pass_infra import PassContext, Sequential
from tinycomp.relay.passes.combine_parallel import CombineParallelConv2D, CombineParallelDense

OPS = default_ops()
RNG = np.random.default_rng(0)


def combine(function: Function, level: int = 4) -> Function:
    passes = Sequential((CombineParallelDense(), CombineParallelConv2D()))
    module = IRModule({"main": function})
    return passes.run(module, PassContext(OPS, opt_level=level)).main


def check(function: Function, op: str, count: int) -> None:
    combined = combine(function)
    inputs = [RNG.standard_normal(p.type.static_shape).astype(np.float32) for p in function.params]
    for a, b in zip(evaluate(function, inputs), evaluate(combined, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    calls = [b.value.op.name for b in combined.bindings if isinstance(b.value, Call)]
    assert calls.count(op) == count


def weight(b: Builder, *shape: int):
    return b.const(RNG.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("with_bias", [True, False])
def test_query_key_value(with_bias):
    b = Builder(OPS)
    x = b.param("x", (2, 3, 8))
    parts = []
    for n in (4, 4, 6):
        y = b.call("nn.matmul", x, weight(b, 8, n))
        if with_bias:
            y = b.call("add", weight(b, n), y)
        parts.append(b.call("tanh", y))
    f = b.finish(parts)
    check(f, "nn.matmul", 1)
    assert combine(f, level=1) is f


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_convolutions_with_and_without_bias(layout):
    b = Builder(OPS)
    shape, bias = ((1, 3, 5, 5), (4, 1, 1)) if layout == "NCHW" else ((1, 5, 5, 3), (4,))
    x = b.param("x", shape)
    parts = []
    for i in range(4):
        y = b.call("nn.conv2d", x, weight(b, 4, 3, 3, 3), data_layout=layout)
        parts.append(b.call("add", y, weight(b, *bias)) if i % 2 else b.call("exp", y))
    other = b.call("nn.conv2d", x, weight(b, 4, 3, 1, 1), data_layout=layout)
    check(b.finish([*parts, other]), "nn.conv2d", 3)


def test_what_differs_is_left_alone():
    b = Builder(OPS)
    x, y = b.param("x", (3, 8)), b.param("y", (3, 8))
    w = b.param("w", (8, 8))
    parts = [b.call("nn.matmul", a, weight(b, 8, 8)) for a in (x, y)]
    parts.append(b.call("nn.matmul", x, w))
    f = b.finish(parts)
    assert combine(f) is f


def test_bias_that_is_not_per_channel_stays():
    b = Builder(OPS)
    x = b.param("x", (3, 8))
    parts = [b.call("add", b.call("nn.matmul", x, weight(b, 8, 8)), weight(b, 3, 1)) for _ in "ab"]
    check(b.finish(parts), "nn.matmul", 1)


def test_a_joined_result_that_is_the_input_of_another_group():
    b = Builder(OPS)
    x = b.param("x", (3, 8))
    first, other = (b.call("nn.matmul", x, weight(b, 8, 8)) for _ in "ab")
    parts = [b.call("nn.matmul", first, weight(b, 8, 4)) for _ in "cd"]
    check(b.finish([*parts, other]), "nn.matmul", 2)
