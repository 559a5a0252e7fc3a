"""Very long and very wide models, end to end; benchmarks/scale.py has the full sizes."""

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.frontend.onnx import from_onnx
from tinycomp.ops import default_ops
from tinycomp.pipeline import default_pipeline
from tinycomp.relay.pass_infra import PassContext
from tinycomp.target import Target

NO_CACHE = Config(cache=False)


def model(nodes, inputs, opset=20):
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in inputs]
    output = helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)
    graph = helper.make_graph(nodes, "g", infos, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def chain(length, opset=20):
    names = ["x", *(f"t{i}" for i in range(1, length)), "y"]
    nodes = [helper.make_node("Add", [names[i], "x"], [names[i + 1]]) for i in range(length)]
    return model(nodes, ["x"], opset)


def wide(width):
    names = [f"x{i}" for i in range(width)]
    nodes = [helper.make_node("Neg", [n], [f"d{n}"]) for n in names]
    nodes.append(helper.make_node("Concat", [f"d{n}" for n in names], ["y"], axis=0))
    return model(nodes, names)


@pytest.mark.parametrize("opset", [6, 20])
def test_a_long_chain_reaches_fused_relay(opset):
    """A tenth of the bar of 100,000 nodes in 60 s."""
    start = time.perf_counter()
    module = from_onnx(chain(10_000, opset))
    ctx = PassContext(default_ops(), Target.host())
    fused = default_pipeline(3, Target.host()).run(module, ctx)
    assert len(str(fused)) > 100_000
    assert time.perf_counter() - start < 30  # about 2 s on an idle machine


def test_a_long_chain_runs():
    x = np.array([[1, -2, 3, 0.5]], np.float32)
    module = compile_with(NO_CACHE, chain(3_000), num_threads=1)
    np.testing.assert_array_equal(module(x), 3_001 * x)


def test_a_wide_concatenation_runs():
    module = compile_with(NO_CACHE, wide(1_000), num_threads=1)
    generator = np.random.default_rng(0)
    inputs = {s.name: generator.standard_normal((1, 4)).astype(np.float32) for s in module.inputs}
    np.testing.assert_array_equal(module.run(inputs)["y"], -np.concatenate(list(inputs.values())))


def test_a_concatenation_of_one_thing_many_times():
    nodes = [helper.make_node("Concat", ["x"] * 500, ["y"], axis=1)]
    module = compile_with(NO_CACHE, model(nodes, ["x"]), num_threads=1)
    x = np.arange(4, dtype=np.float32)[None]
    np.testing.assert_array_equal(module(x), np.tile(x, (1, 500)))


def test_models_of_many_outputs():
    names = [f"y{i}" for i in range(500)]
    nodes = [helper.make_node("Mul", ["x", "x" if i % 2 else names[i - 1]], [n]) if i else
             helper.make_node("Identity", ["x"], [n]) for i, n in enumerate(names)]  # fmt: skip
    proto = model(nodes, ["x"])
    del proto.graph.output[:]
    outputs = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in names]
    proto.graph.output.extend(outputs)
    assert isinstance(proto, onnx.ModelProto)
    module = compile_with(NO_CACHE, proto, num_threads=1)
    x = np.array([[1, -1, 1, 0]], np.float32)
    results = module.run({"x": x})
    assert list(results) == names
    np.testing.assert_array_equal(results["y499"], x * x)
