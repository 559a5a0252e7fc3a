"""Checks shared by the tests of the lowering passes."""

from dataclasses import replace

import numpy as np
import pytest

from tinycomp.dtype import DType
from tinycomp.ir.expr import const
from tinycomp.tir.interpreter import run
from tinycomp.tir.nodes import Buffer, For, ForKind, PrimFunc
from tinycomp.tir.verify import verify


class Kit:
    """Builds functions by hand and compares what they compute."""

    @staticmethod
    def buffer(name, *shape, dtype="float32"):
        return Buffer(name, tuple(const(d) for d in shape), DType(dtype))

    @staticmethod
    def loop(var, extent, body, kind="serial", start=0):
        low = start if not isinstance(start, int) else const(start)
        size = extent if not isinstance(extent, int) else const(extent)
        return For(var, low, size, body, ForKind(kind))

    @staticmethod
    def func(body, *params, allocs=()):
        return PrimFunc("f", params, 1, body, tuple(allocs))

    @staticmethod
    def outputs(func, seed=0):
        rng = np.random.default_rng(seed)
        arrays = []
        for buffer in func.params:
            shape = [d.value for d in buffer.shape]
            values = rng.standard_normal(shape) * 8
            arrays.append(values.astype(buffer.dtype.numpy))
        run(func, arrays)
        return arrays

    def same(self, before, transform):
        """`transform(before)`, after checking that it computes the same arrays."""
        verify(before)
        after = transform(before)
        verify(after)
        for expected, actual in zip(self.outputs(before), self.outputs(after), strict=True):
            np.testing.assert_array_equal(actual, expected)
        return after

    @staticmethod
    def body_text(func):
        return str(replace(func, params=()).body)


@pytest.fixture
def kit():
    return Kit()
