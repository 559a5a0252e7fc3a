"""FuseAttention: the spellings of attention that it knows, and what prevents it."""

import math

import numpy as np
import pytest

from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Call, Function, IRModule
from tinycomp.relay.pass_infra import PassContext, Sequential
from tinycomp.relay.passes.fuse_attention import FuseAttention
from tinycomp.relay.verify import verify_function

B, H, N, M, D, E = 2, 4, 5, 6, 8, 3
HEADS = (0, 2, 1, 3)


class Parts:
    """The values that spellings of attention are made of."""

    def __init__(self, ops):
        self.b = Builder(ops, fold=False)
        self.rng = np.random.default_rng(0)

    def __call__(self, op, *args, **attrs):
        return self.b.call(op, *args, **attrs)

    def param(self, *shape, dtype="float32"):
        return self.b.param(f"x{len(self.b.params)}", shape, dtype)

    def heads(self, length, depth, heads=H):
        """[B, heads, length, depth], from a tensor as a projection gives it."""
        x = self.param(B, length, heads * depth)
        x = self("reshape", x, newshape=(B, length, heads, depth))
        return self("transpose", x, axes=HEADS)

    def qkv(self):
        return self.heads(N, D), self.heads(M, D), self.heads(M, E)

    def scores(self, q, k):
        rank = len(k.type.shape)
        axes = (*range(rank - 2), rank - 1, rank - 2)
        return self("nn.matmul", q, self("transpose", k, axes=axes))

    def merged(self, weights, v):
        out = self("transpose", self("nn.matmul", weights, v), axes=HEADS)
        return self("reshape", out, newshape=(B, N, H * E))

    def scalar(self, value):
        return self.b.const(np.float32(value))


def bert(p):
    q, k, v = p.qkv()
    scores = p("divide", p.scores(q, k), p.scalar(math.sqrt(D)))
    scores = p("add", scores, p.param(B, 1, 1, M))
    return p.merged(p("nn.softmax", scores), v)


def mask_first(p):
    q, k, v = p.qkv()
    scores = p("multiply", p.scalar(0.25), p.scores(q, k))
    return p.merged(p("nn.softmax", p("add", p.param(1, 1, N, M), scores)), v)


def scaled_query(p):
    q, k, v = p.qkv()
    return p.merged(p("nn.softmax", p.scores(p("multiply", q, p.scalar(0.3)), k), axis=3), v)


def both_scaled(p):
    q, k, v = p.qkv()
    root = p.scalar(D**-0.25)
    q, k = p("multiply", q, root), p("divide", k, p.scalar(2.0))
    return p.merged(p("nn.softmax", p.scores(q, k)), v)


def unscaled_with_bias(p):
    q, k, v = p.qkv()
    return p.merged(p("nn.softmax", p("add", p.scores(q, k), p.param(1, H, N, M))), v)


def causal(p, fill=-math.inf, offset=1):
    q, k, v = p.qkv()
    visible = p.b.const(np.tri(N, M, offset, dtype=bool)[None, None])
    scores = p("where", visible, p.scores(q, k), p.scalar(fill))
    return p.merged(p("nn.softmax", scores), v)


def causal_added(p):
    q, k, v = p.qkv()
    hidden = np.where(np.tri(N, M, dtype=bool), 0, np.finfo(np.float32).min)
    scores = p("add", p.scores(q, k), p.b.const(hidden.astype(np.float32)))
    return p.merged(p("nn.softmax", scores), v)


def where_hidden(p):
    q, k, v = p.qkv()
    hidden = p.param(B, 1, 1, M, dtype="bool")
    scores = p("where", hidden, p.scalar(-1e9), p.scores(q, k))
    return p.merged(p("nn.softmax", scores), v)


def two_masks(p):
    q, k, v = p.qkv()
    scores = p("multiply", p.scores(q, k), p.scalar(0.5))
    scores = p("where", p.param(N, M, dtype="bool"), scores, p.scalar(-1e9))
    return p.merged(p("nn.softmax", p("subtract", scores, p.param(B, 1, 1, M))), v)


def merged_batch(p):
    """Heads as batches: the products have rank 3."""
    q, k, v = (p("reshape", x, newshape=(B * H, *x.type.shape[2:])) for x in p.qkv())
    scores = p("reshape", p.scores(q, k), newshape=(B, H, N, M))
    scores = p("add", scores, p.param(B, 1, N, M))
    weights = p("nn.softmax", p("reshape", scores, newshape=(B * H, N, M)))
    out = p("reshape", p("nn.matmul", weights, v), newshape=(B, H, N, E))
    return p("reshape", p("transpose", out, axes=HEADS), newshape=(B, N, H * E))


def merged_without_mask(p):
    q, k, v = (p("reshape", x, newshape=(B * H, *x.type.shape[2:])) for x in p.qkv())
    k = p("transpose", k, axes=(0, 2, 1))
    return p("nn.matmul", p("nn.softmax", p("nn.matmul", q, k)), v)


def keys_through_rank3(p):
    """As PyTorch exports scaled_dot_product_attention."""
    q, k, v = p.qkv()
    root = p.scalar(D**-0.25)
    k = p("transpose", p("reshape", k, newshape=(B * H, M, D)), axes=(0, 2, 1))
    k = p("multiply", p("reshape", k, newshape=(B, H, D, M)), root)
    scores = p("nn.matmul", p("multiply", q, root), k)
    return p.merged(p("nn.softmax", p("add", scores, p.param(B, 1, N, M))), v)


def plain_rank3(p):
    q, k, v = p.param(3, N, D), p.param(3, D, M), p.param(3, M, E)
    scores = p("add", p("nn.matmul", q, k), p.param(3, N, M))
    return p("nn.matmul", p("nn.softmax", scores), v)


def matrices(p):
    q, k, v = p.param(N, D), p.param(M, D), p.param(M, E)
    return p("nn.matmul", p("nn.softmax", p.scores(q, k)), v)


def grouped(p):
    """Keys repeated for groups of heads, as exporters of llama write it."""

    def repeated(x):
        batch, few, length, depth = x.type.shape
        x = p("reshape", x, newshape=(batch, few, 1, length, depth))
        x = p("broadcast_to", x, shape=(batch, few, H // few, length, depth))
        return p("reshape", x, newshape=(batch, H, length, depth))

    q, k, v = p.heads(N, D), repeated(p.heads(M, D, 2)), repeated(p.heads(M, E, 2))
    return p.merged(p("nn.softmax", p("multiply", p.scores(q, k), p.scalar(0.1))), v)


def grouped_rows(p):
    """Groups of heads as rows of one product, as tinycomp imports ONNX Attention."""
    q, k, v = p.heads(N, D), p.heads(M, D, 2), p.heads(M, E, 2)
    q = p("reshape", p("multiply", q, p.scalar(0.5)), newshape=(B, 2, H // 2 * N, D))
    scores = p("reshape", p.scores(q, k), newshape=(B, H, N, M))
    visible = p.param(B, 1, N, M, dtype="bool")
    weights = p("nn.softmax", p("where", visible, scores, p.scalar(-math.inf)))
    weights = p("where", visible, weights, p.scalar(0.0))
    weights = p("reshape", weights, newshape=(B, 2, H // 2 * N, M))
    out = p("reshape", p("nn.matmul", weights, v), newshape=(B, H, N, E))
    return p("reshape", p("transpose", out, axes=HEADS), newshape=(B, N, H * E))


def safe_softmax(p):
    q, k, v = p.qkv()
    scores = p("where", p.param(1, 1, N, M, dtype="bool"), p.scores(q, k), p.scalar(-math.inf))
    weights = p("nn.softmax", scores)
    weights = p("where", p("isnan", weights), p.scalar(0.0), weights)
    return p.merged(weights, v)


def one_key_head(p):
    q, k, v = p.heads(N, D), p.heads(M, D, 1), p.heads(M, E, 1)
    return p.merged(p("nn.softmax", p.scores(q, k)), v)


SPELLINGS = [
    bert, mask_first, scaled_query, both_scaled, unscaled_with_bias, causal, causal_added,
    where_hidden, two_masks, keys_through_rank3, merged_batch, merged_without_mask, plain_rank3,
    matrices, grouped, grouped_rows, safe_softmax, one_key_head,
]  # fmt: skip


def fuse(p, result) -> tuple[Function, Function]:
    before = p.b.finish(result)
    module = Sequential((FuseAttention(),)).run(IRModule({"main": before}), PassContext(p.b.ops))
    verify_function(module.main)
    return before, module.main


def operators(function):
    return [b.value.op.name for b in function.bindings if isinstance(b.value, Call)]


def attrs_of(function):
    return next(b.value.attrs for b in function.bindings if b.value.op.name == "nn.attention")


def arrays_of(function, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.random(p.type.shape) < 0.7
        if p.type.dtype == "bool"
        else rng.standard_normal(p.type.shape).astype(np.float32)
        for p in function.params
    ]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spelling(spelling, ops):
    p = Parts(ops)
    before, after = fuse(p, spelling(p))
    names = operators(after)
    assert names.count("nn.attention") == 1
    left = {"nn.attention", "reshape", "logical_not", "negative"}
    assert set(names) <= left, names
    arrays = arrays_of(before)
    with np.errstate(all="ignore"):
        expected, found = evaluate(before, arrays), evaluate(after, arrays)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-5)


def test_causal_masks_are_recognised(ops):
    for spelling, offset in ((causal, 1), (causal_added, 0)):
        p = Parts(ops)
        assert attrs_of(fuse(p, spelling(p))[1]).causal == offset
    p = Parts(ops)
    assert attrs_of(fuse(p, causal(p, fill=-1e9))[1]).causal is None  # could show through
    p = Parts(ops)
    assert attrs_of(fuse(p, causal(p, offset=-1))[1]).causal is None  # hides a row


def test_scales_are_combined(ops):
    p = Parts(ops)
    attrs = attrs_of(fuse(p, both_scaled(p))[1])
    assert attrs.scale == pytest.approx(np.float32(D**-0.25) / 2)
    assert attrs.q_axes == attrs.k_axes == attrs.v_axes == attrs.out_axes == HEADS


def shared_scores(p):
    q, k, v = p.qkv()
    scores = p.scores(q, k)
    return [p.merged(p("nn.softmax", scores), v), scores]


def shared_weights(p):
    q, k, v = p.qkv()
    weights = p("nn.softmax", p.scores(q, k))
    return [p.merged(weights, v), weights]


def other_axis(p):
    q, k, v = p.qkv()
    return p.merged(p("nn.softmax", p.scores(q, k), axis=2), v)


def values_on_the_left(p):
    q, k = p.param(B, H, N, D), p.param(B, H, N, D)
    weights = p("nn.softmax", p.scores(q, k))
    return p("nn.matmul", p.param(B, H, E, N), weights)


def scaled_mask(p):
    q, k, v = p.qkv()
    scores = p("multiply", p("add", p.scores(q, k), p.param(N, M)), p.scalar(0.5))
    return p.merged(p("nn.softmax", scores), v)


def scale_tensor(p):
    q, k, v = p.qkv()
    return p.merged(p("nn.softmax", p("multiply", p.scores(q, k), p.param(N, M))), v)


def large_heads(p):
    q, k, v = p.param(1, 1, N, 300), p.param(1, 1, M, 300), p.param(1, 1, M, E)
    return p("nn.matmul", p("nn.softmax", p.scores(q, k)), v)


@pytest.mark.parametrize(
    "other",
    [shared_scores, shared_weights, other_axis, values_on_the_left, scaled_mask, scale_tensor,
     large_heads],
)  # fmt: skip
def test_not_fused(other, ops):
    p = Parts(ops)
    before, after = fuse(p, other(p))
    assert after is before
