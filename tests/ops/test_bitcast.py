"""bitcast is no kernel: the bits are where they are, for kernels around it and as a result."""

import numpy as np
import pytest

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import IRModule

OPS = default_ops()


def run(make, x):
    builder = Builder(OPS, fold=False)
    function = builder.finish(make(builder.call, builder.param("x", x.shape, DType.of(x.dtype))))
    module = compile_with(Config(cache=False), IRModule({"main": function}, ("x",)))
    (result,) = module.run({"x": x}).values()
    return result


@pytest.mark.parametrize("to", ["int32", "uint32"])
def test_between_kernels(to):
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)

    def make(call, x):
        bits = call("bitcast", call("nn.relu", x), dtype=DType(to))
        return call("bitcast", call("bitwise_not", bits), dtype=DType.FLOAT32)

    np.testing.assert_array_equal(run(make, x), (~np.maximum(x, 0).view(to)).view("float32"))


@pytest.mark.parametrize(("given", "to"), [("float16", "int16"), ("uint8", "int8")])
def test_of_an_input(given, to):
    x = np.arange(12).astype(given)
    got = run(lambda call, x: call("bitcast", x, dtype=DType(to)), x)
    np.testing.assert_array_equal(got, x.view(to))
