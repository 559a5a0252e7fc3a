"""UnflattenProducts: reshapes around products of matrices cancel."""

import numpy as np

from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import IRModule
from tinycomp.relay.pass_infra import PassContext, Sequential
from tinycomp.relay.passes.simplify_expr import SimplifyExpr
from tinycomp.relay.passes.unflatten_products import UnflattenProducts


def run(builder, result):
    before = builder.finish(result)
    passes = Sequential((UnflattenProducts(), SimplifyExpr()))
    after = passes.run(IRModule({"main": before}), PassContext(builder.ops)).main
    return before, after, [b.value.op.name for b in after.bindings if hasattr(b.value, "op")]


def chain(ops):
    b = Builder(ops, fold=False)
    x = b.param("x", (2, 3, 4))
    weight = b.const(np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32))
    flat = b.call("nn.matmul", b.call("reshape", x, newshape=(6, 4)), weight)
    return b, x, flat


def test_reshapes_cancel(ops):
    b, x, flat = chain(ops)
    y = b.call("add", b.call("reshape", flat, newshape=(2, 3, 4)), x)
    before, after, names = run(b, y)
    assert names == ["nn.matmul", "add"]
    array = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(evaluate(after, [array])[0], evaluate(before, [array])[0], 1e-6)


def test_a_product_with_other_readers_is_kept(ops):
    b, _, flat = chain(ops)
    before, after, _ = run(b, [b.call("reshape", flat, newshape=(2, 3, 4)), flat])
    assert after is before


def test_columns_are_not_reshaped(ops):
    b, _, flat = chain(ops)
    before, after, _ = run(b, b.call("reshape", flat, newshape=(6, 2, 2)))
    assert after is before
