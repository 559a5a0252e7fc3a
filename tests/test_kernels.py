"""Each operator through every level to native code, against the relay interpreter."""

import numpy as np
import pytest

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import IRModule
from tinycomp.runtime.compare import compare_arrays

OFF = Config(cache=False)
OPS = default_ops()
# Operators that only exist between two passes, with attributes that a pass chooses.
PACKED = {"nn.matmul_packed"}


def calls():
    """(name, position) of every sample of every operator."""
    for name, op in OPS.ops.items():
        if op.compute is not None and name not in PACKED:
            for position, _ in enumerate(op.samples()):
                yield name, position


def build(name, sample):
    b = Builder(OPS, fold=False)
    params = [b.param(f"x{i}", a.shape, a.dtype.name) for i, a in enumerate(sample.inputs)]
    return b.finish(b.call(OPS[name], *params, attrs=sample.attrs))


@pytest.mark.parametrize(("name", "position"), list(calls()))
def test_operator(name, position):
    sample = list(OPS[name].samples())[position]
    function = build(name, sample)
    inputs = {f"x{i}": a for i, a in enumerate(sample.inputs)}
    module = compile_with(OFF, IRModule({"main": function}, tuple(inputs)), opt_level=0)
    got = list(module.run(inputs).values())
    for one, reference in zip(got, evaluate(function, list(sample.inputs)), strict=True):
        assert one.dtype == reference.dtype
        assert one.shape == reference.shape
        exact = not np.issubdtype(one.dtype, np.floating) and one.dtype.kind in "iub"
        if exact:
            np.testing.assert_array_equal(one, reference)
        else:
            result = compare_arrays(name, one, reference)
            assert result.difference <= max(sample.rtol, 2e-3 if one.dtype.itemsize == 2 else 1e-5)
