"""attention: beside PyTorch's scaled_dot_product_attention (cuDNN or FlashAttention)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

from contest import contest
from harness import Case, Env, Row

SHAPES = (  # batch, heads, sequence, head size
    (1, 12, 128, 64), (1, 12, 197, 64), (16, 16, 512, 64), (4, 16, 2048, 64), (4, 16, 2048, 128),
    (1, 16, 8192, 128),
)  # fmt: skip


def cases() -> list[Case]:
    return [
        Case(f"attention/{'x'.join(map(str, s))}/{dtype}", functools.partial(_run, s, dtype))
        for s in SHAPES
        for dtype in ("bfloat16", "float16")
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
