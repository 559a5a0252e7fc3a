"""Products of widened bytes become products of bytes, exactly."""

import numpy as np
import pytest

from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Call, IRModule
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.byte_products import ByteProducts
from tinycomp.relay.pattern import op_name

PASS = ByteProducts(lambda rows, columns: (min(rows, 5), 16))


def product(shape, weights, dtype, zero):
    """matmul(cast(x) - zero, weights); zero is None, a number, or "x" for a parameter."""
    b = Builder(default_ops())
    x = b.param("x", shape, dtype)
    left = b.call("cast", x, dtype=DType.INT32)
    if zero == "x":
        z = b.param("z", (), dtype)
        left = b.call("subtract", left, b.call("cast", z, dtype=DType.INT32))
    elif zero is not None:
        left = b.call("subtract", left, b.const(zero, DType.INT32))
    return IRModule({"main": b.finish(b.call("nn.matmul", left, b.const(weights)))})


def run(module, dtype, zero):
    rng = np.random.default_rng(1)
    numpy_dtype = DType(dtype).numpy
    low, high = np.iinfo(numpy_dtype).min, np.iinfo(numpy_dtype).max
    shape = module.main.params[0].type.static_shape
    inputs = [rng.integers(low, high, shape, numpy_dtype, endpoint=True)]
    if zero == "x":
        inputs.append(np.array(high - 5, numpy_dtype))
    return evaluate(module, inputs)[0]


def names(module):
    calls = [b.value for b in module.main.bindings if isinstance(b.value, Call)]
    return [op_name(call) for call in calls]


def integers(k, n, low=-128, high=127):
    return np.random.default_rng(0).integers(low, high, (k, n), np.int32, endpoint=True)


@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 12), (1, 12)])
@pytest.mark.parametrize("zero", [None, 0, 13, 255, -128, "x"])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_the_product_stays(shape, zero, dtype):
    before = product(shape, integers(12, 21), dtype, zero)
    after = PASS.run(before, PassContext(default_ops()))
    assert "nn.matmul_bytes" in names(after)
    assert "nn.matmul" not in names(after)
    np.testing.assert_array_equal(run(after, dtype, zero), run(before, dtype, zero))


@pytest.mark.parametrize(
    "weights",
    [integers(10, 8), integers(12, 8, -129, -129), integers(12, 8, 128, 128), integers(12, 0)],
    ids=["no quads", "too small", "too large", "empty"],
)
def test_weights_that_do_not_fit_stay(weights):
    before = product((3, weights.shape[0]), weights, "uint8", None)
    assert PASS.run(before, PassContext(default_ops())) is before


def test_other_products_stay():
    b = Builder(default_ops())
    x, rows = b.param("x", (3, 4), "uint8"), b.param("rows", (3, 1), "int32")
    wide = b.call("cast", x, dtype=DType.INT32)
    each_row = b.call("nn.matmul", b.call("subtract", wide, rows), b.const(integers(4, 5)))
    weights = b.param("w", (4, 5), "int32")
    of_words = b.call("nn.matmul", b.param("y", (3, 4), "int32"), b.const(integers(4, 5)))
    results = [each_row, b.call("nn.matmul", wide, weights), of_words]
    module = IRModule({"main": b.finish(results)})
    assert PASS.run(module, PassContext(default_ops())) is module
