"""Dimensions are merged only where every value treats them alike."""

import numpy as np
import pytest

from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.schedules.collapse import collapse_dims

OPS = default_ops()


def add(*shapes):
    """The sum of parameters of these shapes, as a primitive function."""
    b = Builder(OPS, fold=False)
    total, *rest = [b.param(f"x{i}", shape) for i, shape in enumerate(shapes)]
    for x in rest:
        total = b.call("add", total, x)
    return b.finish(total, {"primitive": 1})


@pytest.mark.parametrize(
    ("shapes", "collapsed"),
    [
        ([(2, 3, 4)], (24,)),
        ([(2, 3, 4), (4,)], (6, 4)),
        ([(2, 3, 4), (3, 1)], (2, 3, 4)),
        ([(2, 3, 4), (2, 3, 1)], (6, 4)),
        ([(1, 3, 1, 4), (1, 1, 1, 4)], (3, 4)),
        ([(2, 3, 4), (1,)], (24,)),
        ([(2, 1, 4), (1, 3, 4)], (2, 3, 4)),
    ],
)
def test_elementwise(shapes, collapsed):
    function = add(*shapes)
    merged = collapse_dims(function)
    assert merged.ret_type.shape == collapsed
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    shaped = [a.reshape(p.type.shape) for a, p in zip(inputs, merged.params, strict=True)]
    (expected,), (got,) = evaluate(function, inputs), evaluate(merged, shaped)
    np.testing.assert_array_equal(got.ravel(), expected.ravel())


def test_operators_with_axes_stay():
    b = Builder(OPS, fold=False)
    x = b.param("x", (2, 3, 4))
    function = b.finish(b.call("transpose", x, axes=(1, 0, 2)), {"primitive": 1})
    assert collapse_dims(function) is function
