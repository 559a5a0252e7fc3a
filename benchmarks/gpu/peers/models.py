"""The models of `tinycomp.testing.models` as users of other frameworks write them.

Each is a function `(ops, weights, inputs) -> outputs` over a handful of operations that a module
offers: `torch_layers`, `jax_layers`, or `numpy_layers` to check the definitions themselves. The
weights are those of the ONNX model, in the order in which its builder made them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Arrays = Mapping[str, Any]


def weights_of(model: onnx.ModelProto) -> list[np.ndarray]:
    """The float arrays of a model in the order of their creation, scalars left out."""
    arrays = (numpy_helper.to_array(t) for t in model.graph.initializer)
    return [a for a in arrays if a.dtype == np.float32 and a.size > 1]


def folded(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Weights of convolutions with the batch normalisations after them folded in: (weight, bias)
    of each. Everyone does this before inference.

    A convolution's weight is the only array of rank 4; four vectors of its length follow if it is
    normalised, one if it has a bias.
    """
    result: list[np.ndarray] = []
    position = 0
    while position < len(arrays):
        weight = arrays[position]
        position += 1
        if weight.ndim != 4:
            result.append(weight)
            continue
        vectors = []
        while (
            position < len(arrays) and arrays[position].shape == (len(weight),) and len(vectors) < 4
        ):
            vectors.append(arrays[position])
            position += 1
        if len(vectors) == 4:
            scale, shift, mean, variance = vectors
            factor = scale / np.sqrt(variance + np.float32(1e-5))
            result += [weight * factor[:, None, None, None], shift - mean * factor]
        else:
            result += [weight, vectors[0]]
    return result


class Weights:
    """The arrays one after the other. `paired` are the positions of the matrices and kernels among
    those taken so far, whose layout a framework may choose."""

    def __init__(self, arrays: list[Any]) -> None:
        self.arrays, self.position = arrays, 0
        self.paired: list[int] = []

    def take(self) -> Any:
        self.position += 1
        return self.arrays[self.position - 1]

    def pair(self) -> tuple[Any, Any]:
        """A weight and the vector that belongs to it."""
        self.paired.append(self.position)
        return self.take(), self.take()


def resnet50(ops: Any, w: Weights, inputs: Arrays) -> list[Any]:
    def conv(x: Any, stride: int, pad: int, relu: bool = True) -> Any:
        return ops.conv(x, *w.pair(), stride, pad, 1, "relu" if relu else "")

    x = ops.max_pool(conv(ops.image(inputs["image"]), 2, 3), 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for index in range(blocks):
            stride = 2 if stage and not index else 1
            y = conv(x, 1, 0)
            y = conv(y, stride, 1)
            y = conv(y, 1, 0, relu=False)
            shortcut = x if index else conv(x, stride, 0, relu=False)
            x = ops.relu(y + shortcut)
    return [ops.linear(ops.mean_pool(x), *w.pair())]


def mobilenet_v2(ops: Any, w: Weights, inputs: Arrays) -> list[Any]:
    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip

    x, channels = ops.conv(ops.image(inputs["image"]), *w.pair(), 2, 1, 1, "relu6"), 32
    for expansion, features, repeats, first in plan:
        for index in range(repeats):
            stride, hidden, y = (first if index == 0 else 1), channels * expansion, x
            if expansion > 1:
                y = ops.conv(y, *w.pair(), 1, 0, 1, "relu6")
            y = ops.conv(y, *w.pair(), stride, 1, hidden, "relu6")
            y = ops.conv(y, *w.pair(), 1, 0, 1, "")
            x = x + y if stride == 1 and channels == features else y
            channels = features
    x = ops.conv(x, *w.pair(), 1, 0, 1, "relu6")
    return [ops.linear(ops.mean_pool(x), *w.pair())]


def _attend(ops: Any, w: Weights, x: Any, heads: int, mask: Any = None) -> Any:
    q, k, v = (ops.linear(x, *w.pair()) for _ in range(3))
    return ops.linear(ops.attention(q, k, v, heads, mask, False), *w.pair())


def bert(ops: Any, w: Weights, inputs: Arrays, layers: int = 12, heads: int = 12) -> list[Any]:
    mask = ops.padding_mask(inputs["attention_mask"])
    types, words = w.take(), w.take()
    x = ops.embed(words, inputs["input_ids"]) + ops.embed(types, inputs["token_type_ids"])
    x = ops.layer_norm(x + w.take(), *w.pair(), 1e-12)
    for _ in range(layers):
        x = ops.layer_norm(x + _attend(ops, w, x, heads, mask), *w.pair(), 1e-12)
        y = ops.linear(ops.gelu(ops.linear(x, *w.pair()), False), *w.pair())
        x = ops.layer_norm(x + y, *w.pair(), 1e-12)
    return [x, ops.tanh(ops.linear(x[:, 0], *w.pair()))]


def gpt2(ops: Any, w: Weights, inputs: Arrays, layers: int = 12, heads: int = 12) -> list[Any]:
    table = w.take()
    x = ops.embed(table, inputs["input_ids"]) + w.take()
    w.take()  # the triangle that the mask is made of
    for _ in range(layers):
        qkv = ops.linear(ops.layer_norm(x, *w.pair(), 1e-5), *w.pair())
        q, k, v = ops.split(qkv, 3)
        x = x + ops.linear(ops.attention(q, k, v, heads, None, True), *w.pair())
        y = ops.gelu(ops.linear(ops.layer_norm(x, *w.pair(), 1e-5), *w.pair()), True)
        x = x + ops.linear(y, *w.pair())
    return [ops.layer_norm(x, *w.pair(), 1e-5) @ ops.transposed(table)]


def vit(ops: Any, w: Weights, inputs: Arrays, layers: int = 12, heads: int = 12) -> list[Any]:
    weight, bias = w.pair()
    x = ops.patches(ops.conv(ops.image(inputs["image"]), weight, bias, weight.shape[2], 0, 1, ""))
    x = ops.prepend(w.take(), x) + w.take()
    for _ in range(layers):
        x = x + _attend(ops, w, ops.layer_norm(x, *w.pair(), 1e-6), heads)
        y = ops.gelu(ops.linear(ops.layer_norm(x, *w.pair(), 1e-6), *w.pair()), False)
        x = x + ops.linear(y, *w.pair())
    return [ops.linear(ops.layer_norm(x, *w.pair(), 1e-6)[:, 0], *w.pair())]


MODELS: dict[str, Callable[..., list[Any]]] = {
    "resnet50": resnet50, "mobilenet_v2": mobilenet_v2, "bert_base": bert, "vit_base": vit,
    "gpt2": gpt2,
}  # fmt: skip

BASE = {"width": 768, "heads": 12, "layers": 12}
Sizes = dict[str, tuple[str, dict[str, int], dict[str, int]]]
SIZES: Sizes = {
    "resnet50": ("resnet", {"depth": 50}, {}),
    "mobilenet_v2": ("mobilenet_v2", {}, {}),
    "bert_base": ("bert", {**BASE, "vocab": 30522, "sequence": 128}, {}),
    "vit_base": ("vit", BASE, {}),
    "gpt2": ("gpt2", {**BASE, "vocab": 50257, "sequence": 128}, {}),
}
"""The builder of `tinycomp.testing.models` for each, the sizes that its name promises, and the
arguments of the definition above."""

_FEW = {"heads": 2, "layers": 2}
_TEXT = {"sequence": 6, "vocab": 40, "width": 16, **_FEW}
SMALL: Sizes = {
    "resnet50": ("resnet", {"depth": 50, "image": 32, "width": 8, "classes": 10}, {}),
    "mobilenet_v2": ("mobilenet_v2", {"image": 32, "classes": 10}, {}),
    "bert_base": ("bert", _TEXT, _FEW),
    "vit_base": ("vit", {"image": 16, "patch": 4, "width": 16, "classes": 10, **_FEW}, _FEW),
    "gpt2": ("gpt2", _TEXT, _FEW),
}
"""The same networks, small, for dry runs and tests."""
