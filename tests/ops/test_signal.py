"""Fourier transforms as products, and what has a size that depends on data."""

import numpy as np
import pytest

from tinycomp.diagnostics import UnsupportedModel
from tinycomp.dtype import DType
from tinycomp.ops import default_ops, onnx_importers
from tinycomp.ops.onnx_node import OnnxNode
from tinycomp.ops.signal import MAX_LENGTH, transform_matrix
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate


def imported(op, inputs, attrs=None, variable=1, outputs=1):
    """The results of one node; the first `variable` inputs are data, the rest constants."""
    b = Builder(default_ops())
    atoms = [
        b.param(f"x{i}", a.shape, DType.of(a.dtype)) if i < variable else b.const(np.asarray(a))
        for i, a in enumerate(inputs)
    ]
    node = OnnxNode(op, "the_node", tuple(atoms), attrs or {}, outputs, b, input_names=("data",))
    return evaluate(b.finish(onnx_importers()[op](node)), list(inputs[:variable]))


@pytest.mark.parametrize("length", [5, 8, 11])
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_matrix_is_the_transform(length, is_complex, inverse):
    """Of signals that are shorter, as long, and longer."""
    rng = np.random.default_rng(0)
    signal = rng.standard_normal(8) + (1j * rng.standard_normal(8) if is_complex else 0)
    row = np.stack([signal.real, signal.imag], -1).reshape(-1) if is_complex else signal
    for onesided in (False, True):
        matrix = transform_matrix(
            8, length, is_complex=is_complex, inverse=inverse, onesided=onesided
        )
        got = row @ matrix
        if inverse and onesided:
            np.testing.assert_allclose(got, np.fft.irfft(signal, length), atol=1e-12)
            continue
        wanted = (np.fft.ifft if inverse else np.fft.fft)(signal, length)
        wanted = wanted[: length // 2 + 1] if onesided else wanted
        np.testing.assert_allclose(got[::2] + 1j * got[1::2], wanted, atol=1e-12)


def test_dft_along_an_inner_axis():
    x = np.random.default_rng(0).standard_normal((2, 6, 3, 1)).astype(np.float32)
    (got,) = imported("DFT", [x, np.asarray(6), np.asarray(1)])
    wanted = np.fft.fft(x[..., 0], axis=1)
    np.testing.assert_allclose(got[..., 0] + 1j * got[..., 1], wanted, atol=1e-5)


def test_long_transforms_are_refused():
    x = np.zeros((1, MAX_LENGTH + 1, 1), np.float32)
    with pytest.raises(UnsupportedModel, match="above 8192"):
        imported("DFT", [x])


def test_stft_with_a_window_that_is_data():
    rng = np.random.default_rng(0)
    x, window = rng.standard_normal((2, 40, 1)).astype("f4"), rng.uniform(size=16).astype("f4")
    b = Builder(default_ops())
    params = [b.param("x", x.shape), b.param("w", window.shape)]
    atoms = (params[0], b.const(np.asarray(8)), params[1])
    node = OnnxNode("STFT", "n", atoms, {}, 1, b)
    (got,) = evaluate(b.finish(onnx_importers()["STFT"](node)), [x, window])
    frames = np.stack([x[:, s : s + 16, 0] * window for s in range(0, 25, 8)], 1)
    np.testing.assert_allclose(got[..., 0] + 1j * got[..., 1], np.fft.rfft(frames), atol=1e-5)


@pytest.mark.parametrize("op", ["NonZero", "Unique", "Compress", "NonMaxSuppression"])
def test_sizes_that_depend_on_data_are_refused(op):
    """By the name of the node, with what can be done instead."""
    mask = np.array([True, False, True])
    inputs = [mask, mask] if op == "Compress" else [mask]
    with pytest.raises(UnsupportedModel, match="depend") as caught:
        imported(op, inputs, variable=2)
    assert "the_node" in str(caught.value.span)
    assert caught.value.hint


def test_compress_by_a_constant_mask():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    (got,) = imported("Compress", [x, np.array([False, True, True])], {"axis": 1})
    np.testing.assert_array_equal(got, x[:, 1:3])
