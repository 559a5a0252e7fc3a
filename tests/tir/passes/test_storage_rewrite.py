from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tinycomp import te
from tinycomp.codegen.llvm import emit_kernel
from tinycomp.dtype import DType
from tinycomp.ir.expr import Load, Var, const
from tinycomp.target import Target
from tinycomp.tir.lower import lower
from tinycomp.tir.nodes import Alloc, Scope, Seq, Store
from tinycomp.tir.passes.storage_rewrite import storage_rewrite
from tinycomp.tir.schedule import create_schedule
from tinycomp.tir.tree import statements


def chain(kit, buffers):
    """Each buffer is computed from the one before, the last from the first parameter's copy."""
    nests = []
    for source, target in pairwise(buffers):
        variables = [Var(f"i{d}") for d in range(len(target.shape))]
        flat = const(0)
        for var, extent in zip(variables, target.shape, strict=True):
            flat = flat * extent + var
        places, rest = [], flat
        for extent in reversed(source.shape):
            places.insert(0, rest % extent)
            rest = rest // extent
        value = Load(source, tuple(places), None) + 1.0
        nest = Store(target, tuple(variables), value)
        for var, extent in reversed(list(zip(variables, target.shape, strict=True))):
            nest = kit.loop(var, extent.value, nest)
        nests.append(nest)
    body = Seq(tuple(nests))
    for buffer in reversed(buffers[1:-1]):
        body = Alloc(buffer, body)
    return kit.func(body, buffers[0], buffers[-1])


def allocated(func):
    return [s.buffer for s in statements(func.body) if isinstance(s, Alloc)]


def test_every_other_buffer_of_a_chain_shares(kit):
    names = ["A", "B", "C", "D", "E", "F"]
    func = kit.same(chain(kit, [kit.buffer(n, 4, 3) for n in names]), storage_rewrite)
    assert [b.name for b in allocated(func)] == ["B", "C"]
    assert [b.shape for b in allocated(func)] == [(const(4), const(3))] * 2


def test_other_shapes_share_by_their_positions(kit):
    shapes = {"A": (12,), "B": (4, 3), "C": (12,), "D": (2, 3, 2), "E": (6,), "F": (6,)}
    func = kit.same(chain(kit, [kit.buffer(n, *s) for n, s in shapes.items()]), storage_rewrite)
    assert [(b.name, b.shape) for b in allocated(func)] == [
        ("B", (const(12),)),
        ("C", (const(12),)),
    ]


def test_dtypes_scopes_and_overlapping_lives_stay_apart(kit):
    a, b, c, d = (kit.buffer(n, 5) for n in "ABCD")
    func = chain(kit, [a, b, replace(c, scope=Scope.LOCAL), d])
    assert storage_rewrite(func) is func
    func = chain(kit, [a, b, replace(c, dtype=DType.FLOAT64), d])
    assert storage_rewrite(func) is func
    i = Var("i")
    first = kit.loop(
        i, 5, Seq((Store(b, (i,), Load(a, (i,), None)), Store(c, (i,), Load(b, (i,), None))))
    )
    func = kit.func(
        Alloc(
            b, Alloc(c, Seq((first, kit.loop(Var("j"), 5, Store(d, (i,), Load(c, (i,), None))))))
        ),
        a,
        d,
    )
    assert storage_rewrite(func) is func


@pytest.mark.parametrize("width", [1, 7, 16])
def test_workspace_of_a_chain_of_stages_shrinks(width):
    a = te.placeholder((5, width), name="A")
    stage = a

    def turned(tensor, name):
        return te.compute((5, width), lambda i, j: tensor[4 - i, j] * 2.0, name=name)

    for n in range(6):
        stage = turned(stage, f"S{n}")
    func = lower(create_schedule(stage, [a]).func, Target.host())
    assert len(allocated(func)) == 2
    one = -(-5 * width * 4 // 64) * 64
    assert emit_kernel(func, Target.host()).workspace_bytes == 2 * one
    assert np.prod([d.value for d in allocated(func)[0].shape]) == 5 * width
