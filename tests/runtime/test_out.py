"""Results into the caller's arrays, on the CPU."""

import numpy as np
import pytest
from onnx import parser

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import InputError
from tinycomp.runtime.arrays import aligned_empty

TEXT = """<ir_version: 9, opset_import: ["": 20]>
g (float[4, 4] x) => (float[4, 4] y, float[4, 4] z) <float[4, 4] one = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}>
    { y = Transpose(x) z = Add(x, one) }"""  # noqa: E501


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    config = Config(cache_dir=tmp_path_factory.mktemp("cache"), num_threads=1)
    return compile_with(config, parser.parse_model(TEXT))


@pytest.fixture
def x():
    return np.arange(16, dtype="f4").reshape(4, 4)


@pytest.mark.parametrize("offset", [0, 4])
def test_written_and_returned(module, x, offset):
    memory = aligned_empty((80,), np.dtype(np.uint8))
    y = memory[offset : offset + 64].view("f4").reshape(4, 4)
    got = module.run({"x": x}, out={"y": y})
    assert got["y"] is y
    np.testing.assert_array_equal(y, x.T)
    np.testing.assert_array_equal(got["z"], x + 1)


@pytest.mark.parametrize("names", [("y",), ("z",), ("y", "z")])
def test_over_an_input_or_each_other(module, x, names):
    before = x.copy()
    got = module.run({"x": x}, out=dict.fromkeys(names, x))
    expected = {"y": before.T, "z": before + 1}
    np.testing.assert_array_equal(x, expected[names[-1]])
    for name in set(expected) - set(names):
        np.testing.assert_array_equal(got[name], expected[name])


def test_what_does_not_fit(module, x):
    frozen = np.zeros((4, 4), "f4")
    frozen.flags.writeable = False
    for value, message in (
        (np.zeros((4, 4)), "no dense"),
        (np.zeros((4, 8), "f4")[:, ::2], "no dense"),
        (np.zeros((2, 8), "f4"), "no dense"),
        ([1.0], "no dense"),
        (frozen, "read-only"),
    ):
        with pytest.raises(InputError, match=message):
            module.run({"x": x}, out={"y": value})
    with pytest.raises(InputError, match="no output 'q'"):
        module.run({"x": x}, out={"q": x})
