"""What the tests of schedule primitives share."""

import json

import numpy as np
import pytest

from tinycomp import te
from tinycomp.diagnostics import ScheduleError
from tinycomp.target import Target
from tinycomp.te.interpreter import evaluate
from tinycomp.tir.interpreter import run
from tinycomp.tir.lower import lower
from tinycomp.tir.schedule import Schedule, create_schedule
from tinycomp.tir.verify import verify

TARGETS = [Target.parse("llvm -mcpu=x86-64-v3"), Target.parse("llvm -mcpu=skylake-avx512")]


class Computation:
    """Tensor expressions, inputs for them, and what NumPy makes of these."""

    def __init__(self, inputs, outputs, seed=0, run_extern=None):
        self.inputs = list(inputs)
        self.outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        rng = np.random.default_rng(seed)
        self.arrays = [self._array(rng, t) for t in self.inputs]
        with np.errstate(all="ignore"):
            bound = dict(zip(self.inputs, self.arrays, strict=True))
            self.expected = evaluate(self.outputs, bound, run_extern=run_extern)

    @staticmethod
    def _array(rng, tensor):
        shape = [d.value for d in tensor.shape]
        if tensor.dtype.is_float:
            return rng.integers(-8, 9, shape).astype(tensor.dtype.numpy)  # exact sums
        return rng.integers(0, 4, shape).astype(tensor.dtype.numpy)

    def schedule(self):
        return create_schedule(self.outputs, self.inputs)

    def check(self, schedule):
        """The scheduled loops, before and after lowering, compute what NumPy does; and the steps
        rebuild the same loops from text."""
        if not self._reduces_nothing():  # only lowering separates the init from its loops
            self.check_func(schedule.func)
        for target in TARGETS:
            self.check_func(lower(schedule.func, target), lowered=True)
        again = self.schedule()
        again.intrinsics.update(schedule.intrinsics)
        again.replay(Schedule.from_json(schedule.to_json()))
        assert str(again.func) == str(schedule.func)
        assert json.loads(again.to_json()) == json.loads(schedule.to_json())

    def _reduces_nothing(self):
        ops = [op for op in te.topological(self.outputs) if isinstance(op, te.ComputeOp)]
        return any(str(axis.extent) == "0" for op in ops for axis in op.reduce_axis)

    def check_func(self, func, lowered=False):
        verify(func, lowered=lowered)
        results = [np.full([d.value for d in t.shape], 77, t.dtype.numpy) for t in self.outputs]
        run(func, [*self.arrays, *results])
        for result, expected in zip(results, self.expected, strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def refuses():
    """`refuses(s, words..., call)`: the call raises a complete ScheduleError; `s` is unchanged."""

    def check(schedule, words, call):
        before = schedule.func, schedule.steps
        with pytest.raises(ScheduleError) as caught:
            call()
        text = str(caught.value)
        for word in [words] if isinstance(words, str) else words:
            assert word in text, text
        assert caught.value.hint, text
        assert 1 <= len(caught.value.excerpt.splitlines()) <= 17, text
        assert text.startswith(("s[", "s.")), text
        assert (schedule.func, schedule.steps) == before

    return check


@pytest.fixture
def computation():
    return Computation


@pytest.fixture
def elementwise():
    """D = (A + 1) * 2 in two stages B and D over [5, 7]."""
    a = te.placeholder((5, 7), name="A")
    b = te.compute((5, 7), lambda i, j: a[i, j] + 1.0, name="B")
    d = te.compute((5, 7), lambda i, j: b[i, j] * 2.0, name="D")
    return Computation([a], d)


@pytest.fixture
def stencil():
    """C[i] = B[i] + B[i + 1] + B[i + 3] over 13, of B = A * 2."""
    a = te.placeholder((16,), name="A")
    b = te.compute((16,), lambda i: a[i] * 2.0, name="B")
    c = te.compute((13,), lambda i: b[i] + b[i + 1] + b[i + 3], name="C")
    return Computation([a], c)


@pytest.fixture
def matmul():
    """C = A @ B of [5, 6] and [6, 7], then D = C + 1."""
    a, b = te.placeholder((5, 6), name="A"), te.placeholder((6, 7), name="B")
    k = te.reduce_axis((0, 6), name="k")
    c = te.compute((5, 7), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    d = te.compute((5, 7), lambda i, j: c[i, j] + 1.0, name="D")
    return Computation([a, b], d)


@pytest.fixture
def rows():
    """B[i] = sum over k of A[i, k], [5, 11]."""
    a, k = te.placeholder((5, 11), name="A"), te.reduce_axis((0, 11), name="k")
    return Computation([a], te.compute((5,), lambda i: te.sum(a[i, k], axis=k), name="B"))
