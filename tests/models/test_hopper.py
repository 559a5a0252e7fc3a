"""Models in 16 bits on Hopper: their products run as tile programs, over the planned memory."""

import numpy as np

import tinycomp
from tinycomp.precision import Precision
from tinycomp.runtime.compare import compare
from tinycomp.testing.gpu import run_on_cpu
from tinycomp.testing.graph_builder import GraphBuilder, seeded_inputs


def test_layers_in_bfloat16():
    b = GraphBuilder("layers")
    x = b.input("x", (1, 16, 6, 6))
    y = b.op("Relu", b.op("Conv", x, b.normal((72, 16, 3, 3), 0.1), pads=[1, 1, 1, 1]))
    rows = b.op("Reshape", y, np.array([72, 36]))
    padded = b.op("Pad", rows, np.array([0, 0, 0, 4]))
    model = b.model(y=b.op("Tanh", b.linear(b.op("Relu", b.linear(padded, 64)), 24)))
    inputs = seeded_inputs(model, 5)
    module = tinycomp.compile(model, target="cuda -arch=sm_90a", precision="bf16")
    maps = [launch.maps for ls in module.plan.launches.values() for launch in ls if launch.maps]
    assert len(maps) == 3
    assert all(not r.spill_stores for rs in module.plan.resources.values() for r in rs.values())
    got = run_on_cpu(module, inputs)["y"]
    wanted = tinycomp.compile(model).run(inputs)["y"]
    (found,) = compare({"y": got}, {"y": wanted})
    assert found.difference < 2 * Precision.BF16.tolerance
