"""The operations of `models` in JAX; images are NHWC and convolution weights HWIO, as XLA likes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def image(x: Any) -> Any:
    return x.transpose(0, 2, 3, 1)


def conv(x: Any, w: Any, b: Any, stride: int, pad: int, groups: int, act: str) -> Any:
    y = jax.lax.conv_general_dilated(
        x, w.transpose(2, 3, 1, 0), (stride, stride), [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    ) + b  # fmt: skip
    return {"": lambda v: v, "relu": jax.nn.relu, "relu6": jax.nn.relu6}[act](y)


def max_pool(x: Any, size: int, stride: int, pad: int) -> Any:
    window, steps = (1, size, size, 1), (1, stride, stride, 1)
    padding = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return jax.lax.reduce_window(
        x, jnp.array(-jnp.inf, x.dtype), jax.lax.max, window, steps, padding
    )


def mean_pool(x: Any) -> Any:
    return x.mean((1, 2))


def relu(x: Any) -> Any:
    return jax.nn.relu(x)


def linear(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b


def layer_norm(x: Any, g: Any, b: Any, epsilon: float) -> Any:
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return (centred * scale * g + b).astype(x.dtype)


def gelu(x: Any, tanh_form: bool) -> Any:
    return jax.nn.gelu(x, approximate=tanh_form)


def tanh(x: Any) -> Any:
    return jnp.tanh(x)


def embed(table: Any, ids: Any) -> Any:
    return table[ids]


def padding_mask(keep: Any) -> Any:
    return keep.astype(bool)[:, None, None, :]


def attention(q: Any, k: Any, v: Any, heads: int, mask: Any, causal: bool) -> Any:
    batch, length, width = q.shape
    q, k, v = (x.reshape(batch, -1, heads, width // heads) for x in (q, k, v))
    y = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
    return y.reshape(batch, length, width)


def split(x: Any, parts: int) -> Any:
    return jnp.split(x, parts, -1)


def patches(x: Any) -> Any:
    return x.reshape(x.shape[0], -1, x.shape[3])


def prepend(token: Any, x: Any) -> Any:
    return jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, x.shape[2])), x], 1)


def transposed(x: Any) -> Any:
    return x.T
