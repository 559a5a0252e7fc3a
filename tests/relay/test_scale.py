"""Long and wide functions pass through everything, without recursion and in linear time."""

import sys

import numpy as np
import pytest

from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Function, IRModule
from tinycomp.relay.parser import parse_function, parse_module
from tinycomp.relay.pass_infra import PassContext, Sequential
from tinycomp.relay.passes.canonicalize_ops import CanonicalizeOps
from tinycomp.relay.passes.dead_code_elimination import DeadCodeElimination
from tinycomp.relay.passes.dynamic_to_static import DynamicToStatic
from tinycomp.relay.passes.eliminate_common_subexpr import EliminateCommonSubexpr
from tinycomp.relay.passes.fold_constant import FoldConstant
from tinycomp.relay.passes.fold_explicit_padding import FoldExplicitPadding
from tinycomp.relay.passes.fold_scale_axis import FoldScaleAxis
from tinycomp.relay.passes.simplify_expr import SimplifyExpr
from tinycomp.relay.passes.simplify_inference import SimplifyInference
from tinycomp.relay.structural import structural_equal
from tinycomp.relay.text import function_text, module_text

PASSES = Sequential(
    (
        DynamicToStatic({"n": 1}),
        SimplifyInference(),
        CanonicalizeOps(),
        SimplifyExpr(),
        FoldConstant(),
        EliminateCommonSubexpr(),
        FoldExplicitPadding(),
        FoldScaleAxis(),
        DeadCodeElimination(),
    )
)
LENGTH = 20_000


def test_a_long_chain(ops):
    b = Builder(ops)
    x = b.param("x", (2,))
    y = x
    for _ in range(LENGTH):
        y = b.call("add", y, x)
    module = IRModule({"main": b.finish(y)})
    assert structural_equal(module, parse_module(module_text(module), ops))
    assert PASSES.run(module, PassContext(ops)) is module
    assert evaluate(module, [np.ones(2, np.float32)])[0][0] == LENGTH + 1


def test_a_long_chain_that_cancels(ops):
    b = Builder(ops, fold=False)
    x = b.param("x", (2, 3))
    y = x
    for i in range(LENGTH // 2):
        y = b.call("transpose", y, axes=(1, 0))
        y = b.call("negative", b.call("negative", y)) if i % 2 else y
    result = PASSES.run(IRModule({"main": b.finish(y)}), PassContext(ops)).main
    assert result.result is x


def test_a_wide_concatenation(ops):
    b = Builder(ops)
    params = [b.param(f"x{i}", (1, 2)) for i in range(1000)]
    y = b.call("concatenate", *(b.call("exp", p) for p in params), axis=0)
    module = IRModule({"main": b.finish(y)})
    assert structural_equal(module, parse_module(module_text(module), ops))
    assert PASSES.run(module, PassContext(ops)) is module


def test_deep_nesting(ops):
    """Branches inside branches, deeper than Python's stack."""
    depth = 3 * sys.getrecursionlimit()
    b = Builder(ops)
    function = Function((), (), b.const(1.0))
    for _ in range(depth):
        b = Builder(ops)
        function = b.finish(b.if_(b.const(True), function, Function((), (), b.const(0.0)), []))
    assert evaluate(function, [])[0] == 1
    lines = function_text(function).splitlines()
    text = "\n".join(line.strip() for line in lines)  # indentation grows with the depth
    assert structural_equal(function, parse_function(text, ops))
    result = PASSES.run(IRModule({"main": function}), PassContext(ops)).main
    assert not result.bindings


@pytest.mark.parametrize("count", [1000])
def test_constants_fold_in_chains(ops, count):
    b = Builder(ops, fold=False)
    y = b.const(0.0)
    for _ in range(count):
        y = b.call("add", y, b.const(1.0))
    result = PASSES.run(IRModule({"main": b.finish(y)}), PassContext(ops)).main
    assert not result.bindings
    assert result.result.data == count
