"""One model for all sizes up to a bucket: its results are those for the size, whatever the padding
holds."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from tinycomp.diagnostics import ExecutionError
from tinycomp.frontend.onnx import OnnxModel
from tinycomp.ops import default_ops
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.padding.bounded import bound
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.simplify_inference import SimplifyInference
from tinycomp.relay.verify import verify_module

HEADER = '<ir_version: 9, opset_import: ["": 20]>'
OPS = default_ops()


def specialized(proto, n):
    model = proto if isinstance(proto, OnnxModel) else OnnxModel.read(proto)
    return SimplifyInference().run(model.specialize({}, {"n": n}, 1 << 30), PassContext(OPS))


def bounded(text, bucket):
    """The bucket's model, and a function that gives the model of a size."""
    model = OnnxModel.read(parser.parse_model(HEADER + text))
    samples = [specialized(model, n) for n in sorted({bucket - 1, 2}, reverse=True) if n < bucket]
    return bound(specialized(model, bucket), samples, OPS), lambda n: specialized(model, n)


def random_arrays(module, seed=0):
    rng = np.random.default_rng(seed)
    for p in module.main.params:
        if p.type.dtype.is_int:
            yield rng.integers(0, 2, p.type.static_shape).astype(p.type.dtype.numpy)
        else:
            yield rng.standard_normal(p.type.static_shape).astype(p.type.dtype.numpy)


def with_padding(arrays, large, garbage):
    for array, p in zip(arrays, large.main.params, strict=False):
        value = garbage if p.type.dtype.is_float else 1
        padded = np.full(p.type.static_shape, value, p.type.dtype.numpy)
        padded[tuple(slice(n) for n in array.shape)] = array
        yield padded


def check(model, small, garbage):
    """The bucket's model gives what the small one gives."""
    fit = model.fit(small)
    assert not isinstance(fit, str), fit
    arrays = list(random_arrays(small))
    module = model.module()
    verify_module(module)
    with np.errstate(all="ignore"):
        got = evaluate(module, [*with_padding(arrays, model.large, garbage), *fit.hidden])
        expected = evaluate(small, arrays)
    for a, b, crop in zip(got, expected, fit.crops, strict=True):
        np.testing.assert_allclose(crop(a), b, rtol=1e-4, atol=1e-5)
    return fit


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
MASKED = {
    "sum": "g (float[n, 3] x) => (float[1, 3] y) <int64[1] a = {0}> { y = ReduceSum(x, a) }",
    "mean": """g (float[2, n, 3] x) => (float[2, 3] y)
        <int64[1] a = {1}> { y = ReduceMean <keepdims = 0> (x, a) }""",
    "mean_of_halves": """g (float16[n, 3] x) => (float16[1, 3] y)
        <int64[1] a = {0}> { y = ReduceMean(x, a) }""",
    "largest": """g (float[n, 3] x) => (float[3] y)
        <int64[1] a = {0}> { y = ReduceMax <keepdims = 0> (x, a) }""",
    "smallest_integer": """g (int32[n, 3] x) => (int32[3] y)
        <int64[1] a = {0}> { y = ReduceMin <keepdims = 0> (x, a) }""",
    "product": "g (float[n, 3] x) => (float[1, 3] y) <int64[1] a = {0}> { y = ReduceProd(x, a) }",
    "norm": "g (float[n, 3] x) => (float[1, 3] y) <int64[1] a = {0}> { y = ReduceL2(x, a) }",
    "log_sum_exp": """g (float[n, 3] x) => (float[1, 3] y)
        <int64[1] a = {0}> { y = ReduceLogSumExp(x, a) }""",
    "softmax": "g (float[n, 3] x) => (float[n, 3] y) { y = Softmax <axis = 0> (x) }",
    "log_softmax": "g (float[3, n] x) => (float[3, n] y) { y = LogSoftmax(x) }",
    "size_as_number": """g (float[n, 3] x) => (float[n, 3] y)
        { s = Shape <start = 0, end = 1> (x) f = Cast <to = 1> (s) y = Div(x, f) }""",
    "reverse": """g (float[n, 3] x) => (float[n, 3] y)
        <int64[1] b = {-1}, int64[1] e = {-999}, int64[1] a = {0}, int64[1] t = {-1}>
        { y = Slice(x, b, e, a, t) }""",
    "last_two": """g (float[n, 3] x) => (float[2, 3] y)
        <int64[1] b = {-2}, int64[1] e = {999}, int64[1] a = {0}>
        { y = Slice(x, b, e, a) }""",
    "last_row": """g (float[n, 3] x) => (float[3] y) <int64 i = {-1}>
        { y = Gather <axis = 0> (x, i) }""",
    "merged_inside": "g (float[3, n] x) => (float[m] y) <int64[1] s = {-1}> { y = Reshape(x, s) }",
    "merged_and_split": """g (float[3, n, 4] x, float[4, 6] w) => (float[3, n, 2, 3] y)
        <int64[2] a = {-1, 4}, int64[4] b = {3, -1, 2, 3}>
        { r = Reshape(x, a) m = MatMul(r, w) y = Reshape(m, b) }""",
    "merged_and_summed": """g (float[3, n, 2] x) => (float[2] y)
        <int64[2] a = {-1, 2}, int64[1] b = {0}>
        { r = Reshape(x, a) y = ReduceSum <keepdims = 0> (r, b) }""",
    "concatenated": "g (float[n, 3] x) => (float[m, 3] y) { y = Concat <axis = 0> (x, x) }",
    "concatenated_behind": """g (float[n, 3] x, float[2, 3] z) => (float[1, 3] y) <int64[1] a = {0}>
        { c = Concat <axis = 0> (x, z) y = ReduceSum(c, a) }""",
    "transposed_product": """g (float[n, 3] x) => (float[3, 3] y)
        { t = Transpose <perm = [1, 0]> (x) y = MatMul(t, x) }""",
    "attention": """g (float[2, n, 4] q, float[2, n, 4] k, float[2, n, 4] v) => (float[2, n, 4] y)
        { t = Transpose <perm = [0, 2, 1]> (k) s = MatMul(q, t) p = Softmax(s)
        y = MatMul(p, v) }""",
    "cumulative": "g (float[n, 3] x) => (float[n, 3] y) <int64 a = {0}> { y = CumSum(x, a) }",
    "cumulative_from_the_end": """g (float[n, 3] x) => (float[n, 3] y) <int64 a = {0}>
        { y = CumSum <reverse = 1> (x, a) }""",
    "convolution": """g (float[1, 2, n] x, float[3, 2, 3] w) => (float[1, 3, n] y)
        { y = Conv <pads = [1, 1], kernel_shape = [3]> (x, w) }""",
    "strided_convolution": """g (float[1, 2, n, 5] x, float[3, 2, 3, 3] w) => (float[1, 3, m, 3] y)
        { y = Conv <pads = [1, 1, 1, 1], strides = [2, 2], kernel_shape = [3, 3]> (x, w) }""",
    "max_pool": """g (float[1, 2, n] x) => (float[1, 2, n] y)
        { y = MaxPool <pads = [1, 1], kernel_shape = [3]> (x) }""",
    "global_pools": """g (float[1, 2, n, n] x) => (float[1, 2, 1, 1] y, float[1, 2, 1, 1] z)
        { y = GlobalAveragePool(x) z = GlobalMaxPool(x) }""",
    "reflected": """g (float[2, n] x) => (float[2, m] y) <int64[4] p = {0, 1, 0, 1}>
        { y = Pad <mode = "reflect"> (x, p) }""",
    "dynamic_quantisation": """g (float[n, 3] x) => (uint8[n, 3] y, float s, uint8 z)
        { y, s, z = DynamicQuantizeLinear(x) }""",
    "instance_norm": """g (float[1, 2, n] x, float[2] s, float[2] b) => (float[1, 2, n] y)
        { y = InstanceNormalization(x, s, b) }""",
    "einsum": """g (float[n, 3] x, float[n, 2] z) => (float[3, 2] y)
        { y = Einsum <equation = "na,nb->ab"> (x, z) }""",
    "position": "g (float[n, 3] x) => (int64[3] y) { y = ArgMax <axis = 0, keepdims = 0> (x) }",
    "trained_positions": """g (float[n, 3] x, float[9, 3] t) => (float[n, 3] y)
        <int64[1] zero = {0}> {
        s = Shape <start = 0, end = 1> (x) p = Slice(t, zero, s, zero) y = Add(x, p) }""",
    "causal": """g (float[n, n] x) => (float[n, n] y) <float low = {-1e9}> {
        t = Trilu <upper = 0> (x) b = Cast <to = 9> (t) w = Where(b, x, low) y = Softmax(w) }""",
    "row_by_data": """g (float[n, 3] x, int64[n] i) => (float[n, 3] y)
        { y = Gather <axis = 0> (x, i) }""",
    "last_token": """g (float[2, n, 3] x, int64[2, n] mask) => (float[2, 3] y)
        <int64[1] a = {1}, int64[1] one = {1}>
        { c = ReduceSum(mask, a) i = Sub(c, one) y = GatherND <batch_dims = 1> (x, i) }""",
    "repeated": """g (float[n, 3] x) => (float[m, 3] y) <int64[2] r = {2, 1}>
        { y = Tile(x, r) }""",
    "average_pool": """g (float[1, 2, n, n] x) => (float[1, 2, n, n] y)
        { y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x) }""",
    "resized": """g (float[1, 1, n, n] x) => (float[1, 1, m, m] y) <float[4] s = {1, 1, 2, 2}>
        { y = Resize <mode = "linear"> (x, , s) }""",
    "resized_from_corner_to_corner": """g (float[1, n] x) => (float[1, m] y)
        <float[2] s = {1, 1.5}> {
        y = Resize <mode = "cubic", coordinate_transformation_mode = "align_corners"> (x, , s) }""",
    "sorted": """g (float[2, n] x) => (float[2, n] y, int64[2, n] i)
        { k = Shape <start = 1, end = 2> (x) y, i = TopK(x, k) }""",
    "smallest_integers": """g (int32[n, 3] x) => (int32[2, 3] y, int64[2, 3] i) <int64[1] k = {2}>
        { y, i = TopK <axis = 0, largest = 0> (x, k) }""",
    "appended": """g (float[2, n, 4] past, float[2, 1, 4] k) => (float[2, 1, 4] y)
        { c = Concat <axis = 1> (past, k) t = Transpose <perm = [0, 2, 1]> (c)
        s = MatMul(k, t) p = Softmax(s) y = MatMul(p, c) }""",
}
NOT_PROVEN = {
    "last_of_equals": """g (float[n, 3] x) => (int64[3] y)
        { y = ArgMax <axis = 0, keepdims = 0, select_last_index = 1> (x) }""",
    "smallest_with_nan": """g (float[n] x) => (float[2] y, int64[2] i) <int64[1] k = {2}>
        { y, i = TopK <largest = 0> (x, k) }""",
    "diagonal_blocks": """g (float[n, 4] x) => (float[4, n] y) <int64[2] s = {4, -1}>
        { y = Reshape(x, s) }""",
}


@pytest.mark.parametrize("sizes", [(1, 4), (3, 4), (2, 8)])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_what_needs_no_mask(name, sizes):
    small, large = sizes
    model, of = bounded(INDEPENDENT[name], large)
    assert model.plan.is_empty
    assert check(model, of(small), np.nan).hidden == ()


@pytest.mark.parametrize("garbage", [np.nan, -np.inf])
@pytest.mark.parametrize("name", MASKED)
def test_nothing_of_the_padding_leaks(name, garbage):
    model, of = bounded(MASKED[name], 7)
    for n in (7, 5, 3):
        check(model, of(n), garbage)


@pytest.mark.parametrize("name", NOT_PROVEN)
def test_what_may_not(name):
    model, of = bounded(NOT_PROVEN[name], 5)
    assert isinstance(model.fit(of(4)), str)


def test_the_reason_names_the_node():
    """Of the first operator that stands in the way, not of one that could have been masked."""
    model, of = bounded(
        """g (float[n] x) => (float[2] y, int64[2] i, float[n] z) <int64[1] k = {2}>
        { z = Softmax(x) y, i = TopK <largest = 0> (z, k) }""",
        4,
    )
    assert model.fit(of(3)) == "topk sorts what is padded (node TopK#1)"


def test_indices_out_of_range_are_found():
    """An index that is right for the bucket, and wrong for the size."""
    model, of = bounded(MASKED["row_by_data"], 5)
    small = of(3)
    fit = model.fit(small)
    x = np.zeros((5, 3), np.float32)
    for wrong in (3, -4):
        with pytest.raises(ExecutionError):
            evaluate(model.module(), [x, np.array([0, wrong, 0, 0, 0]), *fit.hidden])
    evaluate(model.module(), [x, np.array([2, -3, 0, 0, 0]), *fit.hidden])


def test_indices_computed_for_padding_stay_in_range():
    """Positions that go on counting behind the true extent, where the table ends."""
    text = """g (int64[n] x) => (float[n, 2] y)
        <int64 a = {0}, float[3, 2] t = {1, 2, 3, 4, 5, 6}> {
        p = CumSum <exclusive = 1> (x, a) y = Gather <axis = 0> (t, p) }"""
    model, of = bounded(text, 6)
    for n in (2, 3):
        fit = model.fit(of(n))
        ones = np.ones(6, np.int64)
        (got,) = evaluate(model.module(), [ones, *fit.hidden])
        np.testing.assert_array_equal(fit.crops[0](got)[:, 0], [1, 3, 5][:n])


def test_a_plan_that_a_size_does_not_fit():
    """What was decided with some sizes is not taken for granted with others."""
    text = """g (float[n, 2] x) => (float[n, 2] y) { s = Shape <start = 0, end = 1> (x)
        f = Cast <to = 1> (s) q = Sqrt(f) y = Mul(x, q) z = Shape(y) }"""
    model, of = bounded(text, 6)
    (values,) = {len(model.fit(of(n)).hidden) for n in (2, 3, 4, 5, 6)}
    assert values == 1


def test_models_with_another_number_of_operators():
    text = (
        "g (float[n, 2, 3] x) => (float[n, 1, 2, 4] y) { y, h = RNN <hidden_size = 4> (x, w, r) }"
    )
    proto = parser.parse_model(HEADER + text)
    for name, shape in (("w", (1, 4, 3)), ("r", (1, 4, 4))):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    model = OnnxModel.read(proto)
    large = specialized(model, 3)
    assert "another number of operators" in str(bound(large, [], OPS).fit(specialized(model, 2)))
