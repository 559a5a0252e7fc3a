"""DeadCodeElimination, FoldConstant, EliminateCommonSubexpr, CanonicalizeOps, DynamicToStatic."""

import numpy as np
import pytest

from tinycomp.diagnostics import Span, TinycompError
from tinycomp.ir.expr import Var as DimVar
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Constant, Function, If, IRModule, While
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.canonicalize_ops import CanonicalizeOps
from tinycomp.relay.passes.dead_code_elimination import DeadCodeElimination
from tinycomp.relay.passes.dynamic_to_static import DynamicToStatic
from tinycomp.relay.passes.eliminate_common_subexpr import EliminateCommonSubexpr
from tinycomp.relay.passes.fold_constant import FoldConstant
from tinycomp.relay.verify import verify_function


def test_dead_bindings_go(builder, apply):
    x = builder.param("x", (4,))
    dead = builder.call("exp", x)
    builder.call("negative", dead)
    result = apply(builder.finish(builder.call("nn.relu", x)), DeadCodeElimination())
    assert str(result) == ("fn (%x: float32[4]) {\n  %2: float32[4] = nn.relu(%x)\n  %2\n}")


def branch(ops, build, count=2) -> Function:
    b = Builder(ops, fold=False)
    return b.finish(build(b, [b.param(f"p{i}", (4,)) for i in range(count)]))


def test_operands_that_no_branch_reads_go(builder, ops, apply):
    c, x, y = builder.param("c", (), "bool"), builder.param("x", (4,)), builder.param("y", (4,))
    unused = builder.call("exp", y)
    value = builder.if_(
        c,
        branch(ops, lambda b, p: b.call("nn.relu", p[0])),
        branch(ops, lambda b, p: p[0]),
        [x, unused],
    )
    result = apply(builder.finish(value), DeadCodeElimination())
    (binding,) = result.bindings
    assert isinstance(binding.value, If)
    assert binding.value.operands == (x,)


def test_captured_values_that_no_loop_reads_go(builder, ops, apply):
    n, x, y = builder.param("n", (), "int32"), builder.param("x", (4,)), builder.param("y", (4,))

    def part(build):
        b = Builder(ops, fold=False)
        i, a = b.param("i", (), "int32"), b.param("a", (4,))
        p, q = b.param("p", (4,)), b.param("q", (4,))
        return b.finish(build(b, i, a, p, q))

    condition = part(lambda b, i, a, p, q: b.call("less", i, b.const(7, "int32")))
    body = part(lambda b, i, a, p, q: [b.call("add", i, b.const(1, "int32")), b.call("add", a, q)])
    loop = builder.while_(condition, body, [n, x], [builder.call("exp", y), y])
    result = apply(builder.finish(builder.get(loop, 1)), DeadCodeElimination())
    value = result.bindings[0].value
    assert isinstance(value, While)
    assert value.captured == (y,)


def test_constants_fold_through_tuples(builder, apply, names):
    x = builder.param("x", (3,))
    two = builder.call("add", builder.const(1.0), builder.const(1.0))
    pair = builder.tuple([two, builder.call("negative", two)])
    y = builder.call("multiply", x, builder.get(pair, 1))
    result = apply(builder.finish(y), FoldConstant())
    assert names(result) == ["multiply"]
    assert isinstance(result.bindings[0].args[1], Constant)
    assert result.bindings[0].args[1].data == -2


def test_growing_constants_are_kept(builder, apply, names):
    big = builder.call("broadcast_to", builder.const(1.0), shape=(300, 300))
    small = builder.call("transpose", builder.const(np.ones((300, 300), np.float32)), axes=(1, 0))
    result = apply(builder.finish([big, small]), FoldConstant())
    assert names(result) == ["broadcast_to", "Tuple"]


def test_a_constant_condition_selects_its_branch(builder, ops, apply, names):
    x = builder.param("x", (4,))
    then = branch(ops, lambda b, p: b.call("exp", b.call("nn.relu", p[0])), 1)
    otherwise = branch(ops, lambda b, p: p[0], 1)
    values = [
        builder.if_(builder.const(True), then, otherwise, [x]),
        builder.if_(builder.const(True), then, otherwise, [builder.call("negative", x)]),
        builder.if_(builder.const(False), then, otherwise, [x]),
    ]
    result = apply(builder.finish(values), FoldConstant())
    expected = ["nn.relu", "exp", "negative", "nn.relu", "exp", "Tuple"]
    assert sorted(names(result)) == sorted(expected)


def test_folding_enters_nested_functions(builder, ops, apply, names):
    c, x = builder.param("c", (), "bool"), builder.param("x", (4,))
    then = branch(
        ops, lambda b, p: b.call("add", p[0], b.call("exp", b.const(np.zeros(4, np.float32)))), 1
    )
    value = builder.if_(c, then, branch(ops, lambda b, p: p[0], 1), [x])
    result = apply(builder.finish(value), FoldConstant())
    assert names(result.bindings[0].value.then_branch) == ["add"]


def test_common_subexpressions(builder, apply, names):
    x = builder.param("x", (4,))
    with builder.at(Span(("a",))):
        y = builder.call("add", x, builder.const(1.0))
    with builder.at(Span(("b",))):
        z = builder.call("add", x, builder.const(1.0))
    w = builder.call("add", x, builder.const(-1.0))
    p, q = builder.call("exp", y), builder.call("exp", z)
    different = [builder.call("clip", x, a_min=0.0), builder.call("clip", x, a_min=1.0)]
    result = apply(builder.finish([p, q, w, *different]), EliminateCommonSubexpr())
    assert names(result) == ["add", "add", "exp", "clip", "clip", "Tuple"]
    assert result.bindings[0].span.nodes == ("a", "b")


def test_constants_of_other_type_or_zero_sign_are_not_common(builder, apply, names):
    x = builder.param("x", (4,))
    consts = [builder.const(0.0), builder.const(-0.0), builder.const([0.0])]
    result = apply(
        builder.finish([builder.call("add", x, c) for c in consts]), EliminateCommonSubexpr()
    )
    assert names(result) == ["add", "add", "add", "Tuple"]


CANONICAL = {
    "constant left": (["add"], lambda b, x: b.call("add", b.const(2.0), x)),
    "subtract": (["add"], lambda b, x: b.call("subtract", x, b.const([1.0, 2.0, 3.0, 0.0]))),
    "maximum with zero": (["nn.relu"], lambda b, x: b.call("maximum", b.const(0.0), x)),
    "minimum": (["clip"], lambda b, x: b.call("minimum", x, b.const([6.0, 6.0, 6.0, 6.0]))),
    "minimum of a vector": (
        ["minimum"],
        lambda b, x: b.call("minimum", x, b.const([1.0, 2.0, 3.0, 4.0])),
    ),
    "maximum with NaN": (["maximum"], lambda b, x: b.call("maximum", x, b.const(np.nan))),
}  # fmt: skip


@pytest.mark.parametrize("name", CANONICAL)
def test_canonical_forms(name, builder, apply, names):
    expected, build = CANONICAL[name]
    x = builder.param("x", (4,))
    # which of 0.0 and -0.0 is the maximum of both is not defined
    result = apply(builder.finish(build(builder, x)), CanonicalizeOps(), signs=False)
    assert names(result) == expected
    assert not isinstance(result.bindings[0].args[0], Constant)


def test_dynamic_to_static(builder, ops):
    n = DimVar("batch")
    x = builder.param("x", (n, 4))
    y = builder.call("reshape", x, newshape=(n * 4,))
    y = builder.call("concatenate", builder.call("exp", y), y, axis=0)
    module = IRModule({"main": builder.finish(y)})
    ctx = PassContext(ops)
    assert DynamicToStatic({"other": 3}).run(module, ctx) is module
    static = DynamicToStatic({"batch": 5}).run(module, ctx)
    verify_function(static.main)
    assert str(static.main.ret_type) == "float32[40]"
    assert static.main.bindings[0].value.attrs.newshape == (20,)
    with pytest.raises(TinycompError, match="negative"):
        DynamicToStatic({"batch": -1}).run(module, ctx)
