"""Files that are not what they should be get an error that says so."""

import contextlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from tinycomp.diagnostics import ModelError
from tinycomp.frontend.onnx import from_onnx

RELU = '<ir_version: 9, opset_import: ["": 20]> g (float[2] x) => (float[2] y) {y = Relu(x)}'


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"PK\x03\x04rest", "zip"),
        (b'{"graph": 1}', "JSON"),
        (b"\x00\x01\x02\x03 no protobuf at all", "not an ONNX model"),
    ],
)
def test_other_files_are_named(tmp_path, data, text):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    for model in (path, str(path), data):
        with pytest.raises(ModelError, match=text):
            from_onnx(model)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        from_onnx(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match="folder"):
        from_onnx(tmp_path)


def test_every_truncation_is_a_model_error():
    data = parser.parse_model(RELU).SerializeToString()
    for length in range(len(data) - 1):
        with contextlib.suppress(ModelError):
            from_onnx(data[:length])
    assert from_onnx(data).output_names == ("y",)


def _external_model(location):
    weight = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_external_data_is_loaded_from_the_models_folder(tmp_path):
    (tmp_path / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    onnx.save(_external_model("w.bin"), tmp_path / "m.onnx")
    (binding,) = from_onnx(tmp_path / "m.onnx").main.bindings
    np.testing.assert_array_equal(binding.args[1].data, [0, 1, 2, 3])


def test_external_data_missing_outside_or_without_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(16))
    for location in ("gone.bin", "../w.bin"):
        onnx.save(_external_model(location), folder / "m.onnx")
        with pytest.raises(ModelError, match="'w'"):
            from_onnx(folder / "m.onnx")
    with pytest.raises(ModelError, match="another file"):
        from_onnx((folder / "m.onnx").read_bytes())


def test_damaged_weights_are_named():
    model = _external_model("w.bin")
    weight = model.graph.initializer[0]
    weight.ClearField("external_data")
    weight.data_location = TensorProto.DEFAULT
    weight.raw_data = bytes(15)
    with pytest.raises(ModelError, match="'w'"):
        from_onnx(model)
