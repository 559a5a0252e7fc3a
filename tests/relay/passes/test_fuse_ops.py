"""FuseOps: which groups form, that results stay the same, and what stays outside kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.dominators import post_dominators
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Call, Function, IRModule, Var
from tinycomp.relay.op import OpPattern
from tinycomp.relay.pass_infra import PassContext, Sequential
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.relay.structural_key import structural_key
from tinycomp.target import Target

OPS = default_ops()


def fuse(function: Function, **options) -> Function:
    return (
        Sequential((FuseOps(**options),)).run(IRModule({"main": function}), PassContext(OPS)).main
    )


def kernels(function: Function) -> list[str]:
    """Operators of each kernel, views outside kernels in brackets."""
    out = []
    for binding in function.bindings:
        if isinstance(binding.value, Call):
            op = binding.value.op
            if isinstance(op, Function):
                out.append(" ".join(b.value.op.name for b in op.bindings))
            else:
                out.append(f"[{op.name}]")
    return out


def check_same(before: Function, after: Function, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    inputs = [
        rng.standard_normal(p.type.static_shape).astype(p.type.dtype.numpy) for p in before.params
    ]
    for a, b in zip(evaluate(before, inputs), evaluate(after, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def conv(b: Builder, x, channels: int, size: int = 3):
    weight = b.const(np.ones((channels, x.type.shape[1], size, size), np.float32))
    pad = size // 2
    return b.call("nn.conv2d", x, weight, padding=(pad, pad, pad, pad))


def layer_norm(b: Builder, x):
    mean = b.call("mean", x, axis=(-1,), keepdims=True)
    centred = b.call("subtract", x, mean)
    square = b.call("power", centred, b.const(2.0))
    variance = b.call("mean", square, axis=(-1,), keepdims=True)
    deviation = b.call("sqrt", b.call("add", variance, b.const(1e-5)))
    scaled = b.call("divide", centred, deviation)
    gamma, beta = (b.const(np.full(x.type.shape[-1], v, np.float32)) for v in (2.0, 3.0))
    return b.call("add", b.call("multiply", scaled, gamma), beta)


def test_elementwise_chain_and_diamond_become_one_kernel():
    b = Builder(OPS)
    x = b.param("x", (4, 5))
    y = b.call("exp", x)
    z = b.call("add", b.call("nn.relu", y), b.call("negative", y))
    f = b.finish(z)
    g = fuse(f)
    assert kernels(g) == ["exp nn.relu negative add"]
    assert g.bindings[0].value.op.attrs["name"] == "fused_exp_nn_relu_negative_add"
    check_same(f, g)


def test_a_value_that_is_returned_ends_its_group():
    b = Builder(OPS)
    y = b.call("exp", b.param("x", (4,)))
    f = b.finish([y, b.call("negative", y)])
    assert kernels(fuse(f)) == ["exp", "negative"]


def test_convolution_takes_bias_residual_and_silu_but_not_the_next_convolution():
    b = Builder(OPS)
    x = b.param("x", (1, 4, 6, 6))
    y = conv(b, x, 4)
    y = b.call("add", y, b.const(np.ones((4, 1, 1), np.float32)))
    y = b.call("multiply", y, b.call("sigmoid", y))
    z = b.call("nn.relu", b.call("add", conv(b, y, 4), x))
    f = b.finish(z)
    g = fuse(f)
    assert kernels(g) == ["nn.conv2d add sigmoid multiply", "nn.conv2d add nn.relu"]
    check_same(f, g)


def test_two_convolutions_never_share_a_kernel():
    b = Builder(OPS)
    x = b.param("x", (1, 4, 6, 6))
    f = b.finish(b.call("nn.relu", b.call("add", conv(b, x, 4), conv(b, x, 4, 1))))
    assert sorted(map(len, map(str.split, kernels(fuse(f))))) == [1, 3]


def test_layer_norm_with_the_residual_before_it_is_stitched():
    b = Builder(OPS)
    x, r = b.param("x", (2, 3, 8)), b.param("r", (2, 3, 8))
    f = b.finish(b.call("nn.relu", layer_norm(b, b.call("add", x, r))))
    g = fuse(f)
    assert len(kernels(g)) == 1
    attrs = g.bindings[0].value.op.attrs
    assert attrs["stitched"]
    assert attrs["rows"] == 2
    check_same(f, g)
    assert len(kernels(fuse(f, max_row_bytes=0))) > 1
    assert len(kernels(fuse(f, max_row_bytes=32))) > 1


def test_masked_softmax_is_stitched():
    b = Builder(OPS)
    x, mask = b.param("x", (2, 4, 3, 8)), b.param("m", (2, 1, 1, 8))
    scores = b.call("add", b.call("multiply", x, b.const(0.5)), mask)
    top = b.call("max", scores, axis=(3,), keepdims=True)
    e = b.call("exp", b.call("subtract", scores, top))
    p = b.call("divide", e, b.call("sum", e, axis=(3,), keepdims=True))
    f = b.finish(b.call("where", b.call("isnan", p), b.const(0.0), p))
    g = fuse(f)
    assert len(kernels(g)) == 1
    assert g.bindings[0].value.op.attrs["rows"] == 3
    check_same(f, g)


def test_residual_that_is_needed_later_is_not_stitched_away():
    b = Builder(OPS)
    x, r = b.param("x", (3, 8)), b.param("r", (3, 8))
    total = b.call("add", x, r)
    f = b.finish(b.call("add", layer_norm(b, total), b.call("exp", total)))
    g = fuse(f)
    check_same(f, g)
    b = Builder(OPS)
    total = b.call("add", b.param("x", (3, 8)), b.param("r", (3, 8)))
    f = b.finish([layer_norm(b, total), total])
    assert kernels(fuse(f))[0] == "add"


def test_reduction_over_leading_axes_is_not_stitched():
    b = Builder(OPS)
    x = b.param("x", (3, 8))
    f = b.finish(b.call("subtract", x, b.call("mean", x, axis=(0,), keepdims=True)))
    assert kernels(fuse(f)) == ["mean", "subtract"]


def test_columns_are_stitched_for_gpus():
    """Reductions over inner axes; a value without that axis may not be broadcast into the group."""
    b = Builder(OPS)
    x = b.param("x", (2, 3, 8))
    centred = b.call("subtract", x, b.call("mean", x, axis=(1,), keepdims=True))
    variance = b.call("mean", b.call("multiply", centred, centred), axis=(1,), keepdims=False)
    f = b.finish(b.call("sqrt", variance))
    context = PassContext(OPS, Target.parse("cuda -arch=sm_90a"))
    g = FuseOps().run_function(f, context)
    assert kernels(g) == ["mean subtract multiply mean sqrt"]
    check_same(f, g)
    b = Builder(OPS)
    x = b.param("x", (3, 3, 3))
    f = b.finish(b.call("subtract", x, b.call("mean", x, axis=(1,), keepdims=False)))
    g = FuseOps().run_function(f, context)
    assert kernels(g) == ["mean", "subtract"]
    check_same(f, g)


def test_multiply_and_sum_is_a_plain_reduction():
    b = Builder(OPS)
    x, y = b.param("x", (3, 8)), b.param("y", (3, 8))
    g = fuse(b.finish(b.call("sum", b.call("multiply", x, y), axis=(1,), keepdims=False)))
    assert kernels(g) == ["multiply sum"]
    assert "stitched" not in g.bindings[0].value.op.attrs


def test_expensive_operator_is_not_recomputed_for_a_broadcast():
    b = Builder(OPS)
    x, s = b.param("x", (2, 8, 8)), b.param("s", (2, 1, 1))
    f = b.finish(b.call("multiply", x, b.call("exp", s)))
    assert kernels(fuse(f)) == ["exp", "multiply"]
    b = Builder(OPS)
    x, s = b.param("x", (2, 8, 8)), b.param("s", (2, 1, 1))
    f = b.finish(b.call("multiply", x, b.call("negative", s)))
    assert kernels(fuse(f)) == ["negative multiply"]


def test_reshapes_at_the_border_stay_outside():
    b = Builder(OPS)
    x = b.param("x", (4, 6))
    y = b.call("nn.relu", b.call("reshape", x, newshape=(2, 12)))
    y = b.call("exp", b.call("reshape", y, newshape=(24,)))
    f = b.finish(b.call("reshape", y, newshape=(3, 8)))
    g = fuse(f)
    assert kernels(g) == ["[reshape]", "nn.relu reshape exp", "[reshape]"]
    check_same(f, g)


def test_transpose_goes_into_its_elementwise_reader():
    b = Builder(OPS)
    x, y = b.param("x", (4, 6)), b.param("y", (6, 4))
    f = b.finish(b.call("add", b.call("transpose", x, axes=(1, 0)), y))
    assert kernels(fuse(f)) == ["transpose add"]


def test_packing_takes_the_transpose_before_it_but_not_the_product_after_it():
    b = Builder(OPS)
    q, k = b.param("q", (2, 3, 8)), b.param("k", (2, 5, 8))
    packed = b.call("nn.pack_matmul", b.call("transpose", k, axes=(0, 2, 1)), tile=(2, 4))
    f = b.finish(b.call("nn.matmul_packed", q, packed, n=5, k=8, tile=(2, 4)))
    assert kernels(fuse(f)) == ["transpose nn.pack_matmul", "nn.matmul_packed"]


def test_scalars_are_inside_and_arrays_are_arguments():
    b = Builder(OPS)
    x = b.param("x", (4,))
    w = b.const(np.arange(4, dtype=np.float32))
    y = b.call("add", b.call("multiply", b.call("add", x, w), b.const(2.0)), w)
    g = fuse(b.finish(y))
    (binding,) = g.bindings
    assert binding.value.args == (x, w)
    assert len(binding.value.op.params) == 2


def test_equal_groups_have_equal_keys():
    def group(scale: float, op: str = "exp") -> str:
        b = Builder(OPS)
        x = b.param("x", (4,))
        g = fuse(b.finish(b.call(op, b.call("multiply", x, b.const(scale)))))
        return g.bindings[0].value.op.attrs["key"]

    assert group(2.0) == group(2.0)
    assert len({group(2.0), group(3.0), group(2.0, "negative")}) == 3


def test_key_ignores_names_and_sees_wiring():
    def function(swap: bool, name: str) -> Function:
        b = Builder(OPS)
        x, y = b.param(name, (4,)), b.param("y", (4,))
        return b.finish(b.call("subtract", *((y, x) if swap else (x, y))))

    assert structural_key(function(False, "a")) == structural_key(function(False, "b"))
    assert structural_key(function(False, "a")) != structural_key(function(True, "a"))


def test_limits_and_fuse_off():
    b = Builder(OPS)
    y = b.param("x", (4,))
    for _ in range(100):
        y = b.call("negative", y)
    f = b.finish(y)
    assert max(len(k.split()) for k in kernels(fuse(f, max_ops=16))) <= 16
    assert len(kernels(fuse(f, fuse=False))) == 100


def test_many_arguments_are_split():
    b = Builder(OPS)
    xs = [b.param(f"x{i}", (4,)) for i in range(50)]
    y = xs[0]
    for x in xs[1:]:
        y = b.call("add", y, x)
    f = b.finish(y)
    g = fuse(f, max_args=8)
    assert all(len(c.value.args) <= 8 for c in g.bindings)
    check_same(f, g)


def test_deep_graph_and_nested_functions():
    b = Builder(OPS)
    y = b.param("x", (2,))
    for _ in range(3000):
        y = b.call("add", y, y)
    assert len(fuse(b.finish(y)).bindings) <= 3000 / 64 + 2

    then = Builder(OPS)
    t = then.finish(then.call("exp", then.call("negative", then.param("a", (2,)))))
    other = Builder(OPS)
    e = other.finish(other.call("nn.relu", other.param("a", (2,))))
    b = Builder(OPS)
    c, x = b.param("c", (), "bool"), b.param("x", (2,))
    g = fuse(b.finish(b.if_(c, t, e, [x])))
    assert kernels(g.bindings[0].value.then_branch) == ["negative exp"]


def test_fusing_twice_changes_nothing():
    b = Builder(OPS)
    g = fuse(b.finish(b.call("exp", b.call("reshape", b.param("x", (4,)), newshape=(2, 2)))))
    assert fuse(g) is g


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_graphs_keep_their_meaning(data):
    b = Builder(OPS)
    values = [b.param("x", (3, 4)), b.param("y", (3, 4))]
    for _ in range(data.draw(st.integers(1, 25))):
        kind = data.draw(st.sampled_from(["exp", "negative", "add", "maximum", "sum", "rows", "t"]))
        x, y = (values[data.draw(st.integers(0, len(values) - 1))] for _ in range(2))
        if kind in ("exp", "negative"):
            values.append(b.call("tanh" if kind == "exp" else kind, x))
        elif kind in ("add", "maximum"):
            values.append(b.call(kind, x, y))
        elif kind == "t":
            flat = b.call("reshape", x, newshape=(4, 3))
            values.append(b.call("transpose", flat, axes=(1, 0)))
        else:
            axis = (1,) if kind == "sum" else (0,)
            total = b.call("max", x, axis=axis, keepdims=True)
            values.append(b.call("subtract", y, total))
    f = b.finish([v for v in values[-2:] if isinstance(v, Var)])
    check_same(f, fuse(f), seed=1)


def brute_post_dominator(consumers: list[list[int]], escaping: set[int], node: int) -> int:
    """The first node other than `node` whose removal cuts `node` off from the outside."""
    exits = escaping | {i for i, c in enumerate(consumers) if not c}
    for candidate in range(node + 1, len(consumers)):
        seen, stack = {node}, [node]
        while stack:
            for c in consumers[stack.pop()]:
                if c not in seen and c != candidate:
                    seen.add(c)
                    stack.append(c)
        if not seen & exits:
            return candidate
    return -1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_post_dominators_agree_with_their_definition(seed, count):
    rng = np.random.default_rng(seed)
    consumers = [
        [j for j in range(i + 1, count) if rng.random() < 2.0 / (j - i + 1)] for i in range(count)
    ]
    escaping = {count - 1} | {i for i in range(count) if rng.random() < 0.1}
    edges = [[(j, OpPattern.ELEMWISE) for j in c] for c in consumers]
    tree = post_dominators(edges, escaping)
    for node in range(count):
        assert tree.parent[node] == brute_post_dominator(consumers, escaping, node)


@pytest.mark.parametrize("keepdims", [True, False])
def test_reduction_output_of_a_stitched_group(keepdims):
    b = Builder(OPS)
    x = b.param("x", (5, 6))
    centred = b.call("subtract", x, b.call("mean", x, axis=(1,), keepdims=True))
    f = b.finish(b.call("sum", b.call("multiply", centred, centred), axis=(1,), keepdims=keepdims))
    g = fuse(f)
    assert len(kernels(g)) == 1
    check_same(f, g)
