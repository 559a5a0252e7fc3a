"""`auto_unroll_max_step`: short loops are unrolled, long ones and those elsewhere stay."""

import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.target import Target
from tinycomp.tir.lower import lower
from tinycomp.tir.nodes import For, ForKind
from tinycomp.tir.passes.auto_unroll import auto_unroll
from tinycomp.tir.passes.lower_blocks import lower_blocks
from tinycomp.tir.tree import statements


def matmul():
    a, b = te.placeholder((6, 5), name="A"), te.placeholder((5, 4), name="B")
    k = te.reduce_axis((0, 5), name="k")
    return a, b, te.compute((6, 4), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")


def kinds(func):
    loops = [s for s in statements(func.body) if isinstance(s, For)]
    return {l.var.name: l.kind for l in loops}


@pytest.mark.parametrize(
    ("steps", "unrolled"),
    [(4, set()), (5, {"k"}), (23, {"k"}), (24, {"k", "j"}), (999, {"k", "j"})],
)
def test_loops_up_to_a_number_of_statements(steps, unrolled):
    _, _, c = matmul()
    s = te.create_schedule(c.op)
    s[c].pragma("j", "auto_unroll_max_step", steps)
    found = kinds(auto_unroll(lower_blocks(s.func)))
    assert {n for n, kind in found.items() if kind is ForKind.UNROLLED} == unrolled


def test_without_the_pragma_nothing_changes():
    _, _, c = matmul()
    func = lower_blocks(te.create_schedule(c.op).func)
    assert auto_unroll(func) is func


@pytest.mark.parametrize(("target", "axis"), [("llvm", "j"), ("cuda -arch=sm_90a", "k")])
def test_compiled(target, axis):
    a, b, c = matmul()
    s = te.create_schedule(c.op)
    s[c].pragma(axis, "auto_unroll_max_step", 100)
    f = tinycomp.build(s, [a, b, c], target)
    x, y = (np.random.default_rng(i).random(n, np.float32) for i, n in enumerate([(6, 5), (5, 4)]))
    out = np.empty((6, 4), np.float32)
    (f if target == "llvm" else f.simulate)(x, y, out)
    np.testing.assert_allclose(out, x @ y, rtol=1e-5)
    if target != "llvm":
        assert "#pragma unroll" in f.get_source()
    else:
        assert set(kinds(lower(s.func, Target.host()))) == {"i"}
