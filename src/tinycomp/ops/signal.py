"""ONNX importers of signal processing: windows, mel weights, Fourier transforms.

A Fourier transform is linear, so it is a product with a matrix, which is what NumPy's transform
makes of the unit vectors: real and imaginary parts are columns of their own. At the lengths of
audio frames that is as fast as products of matrices are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..dtype import DType
from ..relay.nodes import Atom, Constant
from .layout import reshape, transpose
from .onnx_node import OnnxImport, OnnxNode
from .unary import cast_to

MAX_LENGTH = 8192
"""Elements of a transform; longer ones would be matrices of hundreds of megabytes."""


def _import_window(coefficients: Sequence[float]) -> OnnxImport:
    """The sum of (-1)^k c_k cos(2 pi k n / N); a periodic window is one longer, without its end."""

    def convert(node: OnnxNode) -> Atom:
        size = int(node.scalar(0))
        node.expect(size >= 0, f"the size {size} is negative")
        period = size if node.attr("periodic", 1) else size - 1
        angle = 2 * math.pi * np.arange(size) / max(period, 1)
        terms = (c * (-1) ** k * np.cos(k * angle) for k, c in enumerate(coefficients))
        window = np.sum(list(terms), axis=0)
        return node.builder.const(window.astype(_output_dtype(node).numpy))

    return convert


def _output_dtype(node: OnnxNode) -> DType:
    return node.attr("output_datatype") or DType.FLOAT32


def _import_mel_weights(node: OnnxNode) -> Atom:
    """Triangles over the bins of a spectrum, evenly spaced on the mel scale."""
    bins, length, rate = (int(node.scalar(i)) for i in range(3))
    node.expect(bins > 0 and length > 0 and rate > 0, "bins, length and rate must be positive")
    low, high = (2595 * np.log10(1 + float(node.scalar(i)) / 700) for i in (3, 4))
    mel = np.arange(bins + 2) * (high - low) / (bins + 2) + low
    hertz = 700 * (10 ** (mel / 2595) - 1)
    edges = ((length + 1) * hertz // rate).astype(int)
    weights = np.zeros((length // 2 + 1, bins))
    node.expect(edges[0] >= 0 and edges[-1] <= length // 2 + 1, f"the edges {edges} lie outside")
    for i, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rising, falling = np.arange(left, centre + 1), np.arange(centre, right)
        weights[rising, i] = (rising - left) / (centre - left) if centre > left else 1
        weights[falling, i] = (right - falling) / (right - centre) if right > centre else 1
    return node.builder.const(weights.astype(_output_dtype(node).numpy))


def transform_matrix(
    size: int, length: int, *, is_complex: bool, inverse: bool, onesided: bool
) -> np.ndarray:
    """The matrix [size * (2 if complex else 1), bins * 2 (1 for a real result)] by which rows of
    numbers (pairs, if complex) are multiplied to be transformed.

    >>> transform_matrix(2, 2, is_complex=False, inverse=False, onesided=False).tolist()
    [[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, -1.0, 0.0]]
    """
    unit = np.eye(size)
    parts = [unit, 1j * unit] if is_complex else [unit]
    rows = np.stack(parts, 1).reshape(-1, size)  # real and imaginary part of every element
    if inverse and onesided:
        return np.fft.irfft(rows, length)
    result = np.fft.ifft(rows, length) if inverse else np.fft.fft(rows, length)
    result = result[:, : length // 2 + 1] if onesided else result
    return np.stack([result.real, result.imag], -1).reshape(len(rows), -1)


def _import_dft(node: OnnxNode) -> Atom:
    """The transform along an axis of numbers [..., n, 1] or pairs [..., n, 2]."""
    shape, dtype = node.type(0).static_shape, node.type(0).dtype
    rank, pairs = len(shape), shape[-1] if shape else 0
    inverse, onesided = bool(node.attr("inverse", 0)), bool(node.attr("onesided", 0))
    node.expect(rank >= 2 and pairs in (1, 2), f"{node.type(0)} holds no numbers or pairs")
    axis = int(node.scalar(2, -2))
    node.expect(-rank <= axis < rank and axis % rank < rank - 1, f"axis {axis} of rank {rank}")
    axis %= rank
    default = 2 * (shape[axis] - 1) if inverse and onesided else shape[axis]
    length = int(node.scalar(1, default))
    _check_length(node, length)
    order = [a for a in range(rank) if a != axis]
    order.insert(rank - 2, axis)
    x = transpose(node, node.input(0), order)
    matrix = transform_matrix(
        shape[axis], length, is_complex=pairs == 2, inverse=inverse, onesided=onesided
    )
    result = _multiplied(node, x, matrix, dtype, 1 if inverse and onesided else 2)
    return transpose(node, result, np.argsort(order).tolist())


def _check_length(node: OnnxNode, length: int) -> None:
    node.expect(length > 0, f"the length {length} is not positive")
    if length > MAX_LENGTH:
        raise node.unsupported(f"a length of {length}, above {MAX_LENGTH},")


def _multiplied(node: OnnxNode, x: Atom, matrix: np.ndarray, dtype: DType, parts: int) -> Atom:
    """Rows [..., n, 1 or 2] by a matrix, as [..., bins, parts]."""
    shape: Any = x.type
    lead = shape.static_shape[:-2]
    flat = reshape(node, x, (*lead, matrix.shape[0]))
    constant = node.builder.const(matrix.astype(dtype.numpy))
    product = node.builder.call("nn.matmul", flat, constant)
    return reshape(node, product, (*lead, matrix.shape[1] // parts, parts))


def _import_stft(node: OnnxNode) -> Atom:
    """Transforms of windowed frames: of [batch, length, 1 or 2], [batch, frames, bins, 2]."""
    call, dtype = node.builder.call, node.type(0).dtype
    node.rank(0, 2, 3)
    shape = node.type(0).static_shape
    signal = node.input(0) if len(shape) == 3 else reshape(node, node.input(0), (*shape, 1))
    size, pairs = (*shape, 1)[1:3]
    step = int(node.scalar(1))
    length = node.rank(2, 1).static_shape[0] if node.has(2) else int(node.scalar(3, size))
    _check_length(node, length)
    node.expect(step > 0 and length <= size, f"frames of {length}, {step} apart, in {size}")
    onesided = bool(node.attr("onesided", 1))
    count = (size - length) // step + 1
    places = np.arange(count)[:, None] * step + np.arange(length)
    frames = call("take", signal, node.builder.const(places), axis=1)
    matrix = transform_matrix(
        length, length, is_complex=pairs == 2, inverse=False, onesided=onesided
    )
    if node.has(2):
        window = node.input(2)
        if isinstance(window, Constant):
            matrix = matrix * np.repeat(window.data.astype(np.float64), pairs)[:, None]
        else:
            frames = call("multiply", frames, reshape(node, window, (length, 1)))
    return _multiplied(node, cast_to(node, frames, dtype), matrix, dtype, 2)


ONNX: dict[str, OnnxImport] = {
    "HannWindow": _import_window((0.5, 0.5)),
    "HammingWindow": _import_window((25 / 46, 21 / 46)),
    "BlackmanWindow": _import_window((0.42, 0.5, 0.08)),
    "MelWeightMatrix": _import_mel_weights,
    "DFT": _import_dft,
    "STFT": _import_stft,
}
