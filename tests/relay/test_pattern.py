import pytest

from tinycomp.diagnostics import InternalError
from tinycomp.relay.parser import parse_function
from tinycomp.relay.pattern import (
    Rule,
    is_constant,
    is_op,
    is_tuple,
    is_tuple_get_item,
    is_var,
    match,
    rewrite,
    wildcard,
)


@pytest.fixture
def function(ops):
    return parse_function(
        """fn (%x: float32[2, 2], %y: float32[2, 2]) {
          %m = nn.matmul(%x, %y)
          %b = add(const(float32[], [1.0]), %m)
          %r = nn.relu(%b)
          %s = multiply(%r, %b)
          %t = transpose(%s, axes=(1, 0))
          %p = (%t, %x)
          %g = %p.0
          %g
        }""",
        ops,
    )


def at(function, name):
    return next(b for b in function.bindings if b.var.name == name)


def test_calls_match_either_way_round(function):
    m, c = is_op("nn.matmul")(is_var(), is_var()), is_constant(1)
    found = match(is_op("add")(m, c), function, at(function, "b"))
    assert found is not None
    assert found[m].name == "m"
    assert match(is_op("add")(m, is_constant(2)), function, at(function, "b")) is None
    assert match(is_op("nn.matmul")(m, m), function, at(function, "m")) is None


def test_one_pattern_matches_one_value(function):
    x = wildcard()
    assert match(is_op("multiply")(x, x), function, at(function, "s")) is None
    assert match(is_op("multiply")(is_op("nn.relu")(x), x), function, at(function, "s"))


def test_conditions(function):
    t = at(function, "t")
    transpose = is_op("transpose")(wildcard())
    assert match(transpose.has_attr(axes=(1, 0)), function, t)
    assert not match(transpose.has_attr(axes=(0, 1)), function, t)
    assert match(wildcard().has_dtype("float32").has_shape((2, 2)), function, t)
    assert not match(wildcard().has_dtype("int8"), function, t)
    assert match(is_op("exp") | is_op("transpose", "reshape"), function, t)
    assert match(wildcard().where(lambda a: a.name == "t"), function, t)


def test_optional(function):
    bias = is_op("add")(is_op("nn.matmul"), is_constant())
    with_relu = bias.optional(lambda x: is_op("nn.relu")(x))
    assert match(with_relu, function, at(function, "r"))
    assert match(with_relu, function, at(function, "b"))
    assert not match(with_relu, function, at(function, "m"))


def test_tuples(function):
    fields = is_tuple(is_op("transpose"), is_var())
    assert match(is_tuple_get_item(fields, 0), function, at(function, "g"))
    assert not match(is_tuple_get_item(fields, 1), function, at(function, "g"))
    assert match(is_tuple(), function, at(function, "p"))


def test_dominates(function):
    parent, path = is_op("nn.matmul"), is_op("add", "nn.relu", "multiply")
    found = match(parent.dominates(path, is_op("transpose")), function, at(function, "t"))
    assert found is not None
    assert found[parent].name == "m"
    assert not match(
        parent.dominates(is_op("add", "multiply"), is_op("transpose")), function, at(function, "t")
    )
    assert not match(is_op("exp").dominates(path, is_op("transpose")), function, at(function, "t"))


def test_rules_that_do_not_end_are_reported(function, ops):
    x = wildcard()
    ping = Rule("ping", is_op("nn.relu")(x), lambda g, m: g.builder.call("abs", m[x]))
    pong = Rule("pong", is_op("abs")(x), lambda g, m: g.builder.call("nn.relu", m[x]))
    with pytest.raises(InternalError, match=r"rule ping applied 50 times.*ping, pong, ping"):
        rewrite([ping, pong], function, ops, budget=50)


def test_rewriting_takes_up_what_rules_make(function, ops):
    x = wildcard()

    def abs_of_exp(graph, m):
        return graph.builder.call("abs", graph.builder.call("exp", m[x]))

    rules = [
        Rule("relu", is_op("nn.relu")(x), abs_of_exp),
        Rule("abs exp", is_op("abs")(is_op("exp")(x)), lambda g, m: g.builder.call("floor", m[x])),
    ]
    text = str(rewrite(rules, function, ops))
    assert "floor(%b)" in text
    assert "exp" not in text
    assert rewrite(rules[1:], function, ops) is function


def test_a_rule_may_not_change_types(function, ops):
    x = wildcard()
    bad = Rule(
        "bad", is_op("nn.relu")(x), lambda g, m: g.builder.call("reshape", m[x], newshape=(4,))
    )
    with pytest.raises(InternalError, match=r"rule bad replaced float32\[2, 2\] by float32\[4\]"):
        rewrite([bad], function, ops)
