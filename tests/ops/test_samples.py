"""Every operator on its samples: type relation, reference and tensor expression agree."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.types import TensorType, TupleType, tensor_type

CASES = [
    pytest.param(op, sample, id=f"{op.name}-{n}")
    for op in default_ops().ops.values()
    for n, sample in enumerate(op.samples())
]


def _type(array):
    return tensor_type(array.shape, DType.of(array.dtype))


def _fields(type_):
    return type_.fields if isinstance(type_, TupleType) else (type_,)


def _references(op, sample):
    with np.errstate(all="ignore"):
        result = op.reference(sample.attrs, list(sample.inputs))
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_inferred_type_is_that_of_the_reference(op, sample):
    inferred = _fields(op.infer(sample.attrs, [_type(a) for a in sample.inputs]))
    for type_, array in zip(inferred, _references(op, sample), strict=True):
        assert isinstance(type_, TensorType)
        assert type_ == _type(np.asarray(array))


@pytest.mark.parametrize(("op", "sample"), [c for c in CASES if c.values[0].compute is not None])
def test_tensor_expression_gives_the_reference(op, sample):
    evaluate = pytest.importorskip("tinycomp.te.interpreter").evaluate
    out_type = op.infer(sample.attrs, [_type(a) for a in sample.inputs])
    inputs = [
        te.placeholder(a.shape, DType.of(a.dtype), f"x{i}") for i, a in enumerate(sample.inputs)
    ]
    outputs = op.compute(sample.attrs, inputs, out_type)
    values = evaluate(outputs, dict(zip(inputs, sample.inputs, strict=True)))
    for type_, value, expected in zip(
        _fields(out_type), values, _references(op, sample), strict=True
    ):
        assert value.dtype == type_.dtype.numpy
        assert value.shape == type_.static_shape
        np.testing.assert_allclose(
            value.astype(np.float64),
            np.asarray(expected).astype(np.float64),
            sample.rtol,
            sample.atol,
        )


def test_every_operator_has_samples_and_a_doc():
    for op in default_ops().ops.values():
        assert op.doc, op
        assert list(op.samples()), op
