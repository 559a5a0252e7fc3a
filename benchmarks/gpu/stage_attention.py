"""attention: beside PyTorch's scaled_dot_product_attention (cuDNN or FlashAttention)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

from contest import contest
from harness import Case, Env, Row

_DTYPES = ("bfloat16", "float16")
SHAPES = (  # batch, heads, sequence, head size
    (1, 12, 128, 64), (1, 12, 197, 64), (16, 16, 512, 64), (4, 16, 2048, 64), (4, 16, 2048, 128),
    (1, 16, 8192, 128),
)  # fmt: skip


CAUSAL = ((4, 16, 2048, 64), (4, 16, 2048, 128), (1, 16, 8192, 128), (1, 16, 4096, 256))
DECODE = ((1, 32, 4096, 128), (16, 32, 2048, 128), (1, 12, 1024, 64))
"""Batch, heads, keys, head size; one query: what counts is how fast keys and values are read."""


def cases() -> list[Case]:
    kinds = (("attention", _run, SHAPES), ("causal", _causal, CAUSAL), ("decode", _decode, DECODE))
    return [
        Case(f"{kind}/{'x'.join(map(str, s))}/{dtype}", functools.partial(run, s, dtype))
        for kind, run, shapes in kinds
        for s in shapes
        for dtype in _DTYPES
    ]


def _attention(b, q, k, v):
    """As models spell it; tinycomp finds the one kernel in it."""
    scale = b.const(1 / math.sqrt(q.type.shape[-1]), q.type.dtype)
    scores = b.call("nn.matmul", q, b.call("transpose", k, axes=(0, 1, 3, 2)))
    weights = b.call("nn.softmax", b.call("multiply", scores, scale), axis=3)
    return b.call("nn.matmul", weights, v)


def _run(shape: tuple[int, int, int, int], dtype: str, env: Env) -> Iterator[Row]:
    batch, heads = env.sizes(*shape[:2], most=2)
    length, size = shape[2:]
    flops = 4.0 * batch * heads * length * length * size
    return contest(
        env, _attention, [((batch, heads, length, size), dtype)] * 3, "attention", flops=flops
    )


def _causal(shape: tuple[int, int, int, int], dtype: str, env: Env) -> Iterator[Row]:
    def build(b, q, k, v):
        scale = 1 / math.sqrt(q.type.shape[-1])  # which a dry run has made smaller
        return b.call("nn.attention", q, k, v, scale=scale, causal=0)

    batch, heads = env.sizes(*shape[:2], most=2)
    length, size = shape[2:]
    flops = 2.0 * batch * heads * length * length * size  # of what is seen
    inputs = [((batch, heads, length, size), dtype)] * 3
    return contest(env, build, inputs, "causal_attention", flops=flops)


def _decode(shape: tuple[int, int, int, int], dtype: str, env: Env) -> Iterator[Row]:
    batch, heads = env.sizes(*shape[:2], most=2)
    length, size = shape[2:]
    one, many = (batch, heads, 1, size), (batch, heads, length, size)
    inputs = [(one, dtype), (many, dtype), (many, dtype)]
    flops = 4.0 * batch * heads * length * size
    return contest(env, _attention, inputs, "attention", flops=flops)
