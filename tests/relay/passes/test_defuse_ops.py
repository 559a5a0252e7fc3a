"""DefuseOps undoes FuseOps."""

from __future__ import annotations

import numpy as np

from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Function, IRModule
from tinycomp.relay.pass_infra import PassContext, Sequential
from tinycomp.relay.passes.defuse_ops import DefuseOps
from tinycomp.relay.passes.fuse_ops import FuseOps

OPS = default_ops()


def run(function: Function, *passes) -> Function:
    return Sequential(passes).run(IRModule({"main": function}), PassContext(OPS)).main


def test_round_trip():
    b = Builder(OPS)
    x = b.param("x", (3, 4))
    y = b.call("exp", b.call("negative", x))
    z = b.call("subtract", y, b.call("mean", y, axis=(0,), keepdims=True))
    f = b.finish([z, b.call("reshape", z, newshape=(12,))])
    fused = run(f, FuseOps())
    g = run(fused, DefuseOps())
    assert all(not isinstance(getattr(b.value, "op", None), Function) for b in g.bindings)
    assert len(g.bindings) == len(f.bindings)
    data = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for a, b_ in zip(evaluate(f, [data]), evaluate(g, [data]), strict=True):
        np.testing.assert_array_equal(a, b_)
    assert [str(b.value.op.attrs["key"]) for b in run(g, FuseOps()).bindings[:2]] == [
        str(b.value.op.attrs["key"]) for b in fused.bindings[:2]
    ]


def test_nothing_to_undo():
    b = Builder(OPS)
    f = b.finish(b.call("exp", b.param("x", (2,))))
    assert run(f, DefuseOps()) is f
