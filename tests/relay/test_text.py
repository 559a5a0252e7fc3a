"""The printer and the parser."""

import numpy as np
import pytest

from tinycomp.diagnostics import Span, VerifyError
from tinycomp.dtype import DType
from tinycomp.ir.expr import Var as DimVar
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Call, Function, IRModule
from tinycomp.relay.op import NO_ATTRS
from tinycomp.relay.parser import parse_function, parse_module
from tinycomp.relay.structural import first_difference, structural_equal
from tinycomp.relay.text import constant_table, function_text, module_text

COUNT_TO_TEN = """
fn (%n: int32[], %x: float32[2]) {
  %0: (int32[], float32[2]) = while(%n, %x; %x)  # Loop_0, "a, b"
    fn (%i: int32[], %a: float32[2], %c: float32[2]) {
      %0: bool[] = less(%i, const(int32[], [10]))
      %0
    }
    fn (%i: int32[], %a: float32[2], %c: float32[2]) {
      %0: int32[] = add(%i, const(int32[], [1]))
      %1: float32[2] = add(%a, %c)
      %2: (int32[], float32[2]) = (%0, %1)
      %2
    }
  %1: float32[2] = %0.1
  %1
}
"""


def test_round_trip_of_text(ops):
    function = parse_function(COUNT_TO_TEN, ops)
    assert function_text(function) == COUNT_TO_TEN.strip()
    assert function.bindings[0].span == Span(("Loop_0", "a, b"))
    (result,) = evaluate(function, [np.int32(7), np.float32([1, 2])])
    np.testing.assert_array_equal(result, [4, 8])


def module_of_everything(ops) -> IRModule:
    b = Builder(ops, fold=False)
    n = DimVar("n")
    x, c = b.param("/layer.0/x", (n, 4)), b.param("c", (), "bool")
    big = np.arange(32, dtype=np.float32).reshape(4, 8)
    y = b.call("nn.matmul", x, b.const(big))
    y = b.call("reshape", y, newshape=(n * 4, 2))
    y = b.call("cast", y, dtype=DType.BFLOAT16)
    y = b.call("add", y, b.const([np.nan, -np.inf], DType.BFLOAT16))
    y = b.call("clip", y, a_min=-np.inf, a_max=1e30)
    y = b.call("sum", y, axis=(1,), keepdims=False)

    def branch(op):
        inner = Builder(ops, fold=False)
        p = inner.param("p", y.type)
        return inner.finish(inner.call(op, p))

    z = b.if_(c, branch("exp"), branch("negative"), [y])
    group = branch("abs")
    fused = Function(group.params, group.bindings, group.result, {"primitive": True, "name": "abs"})
    w = b.bind(Call(fused, (z,), NO_ATTRS), z.type, name="0")
    return IRModule(
        {"main": b.finish([w, b.const(np.zeros((0, 3), np.int64))])}, ("in put", "c"), ("o", "p")
    )


def test_round_trip_of_a_module(ops):
    module = module_of_everything(ops)
    text = module_text(module)
    again = parse_module(text, ops, constant_table(module))
    assert first_difference(module, again) is None
    assert module_text(again) == text
    assert "sha=" in text
    assert '%"/layer.0/x": float32[n, 4]' in text


def test_types_may_be_left_out(ops):
    f = parse_function("fn (%x: float32[2, 3]) { %y = transpose(%x, axes=(1, 0)) %y }", ops)
    assert str(f.ret_type) == "float32[3, 2]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fn (%x: float32[2]) {\n  %y\n}", "line 2: %y is not defined"),
        (
            "fn (%x: float32[2]) {\n\n  %0 = frob(%x)\n  %0\n}",
            "line 3: there is no operator 'frob'",
        ),
        ("fn (%x: float99[2]) { %x }", "line 1: there is no element type 'float99'"),
        ("fn (%x: float32[2) { %x }", "line 1"),
        ("fn (%x: float32[2]) { %x } }", "expected the end"),
        ("fn (%x: float32[2]) { %0: float32[3] = exp(%x) %0 }", "has type float32[3]"),
        ("fn (%x: float32[2]) { %0 = add(%x, const(float32[2], [1])) %0 }", "1 values"),
        ("fn (%x: float32[2]) { %0 = add(%x, const(float32[2], sha=12)) %0 }", "not in the table"),
        ("fn (%x: float32[2]) { %0 = transpose(%x) %0 }", "transpose: .*axes"),
        ("fn (%x: float32[2]) { %0 = transpose(%x, frob=1) %0 }", "transpose: .*frob"),
        ("fn (%x: float32[2]) { %0 = add(%x) %0 }", "add"),
        ("fn (%x: float32[2]) { %0 = exp(%x", "line 1"),
    ],
)
def test_malformed_text(text, message, ops):
    with pytest.raises(VerifyError) as error:
        parse_function(text, ops)
    assert error.match(message.replace("[", r"\[") if ".*" not in message else message)


def test_names_are_made_unique(ops):
    b = Builder(ops, fold=False)
    x, y = b.param("x", (2,)), b.param("x", (2,))
    f = b.finish(b.call("subtract", x, y))
    assert "subtract(%x, %x_1)" in str(f)
    assert structural_equal(f, parse_function(str(f), ops))


def test_differences_are_located(ops):
    f = parse_function(COUNT_TO_TEN, ops)
    g = parse_function(COUNT_TO_TEN.replace("[10]", "[11]"), ops)
    assert first_difference(f, g) == "/%0/0/%0: argument 1: const int32[], const int32[]"
    assert not structural_equal(f, g)
    h = parse_function(COUNT_TO_TEN.replace("%a", "%other"), ops)
    assert structural_equal(f, h)
