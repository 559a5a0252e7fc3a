"""Sizes are int64, or the call that takes them says so."""

from __future__ import annotations

import pytest

from tinycomp import te
from tinycomp.diagnostics import TinycompError
from tinycomp.ir.expr import const


@pytest.mark.parametrize(
    "use",
    [
        lambda size: te.placeholder((4, size), name="X"),
        lambda size: te.compute((size,), lambda i: const(1.0), name="X"),
        lambda size: te.reduce_axis((0, size), name="X"),
    ],
)
@pytest.mark.parametrize("size", [te.var("n", "int32"), 2.0])
def test_other_dtypes_are_refused(use, size):
    with pytest.raises(TinycompError, match=r"X: the size .* is (int32|float32), and sizes are"):
        use(size)
