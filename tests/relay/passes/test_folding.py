"""SimplifyInference, FoldScaleAxis, FoldExplicitPadding."""

import numpy as np
import pytest

from tinycomp.precision import PrecisionPolicy
from tinycomp.relay.nodes import Constant
from tinycomp.relay.passes.fold_explicit_padding import FoldExplicitPadding
from tinycomp.relay.passes.fold_scale_axis import FoldScaleAxis
from tinycomp.relay.passes.simplify_inference import SimplifyInference
from tinycomp.relay.passes.to_mixed_precision import ToMixedPrecision


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def weights(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def batch_norm(builder, rng, x, channels):
    parameters = [builder.const(weights(rng, channels)) for _ in range(3)]
    var = builder.const(np.abs(weights(rng, channels)))
    return builder.call("nn.batch_norm", x, *parameters, var, epsilon=1e-3)


def test_conv_and_batch_norm_become_conv_and_add(builder, rng, apply, names):
    x = builder.param("x", (2, 3, 5, 5))
    w = builder.const(weights(rng, 4, 3, 3, 3))
    y = builder.call("nn.conv2d", x, w, padding=(1, 1, 1, 1))
    y = builder.call("add", y, builder.const(weights(rng, 4, 1, 1)))
    f = builder.finish(builder.call("nn.relu", batch_norm(builder, rng, y, 4)))
    simple = apply(f, SimplifyInference(), exact=False, rtol=1e-4)
    assert names(simple) == ["nn.conv2d", "add", "multiply", "add", "nn.relu"]
    folded = apply(f, SimplifyInference(), FoldScaleAxis(), exact=False, rtol=1e-3)
    assert names(folded) == ["nn.conv2d", "add", "nn.relu"]


def test_statistics_from_data(builder, apply, names):
    x = builder.param("x", (2, 3, 4))
    parameters = [builder.param(n, (3,)) for n in ("gamma", "beta", "mean")]
    var = builder.call("abs", builder.param("var", (3,)))
    f = builder.finish(builder.call("nn.batch_norm", x, *parameters, var))
    assert "nn.batch_norm" not in names(apply(f, SimplifyInference(), exact=False, rtol=1e-4))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_convolutions(groups, builder, rng, apply, names):
    x = builder.param("x", (1, 4, 4, 4))
    y = builder.call(
        "nn.conv2d", x, builder.const(weights(rng, 8, 4 // groups, 1, 1)), groups=groups
    )
    y = builder.call("divide", y, builder.const(weights(rng, 1, 8, 1, 1)))
    y = builder.call("multiply", builder.const(3.0), y)
    assert names(apply(builder.finish(y), FoldScaleAxis(), exact=False, rtol=1e-3)) == ["nn.conv2d"]


def test_channels_last(builder, rng, apply, names):
    x = builder.param("x", (1, 4, 4, 3))
    y = builder.call("nn.conv2d", x, builder.const(weights(rng, 5, 3, 1, 1)), data_layout="NHWC")
    y = builder.call("multiply", y, builder.const(weights(rng, 5)))
    y = builder.call("subtract", y, builder.const(weights(rng, 5)))
    f = apply(builder.finish(y), FoldScaleAxis(), exact=False, rtol=1e-3)
    assert names(f) == ["nn.conv2d", "add"]


def test_matmul(builder, rng, apply, names):
    x = builder.param("x", (2, 3, 4))
    y = builder.call("nn.matmul", x, builder.const(weights(rng, 4, 5)))
    y = builder.call("add", y, builder.const(weights(rng, 5)))
    y = builder.call("add", y, builder.const(weights(rng, 1, 1, 5)))
    y = builder.call("multiply", y, builder.const(0.125))
    f = apply(builder.finish(y), FoldScaleAxis(), exact=False, rtol=1e-4)
    assert names(f) == ["nn.matmul", "add"]


def test_what_must_not_fold(builder, rng, apply, names):
    x = builder.param("x", (1, 4, 4, 4))
    conv = [builder.call("nn.conv2d", x, builder.const(weights(rng, 4, 4, 1, 1))) for _ in range(4)]
    results = [
        builder.call("multiply", conv[0], builder.const(weights(rng, 4, 1))),  # per row
        builder.call("add", conv[1], builder.const(weights(rng, 4, 1, 1))),  # bias only
        builder.call("multiply", conv[2], builder.const(2.0)),  # read twice
        conv[2],
        builder.call("multiply", conv[3], builder.const(weights(rng, 2, 4, 1, 1))),  # broadcasts
        builder.call("divide", builder.const(1.0), conv[3]),
    ]
    f = builder.finish(results)
    assert apply(f, FoldScaleAxis(), exact=False, rtol=1e-4) is f


SPATIAL = ((0, 0), (0, 0), (1, 0), (2, 1))


def padded(builder, x, widths=SPATIAL, value=0.0, mode="constant"):
    if "nn.pad" not in builder.ops:
        pytest.skip("there is no nn.pad yet")
    return builder.call("nn.pad", x, pad_width=widths, mode=mode, value=value)


def test_padding_of_convolutions(builder, rng, apply, names):
    x = builder.param("x", (1, 3, 5, 5))
    y = padded(builder, padded(builder, x))
    y = builder.call("nn.conv2d", y, builder.const(weights(rng, 2, 3, 3, 3)), padding=(1, 0, 0, 1))
    f = apply(builder.finish(y), FoldExplicitPadding(), exact=False, rtol=1e-4)
    assert names(f) == ["nn.conv2d"]
    assert f.bindings[0].value.attrs.padding == (3, 4, 0, 3)


def test_padding_of_pools(builder, apply, names):
    x = builder.param("x", (1, 3, 6, 6))
    y = padded(builder, x, value=-np.inf)
    y = builder.call("nn.max_pool2d", y, pool_size=(3, 3), strides=(2, 2))
    z = builder.call("nn.avg_pool2d", padded(builder, x), pool_size=(3, 3), strides=(2, 2))
    f = apply(builder.finish([y, z]), FoldExplicitPadding(), exact=False, rtol=1e-5)
    assert names(f) == ["nn.max_pool2d", "nn.avg_pool2d", "Tuple"]


def test_padding_that_must_stay(builder, rng, apply):
    x = builder.param("x", (1, 3, 5, 5))
    w = Constant(weights(rng, 2, 3, 3, 3))
    channels = ((0, 0), (0, 1), (1, 1), (1, 1))
    results = [
        builder.call("nn.conv2d", padded(builder, x, value=1.0), w),
        builder.call("nn.conv2d", padded(builder, x, mode="edge"), w),
        builder.call("nn.conv2d", padded(builder, x, channels), Constant(weights(rng, 2, 4, 3, 3))),
        builder.call("nn.max_pool2d", padded(builder, x), pool_size=(3, 3)),
        builder.call("nn.avg_pool2d", padded(builder, x), pool_size=(3, 3), padding=(1, 1, 1, 1)),
    ]
    f = builder.finish(results)
    assert apply(f, FoldExplicitPadding(), exact=False, rtol=1e-4) is f


def test_mixed_precision(builder, rng, apply, names):
    x = builder.param("x", (3, 4))
    y = builder.call("nn.matmul", x, builder.const(weights(rng, 4, 5)))
    z = builder.call("nn.matmul", x, builder.const(weights(rng, 4, 5)))
    f = builder.finish(builder.call("subtract", y, z))
    result = apply(f, ToMixedPrecision(PrecisionPolicy.of("bf16")), exact=False, rtol=0.3)
    assert names(result) == ["cast", "nn.matmul", "nn.matmul", "subtract", "cast"]
    assert str(result.bindings[1].args[1].type) == "bfloat16[4, 5]"
    assert result.ret_type == f.ret_type
