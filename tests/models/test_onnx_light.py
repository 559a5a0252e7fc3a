"""The nine networks inside the onnx package, whose weights are `ConstantOfShape` nodes.

Random weights take their place, scaled so that values neither vanish nor explode.
"""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tinycomp.cli.reference import run_reference
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.testing.compare import assert_close
from tinycomp.testing.graph_builder import seeded_inputs

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
FAST = {"light_squeezenet", "light_shufflenet", "light_resnet50"}
MODELS = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in FAST else [pytest.mark.slow])
    for path in sorted(LIGHT.glob("*.onnx"))
]


def with_weights(path):
    """The model with initializers instead of `ConstantOfShape` nodes."""
    model = onnx.load(path)
    graph = model.graph
    rng = np.random.default_rng(0)
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    users = {name: (node, i) for node in graph.node for i, name in enumerate(node.input)}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(d) for d in shapes[node.input[0]])
        value = weight(rng, shape, *users[node.output[0]])
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    return model


def weight(rng, shape, user, position):
    normal = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
        fan_in = math.prod(shape[1:])  # OIHW, or Gemm with transB
        return normal * np.float32(math.sqrt(2 / fan_in))
    if user.op_type == "BatchNormalization" and position in (1, 4):  # scale, variance
        return rng.uniform(0.6, 1.4, shape).astype(np.float32)
    return normal * np.float32(0.1)


@pytest.mark.parametrize("path", MODELS)
def test_light_models(path, tmp_path):
    model = with_weights(path)
    inputs = seeded_inputs(model)
    module = compile_with(Config(cache_dir=tmp_path), model)
    assert_close(module.run(inputs), run_reference("ort", model, inputs))


def test_all_nine_are_there():
    assert len(MODELS) == 9
