"""What the samples of the neural-network operators do not show: layouts, symbols, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from tinycomp import te
from tinycomp.diagnostics import TypeMismatch, UnsupportedModel
from tinycomp.ops import default_ops, onnx_importers
from tinycomp.ops.onnx_node import OnnxNode
from tinycomp.ops.resize import ResizeAttrs, _integer_index
from tinycomp.relay.builder import Builder
from tinycomp.types import tensor_type

OPS = default_ops()


def f32(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def reference(name: str, *arrays: np.ndarray, **attrs: object) -> np.ndarray:
    op = OPS[name]
    return op.reference(op.attrs_type(**attrs), arrays)


@pytest.mark.parametrize("channels", [8, 9])
def test_packed_convolution_equals_the_plain_one(channels: int) -> None:
    x, w, tile = f32(2, 6, 7, 5), f32(channels, 5, 3, 2), (2, 4, 4)
    common = {"strides": (2, 1), "padding": (1, 0, 1, 1), "data_layout": "NHWC"}
    plain = reference("nn.conv2d", x, w, **common)
    packed = reference(
        "nn.conv2d", x, reference("nn.pack_conv2d", w, tile=tile), **common,
        kernel_layout="packed", out_channels=channels, kernel_size=(3, 2), tile=tile,
    )  # fmt: skip
    np.testing.assert_allclose(packed, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [8, 11])
def test_packed_product_equals_the_plain_one(columns: int) -> None:
    a, b, tile = f32(3, 4, 5), f32(5, columns), (2, 4)
    packed = reference("nn.pack_matmul", b, tile=tile)
    assert packed.shape == (-(-columns // 4), 5, 4)
    result = reference("nn.matmul_packed", a, packed, n=columns, k=5, tile=tile)
    np.testing.assert_allclose(result, a @ b, rtol=1e-5, atol=1e-5)


def test_layouts_of_convolution_and_pooling_agree() -> None:
    x, w = f32(1, 4, 6, 5), f32(4, 1, 3, 3)
    nhwc = x.transpose(0, 2, 3, 1)
    plain = reference("nn.conv2d", x, w, groups=4, padding=(1, 1, 1, 1))
    depthwise = reference(
        "nn.conv2d", nhwc, w[:, 0].transpose(1, 2, 0), groups=4, padding=(1, 1, 1, 1),
        data_layout="NHWC", kernel_layout="HWC",
    )  # fmt: skip
    np.testing.assert_allclose(depthwise.transpose(0, 3, 1, 2), plain, rtol=1e-5, atol=1e-6)
    pooled = reference("nn.max_pool2d", nhwc, pool_size=(2, 2), data_layout="NHWC")
    np.testing.assert_array_equal(
        pooled.transpose(0, 3, 1, 2), reference("nn.max_pool2d", x, pool_size=(2, 2))
    )


SYMBOLIC = [
    ("nn.conv2d", [(3, 8, 8), (4, 3, 3, 3)], {"padding": (1, 1, 1, 1)}, (4, 8, 8)),
    ("nn.max_pool2d", [(3, 8, 8)], {"pool_size": (2, 2), "strides": (2, 2)}, (3, 4, 4)),
    ("nn.matmul", [(5, 6), (6, 7)], {}, (5, 7)),
    ("nn.softmax", [(5, 6)], {}, (5, 6)),
    ("image.resize", [(3, 4)], {"axes": (2,), "size": (8,), "scales": (2.0,)}, (3, 8)),
]


@pytest.mark.parametrize(("name", "shapes", "attrs", "out"), SYMBOLIC, ids=[c[0] for c in SYMBOLIC])
def test_batch_may_be_symbolic(name: str, shapes: list, attrs: dict, out: tuple) -> None:
    n, op = te.var("n"), OPS[name]
    types = [tensor_type((n, *shapes[0])), *(tensor_type(s) for s in shapes[1:])]
    result = op.infer(op.attrs_type(**attrs), types)
    assert result == tensor_type((n, *out))
    assert op.compute is not None
    tensors = [te.placeholder(t.shape, t.dtype) for t in types]
    (made,) = op.compute(op.attrs_type(**attrs), tensors, result)
    assert made.shape[0] is n


def test_fast_computations_are_tagged() -> None:
    tags = {
        made.op.tag
        for name in (
            "nn.conv2d",
            "nn.matmul_packed",
            "nn.softmax",
            "nn.layer_norm",
            "nn.max_pool2d",
        )
        for sample in OPS[name].samples()
        for types in [[tensor_type(a.shape, a.dtype.name) for a in sample.inputs]]
        for made in OPS[name].compute(  # type: ignore[misc]
            sample.attrs,
            [te.placeholder(t.shape, t.dtype) for t in types],
            OPS[name].infer(sample.attrs, types),
        )
        if made.dtype == "float32"
    }
    assert {
        "conv2d_nhwc", "depthwise_nhwc", "conv2d_nchw", "conv2d_grouped", "matmul_packed",
        "softmax", "layer_norm", "pool",
    } <= tags  # fmt: skip


def test_doubling_by_nearest_is_integer_arithmetic() -> None:
    for transformation in ("half_pixel", "asymmetric"):
        attrs = ResizeAttrs((0,), (14,), (2.0,), "nearest", transformation, "floor")
        a, b, c = _integer_index(attrs, 0, 7) or (0, 0, 0)
        assert [(o * a + b) // c for o in range(1, 13)] == [
            max(int((o + 0.5) / 2 - 0.5) if transformation == "half_pixel" else o // 2, 0)
            for o in range(1, 13)
        ]


REFUSED = [
    ("nn.matmul", [(2, 3), (4, 5)], {}, "columns"),
    ("nn.matmul", [(2, 2, 3), (3, 3, 5)], {}, "batch dimensions"),
    ("nn.conv2d", [(1, 3, 8, 8), (4, 2, 3, 3)], {}, "channels"),
    ("nn.conv2d", [(1, 3, 2, 2), (4, 3, 3, 3)], {}, "smaller than the window"),
    ("nn.max_pool2d", [(1, 3, 8)], {}, "rank 4"),
    ("nn.layer_norm", [(2, 8), (7,), (8,)], {}, "normalised axes"),
    ("nn.softmax", [(2, 8)], {"axis": 2}, "axis 2"),
]


@pytest.mark.parametrize(("name", "shapes", "attrs", "message"), REFUSED)
def test_wrong_types_are_refused(name: str, shapes: list, attrs: dict, message: str) -> None:
    op = OPS[name]
    with pytest.raises(TypeMismatch, match=message):
        op.infer(op.attrs_type(**attrs), [tensor_type(s) for s in shapes])


@pytest.mark.parametrize(
    ("op", "shapes", "attrs"),
    [
        ("Resize", [(1, 1, 8, 8), None, (4,)], {"antialias": 1}),
        ("BatchNormalization", [(1, 2, 3), (2,), (2,), (2,), (2,)], {"training_mode": 1}),
        ("Conv", [(1, 2, 3, 3, 3, 3), (2, 2, 1, 1, 1, 1)], {}),
    ],
)
def test_unsupported_variants_say_so(op: str, shapes: list, attrs: dict) -> None:
    b = Builder(OPS)
    atoms = [b.param("x", shapes[0])]
    atoms += [None if s is None else b.const(np.full(s, 0.5, np.float32)) for s in shapes[1:]]
    with pytest.raises(UnsupportedModel, match="not supported yet"):
        onnx_importers()[op](OnnxNode(op, "node", tuple(atoms), attrs, 1, b))
