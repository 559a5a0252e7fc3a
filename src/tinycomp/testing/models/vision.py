"""Models of images that are not classifiers: segmentation, detection, generation."""

from __future__ import annotations

import numpy as np
import onnx

from ..graph_builder import GraphBuilder
from .cnn import relu6, separable


def unet(
    *,
    batch: int = 1,
    image: int = 128,
    width: int = 32,
    depth: int = 4,
    classes: int = 2,
    resize: bool = False,
    seed: int = 0,
) -> onnx.ModelProto:
    """U-Net: downsampling path, then upsampling (transposed convolution, or bilinear `Resize`)
    with skip connections; a mask per class."""
    b = GraphBuilder("unet", seed)
    x = b.input("image", (batch, 3, image, image))
    skips = []
    for level in range(depth):
        x = _double(b, x, width << level)
        skips.append(x)
        x = b.max_pool(x, 2, 2)
    x = _double(b, x, width << depth)
    for level in reversed(range(depth)):
        x = _upsample(b, x, width << level, resize)
        x = _double(b, b.concat([skips[level], x]), width << level)
    return b.model(mask=b.op("Sigmoid", b.conv(x, classes, 1)))


def _double(b: GraphBuilder, x: str, channels: int) -> str:
    for _ in range(2):
        x = b.relu(b.batch_norm(b.conv(x, channels, 3, bias=False)))
    return x


def _upsample(b: GraphBuilder, x: str, channels: int, resize: bool) -> str:
    if not resize:
        return b.conv_transpose(x, channels, 2, 2)
    scales = np.array([1, 1, 2, 2], np.float32)
    x = b.op("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    return b.conv(x, channels, 1)


def ssd_detector(
    *,
    batch: int = 1,
    image: int = 256,
    width: int = 32,
    classes: int = 21,
    anchors: int = 4,
    seed: int = 0,
) -> onnx.ModelProto:
    """Single-shot detector: heads on three scales of a small backbone, boxes decoded from anchors.

    Outputs `boxes` [batch, n, 4] as corners and `scores` [batch, n, classes].
    """
    b = GraphBuilder("ssd_detector", seed)
    x = b.input("image", (batch, 3, image, image))
    x = relu6(b, b.batch_norm(b.conv(x, width, 3, stride=2, bias=False)))
    x = separable(b, x, 2 * width, stride=2)
    offsets, scores, priors = [], [], []
    for level in range(3):
        x = separable(b, separable(b, x, (4 * width) << level, stride=2), (4 * width) << level)
        offsets.append(_head(b, x, anchors, 4))
        scores.append(_head(b, x, anchors, classes))
        priors.append(_anchors(b.shape(x)[2], b.shape(x)[3], anchors, 0.15 * (level + 1)))
    probabilities = b.op("Softmax", b.concat(scores), axis=-1)
    boxes = _decode(b, b.concat(offsets), np.concatenate(priors))
    return b.model(boxes=boxes, scores=probabilities)


def _head(b: GraphBuilder, x: str, anchors: int, values: int) -> str:
    """[batch, C, H, W] to [batch, H * W * anchors, values]."""
    y = b.transpose(b.conv(x, anchors * values, 3), (0, 2, 3, 1))
    return b.reshape(y, (b.shape(x)[0], -1, values))


def _anchors(height: int, width: int, count: int, size: float) -> np.ndarray:
    """Centre and size of every anchor, [height * width * count, 4]."""
    y, x, k = np.meshgrid(np.arange(height), np.arange(width), np.arange(count), indexing="ij")
    ratio = np.sqrt(2.0) ** (k - count / 2)
    columns = [(x + 0.5) / width, (y + 0.5) / height, size * ratio, size / ratio]
    return np.stack(columns, -1).reshape(-1, 4).astype(np.float32)


def _decode(b: GraphBuilder, offsets: str, priors: np.ndarray) -> str:
    shift, scale = b.multi("Split", offsets, outputs=2, axis=2, num_outputs=2)
    tenth, fifth = np.array(0.1, np.float32), np.array(0.2, np.float32)
    centre = b.add(b.op("Mul", b.op("Mul", shift, tenth), priors[:, 2:]), priors[:, :2])
    size = b.op("Mul", b.op("Exp", b.op("Mul", scale, fifth)), priors[:, 2:])
    half = b.op("Mul", size, np.array(0.5, np.float32))
    return b.concat([b.op("Sub", centre, half), b.add(centre, half)], axis=2)


def dcgan(
    *, batch: int = 1, latent: int = 100, width: int = 64, image: int = 64, seed: int = 0
) -> onnx.ModelProto:
    """DCGAN's generator: transposed convolutions from a latent vector to an image of a power of
    two."""
    b = GraphBuilder("dcgan", seed)
    x = b.reshape(b.input("latent", (batch, latent)), (batch, latent, 1, 1))
    steps = image.bit_length() - 4
    x = b.relu(b.batch_norm(b.conv_transpose(x, width << steps, 4, 1, bias=False), gain=0.3))
    for step in reversed(range(steps)):
        x = b.relu(b.batch_norm(b.conv_transpose(x, width << step, 4, 2, 1, bias=False)))
    return b.model(image=b.op("Tanh", b.conv_transpose(x, 3, 4, 2, 1, bias=False)))
