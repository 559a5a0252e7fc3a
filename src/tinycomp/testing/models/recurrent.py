"""Sequence models with recurrent layers."""

from __future__ import annotations

import math

import numpy as np
import onnx

from ..graph_builder import GraphBuilder


def lstm_model(
    *,
    steps: int = 32,
    batch: int = 1,
    vocab: int = 5000,
    width: int = 128,
    hidden: int = 128,
    classes: int = 32,
    seed: int = 0,
) -> onnx.ModelProto:
    """A tagger: embedding, bidirectional LSTM, LSTM, a label for every step.

    Outputs `logits` [steps, batch, classes] and the last layer's final `cell`.
    """
    b = GraphBuilder("lstm_model", seed)
    ids = b.ids("ids", (steps, batch), vocab)
    x, _, _ = _layer(b, "LSTM", b.embedding(ids, vocab, width), hidden, bidirectional=True)
    x, _, cell = _layer(b, "LSTM", x, hidden)
    return b.model(logits=b.linear(x, classes), cell=cell)


def gru_model(
    *,
    steps: int = 32,
    batch: int = 1,
    features: int = 40,
    hidden: int = 128,
    classes: int = 12,
    seed: int = 0,
) -> onnx.ModelProto:
    """A keyword spotter: features of sound, two GRUs, one class from the last state."""
    b = GraphBuilder("gru_model", seed)
    x = b.transpose(b.input("features", (batch, steps, features)), (1, 0, 2))
    x, _ = _layer(b, "GRU", x, hidden)
    _, state = _layer(b, "GRU", x, hidden, linear_before_reset=1)
    logits = b.linear(b.reshape(state, (batch, hidden)), classes)
    return b.model(log_probabilities=b.op("LogSoftmax", logits, axis=-1))


def seq2seq_attention(
    *,
    source: int = 16,
    target: int = 16,
    batch: int = 1,
    vocab: int = 2000,
    hidden: int = 128,
    seed: int = 0,
) -> onnx.ModelProto:
    """Encoder and decoder GRUs with Luong attention; the target is given (teacher forcing)."""
    b = GraphBuilder("seq2seq_attention", seed)
    source_ids = b.ids("source_ids", (source, batch), vocab)
    target_ids = b.ids("target_ids", (target, batch), vocab)
    encoded, state = _layer(b, "GRU", b.embedding(source_ids, vocab, hidden), hidden)
    table = b.embedding(target_ids, vocab, hidden)
    decoded, _ = _layer(b, "GRU", table, hidden, initial=state)
    memory = b.transpose(encoded, (1, 0, 2))  # [batch, source, hidden]
    query = b.linear(b.transpose(decoded, (1, 0, 2)), hidden, bias=False)
    scores = b.op("MatMul", query, b.transpose(memory, (0, 2, 1)))
    context = b.op("MatMul", b.op("Softmax", scores, axis=-1), memory)
    mixed = b.concat([context, b.transpose(decoded, (1, 0, 2))], axis=-1)
    return b.model(logits=b.linear(b.op("Tanh", b.linear(mixed, hidden)), vocab))


GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def _layer(
    b: GraphBuilder,
    kind: str,
    x: str,
    hidden: int,
    bidirectional: bool = False,
    initial: str = "",
    **attributes: int,
) -> tuple[str, ...]:
    """A recurrent layer over [steps, batch, features].

    Its outputs [steps, batch, directions * hidden], then its final states.
    """
    steps, batch, features = b.shape(x)
    gates, directions = GATES[kind] * hidden, 1 + bidirectional
    weights = [
        b.normal((directions, gates, features), 1 / math.sqrt(features)),
        b.normal((directions, gates, hidden), 1 / math.sqrt(hidden)),
        b.normal((directions, 2 * gates), 0.1),
    ]
    y, *states = b.multi(
        kind,
        x,
        *(b.constant(np.asarray(w), "weight") for w in weights),
        *(["", initial] if initial else []),
        outputs=3 if kind == "LSTM" else 2,
        hidden_size=hidden,
        direction="bidirectional" if bidirectional else "forward",
        **attributes,
    )
    y = b.reshape(b.transpose(y, (0, 2, 1, 3)), (steps, batch, directions * hidden))
    return (y, *states)
