"""Padding is allowed exactly where the larger model's corner is the smaller model's result."""

import numpy as np
import pytest
from onnx import parser

from tinycomp.frontend.onnx import OnnxModel
from tinycomp.ops import default_ops
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.padding import obstacle, output_shapes
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.simplify_inference import SimplifyInference

HEADER = '<ir_version: 9, opset_import: ["": 20]>'


def modules(text, small, large):
    model = OnnxModel.read(parser.parse_model(HEADER + text))
    ctx = PassContext(default_ops())
    return [
        SimplifyInference().run(model.specialize({}, {"n": n}, 1 << 30), ctx)
        for n in (small, large)
    ]


INDEPENDENT = {
    "elementwise": "g (float[n, 3] x) => (float[n, 3] y) { a = Exp(x) y = Add(a, x) }",
    "matmul": """g (float[n, 3] x) => (float[n, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}>
        { m = MatMul(x, w) y = Softmax(m) }""",
    "reshape": """g (float[n, 2, 3] x) => (float[n, 6] y) <int64[2] s = {0, -1}>
        { y = Reshape(x, s) }""",
    "merged": """g (float[n, 2, 3] x) => (float[m, 3] y) <int64[2] s = {-1, 3}>
        { y = Reshape(x, s) }""",
    "expanded_constant": """g (float[n, 2] x) => (float[n, 2] y) <float[1, 2] c = {1, 2}>
        { s = Shape(x) e = Expand(c, s) y = Mul(x, e) }""",
    "arange": """g (float[n, 1] x) => (float[n, 1] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] axis = {1}> {
        s = Shape <start = 0, end = 1> (x) k = Squeeze(s) r = Range(zero, k, one)
        u = Unsqueeze(r, axis) f = Cast <to = 1> (u) y = Add(x, f) }""",
    "sum_of_another_axis": """g (float[n, 3] x) => (float[n, 1] y) <int64[1] a = {1}>
        { y = ReduceMean(x, a) }""",
    "batch_inside": """g (float[3, n] x) => (float[3, n] y) <int64[1] a = {0}>
        { m = ReduceMax(x, a) y = Sub(x, m) }""",
    "pair": """g (float[n, 4] x) => (float[n, 2] y, float[n, 2] z)
        { y, z = Split <axis = 1, num_outputs = 2> (x) }""",
    "own_row": """g (float[n, 3] x) => (float[n, 3] y) <int64 zero = {0}, int64 one = {1}> {
        s = Shape <start = 0, end = 1> (x) k = Squeeze(s) r = Range(zero, k, one)
        y = Gather <axis = 0> (x, r) }""",
}
DEPENDENT = {
    "sum": "g (float[n, 3] x) => (float[1, 3] y) <int64[1] a = {0}> { y = ReduceSum(x, a) }",
    "softmax": "g (float[n, 3] x) => (float[n, 3] y) { y = Softmax <axis = 0> (x) }",
    "size_as_number": """g (float[n, 3] x) => (float[n, 3] y)
        { s = Shape <start = 0, end = 1> (x) f = Cast <to = 1> (s) y = Div(x, f) }""",
    "reverse": """g (float[n, 3] x) => (float[n, 3] y)
        <int64[1] b = {-1}, int64[1] e = {-999}, int64[1] a = {0}, int64[1] t = {-1}>
        { y = Slice(x, b, e, a, t) }""",
    "batch_merged_inside": """g (float[3, n] x) => (float[m] y) <int64[1] s = {-1}>
        { y = Reshape(x, s) }""",
    "last_row": """g (float[n, 3] x) => (float[3] y) <int64 i = {-1}>
        { y = Gather <axis = 0> (x, i) }""",
    "row_by_data": """g (float[n, 3] x, int64[n] i) => (float[n, 3] y)
        { y = Gather <axis = 0> (x, i) }""",
    "concatenated": "g (float[n, 3] x) => (float[m, 3] y) { y = Concat <axis = 0> (x, x) }",
    "transposed_product": """g (float[n, 3] x) => (float[3, 3] y)
        { t = Transpose <perm = [1, 0]> (x) y = MatMul(t, x) }""",
    "cumulative_from_the_end": """g (float[n, 3] x) => (float[n, 3] y) <int64 a = {0}>
        { y = CumSum <reverse = 1> (x, a) }""",
}


@pytest.mark.parametrize("sizes", [(1, 4), (3, 4), (2, 8)])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_what_may_be_padded(name, sizes):
    """It is proven, and what is proven is true: with any padding the corners agree."""
    small, large = modules(INDEPENDENT[name], *sizes)
    assert obstacle(small, large) is None
    rng = np.random.default_rng(0)
    padded = [rng.standard_normal(p.type.static_shape).astype("f4") for p in large.main.params]
    cut = [
        a[tuple(slice(d) for d in p.type.static_shape)]
        for a, p in zip(padded, small.main.params, strict=True)
    ]
    few, many = (evaluate(m, a) for m, a in ((small, cut), (large, padded)))
    for got, expected, shape in zip(many, few, output_shapes(small), strict=True):
        np.testing.assert_allclose(got[tuple(slice(d) for d in shape)], expected, rtol=1e-6)


@pytest.mark.parametrize("name", DEPENDENT)
def test_what_may_not(name):
    assert obstacle(*modules(DEPENDENT[name], 3, 4))


def test_the_reason_names_the_node():
    assert obstacle(*modules(DEPENDENT["sum"], 3, 4)) == (
        "sum mixes or counts what is padded (node ReduceSum#0)"
    )


def test_models_with_another_number_of_operators():
    text = "g (float[n, 2, 3] x) => (float[n, 2, 4] y) { y, h = RNN <hidden_size = 4> (x, w, r) }"
    proto = parser.parse_model(HEADER + text.replace("[n, 2, 4] y", "[n, 1, 2, 4] y"))
    for name, shape in (("w", (1, 4, 3)), ("r", (1, 4, 4))):
        import onnx

        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        )
    model = OnnxModel.read(proto)
    small, large = (model.specialize({}, {"n": n}, 1 << 30) for n in (2, 3))
    assert "another number of operators" in str(obstacle(small, large))
