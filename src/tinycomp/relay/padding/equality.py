"""Equality of two scalar expressions, with cases where they test what an index is."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

from ...dtype import DType
from ...ir.expr import (
    FALSE,
    TRUE,
    Binary,
    BinaryOp,
    Call,
    Expr,
    FloatImm,
    IntImm,
    Load,
    Select,
    const,
    rebuild,
    substitute,
)
from ...ir.expr import Var as ScalarVar
from ...ir.node import Node, postorder
from ...te.simplify import Analyzer
from ...te.tensor import Combiner, PlaceholderOp

_MAX_CASES = 64
_COMPARE = {
    BinaryOp.LT: operator.lt,
    BinaryOp.LE: operator.le,
    BinaryOp.EQ: operator.eq,
    BinaryOp.NE: operator.ne,
}


def equal(a: Expr, b: Expr, analyzer: Analyzer) -> bool:
    """Whether two expressions are proven to have one value.

    Where they differ in normal form, they are compared again for both outcomes of a comparison of
    integers in them; the outcome decides comparisons of the same term with other constants.

    >>> from tinycomp.ir.expr import Var, if_then_else
    >>> i = Var("i")
    >>> equal(if_then_else(i < 8, if_then_else(i < 5, i, 0), 0), if_then_else(i < 5, i, 0),
    ...       Analyzer())
    True
    """
    cases = [(a, b)]
    for _ in range(_MAX_CASES):
        if not cases:
            return True
        p, q = (analyzer.simplify(e) for e in cases.pop())
        if p is q:
            continue
        test = next((t for e in (p, q) for t in map(_as_test, postorder(e)) if t), None)
        if test is None:
            return False
        cases += [tuple(_assume(e, test, outcome) for e in (p, q)) for outcome in (True, False)]
    return False


_Test = tuple[Expr, Expr | None, int]
"""`term - other < limit`: the only comparison of the analyzer's normal form."""


def _as_test(expr: Node) -> _Test | None:
    """A comparison of integers as one of a term with a constant."""
    if not isinstance(expr, Binary) or expr.op is not BinaryOp.LT or not expr.a.dtype.is_int:
        return None
    a, b = expr.a, expr.b
    if isinstance(b, IntImm):
        return a, None, b.value
    if isinstance(a, IntImm):
        return b, None, a.value + 1  # its negation, see `_outcome`
    if isinstance(b, Binary) and b.op is BinaryOp.ADD and isinstance(b.b, IntImm):
        return a, b.a, b.b.value
    return a, b, 0


def _assume(expr: Expr, test: _Test, outcome: bool) -> Expr:
    """`expr` where `test` is known to be true or false."""

    def handler(node: Expr) -> Expr:
        other = _as_test(node)
        if other is None or other[:2] != test[:2]:
            return node
        negated = isinstance(node, Binary) and isinstance(node.a, IntImm)
        # the term is below test's limit, or not; what does that say about the other limit?
        if outcome and other[2] >= test[2]:
            return FALSE if negated else TRUE
        if not outcome and other[2] <= test[2]:
            return TRUE if negated else FALSE
        return node

    return rebuild(expr, handler)


def keeps(
    combiner: Combiner,
    earlier: Sequence[tuple[int | None, int | None]],
    added: Sequence[Expr],
    analyzer: Analyzer,
) -> bool:
    """Whether a combiner that only chooses, such as that of argmax, keeps what it has.

    It is tried with accumulators that stand for every order of their floats and those added, NaN
    excepted.

    Args:
        earlier: bounds of the integers that accumulators may hold.
    """
    nodes = [n for result in combiner.results for n in postorder(result)]
    if not all(isinstance(n, ScalarVar | Select) or _compares(n) for n in nodes):
        return False
    floats = [v for v in combiner.lhs if v.dtype.is_float]
    for values in itertools.product((-math.inf, 0.0, math.inf), repeat=len(floats)):
        known = {v: const(x, v.dtype) for v, x in zip(floats, values, strict=True)}
        known |= dict(zip(combiner.rhs, added, strict=True))
        within = {
            v: (None if low is None else min(low, 0), high)
            for v, (low, high) in zip(combiner.lhs, earlier, strict=True)
            if v.dtype.is_int
        }
        informed = analyzer.with_bounds(within)
        for variable, result in zip(combiner.lhs, combiner.results, strict=True):
            kept = informed.simplify(settle(substitute(result, known)))
            if kept is not known.get(variable, variable):
                return False
    return True


def _compares(node: Node) -> bool:
    return isinstance(node, Binary) and node.dtype is DType.BOOL


def settle(expr: Expr) -> Expr:
    """`expr` with what follows for padding from filled operands.

    Arithmetic on constants, and -inf - x = -inf, exp(-inf) = 0, 0 / x = 0 for a reduction x of the
    same operator, as in softmax. (Where x is infinite or NaN, the small model's results that depend
    on it are NaN in any case.)
    """

    def handler(node: Expr) -> Expr:
        if isinstance(node, Call) and node.name == "exp" and _is(node.args[0], -math.inf):
            return const(0, node.dtype)
        if not isinstance(node, Binary) or not node.a.dtype.is_float:
            return node
        if isinstance(node.a, FloatImm) and isinstance(node.b, FloatImm):
            if node.op in _COMPARE:
                return const(_COMPARE[node.op](node.a.value, node.b.value), DType.BOOL)
            return _arithmetic(node, node.a.value, node.b.value)
        absorbed = (node.op is BinaryOp.SUB and _is(node.a, -math.inf)) or (
            node.op is BinaryOp.DIV and _is(node.a, 0)
        )
        return node.a if absorbed and _is_inner(node.b) else node

    return rebuild(expr, handler)


def _arithmetic(node: Binary, a: float, b: float) -> Expr:
    if node.op is BinaryOp.MUL and math.isfinite(a) and math.isfinite(b):
        return const(a * b, node.dtype)
    if node.op is BinaryOp.ADD and not a:
        return node.b
    if node.op in (BinaryOp.ADD, BinaryOp.SUB) and not b:
        return node.a
    return node


def _is(expr: Expr, value: float) -> bool:
    return isinstance(expr, FloatImm) and expr.value == value


def _is_inner(expr: Expr) -> bool:
    """Whether an expression reads a stage of the operator itself."""
    return isinstance(expr, Load) and not isinstance(expr.source.op, PlaceholderOp)
