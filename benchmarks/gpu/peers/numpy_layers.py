"""The operations of `models` in NumPy, to check the models' definitions without a GPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinycomp.ops import default_ops

OPS = default_ops()
_erf = np.vectorize(math.erf)


def image(x: Any) -> Any:
    return x


def conv(x: Any, w: Any, b: Any, stride: int, pad: int, groups: int, act: str) -> Any:
    op = OPS["nn.conv2d"]
    attrs = op.attrs_type(strides=(stride, stride), padding=(pad,) * 4, groups=groups)
    y = op.reference(attrs, [x, w]) + b[:, None, None]
    return {"": y, "relu": np.maximum(y, 0), "relu6": np.clip(y, 0, 6)}[act]


def max_pool(x: Any, size: int, stride: int, pad: int) -> Any:
    op = OPS["nn.max_pool2d"]
    attrs = op.attrs_type(pool_size=(size,) * 2, strides=(stride,) * 2, padding=(pad,) * 4)
    return op.reference(attrs, [x])


def mean_pool(x: Any) -> Any:
    return x.mean((2, 3))


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def linear(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b


def layer_norm(x: Any, g: Any, b: Any, epsilon: float) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * g + b


def gelu(x: Any, tanh_form: bool) -> Any:
    if tanh_form:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def tanh(x: Any) -> Any:
    return np.tanh(x)


def embed(table: Any, ids: Any) -> Any:
    return table[ids]


def padding_mask(keep: Any) -> Any:
    return keep.astype(bool)[:, None, None, :]


def attention(q: Any, k: Any, v: Any, heads: int, mask: Any, causal: bool) -> Any:
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
    if causal:
        mask = np.tri(scores.shape[-1], dtype=bool)
    if mask is not None:
        scores = np.where(mask, scores, -1e9)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = (weights / weights.sum(-1, keepdims=True)) @ v
    return y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1)


def split(x: Any, parts: int) -> Any:
    return np.split(x, parts, -1)


def patches(x: Any) -> Any:
    return x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)


def prepend(token: Any, x: Any) -> Any:
    return np.concatenate([np.broadcast_to(token, (len(x), 1, x.shape[2])), x], 1)


def transposed(x: Any) -> Any:
    return x.T
