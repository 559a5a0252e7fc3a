"""Transformers: encoder-decoder, encoder, decoder, and of image patches."""

from __future__ import annotations

import math

import numpy as np
import onnx

from ..graph_builder import GraphBuilder

MASKED = np.array(-1e9, np.float32)


def transformer(
    *,
    source: int = 32,
    target: int = 32,
    batch: int = 1,
    vocab: int = 2000,
    width: int = 256,
    heads: int = 4,
    layers: int = 3,
    seed: int = 0,
) -> onnx.ModelProto:
    """The encoder-decoder of "Attention is all you need": sinusoidal positions, norm after each
    sublayer, causal and padding masks (`source_mask`: 1 keeps a token)."""
    b = GraphBuilder("transformer", seed)
    source_ids = b.ids("source_ids", (batch, source), vocab)
    target_ids = b.ids("target_ids", (batch, target), vocab)
    padding = _padding_mask(b, b.ids("source_mask", (batch, source), 2))
    memory = b.add(b.embedding(source_ids, vocab, width), _sinusoids(source, width))
    for _ in range(layers):
        memory = b.layer_norm(b.add(memory, attention(b, memory, memory, heads, padding)))
        memory = b.layer_norm(b.add(memory, _feed_forward(b, memory, 4 * width, "Relu")))
    x = b.add(b.embedding(target_ids, vocab, width), _sinusoids(target, width))
    causal = b.constant(np.triu(np.full((target, target), MASKED), 1).astype(np.float32))
    for _ in range(layers):
        x = b.layer_norm(b.add(x, attention(b, x, x, heads, causal)))
        x = b.layer_norm(b.add(x, attention(b, x, memory, heads, padding)))
        x = b.layer_norm(b.add(x, _feed_forward(b, x, 4 * width, "Relu")))
    return b.model(logits=b.linear(x, vocab))


def bert(
    *,
    sequence: int = 128,
    batch: int = 1,
    vocab: int = 5000,
    width: int = 256,
    heads: int = 4,
    layers: int = 4,
    seed: int = 0,
) -> onnx.ModelProto:
    """BERT (mini by default): `hidden` [batch, sequence, width] and `pooled` [batch, width]."""
    b = GraphBuilder("bert", seed)
    ids = b.ids("input_ids", (batch, sequence), vocab)
    mask = _padding_mask(b, b.ids("attention_mask", (batch, sequence), 2))
    types = b.embedding(b.ids("token_type_ids", (batch, sequence), 2), 2, width)
    positions = b.normal((sequence, width), 0.5)
    x = b.layer_norm(b.add(b.add(b.embedding(ids, vocab, width), types), positions), 1e-12)
    for _ in range(layers):
        x = b.layer_norm(b.add(x, attention(b, x, x, heads, mask)), 1e-12)
        x = b.layer_norm(b.add(x, _feed_forward(b, x, 4 * width, "erf")), 1e-12)
    first = b.op("Gather", x, np.array(0, np.int64), axis=1)
    return b.model(hidden=x, pooled=b.op("Tanh", b.linear(first, width)))


def gpt2(
    *,
    sequence: int = 64,
    batch: int = 1,
    vocab: int = 5000,
    width: int = 256,
    heads: int = 4,
    layers: int = 4,
    seed: int = 0,
) -> onnx.ModelProto:
    """GPT-2's decoder: norm before each sublayer, one projection for q, k and v, tied logits."""
    b = GraphBuilder("gpt2", seed, opset=20)
    ids = b.ids("input_ids", (batch, sequence), vocab)
    table = b.constant(b.normal((vocab, width), 1 / math.sqrt(width)), "table")
    x = b.add(b.op("Gather", table, ids), b.normal((sequence, width), 1 / math.sqrt(width)))
    visible = b.op("Trilu", np.ones((sequence, sequence), np.float32), upper=0)
    visible = b.op("Cast", visible, to=onnx.TensorProto.BOOL)
    for _ in range(layers):
        qkv = b.linear(b.layer_norm(x), 3 * width)
        q, k, v = b.multi("Split", qkv, outputs=3, axis=2, num_outputs=3)
        scores = b.op("Where", visible, _scores(b, q, k, heads), MASKED)
        x = b.add(x, b.linear(_weighted(b, scores, v, heads), width))
        x = b.add(x, _feed_forward(b, b.layer_norm(x), 4 * width, "tanh"))
    x = b.layer_norm(x)
    return b.model(logits=b.op("MatMul", x, b.transpose(table, (1, 0))))


def vit(
    *,
    batch: int = 1,
    image: int = 224,
    patch: int = 16,
    width: int = 192,
    heads: int = 3,
    layers: int = 12,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """Vision transformer (ViT-Ti/16 by default): patches by convolution, a class token."""
    b = GraphBuilder("vit", seed, opset=21)
    x = b.conv(b.input("image", (batch, 3, image, image)), width, patch, stride=patch, pad=0)
    x = b.transpose(b.reshape(x, (batch, width, -1)), (0, 2, 1))
    token = b.op("Expand", b.normal((1, 1, width), 1.0), np.array([batch, 1, width], np.int64))
    x = b.concat([token, x], axis=1)
    x = b.add(x, b.normal((1, b.shape(x)[1], width), 0.5))
    for _ in range(layers):
        y = b.layer_norm(x, 1e-6)
        x = b.add(x, attention(b, y, y, heads))
        x = b.add(x, _feed_forward(b, b.layer_norm(x, 1e-6), 4 * width, "Gelu"))
    x = b.op("Squeeze", b.slice(b.layer_norm(x, 1e-6), 0, 1, axis=1), np.array([1], np.int64))
    return b.model(logits=b.linear(x, classes))


def attention(b: GraphBuilder, x: str, memory: str, heads: int, mask: str = "") -> str:
    """Multi-head attention of `x` [batch, n, width] over `memory` [batch, m, width].

    `mask` is added to the scores [batch, heads, n, m].
    """
    width = b.shape(x)[-1]
    q, k, v = (b.linear(value, width) for value in (x, memory, memory))
    scores = _scores(b, q, k, heads)
    if mask:
        scores = b.add(scores, mask)
    return b.linear(_weighted(b, scores, v, heads), width)


def _scores(b: GraphBuilder, q: str, k: str, heads: int) -> str:
    size = b.shape(q)[-1] // heads
    scale = np.array(1 / math.sqrt(size), np.float32)
    keys = b.transpose(_split_heads(b, k, heads), (0, 1, 3, 2))
    return b.op("Mul", b.op("MatMul", _split_heads(b, q, heads), keys), scale)


def _weighted(b: GraphBuilder, scores: str, v: str, heads: int) -> str:
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), _split_heads(b, v, heads))
    return b.reshape(b.transpose(mixed, (0, 2, 1, 3)), (*b.shape(scores)[::2], -1))


def _split_heads(b: GraphBuilder, x: str, heads: int) -> str:
    """[batch, n, width] to [batch, heads, n, width / heads]."""
    return b.transpose(b.reshape(x, (*b.shape(x)[:2], heads, -1)), (0, 2, 1, 3))


def _padding_mask(b: GraphBuilder, keep: str) -> str:
    """0 for tokens to keep and a large negative number for others, [batch, 1, 1, m]."""
    keep = b.op("Cast", b.op("Unsqueeze", keep, np.array([1, 2], np.int64)), to=1)
    return b.op("Mul", b.op("Sub", np.array(1, np.float32), keep), MASKED)


def _feed_forward(b: GraphBuilder, x: str, hidden: int, activation: str) -> str:
    """Two dense layers; GELU as one operator, or composed as exporters do: "erf" or "tanh"."""
    width = b.shape(x)[-1]
    y = b.linear(x, hidden)
    half, one = np.array(0.5, np.float32), np.array(1, np.float32)
    if activation == "erf":
        curve = b.op("Erf", b.op("Div", y, np.array(math.sqrt(2), np.float32)))
        y = b.op("Mul", b.op("Mul", y, b.add(curve, one)), half)
    elif activation == "tanh":
        cubic = b.op("Mul", b.op("Pow", y, np.array(3, np.float32)), np.array(0.044715, np.float32))
        inner = b.op("Mul", b.add(y, cubic), np.array(math.sqrt(2 / math.pi), np.float32))
        y = b.op("Mul", b.op("Mul", y, half), b.add(b.op("Tanh", inner), one))
    else:
        y = b.op(activation, y)
    return b.linear(y, width)


def _sinusoids(length: int, width: int) -> np.ndarray:
    position = np.arange(length)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(position), np.cos(position)], -1).reshape(length, -1).astype(np.float32)
