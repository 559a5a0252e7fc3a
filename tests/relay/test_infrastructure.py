"""Verifier, interpreter, visitors and pass infrastructure."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from tinycomp.diagnostics import InputError, Span, VerifyError
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Binding, Function, IRModule, Var
from tinycomp.relay.parser import parse_function
from tinycomp.relay.pass_infra import FunctionPass, Pass, PassContext, Sequential
from tinycomp.relay.verify import verify_function, verify_module
from tinycomp.relay.visitor import ExprMutator, ExprVisitor, Uses, remove_dead_bindings
from tinycomp.types import tensor_type

BRANCH = """
fn (%c: bool[], %x: float32[2]) {
  %0: float32[2] = nn.relu(%x)  # Relu_0
  %1: float32[2] = if(%c, %0)  # If_0
    fn (%p: float32[2]) {
      %0: float32[2] = nn.relu(%p)
      %0
    }
    fn (%p: float32[2]) {
      %0: float32[2] = exp(%p)
      %0
    }
  %2: float32[2] = add(%1, %0)
  %2
}
"""


class ReluToMaximum(ExprMutator):
    def visit_call(self, binding, call):
        if call.op.name != "nn.relu":
            return self.keep(binding, call)
        return self.builder.call("maximum", call.args[0], self.builder.const(0.0))


@dataclass(frozen=True)
class UseMaximum(FunctionPass):
    def run_function(self, function, ctx):
        return ReluToMaximum(ctx.ops).run(function)


@dataclass(frozen=True)
class Identity(Pass):
    min_opt_level = 2

    def run(self, module, ctx):
        return module


@dataclass(frozen=True)
class Break(FunctionPass):
    def run_function(self, function, ctx):
        return replace(function, bindings=function.bindings[1:])


@dataclass(frozen=True)
class Crash(Pass):
    def run(self, module, ctx):
        raise ValueError("crashed")


def test_mutator_enters_branches_and_keeps_the_rest(ops):
    f = parse_function(BRANCH, ops)
    g = ReluToMaximum(ops).run(f)
    assert str(g).count("maximum") == 2
    assert "nn.relu" not in str(g)
    assert g.bindings[0].span == Span(("Relu_0",))
    verify_function(g)
    assert ReluToMaximum(ops).run(g) is g
    for c in (True, False):
        x = np.float32([-1, 2])
        np.testing.assert_array_equal(
            evaluate(f, [np.asarray(c), x])[0], evaluate(g, [np.asarray(c), x])[0]
        )


def test_visitor_sees_every_binding(ops):
    class Collect(ExprVisitor):
        def __init__(self):
            self.seen = []

        def visit_call(self, binding, call):
            self.seen.append(call.op.name)

        def visit_if(self, binding, value):
            self.seen.append("if")

    collect = Collect()
    collect.run(parse_function(BRANCH, ops))
    assert collect.seen == ["nn.relu", "if", "add", "nn.relu", "exp"]


def test_uses(ops):
    f = parse_function(BRANCH, ops)
    uses = Uses(f)
    relu, branch, add = f.bindings
    assert uses.producer(relu.var) is relu
    assert uses.producer(f.params[0]) is None
    assert uses.users(relu.var) == [branch, add]
    assert uses.count(add.var) == 1
    assert remove_dead_bindings(f) is f


def test_sequential_times_prints_and_stops(ops):
    module = IRModule({"main": parse_function(BRANCH, ops)})
    printed = []
    passes = Sequential((Identity(), Sequential((UseMaximum(), UseMaximum())), Identity()))
    ctx = PassContext(ops, print_after=frozenset({"UseMaximum"}), write=printed.append)
    result = passes.run(module, ctx)
    assert [t.changed for t in ctx.timings] == [False, True, False, False]
    assert "unchanged" in str(ctx.timings[0])
    assert "maximum" in printed[0]
    assert printed[1].startswith("# after UseMaximum (unchanged)")
    assert passes.run(module, PassContext(ops, stop_after=1)) is module
    assert passes.run(module, PassContext(ops, disabled=frozenset({"UseMaximum"}))) is module
    low = PassContext(ops, opt_level=1)
    assert str(passes.run(module, low)) == str(result)
    assert len(low.timings) == 2


def test_errors_name_the_pass(ops):
    module = IRModule({"main": parse_function(BRANCH, ops)})
    with pytest.raises(ValueError, match="crashed") as crash:
        Sequential((Crash(),)).run(module, PassContext(ops))
    assert crash.value.__notes__ == ["while running Crash"]
    with pytest.raises(VerifyError, match="not defined") as broken:
        Sequential((Break(),)).run(module, PassContext(ops))
    assert broken.value.__notes__ == ["while verifying the result of Break"]


def test_verifier_finds_each_breach(ops):
    b = Builder(ops, fold=False)
    x = b.param("x", (2,))
    y = b.call("exp", x)
    f = b.finish(y)
    (binding,) = f.bindings
    wrong = Var("y", tensor_type((3,)))
    stranger = Var("z", tensor_type((2,)))
    for broken, message in [
        (replace(f, params=(x, x)), "occurs twice"),
        (replace(f, bindings=(binding, binding)), "defined twice"),
        (replace(f, result=stranger), "result %z is not defined"),
        (replace(f, params=()), "uses %x"),
        (Function((x,), (Binding(wrong, binding.value),), wrong), "its value has type"),
    ]:
        with pytest.raises(VerifyError, match=message):
            verify_function(broken)
    with pytest.raises(VerifyError, match="no function 'main'"):
        verify_module(IRModule({}))
    with pytest.raises(VerifyError, match="2 input names for 1"):
        verify_module(IRModule({"main": f}, ("a", "b")))


def test_verifier_checks_branches(ops):
    text = BRANCH.replace("if(%c, %0)", "if(%x, %0)")
    with pytest.raises(VerifyError, match="scalar bool"):
        parse_function(text, ops)
    text = BRANCH.replace("if(%c, %0)", "if(%c, %0, %x)")
    with pytest.raises(VerifyError, match="the then branch takes"):
        parse_function(text, ops)


def test_interpreter_checks_inputs(ops):
    f = parse_function(BRANCH, ops)
    with pytest.raises(InputError, match="2 inputs expected, 1 given"):
        evaluate(f, [np.ones(2, np.float32)])
    with pytest.raises(InputError, match=r"%x must be float32\[2\], not float64\[2\]"):
        evaluate(f, [np.asarray(True), np.ones(2)])
