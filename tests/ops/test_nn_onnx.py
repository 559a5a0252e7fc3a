"""ONNX importers of the neural-network families against ONNX Runtime, one node at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from tinycomp.ops import default_ops, onnx_importers
from tinycomp.ops.onnx_node import OnnxNode
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate

OPSETS = (helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1))


def f32(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed + sum(shape))
    return rng.standard_normal(shape).astype(np.float32)


@dataclass
class Case:
    """One node; the first `variable` inputs are given when running, the rest are constants."""

    op: str
    inputs: Sequence[np.ndarray | None]
    attrs: dict[str, Any] = field(default_factory=dict)
    variable: int = 1
    outputs: int = 1
    tolerance: float = 2e-5
    domain: str = ""

    def __str__(self) -> str:
        shapes = "-".join("x".join(map(str, a.shape)) for a in self.inputs if a is not None)
        settings = ",".join(f"{k}={v}" for k, v in self.attrs.items())
        return f"{self.op}-{shapes}-{settings}".replace(" ", "")


def run_onnxruntime(case: Case) -> list[np.ndarray]:
    names = ["" if a is None else f"i{k}" for k, a in enumerate(case.inputs)]
    outputs = [f"o{k}" for k in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, domain=case.domain, **case.attrs)
    present = [(n, a) for n, a in zip(names, case.inputs, strict=True) if a is not None]
    type_of = lambda a: helper.np_dtype_to_tensor_dtype(a.dtype)  # noqa: E731
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(n, type_of(a), a.shape)
            for n, a in present[: case.variable]
        ],
        [helper.make_value_info(n, onnx.TypeProto()) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in present[case.variable :]],
    )
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(present[: case.variable])))  # type: ignore[arg-type]


def run_imported(case: Case) -> list[np.ndarray]:
    b = Builder(default_ops())
    atoms, arrays = [], []
    for k, array in enumerate(case.inputs):
        if array is None:
            atoms.append(None)
        elif len(arrays) < case.variable:
            atoms.append(b.param(f"i{k}", array.shape, array.dtype.name))
            arrays.append(array)
        else:
            atoms.append(b.const(array))
    node = OnnxNode(case.op, case.op, tuple(atoms), case.attrs, case.outputs, b, case.domain)
    key = f"{case.domain}::{case.op}" if case.domain else case.op
    result = onnx_importers()[key](node)
    return evaluate(b.finish(result), arrays)


def check(case: Case) -> None:
    expected, actual = run_onnxruntime(case), run_imported(case)
    assert len(expected) == len(actual)
    for want, got in zip(expected, actual, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(
            got, want, rtol=case.tolerance, atol=case.tolerance * max(1, np.abs(want).max())
        )


MATMUL = [
    Case("MatMul", [f32(2, 3, 4), f32(4, 5)]),
    Case("MatMul", [f32(4), f32(2, 4, 5)]),
    Case("MatMul", [f32(2, 3, 4), f32(4)], variable=2),
    Case("MatMul", [f32(4), f32(4, seed=1)], variable=2),
    Case("Gemm", [f32(3, 4), f32(4, 5), f32(5)], {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [f32(4, 3), f32(5, 4), f32(3, 1)], {"transA": 1, "transB": 1}),
    Case("Gemm", [f32(3, 4), f32(4, 5)]),
    Case(
        "FusedMatMul", [f32(2, 4, 3), f32(2, 5, 4)],
        {"transA": 1, "transB": 1, "alpha": 0.25}, 2, domain="com.microsoft",
    ),
]  # fmt: skip

CONV = [
    Case("Conv", [f32(1, 3, 8, 7), f32(4, 3, 3, 3), f32(4)], {"pads": [1, 1, 1, 1]}),
    Case("Conv", [f32(2, 4, 8, 7), f32(6, 2, 3, 2)], {"group": 2, "strides": [2, 1]}),
    Case("Conv", [f32(1, 4, 9, 9), f32(8, 1, 3, 3)], {"group": 4, "dilations": [2, 2]}),
    Case("Conv", [f32(1, 3, 8, 7), f32(4, 3, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", [f32(1, 3, 8, 7), f32(4, 3, 4, 2)], {"auto_pad": "SAME_LOWER"}),
    Case("Conv", [f32(1, 3, 8, 7), f32(4, 3, 4, 2)], {"auto_pad": "VALID"}),
    Case("Conv", [f32(2, 3, 11), f32(4, 3, 3), f32(4)], {"pads": [2, 1], "strides": [2]}),
    Case("Conv", [f32(1, 2, 4, 5, 6), f32(3, 2, 3, 3, 3), f32(3)], {"pads": [1] * 6}),
    Case(
        "FusedConv", [f32(1, 3, 5, 5), f32(4, 3, 3, 3), f32(4)],
        {"activation": "LeakyRelu", "activation_params": [0.1]}, domain="com.microsoft",
    ),
]  # fmt: skip

POOL = [
    Case("MaxPool", [f32(1, 2, 7, 8)], {"kernel_shape": [3, 2], "strides": [2, 2]}),
    Case("MaxPool", [f32(1, 2, 7, 8)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", [f32(1, 2, 9)], {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
    Case(
        "MaxPool", [f32(1, 2, 5, 6, 7)],
        {"kernel_shape": [2, 3, 2], "strides": [2, 1, 2], "pads": [0, 1, 0, 1, 1, 1]},
    ),
    Case(
        "MaxPool", [f32(1, 2, 6, 6)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "dilations": [1, 1]},
    ),
    Case("MaxPool", [f32(1, 2, 9, 9)], {"kernel_shape": [2, 2], "dilations": [3, 2]}),
    *(
        Case(
            "AveragePool", [f32(1, 2, 6, 7)],
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 1],
             "ceil_mode": ceil, "count_include_pad": include},
        )
        for ceil in (0, 1) for include in (0, 1)
    ),
    Case("AveragePool", [f32(1, 2, 9)], {"kernel_shape": [4], "auto_pad": "SAME_UPPER"}),
    Case("AveragePool", [f32(1, 2, 5, 6, 7)], {"kernel_shape": [2, 3, 2], "pads": [1] * 6}),
    Case("LpPool", [f32(1, 2, 6, 7)], {"kernel_shape": [2, 3], "p": 2, "strides": [2, 2]}),
    Case("GlobalAveragePool", [f32(2, 3, 4, 5)]),
    Case("GlobalMaxPool", [f32(2, 3, 4, 5)]),
]  # fmt: skip

NORM = [
    Case("Softmax", [f32(2, 3, 5)]),
    Case("Softmax", [f32(2, 3, 5)], {"axis": 1}),
    Case("LogSoftmax", [f32(2, 3, 5)], {"axis": 0}),
    Case("Hardmax", [f32(3, 5)], {"axis": 0}),
    Case(
        "BatchNormalization",
        [f32(2, 3, 4), f32(3), f32(3, seed=1), f32(3, seed=2), np.abs(f32(3, seed=3)) + 0.1],
    ),
    Case("LayerNormalization", [f32(2, 3, 8), f32(8), f32(8, seed=1)]),
    Case("LayerNormalization", [f32(2, 3, 8), f32(3, 8)], {"axis": 1, "epsilon": 1e-2}),
    Case("LayerNormalization", [f32(2, 3, 8), f32(8), f32(8)], {"axis": -1}, outputs=3),
    Case("RMSNormalization", [f32(2, 3, 8), f32(8)]),
    Case("InstanceNormalization", [f32(2, 3, 4, 5), f32(3), f32(3, seed=1)], {"epsilon": 1e-3}),
    Case("GroupNormalization", [f32(2, 6, 4, 5), f32(6), f32(6, seed=1)], {"num_groups": 3}),
    Case("LpNormalization", [f32(3, 5)], {"axis": 0, "p": 1}),
    Case("LpNormalization", [f32(3, 5)], {"p": 2}),
    Case("MeanVarianceNormalization", [f32(2, 3, 4, 5)]),
    Case("LRN", [f32(1, 7, 3, 3)], {"size": 3, "alpha": 0.2, "bias": 1.5}),
    Case(
        "SkipLayerNormalization", [f32(2, 3, 8), f32(2, 3, 8, seed=1), f32(8), f32(8, seed=1)],
        {"epsilon": 1e-5}, 2, domain="com.microsoft",
    ),
    Case(
        "SkipSimplifiedLayerNormalization", [f32(2, 3, 8), f32(2, 3, 8, seed=1), f32(8)],
        {"epsilon": 1e-5}, 2, domain="com.microsoft",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", MATMUL, ids=str)
def test_matmul(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", CONV, ids=str)
def test_conv(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", POOL, ids=str)
def test_pool(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", NORM, ids=str)
def test_norm(case: Case) -> None:
    check(case)


CONV_TRANSPOSE = [
    Case("ConvTranspose", [f32(1, 3, 4, 5), f32(3, 4, 2, 2), f32(4)], {"strides": [2, 2]}),
    Case(
        "ConvTranspose", [f32(2, 4, 4, 5), f32(4, 3, 3, 4), f32(6)],
        {"strides": [2, 3], "group": 2, "pads": [1, 0, 1, 2], "output_padding": [1, 2]},
    ),
    Case("ConvTranspose", [f32(1, 3, 4, 5), f32(3, 2, 3, 3)], {"dilations": [2, 1]}),
    Case("ConvTranspose", [f32(1, 3, 4, 5), f32(3, 2, 2, 2)], {"strides": [3, 3]}),
    Case(
        "ConvTranspose", [f32(1, 3, 4, 5), f32(3, 2, 4, 3)],
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ),
    Case(
        "ConvTranspose", [f32(1, 3, 4, 5), f32(3, 2, 4, 3)],
        {"strides": [2, 2], "output_shape": [9, 10]},
    ),
    Case("ConvTranspose", [f32(1, 3, 6), f32(3, 2, 4)], {"strides": [2], "pads": [1, 1]}),
    Case("ConvTranspose", [f32(1, 2, 3, 3, 3), f32(2, 2, 2, 3, 2)], {"strides": [2, 1, 2]}),
    Case("ConvTranspose", [f32(1, 4, 5, 5), f32(4, 1, 4, 4)], {"strides": [2, 2], "group": 4}),
]  # fmt: skip

WIDE = np.linspace(-20, 20, 81, dtype=np.float32).reshape(3, 27)
ACTIVATION = [
    *(
        Case(op, [WIDE])
        for op in (
            "Elu", "Selu", "Celu", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Softplus",
            "Softsign", "ThresholdedRelu", "LeakyRelu",
        )
    ),
    Case("Elu", [WIDE], {"alpha": 0.7}),
    Case("Celu", [WIDE], {"alpha": 2.0}),
    Case("Gelu", [WIDE], {"approximate": "tanh"}),
    Case("Shrink", [WIDE], {"lambd": 1.5, "bias": 0.5}),
    Case("PRelu", [f32(2, 3, 4), f32(3, 1)]),
    Case("BiasGelu", [f32(2, 5), f32(5)], domain="com.microsoft"),
    Case("FastGelu", [f32(2, 5), f32(5)], domain="com.microsoft"),
    Case("QuickGelu", [f32(2, 5)], domain="com.microsoft"),
    Case("Gelu", [f32(2, 5)], domain="com.microsoft"),
]  # fmt: skip


@pytest.mark.parametrize("case", CONV_TRANSPOSE, ids=str)
def test_conv_transpose(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", ACTIVATION, ids=str)
def test_activation(case: Case) -> None:
    check(case)


def recurrent(
    op: str,
    gates: int,
    directions: int = 1,
    extra: int = 0,
    lens: Sequence[int] = (),
    **attrs: Any,
) -> Case:
    """A layer of T=4, B=2, I=3, H=5; `extra` initial states and, beyond those, peepholes."""
    hidden, batch, length = 5, 2, 4
    first = attrs.get("layout", 0)
    x = f32(batch, length, 3) if first else f32(length, batch, 3)
    weights = [f32(directions, gates * hidden, n) * 0.5 for n in (3, hidden)]
    bias = f32(directions, 2 * gates * hidden) * 0.5
    shape = (batch, directions, hidden) if first else (directions, batch, hidden)
    states = [f32(*shape, seed=k) for k in range(extra)]
    if op == "LSTM" and extra == 3:
        states[2] = f32(directions, 3 * hidden)
    lengths = np.array(lens or [length] * batch, np.int32)
    inputs = [x, *weights, bias, *([lengths, *states] if extra or lens else [])]
    return Case(op, inputs, {"hidden_size": hidden, **attrs}, outputs=3 if op == "LSTM" else 2)


RNN = [
    recurrent("RNN", 1),
    recurrent("RNN", 1, 2, direction="bidirectional", activations=["Relu", "LeakyRelu"]),
    recurrent("GRU", 3),
    recurrent("GRU", 3, extra=1, linear_before_reset=1, direction="reverse"),
    recurrent("GRU", 3, 2, direction="bidirectional", clip=0.5),
    recurrent("LSTM", 4),
    recurrent("LSTM", 4, 2, extra=2, direction="bidirectional"),
    recurrent("LSTM", 4, extra=3),
    recurrent("RNN", 1, lens=[4, 1]),
    recurrent("GRU", 3, 2, lens=[2, 3], direction="bidirectional"),
    recurrent("LSTM", 4, lens=[3, 4], direction="reverse"),
    recurrent("LSTM", 4, 2, extra=2, lens=[1, 3], direction="bidirectional"),
    recurrent("LSTM", 4, activations=["HardSigmoid", "Tanh", "Softsign"], activation_alpha=[0.3]),
]


@pytest.mark.parametrize("case", RNN, ids=str)
def test_recurrent(case: Case) -> None:
    check(case)


def resize(
    shape: tuple[int, ...], scales: Sequence[float] = (), sizes: Any = None, **attrs: Any
) -> Case:
    if sizes is None:
        inputs = [f32(*shape), None, np.array(scales, np.float32)]
    else:
        inputs = [f32(*shape), None, None, np.array(sizes)]
    return Case("Resize", inputs, attrs)


RESIZE = [
    *(
        resize(
            (1, 2, 5, 7), (1, 1, *scales), mode="nearest", nearest_mode=rounding,
            coordinate_transformation_mode=transformation,
        )
        for scales in ((2.0, 2.0), (1.6, 0.7))
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for transformation in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    *(
        resize(
            (1, 2, 5, 7), sizes=(1, 2, 8, 4), mode=mode,
            coordinate_transformation_mode=transformation,
        )
        for mode in ("linear", "cubic")
        for transformation in (
            "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel",
            "half_pixel_symmetric",
        )
    ),
    resize((2, 1, 6, 6), (1, 1, 1.5, 2), mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
    resize((1, 2, 4, 5), sizes=(1, 2, 8, 10), mode="nearest"),
    Case(
        "Resize",
        [f32(1, 1, 5, 6), np.array([0, 0, 0.2, -0.1, 1, 1, 0.9, 1.2], np.float32), None,
         np.array([1, 1, 4, 5])],
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize",
         "extrapolation_value": 3.0},
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", RESIZE, ids=str)
def test_resize(case: Case) -> None:
    check(case)


MASK = np.random.default_rng(5).random((5, 6)) < 0.7
MASK[:, 0] = True
ATTENTION = [
    Case("Attention", [f32(2, 3, 5, 4), f32(2, 3, 6, 4), f32(2, 3, 6, 7)], variable=3),
    Case(
        "Attention", [f32(2, 5, 12), f32(2, 6, 6), f32(2, 6, 8), f32(5, 6)],
        {"q_num_heads": 4, "kv_num_heads": 2, "scale": 0.3}, 4,
    ),
    Case("Attention", [f32(1, 2, 5, 4), f32(1, 2, 6, 4), f32(1, 2, 6, 4), MASK], variable=4),
    Case(
        "Attention", [f32(1, 2, 5, 4, seed=k) for k in range(3)],
        {"is_causal": 1, "softcap": 2.0}, 3,
    ),
    Case(
        "Attention",
        [*(f32(1, 2, 3, 4, seed=k) for k in range(3)), f32(3, 8), f32(1, 2, 5, 4), f32(1, 2, 5, 4)],
        {}, 6, 3,
    ),
    Case("RotaryEmbedding", [f32(2, 3, 5, 8), f32(2, 5, 4), f32(2, 5, 4, seed=1)], variable=3),
    Case(
        "RotaryEmbedding",
        [f32(2, 5, 16), f32(9, 3), f32(9, 3, seed=1), np.arange(10).reshape(2, 5) % 7],
        {"num_heads": 2, "rotary_embedding_dim": 6, "interleaved": 1},
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention(case: Case) -> None:
    check(case)
