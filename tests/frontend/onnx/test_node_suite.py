"""ONNX's own node tests, through the importers and the NumPy meaning of the operators."""

import contextlib
import warnings

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tinycomp.diagnostics import TinycompError, UnsupportedModel
from tinycomp.frontend.onnx import from_onnx
from tinycomp.relay.interpreter import evaluate

# Every one of these ONNX tests passed when the list below was written; a lower count is a
# regression that turned into "unsupported".
MINIMUM_PASSED = 1515
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
    names = list(inputs)
    for frozen in ((), names[1:]):
        try:
            return _run(model, inputs, frozen)
        except UnsupportedModel as error:
            if "must be known" not in str(error):
                raise
    return _run(model, inputs, names)


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
    passed, unsupported, failures = 0, 0, []
    for case in cases:
        if case.name in EXCLUDED:
            continue
        try:
            _check(case)
            passed += 1
        except UnsupportedModel:
            unsupported += 1
        except AssertionError as error:
            failures.append(f"{case.name}: {str(error).strip()[:200]}")
    print(f"{passed} passed, {unsupported} unsupported")
    assert not failures, "\n".join(failures)
    assert passed >= MINIMUM_PASSED


INTS = (0, -1, 2, 99, 2**31, -(2**40), 2**62)
SHAPES = ((), (0, 0), (2, 3, 4, 5, 6, 7), (2**40,))


def _mutants(case):
    """Copies of a model of one node with one thing wrong (or at least odd) about each."""
    base = onnx.ModelProto()
    base.CopyFrom(case.model)
    for info, value in zip(base.graph.input, case.data_sets[0][0], strict=False):
        if isinstance(value, np.ndarray) and value.dtype.kind == "i" and value.ndim < 2:
            base.graph.initializer.append(numpy_helper.from_array(value, info.name))

    def mutant(change):
        copy = onnx.ModelProto()
        copy.CopyFrom(base)
        change(copy.graph.node[0], copy.graph)
        return copy

    node = base.graph.node[0]
    for a, attribute in enumerate(node.attribute):
        yield mutant(lambda n, g, a=a: n.attribute.pop(a))
        other = helper.make_attribute(attribute.name, 3 if attribute.s else "text")
        yield mutant(lambda n, g, a=a, other=other: n.attribute[a].CopyFrom(other))
        for value in INTS if attribute.type == attribute.INT else ():
            yield mutant(lambda n, g, a=a, v=value: setattr(n.attribute[a], "i", v))
        for value in INTS if attribute.type == attribute.INTS else ():
            yield mutant(lambda n, g, a=a, v=value: n.attribute[a].ints.__setitem__(0, v))
            yield mutant(lambda n, g, a=a, v=value: n.attribute[a].ints.append(v))
    for k in range(len(node.input)):
        yield mutant(lambda n, g, k=k: n.input.pop(k))
        yield mutant(lambda n, g, k=k: n.input.__setitem__(k, ""))
    for k, info in enumerate(base.graph.input):
        dtype = info.type.tensor_type.elem_type
        for shape in SHAPES:
            wrong = helper.make_tensor_value_info(info.name, dtype, shape)
            yield mutant(lambda n, g, k=k, wrong=wrong: g.input[k].CopyFrom(wrong))
    for k, tensor in enumerate(base.graph.initializer):
        array = numpy_helper.to_array(tensor)
        for value in (array - 1, array * 0, array + 99, np.append(array, array), array.ravel()[:0]):
            wrong = numpy_helper.from_array(value.astype(array.dtype), tensor.name)
            yield mutant(lambda n, g, k=k, wrong=wrong: g.initializer[k].CopyFrom(wrong))
    yield mutant(lambda n, g: n.attribute.append(helper.make_attribute("bogus", 1)))
    yield mutant(lambda n, g: n.output.append("more"))


def test_mutated_nodes_import_or_are_refused(cases):
    """Whatever is wrong with a node, the user gets a TinycompError: no other exception."""
    generator = np.random.default_rng(0)
    single = [
        c
        for c in cases
        if "expanded" not in c.name
        and len(c.model.graph.node) == 1
        and all(i.type.HasField("tensor_type") for i in c.model.graph.input)
        and not any(isinstance(v, list | tuple) for v in c.data_sets[0][0])
    ]
    count = 0
    for index in generator.permutation(len(single))[:150]:
        mutants = list(_mutants(single[index]))
        for k in generator.permutation(len(mutants))[:8]:
            count += 1
            with contextlib.suppress(TinycompError):
                from_onnx(mutants[k])
    assert count > 1000
