import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from tinycomp.source import Source, _has_external


def weighted(name="w", node=False):
    weight = numpy_helper.from_array(np.arange(300, dtype=np.float32), name)
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    if node:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [300]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [] if node else [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def external(model, tensor):
    external_data_helper.set_external_data(tensor, "data.bin")
    tensor.ClearField("raw_data")
    return model


def test_tensors_in_other_files_are_found():
    inside, constant = weighted(), weighted(node=True)
    assert not _has_external(memoryview(inside.SerializeToString()))
    external(inside, inside.graph.initializer[0])
    external(constant, constant.graph.node[0].attribute[0].t)
    for model in (inside, constant):
        assert _has_external(memoryview(model.SerializeToString()))


@pytest.mark.parametrize("data", [b"\xff", b"\x3a\x05ab", b"\x0b", b"\x80" * 20])
def test_what_is_no_message_may_refer_to_files(data):
    assert _has_external(memoryview(data))


def test_keys_follow_the_content(tmp_path):
    path, data = tmp_path / "m.onnx", tmp_path / "data.bin"
    model = weighted()
    onnx.save(external(model, model.graph.initializer[0]), path)
    keys = []
    for content in (bytes(1200), bytes(1199) + b"\1"):
        data.write_bytes(content)
        keys.append(Source.of(path).key)
    onnx.save(weighted(), path)
    keys.append(Source.of(path).key)
    keys.append(Source.of(path.read_bytes()).key)
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]
    assert Source.of(str(path)).path == str(path.resolve())
