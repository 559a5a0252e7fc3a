"""Scaled dot-product attention as one operator, nn.attention.

No importer makes it: exporters write attention as products, softmax and elementwise work, and the
pass FuseAttention finds it there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import te
from ..dtype import DType
from ..ir.expr import is_const
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor
from ..types import TensorType, Type
from .common import broadcast_shapes, read_broadcast
from .window import accumulation_dtype, dims_agree, expect, tensor_arg, widen

Axes = tuple[int, int, int, int]
IN_ORDER: Axes = (0, 1, 2, 3)


@dataclass(frozen=True)
class AttentionAttrs(Attrs):
    """What of nn.attention is fixed.

    Attributes:
        scale: of the products of queries and keys.
        causal: query i sees the keys j <= i + causal; None: all.
        fill: the score of a key that a boolean mask hides.
        zero_hidden: rows of queries that see no key are 0; else NaN, as softmax gives.
        q_axes, k_axes, v_axes: transpositions that bring the operands to [batch, heads, n, depth].
        out_axes: the transposition of the result, from that order.
    """

    scale: float = 1.0
    causal: int | None = None
    fill: float = -math.inf
    zero_hidden: bool = False
    q_axes: Axes = IN_ORDER
    k_axes: Axes = IN_ORDER
    v_axes: Axes = IN_ORDER
    out_axes: Axes = IN_ORDER


def transposed_read(tensor: Tensor, axes: Axes, index: Sequence[Any]) -> Any:
    """The element of `transpose(tensor, axes)` at `index`."""
    place = dict(zip(axes, index, strict=True))
    return tensor(*(place[a] for a in range(4)))


def _infer(attrs: AttentionAttrs, types: Sequence[Type]) -> TensorType:
    op = "nn.attention"
    q, k, v = (tensor_arg(types, i, op, 4) for i in range(3))
    expect(q.dtype.is_float, f"{op}: needs floating-point elements, found {q}")
    expect(q.dtype is k.dtype is v.dtype, f"{op}: dtypes differ: {q}, {k} and {v}")
    batch, heads, queries, depth = (q.shape[a] for a in attrs.q_axes)
    k_batch, k_heads, keys, k_depth = (k.shape[a] for a in attrs.k_axes)
    v_batch, v_heads, v_keys, v_depth = (v.shape[a] for a in attrs.v_axes)
    expect(dims_agree(depth, k_depth), f"{op}: the head sizes of {q} and {k} differ")
    for mine, other in ((k_batch, v_batch), (k_heads, v_heads), (keys, v_keys)):
        expect(dims_agree(mine, other), f"{op}: {k} and {v} do not belong together")
    expect(dims_agree(batch, k_batch), f"{op}: the batches of {q} and {k} differ")
    shared = isinstance(heads, int) and isinstance(k_heads, int)
    expect(
        heads % k_heads == 0 if shared and k_heads else dims_agree(heads, k_heads),
        f"{op}: {k_heads} heads of keys do not divide {heads} heads of queries",
    )
    scores = (batch, heads, queries, keys)
    for i in range(3, len(types)):
        mask = tensor_arg(types, i, op)
        fits = mask.rank <= 4 and broadcast_shapes(op, [mask.shape, scores]) == scores
        expect(fits, f"{op}: the mask {mask} does not broadcast to the scores {list(scores)}")
        known = mask.dtype is DType.BOOL or mask.dtype.is_float
        expect(known, f"{op}: the mask {mask} is neither boolean nor a floating-point tensor")
    shape = (batch, heads, queries, v_depth)
    return TensorType(tuple(shape[a] for a in attrs.out_axes), q.dtype)


def masked_score(
    attrs: AttentionAttrs,
    masks: Sequence[Tensor],
    scores: Sequence[Any],
    index: Sequence[Any],
    score: Any,
) -> Any:
    """A scaled score [b, h, i, j] after the masks, in their order; `scores` is the full shape."""
    dtype = score.dtype
    if attrs.causal is not None:
        *_, i, j = index
        score = te.if_then_else(j <= i + attrs.causal, score, te.const(-math.inf, dtype))
    for mask in masks:
        value = read_broadcast(mask, index, scores)
        if mask.dtype is DType.BOOL:
            score = te.if_then_else(value, score, te.const(attrs.fill, dtype))
        else:
            score = score + value.astype(dtype)
    return score


def _compute(attrs: AttentionAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    q, k, v, *masks = args
    acc = accumulation_dtype(out.dtype)
    batch, heads, queries, depth = (q.shape[a] for a in attrs.q_axes)
    shared = heads // k.shape[attrs.k_axes[1]]
    keys, v_depth = k.shape[attrs.k_axes[2]], v.shape[attrs.v_axes[3]]
    shape = (batch, heads, queries, keys)
    d, j = te.reduce_axis((0, depth), name="d"), te.reduce_axis((0, keys), name="j")
    top = te.reduce_axis((0, keys), name="j")
    each = te.reduce_axis((0, keys), name="j")

    def head(h: Any) -> Any:
        return h if is_const(shared, 1) else h // shared

    def score(b: Any, h: Any, i: Any, j: Any) -> Any:
        left = transposed_read(q, attrs.q_axes, (b, h, i, d)).astype(acc)
        right = transposed_read(k, attrs.k_axes, (b, head(h), j, d)).astype(acc)
        return te.sum(left * right, axis=d)

    raw = te.compute(shape, score, name="scores", tag="attention_scores")
    scale = te.const(attrs.scale, acc)
    scores = te.compute(
        shape, lambda *at: masked_score(attrs, masks, shape, at, raw(*at) * scale), name="masked"
    )
    rows = (batch, heads, queries)
    peak = te.compute(rows, lambda b, h, i: te.max(scores(b, h, i, top), axis=top), name="peak")
    exps = te.compute(
        shape, lambda b, h, i, j: te.call("exp", scores(b, h, i, j) - peak(b, h, i)), name="exps"
    )
    total = te.compute(rows, lambda b, h, i: te.sum(exps(b, h, i, each), axis=each), name="total")

    def weighted(b: Any, h: Any, i: Any, e: Any) -> Any:
        value = transposed_read(v, attrs.v_axes, (b, head(h), j, e)).astype(acc)
        return te.sum(exps(b, h, i, j) * value, axis=j)

    product = te.compute((*rows, v_depth), weighted, name="weighted", tag="attention_weighted")

    def result(*index: Any) -> Any:
        place = dict(zip(attrs.out_axes, index, strict=True))
        b, h, i, e = (place[a] for a in range(4))
        value = product(b, h, i, e) / total(b, h, i)
        if attrs.zero_hidden:
            hidden = peak(b, h, i).equal(te.const(-math.inf, acc))
            value = te.if_then_else(hidden, te.const(0, acc), value)
        return value.astype(out.dtype)

    return [te.compute(out.shape, result, name="attention", tag="attention")]


def _reference(attrs: AttentionAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    operands = zip(arrays[:3], (attrs.q_axes, attrs.k_axes, attrs.v_axes), strict=True)
    q, k, v = (widen(a.transpose(axes)) for a, axes in operands)
    shared = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, shared, 1), np.repeat(v, shared, 1)
    scores = q @ k.swapaxes(2, 3) * np.asarray(attrs.scale, q.dtype)
    if attrs.causal is not None:
        i, j = np.arange(scores.shape[2])[:, None], np.arange(scores.shape[3])
        scores = np.where(j <= i + attrs.causal, scores, np.asarray(-np.inf, q.dtype))
    for mask in arrays[3:]:
        if mask.dtype == np.bool_:
            scores = np.where(mask, scores, np.asarray(attrs.fill, q.dtype))
        else:
            scores = scores + widen(mask).astype(scores.dtype)
    peak = scores.max(axis=3, keepdims=True)
    exps = np.exp(scores - peak)
    out = exps @ v / exps.sum(axis=3, keepdims=True)
    if attrs.zero_hidden:
        out = np.where(peak == -np.inf, 0, out)
    return out.transpose(attrs.out_axes).astype(arrays[0].dtype, copy=False)


def _samples() -> Iterable[Sample]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def sample(*inputs: np.ndarray, **attrs: Any) -> Sample:
        return Sample(inputs, AttentionAttrs(**attrs), rtol=1e-4, atol=1e-5)

    q, k, v = draw(2, 2, 3, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 3)
    yield sample(q, k, v, scale=0.5)
    yield sample(q, k, v, draw(2, 1, 1, 5), causal=2)
    visible = rng.random((3, 5)) < 0.5
    visible[1] = False
    yield sample(q, k, v, visible)  # one row sees nothing: NaN
    yield sample(q, k, v, visible, zero_hidden=True)
    yield sample(q, k, v, visible, draw(1, 2, 3, 5), fill=-1e9)
    swapped = (0, 2, 1, 3)
    yield sample(
        draw(1, 3, 4, 8), draw(1, 5, 2, 8), draw(1, 5, 2, 8),
        q_axes=swapped, k_axes=swapped, v_axes=swapped, out_axes=swapped,
    )  # fmt: skip
    yield sample(draw(1, 2, 70, 20), draw(1, 20, 2, 70), draw(1, 2, 70, 17), k_axes=(0, 2, 3, 1))
    half = [a.astype(np.float16) for a in (q, k, v)]
    hidden = np.where(visible, 0, np.float32(-1e9))
    yield Sample((*half, hidden), AttentionAttrs(), rtol=2e-3, atol=1e-3)


OPS: tuple[Op, ...] = (
    Op(
        "nn.attention",
        OpPattern.OPAQUE,
        _infer,
        _compute,
        _reference,
        AttentionAttrs,
        _samples,
        doc="softmax(q k^T * scale + masks) v for q [batch, heads, n, depth], k [batch, kv_heads, "
        "m, depth] and v [batch, kv_heads, m, v_depth], up to the transpositions of its "
        "attributes. Masks broadcast to [batch, heads, n, m]: boolean ones keep scores, others are "
        "added. ONNX Attention, and what exporters write instead.",
    ),
)
