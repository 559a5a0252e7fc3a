"""What the tests of graph IR share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Call, Function, IRModule
from tinycomp.relay.op import OpSet
from tinycomp.relay.pass_infra import Pass, PassContext, Sequential
from tinycomp.relay.pattern import op_name
from tinycomp.relay.verify import verify_function
from tinycomp.types import TensorType


@pytest.fixture
def ops() -> OpSet:
    return default_ops()


@pytest.fixture
def builder(ops: OpSet) -> Builder:
    """A builder that folds nothing, so that tests see what passes do."""
    return Builder(ops, fold=False)


def inputs_of(function: Function, seed: int = 0) -> list[np.ndarray]:
    """Seeded random arguments, with a few special values among the floats."""
    rng = np.random.default_rng(seed)
    arrays = []
    for param in function.params:
        assert isinstance(param.type, TensorType)
        dtype = param.type.dtype
        shape = tuple(d if isinstance(d, int) else 3 for d in param.type.shape)
        if dtype is DType.BOOL:
            arrays.append(rng.integers(0, 2, shape).astype(bool))
        else:
            arrays.append((rng.standard_normal(shape) * 4).astype(dtype.numpy))
    return arrays


def with_special_values(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Copies whose float arrays begin with -0.0, NaN, infinities."""
    special = [-0.0, np.nan, np.inf, -np.inf]
    copies = [a.copy() for a in arrays]
    for a in copies:
        if DType.of(a.dtype).is_float:
            count = min(a.size, len(special))
            a.reshape(-1)[:count] = special[:count]
    return copies


@pytest.fixture
def apply(ops: OpSet) -> Callable[..., Function]:
    """Run passes on a function, verify, and check that the meaning stays.

    With `exact`, bit for bit (with `signs`, also of zeros) and for special values.
    """

    def run(
        function: Function,
        *passes: Pass,
        rtol: float = 0.0,
        exact: bool = True,
        signs: bool = True,
        ulps: int = 0,
        fixpoint: bool = True,
    ) -> Function:
        verify_function(function)
        module = IRModule({"main": function})
        result = Sequential(passes).run(module, PassContext(ops)).main
        samples = [inputs_of(function, seed) for seed in range(2)]
        if exact:
            samples.append(with_special_values(samples[0]))
        for arrays in samples:
            expected, actual = evaluate(function, arrays), evaluate(result, arrays)
            for e, a in zip(expected, actual, strict=True):
                assert e.dtype == a.dtype
                assert e.shape == a.shape
                if not exact:
                    np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol)
                    continue
                np.testing.assert_allclose(a, e, rtol=ulps * 2.0**-23, atol=0)
                if signs and DType.of(e.dtype).is_float:
                    assert not ((np.signbit(a) != np.signbit(e)) & (e == e)).any()
        if fixpoint:
            again = Sequential(passes).run(IRModule({"main": result}), PassContext(ops)).main
            assert again is result, "a pass must find nothing to do in its own result"
        return result

    return run


@pytest.fixture
def names() -> Callable[[Function], list[str]]:
    """The operators of a function in order."""

    def of(function: Function) -> list[str]:
        return [
            op_name(b.value) if isinstance(b.value, Call) else type(b.value).__name__
            for b in function.bindings
        ]

    return of
