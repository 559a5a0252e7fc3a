"""Single operations in PyTorch: through its libraries (cuBLAS, cuDNN, SDPA) and torch.compile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

DTYPES = {
    "fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
}  # fmt: skip
torch.backends.cudnn.benchmark = True  # the fastest algorithm for each shape


def allow_tf32(on: bool) -> None:
    """Whether float32 products may be computed in tf32; PyTorch's own default is no for cuBLAS
    and yes for cuDNN."""
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def on_device(array: np.ndarray, device: str = "cuda") -> torch.Tensor:
    """A copy on the device; bfloat16, which NumPy lacks, goes through its bits."""
    array = np.array(array, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).to(device).view(torch.bfloat16)
    return torch.from_numpy(array).to(device)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """In float32 if it is 16-bit."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()


def chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x * 1.5 + y) * torch.clamp(x - y, -1.0, 1.0)


def gelu_bias(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.gelu(x + b)


def softmax(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, -1)


def layer_norm(x: torch.Tensor, g: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), g, b, 1e-5)


def transpose(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(-1, -2).contiguous()


def sum_rows(x: torch.Tensor) -> torch.Tensor:
    return x.sum(-1)


def sum_columns(x: torch.Tensor) -> torch.Tensor:
    return x.sum(0)


def matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.matmul(x, y)


def linear_relu(x: torch.Tensor, y: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.relu(torch.matmul(x, y) + b)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """In float64, for reference."""
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return torch.softmax(scores, -1) @ v


def conv2d(
    stride: int, padding: int, groups: int, nhwc: bool = False
) -> Callable[..., torch.Tensor]:
    """A convolution; with `nhwc` of images [N, H, W, C], for PyTorch NCHW with strides."""

    def call(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2) if nhwc else x
        y = F.conv2d(x, w, None, stride, padding, 1, groups)
        return y.permute(0, 2, 3, 1) if nhwc else y

    return call


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The layout in which cuDNN's tensor-core kernels work without transposing."""
    return tensor.to(memory_format=torch.channels_last)


def compiled(
    call: Callable[..., Any], autotune: bool = False, device: str = "cuda"
) -> Callable[..., Any]:
    """torch.compile without its own graphs: the harness captures one around it.

    On the CPU it traces, and leaves the code generation for CPUs out.
    """
    torch._dynamo.reset()  # it refuses a function after some shapes
    if device == "cpu":
        return torch.compile(call, backend="aot_eager", dynamic=False, fullgraph=True)
    mode = "max-autotune-no-cudagraphs" if autotune else "default"
    return torch.compile(call, mode=mode, dynamic=False, fullgraph=True)
