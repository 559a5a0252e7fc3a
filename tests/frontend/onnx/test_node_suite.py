"""ONNX's own node tests, through the importers and the NumPy meaning of the operators."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tinycomp.diagnostics import UnsupportedModel
from tinycomp.frontend.onnx import from_onnx
from tinycomp.relay.interpreter import evaluate

# Every one of these ONNX tests passed when the list below was written; a lower count is a
# regression that turned into "unsupported".
MINIMUM_PASSED = 1260
# test -> why the expectation does not apply
EXCLUDED = {
    "test_scan_sum": "opset 8, whose Scan has a batch axis",
    "test_resize_downsample_scales_linear_align_corners": "expects the fractional output size",
    "test_resize_downsample_scales_cubic_align_corners": "expects the fractional output size",
}


def _array(value):
    return (
        numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    )


def _run(model, inputs, frozen):
    """The outputs, with the inputs in `frozen` turned into initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in frozen:
        copy.graph.initializer.append(numpy_helper.from_array(inputs[name], name))
    shapes = {n: a.shape for n, a in inputs.items() if n not in frozen}
    module = from_onnx(copy, input_shapes=shapes)
    return evaluate(module, [inputs[n] for n in module.input_names])


def _outputs(model, inputs):
    """Shape operands are inputs in these tests; they are made constant where that is needed."""
    try:
        return _run(model, inputs, ())
    except UnsupportedModel as error:
        if "must be known" not in str(error):
            raise
    names = list(inputs)
    return _run(model, inputs, names[1:] or names)


def _check(case):
    given, expected = case.data_sets[0]
    names = [i.name for i in case.model.graph.input]
    if any(isinstance(v, list | tuple) or v is None for v in given):
        raise UnsupportedModel("sequences")
    inputs = {n: _array(v) for n, v in zip(names, given, strict=False)}
    for actual, wanted in zip(_outputs(case.model, inputs), map(_array, expected), strict=True):
        assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
        half = actual.dtype.itemsize == 2 and actual.dtype.kind not in "iu"
        rtol, atol = (2e-2, 1e-2) if half else (1e-3, 1e-5)
        np.testing.assert_allclose(
            actual.astype(np.float64), wanted.astype(np.float64), rtol=rtol, atol=atol
        )


@pytest.fixture(scope="module")
def cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collect_testcases(None)


def test_onnx_node_suite(cases):
    passed, failures = 0, []
    for case in cases:
        if case.name in EXCLUDED:
            continue
        try:
            _check(case)
            passed += 1
        except UnsupportedModel:
            pass
        except AssertionError as error:
            failures.append(f"{case.name}: {str(error).strip()[:200]}")
    assert not failures, "\n".join(failures)
    assert passed >= MINIMUM_PASSED
