"""ONNX importers of quantised operators against ONNX Runtime, one node at a time."""

import numpy as np
import pytest

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.ops import default_ops, onnx_importers
from tinycomp.ops.onnx_node import OnnxNode
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import IRModule

from .test_nn_onnx import Case, f32, run_imported, run_onnxruntime

MS = "com.microsoft"


def u8(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).integers(0, 256, shape).astype(np.uint8)


def i8(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).integers(-128, 128, shape).astype(np.int8)


def real(value):
    return np.float32(value)


def uint(value):
    return np.uint8(value)


def scales(n):
    return np.linspace(0.01, 0.03, n).astype(np.float32)


X = [u8(1, 4, 6, 5), real(0.05), uint(120)]
W = [i8(6, 4, 3, 3), real(0.02), np.int8(0)]
CONV = [
    Case("QLinearConv", [*X, *W, real(2.0), uint(128)], {"pads": [1, 1, 1, 1]}),
    Case("QLinearConv", [*X, *W, real(2.0), uint(128), np.arange(6, dtype=np.int32) * 500]),
    Case("QLinearConv", [*X, i8(6, 4, 3, 3), scales(6), np.zeros(6, np.int8), real(1.5), uint(3)]),
    Case(
        "QLinearConv", [*X, i8(4, 1, 3, 3), scales(4), np.zeros(4, np.int8), real(0.5), uint(100)],
        {"group": 4, "strides": [2, 2], "pads": [1, 0, 1, 0]},
    ),
    Case("ConvInteger", [u8(1, 2, 5, 5), u8(3, 2, 3, 3), uint(7), uint(131)], {"pads": [1] * 4}),
    Case("ConvInteger", [u8(1, 2, 5, 5), u8(3, 2, 2, 2)]),
]  # fmt: skip
A, B = [u8(3, 4), real(0.1), uint(9)], [i8(4, 5), real(0.2), np.int8(-3)]
PRODUCTS = [
    Case("QGemm", [*A, *B, None, real(3.0), uint(11)], domain=MS),
    Case("QGemm", [*A, *B, np.arange(5, dtype=np.int32), None, None], {"alpha": 0.5}, domain=MS),
    Case("QGemm", [*A, i8(5, 4), real(0.2), np.int8(4), None, real(2), uint(0)], {"transB": 1},
         domain=MS),
    Case("MatMulIntegerToFloat", [A[0], B[0], A[1], scales(5), A[2], B[2], f32(5)], domain=MS),
    Case("DynamicQuantizeMatMul", [f32(3, 4), B[0], scales(5), np.zeros(5, np.int8), f32(5)],
         domain=MS),
    Case("DynamicQuantizeMatMul", [f32(2, 3, 4), B[0], real(0.02)], domain=MS),
]  # fmt: skip
Y = [u8(2, 3, 4, 5), real(0.05), uint(130)]
OTHERS = [
    Case("QLinearAdd", [*Y, u8(5), real(0.13), uint(4), real(0.237), uint(77)], domain=MS),
    Case("QLinearMul", [*Y, u8(3, 1, 1), real(0.1), uint(4), real(0.7), uint(77)], domain=MS),
    Case("QLinearSigmoid", [*Y, real(1 / 256), uint(0)], domain=MS),
    Case("QLinearLeakyRelu", [*Y, real(0.06), uint(20)], {"alpha": 0.25}, domain=MS),
    Case("QLinearAveragePool", [*Y, real(0.0437), uint(120)],
         {"kernel_shape": [2, 3], "pads": [0, 1, 0, 1]}, domain=MS),
    Case("QLinearGlobalAveragePool", [*Y, real(0.05), uint(120)], domain=MS),
    Case("QLinearSoftmax", [*Y, real(1 / 256), uint(0)], {"opset": 13, "axis": 3}, domain=MS),
    Case("QLinearConcat", [real(0.1), uint(99), *Y, u8(2, 2, 4, 5), real(0.2), uint(60)],
         {"axis": 1}, domain=MS, variable=0),
]  # fmt: skip


@pytest.mark.parametrize("case", [*CONV, *PRODUCTS, *OTHERS], ids=str)
def test_matches_onnxruntime(case):
    """Integers may differ by one where ONNX Runtime rounds otherwise, floats by rounding."""
    for wanted, got in zip(run_onnxruntime(case), run_imported(case), strict=True):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        difference = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
        if got.dtype == np.float32:
            assert difference.max() <= 1e-5 * np.abs(wanted).max()
        elif got.dtype == np.int32:
            assert not difference.any()
        else:
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("case", [CONV[0], CONV[3], CONV[4], PRODUCTS[0]], ids=str)
def test_compiled(case):
    """The same values come from native code, exactly."""
    b = Builder(default_ops())
    x = b.param("x", case.inputs[0].shape, case.inputs[0].dtype.name)
    constants = [None if a is None else b.const(np.asarray(a)) for a in case.inputs[1:]]
    node = OnnxNode(case.op, case.op, (x, *constants), case.attrs, 1, b, case.domain)
    key = f"{case.domain}::{case.op}" if case.domain else case.op
    module = IRModule({"main": b.finish(onnx_importers()[key](node))}, ("x",))
    compiled = compile_with(Config(cache=False), module, num_threads=1)
    (got,) = compiled.run({"x": case.inputs[0]}).values()
    np.testing.assert_array_equal(got, run_imported(case)[0])
