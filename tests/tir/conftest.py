"""A loop program that the tests of this folder share."""

import pytest

from tinycomp.dtype import DType
from tinycomp.ir.expr import Load, Var, const
from tinycomp.tir.nodes import Block, Buffer, For, IterKind, IterVar, PrimFunc, Store


@pytest.fixture
def matmul():
    """C = A @ B of [8, 8] float32 as a Block with an init, inside loops i, j, k."""
    n = const(8)
    a, b, c = (Buffer(name, (n, n), DType.FLOAT32) for name in "ABC")
    kinds = {"vi": IterKind.SPATIAL, "vj": IterKind.SPATIAL, "vk": IterKind.REDUCE}
    axes = tuple(IterVar(Var(name), const(0), n, kind) for name, kind in kinds.items())
    i, j, k = (axis.var for axis in axes)
    product = Load(a, (i, k), None) * Load(b, (k, j), None)
    update = Store(c, (i, j), Load(c, (i, j), None) + product)
    loops = tuple(Var(name) for name in "ijk")
    body = Block("C", axes, loops, update, Store(c, (i, j), const(0, DType.FLOAT32)))
    for var in reversed(loops):
        body = For(var, const(0), n, body)
    return PrimFunc("matmul", (a, b, c), 1, body)
