"""Image classifiers."""

from __future__ import annotations

import numpy as np
import onnx

from ..graph_builder import GraphBuilder


def lenet(*, batch: int = 1, classes: int = 10, seed: int = 0) -> onnx.ModelProto:
    """LeNet-5: 28x28 digits, tanh, average pooling."""
    b = GraphBuilder("lenet", seed)
    x = b.input("image", (batch, 1, 28, 28))
    x = b.avg_pool(b.op("Tanh", b.conv(x, 6, 5, pad=2)), 2, 2)
    x = b.avg_pool(b.op("Tanh", b.conv(x, 16, 5, pad=0)), 2, 2)
    x = b.flatten(x)
    for features in (120, 84):
        x = b.op("Tanh", b.linear(x, features))
    return b.model(probabilities=b.op("Softmax", b.linear(x, classes), axis=-1))


def alexnet(
    *,
    batch: int = 1,
    image: int = 227,
    width: float = 1.0,
    hidden: int = 1024,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """AlexNet: large first kernel, local response normalisation, grouped convolutions."""
    b = GraphBuilder("alexnet", seed)
    c = [2 * int(width * n / 2) for n in (96, 256, 384, 384, 256)]
    x = b.input("image", (batch, 3, image, image))
    x = _lrn(b, b.relu(b.conv(x, c[0], 11, stride=4, pad=0)))
    x = b.max_pool(x, 3, 2)
    x = b.max_pool(_lrn(b, b.relu(b.conv(x, c[1], 5, groups=2))), 3, 2)
    x = b.relu(b.conv(x, c[2], 3))
    x = b.relu(b.conv(x, c[3], 3, groups=2))
    x = b.max_pool(b.relu(b.conv(x, c[4], 3, groups=2)), 3, 2, ceil_mode=1)
    return b.model(logits=_dense_head(b, x, hidden, classes))


def _lrn(b: GraphBuilder, x: str) -> str:
    return b.op("LRN", x, size=5, alpha=1e-4, beta=0.75, bias=1.0)


def _dense_head(b: GraphBuilder, x: str, hidden: int, classes: int) -> str:
    x = b.flatten(x)
    for _ in range(2):
        x = b.op("Dropout", b.relu(b.linear(x, hidden)))
    return b.linear(x, classes)


VGG = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg(
    *,
    depth: int = 16,
    batch: int = 1,
    image: int = 224,
    width: float = 1.0,
    hidden: int = 1024,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """VGG-11, 13, 16 or 19."""
    b = GraphBuilder(f"vgg{depth}", seed)
    x = b.input("image", (batch, 3, image, image))
    for channels, convolutions in zip((64, 128, 256, 512, 512), VGG[depth], strict=True):
        for _ in range(convolutions):
            x = b.relu(b.conv(x, int(channels * width), 3))
        x = b.max_pool(x, 2, 2)
    return b.model(logits=_dense_head(b, x, hidden, classes))


# 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection; None is a max pooling between stages
INCEPTION = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


def googlenet(
    *, batch: int = 1, image: int = 224, width: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """GoogLeNet (Inception v1): four branches per block, concatenated."""
    b = GraphBuilder("googlenet", seed)
    x = b.input("image", (batch, 3, image, image))
    x = b.max_pool(b.relu(b.conv(x, int(64 * width), 7, stride=2)), 3, 2, ceil_mode=1)
    x = b.relu(b.conv(x, int(64 * width), 1))
    x = b.max_pool(b.relu(b.conv(x, int(192 * width), 3)), 3, 2, ceil_mode=1)
    for sizes in INCEPTION:
        if sizes is None:
            x = b.max_pool(x, 3, 2, ceil_mode=1)
        else:
            x = _inception(b, x, [int(n * width) for n in sizes])
    x = b.flatten(b.op("GlobalAveragePool", x))
    return b.model(logits=b.linear(x, classes))


def _inception(b: GraphBuilder, x: str, sizes: list[int]) -> str:
    one, reduce3, three, reduce5, five, projection = sizes
    branches = [
        b.conv(x, one, 1),
        b.conv(b.relu(b.conv(x, reduce3, 1)), three, 3),
        b.conv(b.relu(b.conv(x, reduce5, 1)), five, 5),
        b.conv(b.max_pool(x, 3, 1, pad=1), projection, 1),
    ]
    return b.concat([b.relu(branch) for branch in branches])


RESNET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def resnet(
    *,
    depth: int = 50,
    batch: int = 1,
    image: int = 224,
    width: int = 64,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """ResNet-18, 34 (basic blocks), 50 or 101 (bottlenecks), batch norms not folded."""
    b = GraphBuilder(f"resnet{depth}", seed)
    x = b.input("image", (batch, 3, image, image))
    x = b.relu(b.batch_norm(b.conv(x, width, 7, stride=2, bias=False)))
    x = b.max_pool(x, 3, 2, pad=1)
    block = _basic if depth < 50 else _bottleneck
    for stage, blocks in enumerate(RESNET[depth]):
        for index in range(blocks):
            x = block(b, x, width << stage, stride=2 if stage and not index else 1)
    x = b.flatten(b.op("GlobalAveragePool", x))
    return b.model(logits=b.linear(x, classes))


def _basic(b: GraphBuilder, x: str, width: int, stride: int) -> str:
    y = b.relu(b.batch_norm(b.conv(x, width, 3, stride, bias=False)))
    y = b.batch_norm(b.conv(y, width, 3, bias=False), gain=0.4)
    return b.relu(b.add(y, _shortcut(b, x, width, stride)))


def _bottleneck(b: GraphBuilder, x: str, width: int, stride: int) -> str:
    y = b.relu(b.batch_norm(b.conv(x, width, 1, bias=False)))
    y = b.relu(b.batch_norm(b.conv(y, width, 3, stride, bias=False)))
    y = b.batch_norm(b.conv(y, 4 * width, 1, bias=False), gain=0.4)
    return b.relu(b.add(y, _shortcut(b, x, 4 * width, stride)))


def _shortcut(b: GraphBuilder, x: str, channels: int, stride: int) -> str:
    if stride == 1 and b.shape(x)[1] == channels:
        return x
    return b.batch_norm(b.conv(x, channels, 1, stride, bias=False), gain=0.7)


def densenet(
    *,
    batch: int = 1,
    image: int = 224,
    blocks: tuple[int, ...] = (6, 12, 24, 16),
    growth: int = 32,
    classes: int = 1000,
    seed: int = 0,
) -> onnx.ModelProto:
    """DenseNet-121 by default: every layer sees all earlier ones; norm before convolution."""
    b = GraphBuilder("densenet", seed)
    x = b.input("image", (batch, 3, image, image))
    x = b.relu(b.batch_norm(b.conv(x, 2 * growth, 7, stride=2, bias=False)))
    x = b.max_pool(x, 3, 2, pad=1)
    for index, layers in enumerate(blocks):
        for _ in range(layers):
            y = b.conv(b.relu(b.batch_norm(x)), 4 * growth, 1, bias=False)
            y = b.conv(b.relu(b.batch_norm(y)), growth, 3, bias=False)
            x = b.concat([x, y])
        x = b.relu(b.batch_norm(x))
        if index < len(blocks) - 1:
            x = b.avg_pool(b.conv(x, b.shape(x)[1] // 2, 1, bias=False), 2, 2)
    x = b.flatten(b.op("GlobalAveragePool", x))
    return b.model(logits=b.linear(x, classes))


def relu6(b: GraphBuilder, x: str) -> str:
    """The activation of MobileNets."""
    return b.op("Clip", x, np.array(0, np.float32), np.array(6, np.float32))


def separable(b: GraphBuilder, x: str, channels: int, stride: int = 1) -> str:
    """Depthwise 3x3 and pointwise convolution, each with batch norm and relu6."""
    c = b.shape(x)[1]
    x = relu6(b, b.batch_norm(b.conv(x, c, 3, stride, groups=c, bias=False)))
    return relu6(b, b.batch_norm(b.conv(x, channels, 1, bias=False)))


def mobilenet_v1(
    *, batch: int = 1, image: int = 224, width: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """MobileNet v1: separable convolutions."""
    b = GraphBuilder("mobilenet_v1", seed)
    x = b.input("image", (batch, 3, image, image))
    x = relu6(b, b.batch_norm(b.conv(x, int(32 * width), 3, stride=2, bias=False)))
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    plan += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    for channels, stride in plan:
        x = separable(b, x, int(channels * width), stride)
    x = b.flatten(b.op("GlobalAveragePool", x))
    return b.model(logits=b.linear(x, classes))


MOBILENET_V2 = (  # expansion, channels, repeats, first stride
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


def mobilenet_v2(
    *, batch: int = 1, image: int = 224, width: float = 1.0, classes: int = 1000, seed: int = 0
) -> onnx.ModelProto:
    """MobileNet v2: inverted residuals with linear bottlenecks."""
    b = GraphBuilder("mobilenet_v2", seed)
    x = b.input("image", (batch, 3, image, image))
    x = relu6(b, b.batch_norm(b.conv(x, int(32 * width), 3, stride=2, bias=False)))
    for expansion, channels, repeats, first in MOBILENET_V2:
        for index in range(repeats):
            x = _inverted(b, x, expansion, int(channels * width), 1 if index else first)
    x = relu6(b, b.batch_norm(b.conv(x, int(1280 * width), 1, bias=False)))
    x = b.flatten(b.op("ReduceMean", x, np.array([2, 3], np.int64), keepdims=1))
    return b.model(logits=b.linear(x, classes))


def _inverted(b: GraphBuilder, x: str, expansion: int, channels: int, stride: int) -> str:
    y, hidden = x, b.shape(x)[1] * expansion
    if expansion > 1:
        y = relu6(b, b.batch_norm(b.conv(y, hidden, 1, bias=False)))
    y = relu6(b, b.batch_norm(b.conv(y, hidden, 3, stride, groups=hidden, bias=False)))
    y = b.batch_norm(b.conv(y, channels, 1, bias=False))
    return b.add(x, y) if b.shape(x) == b.shape(y) else y
