"""First layers get whole vectors of channels; the rest of a network stays as it is."""

import numpy as np
import pytest

from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Call
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.pad_channels import PadChannels
from tinycomp.target import Target

OPS = default_ops()
CONTEXT = PassContext(OPS, Target.parse("cuda -arch=sm_90a"), 3)
HALF = frozenset({DType.FLOAT16})


def network(channels, dtype=DType.FLOAT16, first="transpose"):
    """transpose (or relu after a convolution), then a convolution in NHWC."""
    rng = np.random.default_rng(0)
    b = Builder(OPS, fold=False)
    x = b.param("x", (1, channels, 6, 5), dtype)
    y = b.call("transpose", x, axes=(0, 2, 3, 1))
    if first == "softmax":
        y = b.call("nn.softmax", y, axis=3)
    weight = b.const(rng.integers(-2, 3, (8, channels, 3, 3)).astype(dtype.numpy))
    out = b.call("nn.conv2d", y, weight, data_layout="NHWC", padding=(1, 1, 1, 1))
    return b.finish(out)


@pytest.mark.parametrize(("channels", "padded"), [(3, 4), (1, 4), (5, 8), (12, 16)])
def test_padding(channels, padded):
    function = network(channels)
    result = PadChannels(HALF).run_function(function, CONTEXT)
    conv = result.bindings[-1].value
    assert isinstance(conv, Call)
    assert conv.args[0].type.shape == (1, 6, 5, padded)
    x = np.random.default_rng(1).integers(-3, 4, (1, channels, 6, 5)).astype(np.float16)
    np.testing.assert_array_equal(evaluate(result, [x])[0], evaluate(function, [x])[0])


@pytest.mark.parametrize(
    "function",
    [
        network(4), network(16), network(3, DType.FLOAT32),
        network(3, first="softmax"),  # padding would be a kernel of its own
    ],
)  # fmt: skip
def test_others_stay(function):
    assert PadChannels(HALF).run_function(function, CONTEXT) is function
