"""The operations of `models` in PyTorch: its fused layers, SDPA, channels-last images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def layout(weight: torch.Tensor) -> torch.Tensor:
    """A weight in the memory layout of nn.Linear, or in channels-last; its shape stays."""
    if weight.ndim == 4:
        return weight.contiguous(memory_format=torch.channels_last)
    return weight.t().contiguous().t() if weight.ndim == 2 else weight


def image(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def conv(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, stride: int, pad: int, groups: int, act: str
) -> torch.Tensor:
    y = F.conv2d(x, w, b, stride, pad, 1, groups)
    return {"": lambda v: v, "relu": F.relu, "relu6": F.relu6}[act](y)


def max_pool(x: torch.Tensor, size: int, stride: int, pad: int) -> torch.Tensor:
    return F.max_pool2d(x, size, stride, pad)


def mean_pool(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


def relu(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x)


def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w.t(), b)


def layer_norm(x: torch.Tensor, g: torch.Tensor, b: torch.Tensor, epsilon: float) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), g, b, epsilon)


def gelu(x: torch.Tensor, tanh_form: bool) -> torch.Tensor:
    return F.gelu(x, approximate="tanh" if tanh_form else "none")


def tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


def embed(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.embedding(ids, table)


def padding_mask(keep: torch.Tensor) -> torch.Tensor:
    return keep.bool()[:, None, None, :]


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: Any, causal: bool
) -> torch.Tensor:
    batch, length, width = q.shape
    q, k, v = (x.view(batch, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return y.transpose(1, 2).reshape(batch, length, width)


def split(x: torch.Tensor, parts: int) -> Any:
    return x.chunk(parts, -1)


def patches(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def prepend(token: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([token.expand(len(x), 1, x.shape[2]), x], 1)


def transposed(x: torch.Tensor) -> torch.Tensor:
    return x.t()
