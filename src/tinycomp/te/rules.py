"""Rewrite rules of the simplifier, as data.

`pattern -> replacement if condition`. Variables match any expression of their kind (integer, bool,
float); those named c, c1, c2 match integer constants only, so replacements and conditions over
them fold to constants. Linear arithmetic, division and comparison are not here: `simplify` brings
them to normal form.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from ..dtype import DType
from ..ir.expr import (
    FALSE,
    TRUE,
    Binary,
    BinaryOp,
    Call,
    Expr,
    IntImm,
    Select,
    Var,
    call,
    dataclass,
    if_then_else,
    substitute,
)

Bindings = dict[Var, Expr]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rewrite. Sound for every value of the variables where the condition holds."""

    pattern: Expr
    replacement: Expr
    condition: Expr = TRUE

    def apply(self, expr: Expr) -> Expr | None:
        """The replacement for `expr`, or None where the rule does not apply."""
        found = match(self.pattern, expr)
        if found is None:
            return None
        if self.condition is not TRUE and substitute(self.condition, found) is not TRUE:
            return None
        return substitute(self.replacement, found)


def head(expr: Expr) -> object:
    """What rules are indexed by: the operator, the intrinsic, or the node class."""
    if isinstance(expr, Binary):
        return expr.op
    return expr.name if isinstance(expr, Call) else type(expr)


def _fits(variable: Var, expr: Expr) -> bool:
    if expr.lanes != 1:
        return False
    if variable.name.startswith("c"):
        return isinstance(expr, IntImm) and expr.dtype is not DType.BOOL
    kinds = variable.dtype, expr.dtype
    return kinds[0] is kinds[1] or all(k.is_int for k in kinds) or all(k.is_float for k in kinds)


def match(pattern: Expr, expr: Expr) -> Bindings | None:
    """The bindings of the pattern's variables that make it equal to `expr`, if there are any."""
    found: Bindings = {}
    stack = [(pattern, expr)]
    while stack:
        p, e = stack.pop()
        if isinstance(p, Var):
            if found.setdefault(p, e) is not e or not _fits(p, e):
                return None
        elif not p.children():
            if p is not e:
                return None
        elif type(p) is not type(e) or head(p) != head(e):
            return None
        else:
            stack.extend(zip(p.children(), e.children(), strict=True))  # type: ignore[arg-type]
    return found


def _min(a: Expr, b: Expr) -> Expr:
    return Binary(BinaryOp.MIN, a, b)


def _max(a: Expr, b: Expr) -> Expr:
    return Binary(BinaryOp.MAX, a, b)


def _integer_rules() -> list[Rule]:
    x, y, c1, c2 = Var("x"), Var("y"), Var("c1"), Var("c2")
    rules = [
        Rule(_min(_min(x, c1), c2), _min(x, _min(c1, c2))),
        Rule(_max(_max(x, c1), c2), _max(x, _max(c1, c2))),
        Rule(_min(_max(x, c1), c2), c2, c2 <= c1),
        Rule(_max(_min(x, c1), c2), c2, c1 <= c2),
        Rule(call("abs", call("abs", x)), call("abs", x)),
    ]
    for a, b in ((x, y), (y, x)):
        rules += [
            Rule(_min(_min(a, b), x), _min(a, b)),
            Rule(_min(x, _min(a, b)), _min(a, b)),
            Rule(_max(_max(a, b), x), _max(a, b)),
            Rule(_max(x, _max(a, b)), _max(a, b)),
            Rule(_min(_max(a, b), x), x),
            Rule(_min(x, _max(a, b)), x),
            Rule(_max(_min(a, b), x), x),
            Rule(_max(x, _min(a, b)), x),
        ]
    rules += [
        Rule(call("not", x < y), y <= x),
        Rule(call("not", x <= y), y < x),
        Rule(call("not", x.equal(y)), x.not_equal(y)),
        Rule(call("not", x.not_equal(y)), x.equal(y)),
    ]
    return rules


def _boolean_rules() -> list[Rule]:
    p, q = Var("p", DType.BOOL), Var("q", DType.BOOL)
    no = call("not", p)
    rules = [
        Rule(call("not", no), p),
        Rule(p & no, FALSE),
        Rule(no & p, FALSE),
        Rule(p | no, TRUE),
        Rule(no | p, TRUE),
    ]
    for a, b in ((p, q), (q, p)):
        rules += [
            Rule((a & b) & p, a & b),
            Rule(p & (a & b), a & b),
            Rule((a | b) | p, a | b),
            Rule(p | (a | b), a | b),
            Rule((a | b) & p, p),
            Rule(p & (a | b), p),
            Rule((a & b) | p, p),
            Rule(p | (a & b), p),
        ]
    return rules


def _choice_rules() -> list[Rule]:
    p = Var("p", DType.BOOL)
    no = call("not", p)
    rules = [Rule(Select(p, TRUE, FALSE), p), Rule(Select(p, FALSE, TRUE), no)]
    for kind in (DType.INT64, DType.BOOL, DType.FLOAT32):
        x, y, z = Var("x", kind), Var("y", kind), Var("z", kind)
        for choose in (Select, if_then_else):
            rules += [
                Rule(choose(no, x, y), choose(p, y, x)),
                Rule(choose(p, choose(p, x, y), z), choose(p, x, z)),
                Rule(choose(p, x, choose(p, y, z)), choose(p, x, z)),
            ]
    return rules


def _float_rules() -> list[Rule]:
    """Only rules that give the same bits for every value, NaN and signed zero included."""
    x, y = Var("x", DType.FLOAT32), Var("y", DType.FLOAT32)
    neg = call("neg", y)
    return [
        Rule(call("neg", neg), y),
        Rule(x + neg, x - y),
        Rule(x - neg, x + y),
        Rule(call("abs", neg), call("abs", y)),
        Rule(call("abs", call("abs", x)), call("abs", x)),
        Rule(_min(x, x), x),
        Rule(_max(x, x), x),
    ]


@cache
def all_rules() -> tuple[Rule, ...]:
    """Every rule, in the order tried."""
    return (*_integer_rules(), *_boolean_rules(), *_choice_rules(), *_float_rules())


@cache
def rules_by_head() -> Mapping[object, tuple[Rule, ...]]:
    """The rules whose pattern has the given `head`."""
    index: dict[object, tuple[Rule, ...]] = {}
    for rule in all_rules():
        key = head(rule.pattern)
        index[key] = (*index.get(key, ()), rule)
    return index
