"""What is known about integer expressions: ranges, a normal form, and proofs.

>>> from tinycomp.ir.expr import Var
>>> x, y = Var("x"), Var("y")
>>> analyzer = Analyzer()
>>> analyzer.bind(x, 0, 4), analyzer.bind(y, 0, 8)
(None, None)
>>> analyzer.simplify((x * 8 + y) // 8), analyzer.simplify((x * 8 + y) % 4)
(x, y % 4)
>>> analyzer.bounds(x * 8 + y), analyzer.proves(x * 8 + y < 32)
((0, 31), True)

Scalar int64 expressions, the type of indices, are kept as linear forms
`sum(coefficient * atom) + constant`; an atom is what is not linear itself (a variable, a
quotient, a load). Index arithmetic does not overflow, so ranges and terms may be moved freely;
values loaded from memory may be anything, and forms that hold them are not `exact`: they are only
rewritten in ways that wrapping arithmetic allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..dtype import DType
from ..ir.expr import (
    FALSE,
    TRUE,
    Binary,
    BinaryOp,
    Broadcast,
    Call,
    Cast,
    Expr,
    ExprLike,
    IntImm,
    Load,
    Ramp,
    Select,
    Var,
    cast,
    const,
)
from ..ir.fold import refold
from . import bounds as ranges
from .bounds import INF, UNKNOWN, Range
from .linear import Linear, LinearForms
from .rules import head, rules_by_head

_MAX_PRODUCT_TERMS = 16  # larger products stay atoms, so that forms do not grow


class Analyzer(LinearForms):
    """Knowledge about variables, and what follows from it. Results are memoised.

    All methods take scalar or vector expressions of any dtype; only integer knowledge is used.

    Args:
        sizes: variables that are not negative.
    """

    def __init__(self, sizes: Iterable[Var] = ()) -> None:
        super().__init__()
        self._bound: dict[Var, Range] = dict.fromkeys(sizes, (0, INF))

    # -- knowledge ---------------------------------------------------------------------------

    def bind(self, var: Var, min: ExprLike, extent: ExprLike) -> None:
        """From now on `min <= var < min + extent`; symbolic limits are used where possible."""
        low, size = cast(min, DType.INT64), cast(extent, DType.INT64)
        if var in self._memo:
            self._forget()
        last = self._linear(low + size - 1)
        self._bound[var] = (self._linear(low).lo, last.hi)
        self._limit.pop(var, None)
        if last.terms and last.exact and var not in last.terms:
            self._limit[var] = last

    def with_bounds(self, bounds: Mapping[Var, tuple[int | None, int | None]]) -> Analyzer:
        """A copy that also knows these inclusive bounds (None: unbounded on that side)."""
        other = Analyzer()
        other._bound = dict(self._bound)
        other._limit = {v: limit for v, limit in self._limit.items() if v not in bounds}
        other._rank = dict(self._rank)
        for limit in other._limit.values():  # their atoms are terms of the copy too
            for atom in limit.terms:
                other._range[atom] = self._range[atom]
        for var, (low, high) in bounds.items():
            other._bound[var] = (-INF if low is None else low, INF if high is None else high)
            other._range.pop(var, None)
        return other

    def _forget(self) -> None:
        self._memo.clear()
        self._range = {a: r for limit in self._limit.values() for a, r in (
            (atom, self._range[atom]) for atom in limit.terms)}  # fmt: skip
        self._quotient.clear()

    # -- questions ---------------------------------------------------------------------------

    def bounds(self, expr: Expr) -> tuple[int | None, int | None]:
        """Inclusive bounds of an integer expression's values; None where there is none."""
        lo, hi = self._range_of(self._visit_all(expr))
        return (None if lo == -INF else int(lo)), (None if hi == INF else int(hi))

    def simplify(self, expr: Expr) -> Expr:
        """An equal expression in normal form; the same object if it is in normal form already."""
        found = self._memo.get(expr)
        if found is None:
            found = self._visit_all(expr)
        return self._expr(found) if type(found) is Linear else found  # type: ignore[return-value]

    def proves(self, condition: Expr) -> bool:
        """Whether the condition holds for all values the variables can take."""
        result = self.simplify(condition)
        if isinstance(result, Broadcast):
            result = result.value
        return isinstance(result, IntImm) and bool(result.value)

    # -- driver ------------------------------------------------------------------------------

    def _visit_all(self, root: Expr) -> Linear | Expr:
        memo = self._memo
        stack = [root]
        forwarded: dict[Expr, Expr] = {}  # nodes that a rule rewrote, which is simplified again
        while stack:
            node = stack[-1]
            if node in memo:
                stack.pop()
                continue
            children = (forwarded[node],) if node in forwarded else node.children()
            missing = [c for c in children if c not in memo]
            if missing:
                stack.extend(missing[::-1])  # type: ignore[arg-type]
                continue
            stack.pop()
            if node in forwarded:
                memo[node] = memo[forwarded[node]]
                continue
            result = _VISIT.get(type(node), Analyzer._generic)(self, node)
            if isinstance(result, Expr):
                again = self._rewritten(node, result)
                if again is not None:
                    forwarded[node] = again
                    stack.append(node)
                    continue
                result = self._finish(result)
            memo[node] = result
        return memo[root]

    def _rewritten(self, node: Expr, result: Expr) -> Expr | None:
        """What must be simplified in place of `result`, if it is not in normal form."""
        for rule in rules_by_head().get(head(result), ()):
            better = rule.apply(result)
            if better is not None:
                return better
        if result is node or result in self._memo:
            return None
        return result if any(c not in self._memo for c in result.children()) else None

    def _finish(self, expr: Expr) -> Linear | Expr:
        """Record a node in normal form: an atom if it is a scalar int64, else the node itself."""
        found = self._memo.get(expr)
        if found is not None:
            return found
        if self._is_index(expr):
            return self._atom(expr, self._compute_range(expr))
        self._memo[expr] = expr
        if self._is_integer(expr):
            low, high = ranges.of_dtype(expr.dtype)
            r = self._compute_range(expr)
            self._range[expr] = r if low <= r[0] and r[1] <= high else (low, high)
        return expr

    def _is_index(self, expr: Expr) -> bool:
        if isinstance(expr, Binary):
            return expr.op not in _BOOLEAN and type(self._memo[expr.a]) is Linear
        if isinstance(expr, Select):
            return type(self._memo[expr.a]) is Linear
        return expr.dtype is DType.INT64 and expr.lanes == 1

    def _is_integer(self, expr: Expr) -> bool:
        if isinstance(expr, Binary):
            return expr.op not in _BOOLEAN and expr.a in self._range
        if isinstance(expr, Select):
            return expr.a in self._range
        return expr.dtype.is_int

    def _atom(self, expr: Expr, r: Range) -> Linear:
        bounded = r[0] > -INF and r[1] < INF
        return self._record(expr, r, bounded or self._exact_children(expr))

    def _exact_children(self, expr: Expr) -> bool:
        if isinstance(expr, Call) and expr.name == "checked_index":
            return True
        if isinstance(expr, Load):
            return False
        parts = [self._memo[c] for c in expr.children()]  # type: ignore[index]
        return all(p.exact for p in parts if type(p) is Linear)

    def _compute_range(self, expr: Expr) -> Range:
        """The range of a node from those of its children, which are in normal form."""
        parts = [self._range_of(self._memo[c]) for c in expr.children()]  # type: ignore[index]
        match expr:
            case Binary():
                return ranges.OF_BINARY.get(expr.op, lambda a, b: UNKNOWN)(*parts)
            case IntImm():
                return expr.value, expr.value
            case Select():
                return ranges.union(parts[1], parts[2])
            case Call(name="if_then_else"):
                return ranges.union(parts[1], parts[2])
            case Call(name="checked_index"):
                return 0, max(parts[1][1] - 1, 0)
            case Call(name="likely"):
                return parts[0]
            case Cast():
                inner = parts[0] if expr.value.dtype.is_int else UNKNOWN
                if expr.value.dtype is DType.BOOL:
                    inner = (0, 1)
                low, high = ranges.of_dtype(expr.to)
                return inner if low <= inner[0] and inner[1] <= high else (low, high)
            case Ramp():
                last = ranges.mul(parts[1], (expr.count - 1, expr.count - 1))
                return ranges.union(parts[0], ranges.add(parts[0], last))
            case Broadcast():
                return parts[0]
            case Var():
                return self._bound.get(expr, ranges.of_dtype(expr.dtype))
        return ranges.of_dtype(expr.dtype)

    def _range_of(self, value: Linear | Expr) -> Range:
        if type(value) is Linear:
            return value.lo, value.hi
        return self._range.get(value, UNKNOWN)  # type: ignore[arg-type]

    # -- linear forms ------------------------------------------------------------------------

    def _linear(self, expr: Expr) -> Linear:
        found = self._memo.get(expr)
        if found is None:
            found = self._visit_all(expr)
        if type(found) is not Linear:
            raise TypeError(f"expected a scalar int64 expression, got {expr}")
        return found

    # -- operators on linear forms -----------------------------------------------------------

    def _add(self, a: Linear, b: Linear, node: Binary) -> Linear | Expr:
        return self._combine(a, b)

    def _sub(self, a: Linear, b: Linear, node: Binary) -> Linear | Expr:
        return self._combine(a, b, -1)

    def _mul(self, a: Linear, b: Linear, node: Binary) -> Linear | Expr:
        if not b.terms:
            return self._scale(a, b.const)
        if not a.terms:
            return self._scale(b, a.const)
        if (len(a.terms) + 1) * (len(b.terms) + 1) > _MAX_PRODUCT_TERMS:
            return Binary(BinaryOp.MUL, self._expr(a), self._expr(b))
        return self._product(a, b)

    def _floordiv(self, a: Linear, b: Linear, node: Binary) -> Linear | Expr:
        if not b.terms and b.const == 0:
            return self._make({}, 0)
        if a.exact and not b.terms and b.const > 0:
            return self._div_const(a, b.const)
        split = self._split_symbolic(a, b)
        return split[0] if split else Binary(BinaryOp.FLOORDIV, self._expr(a), self._expr(b))

    def _floormod(self, a: Linear, b: Linear, node: Binary) -> Linear | Expr:
        if not b.terms and b.const == 0:
            return self._make({}, 0)
        if a.exact and not b.terms and b.const > 0:
            return self._mod_const(a, b.const)
        split = self._split_symbolic(a, b)
        return split[1] if split else Binary(BinaryOp.FLOORMOD, self._expr(a), self._expr(b))

    def _trunc(self, a: Linear, b: Linear, node: Binary) -> Linear | Expr:
        """Division towards zero is floor division where both operands are non-negative."""
        if a.exact and b.exact and a.lo >= 0 and b.lo >= 0:
            floor = self._floordiv if node.op is BinaryOp.TRUNCDIV else self._floormod
            return floor(a, b, node)
        return Binary(node.op, self._expr(a), self._expr(b))

    def _extreme(self, a: Linear, b: Linear, node: Binary) -> Linear | Expr:
        if a.exact and b.exact:
            a_first = self._upper(self._combine(a, b, -1)) <= 0
            if a_first or self._upper(self._combine(b, a, -1)) <= 0:
                return a if a_first == (node.op is BinaryOp.MIN) else b
        x, y = self._expr(a), self._expr(b)
        if not a.terms or (b.terms and self._order(y) < self._order(x)):
            x, y = y, x
        return Binary(node.op, x, y)

    def _order(self, expr: Expr) -> int:
        return self._rank.setdefault(expr, len(self._rank))

    def _compare(self, a: Linear, b: Linear, node: Binary) -> Linear | Expr:
        """`a < b` and `a <= b` become one form: positive terms < negated negative terms + const."""
        if not (a.exact and b.exact):
            return Binary(node.op, self._expr(a), self._expr(b))
        d = self._combine(a, b, -1)
        top = -1 if node.op is BinaryOp.LT else 0  # the comparison is d <= top
        if self._upper(d) <= top:
            return TRUE
        if -self._upper(self._scale(d, -1)) > top:
            return FALSE
        g = math.gcd(*d.terms.values())
        limit = (top - d.const) // g + 1
        plus, minus = _signs({t: k // g for t, k in d.terms.items()})
        if not plus:
            return self._less(self._make({}, -limit), self._make(minus, 0))
        return self._less(self._make(plus, 0), self._make(minus, limit))

    def _less(self, a: Linear, b: Linear) -> Expr:
        return Binary(BinaryOp.LT, self._expr(a), self._expr(b))

    def _equal(self, a: Linear, b: Linear, node: Binary) -> Linear | Expr:
        d = self._combine(a, b, -1)
        exact = a.exact and b.exact
        different = exact and (
            self._upper(d) < 0
            or self._upper(self._scale(d, -1)) < 0
            or (d.terms and d.const % math.gcd(*d.terms.values()) != 0)
        )
        if different or not d.terms:
            same = not different and d.const == 0
            return TRUE if same == (node.op is BinaryOp.EQ) else FALSE
        if not exact:
            return Binary(node.op, self._expr(a), self._expr(b))
        g = math.gcd(*d.terms.values())
        first = min(d.terms.items(), key=lambda t: (-abs(t[1]), self._rank[t[0]]))
        g = g if first[1] > 0 else -g
        plus, minus = _signs({t: k // g for t, k in d.terms.items()})
        left, right = self._make(plus, 0), self._make(minus, -d.const // g)
        return Binary(node.op, self._expr(left), self._expr(right))

    # -- nodes -------------------------------------------------------------------------------

    def _binary(self, node: Binary) -> Linear | Expr:
        a, b = self._memo[node.a], self._memo[node.b]
        if type(a) is Linear and type(b) is Linear:
            operator = _LINEAR.get(node.op)
            if operator is not None:
                return operator(self, a, b, node)
        elif node.a in self._range or node.b in self._range:
            decided = self._decide(node)
            if decided is not None:
                return decided
        return self._generic(node)

    def _decide(self, node: Binary) -> Expr | None:
        """The value of an operator on other integers or vectors, where ranges determine it."""
        a, b = self._range_of(self._memo[node.a]), self._range_of(self._memo[node.b])
        truth: bool | None = None
        match node.op:
            case BinaryOp.LT | BinaryOp.LE:
                strict = node.op is BinaryOp.LT
                if a[1] < b[0] or (not strict and a[1] <= b[0]):
                    truth = True
                elif a[0] > b[1] or (strict and a[0] >= b[1]):
                    truth = False
            case BinaryOp.EQ | BinaryOp.NE if a[1] < b[0] or b[1] < a[0]:
                truth = node.op is BinaryOp.NE
            case BinaryOp.MIN | BinaryOp.MAX if a[1] <= b[0] or b[1] <= a[0]:
                return node.a if (a[1] <= b[0]) == (node.op is BinaryOp.MIN) else node.b
            case BinaryOp.FLOORMOD if a[0] >= 0 and a[1] < b[0]:
                return node.a
            case BinaryOp.FLOORDIV if a[0] >= 0 and a[1] < b[0] and node.lanes == 1:
                return const(0, node.dtype)
        if truth is None:
            return None
        value = TRUE if truth else FALSE
        return value if node.lanes == 1 else Broadcast(value, node.lanes)

    def _choice(self, node: Expr) -> Linear | Expr:
        """Select, and the intrinsic if_then_else."""
        condition, a, b = (self._memo[c] for c in node.children())  # type: ignore[index]
        if isinstance(condition, IntImm):
            return a if condition.value else b
        if isinstance(condition, Broadcast) and isinstance(condition.value, IntImm):
            return a if condition.value.value else b
        x, y = self._as_expr(a), self._as_expr(b)
        if x is y:
            return a
        return node.with_children([self._as_expr(condition), x, y])

    def _call(self, node: Call) -> Linear | Expr:
        return self._choice(node) if node.name == "if_then_else" else self._generic(node)

    def _cast(self, node: Cast) -> Linear | Expr:
        inner = self._as_expr(self._memo[node.value])
        if isinstance(inner, Cast) and inner.to.is_int and inner.value.dtype.is_int:
            low, high = ranges.of_dtype(inner.to)
            r = self._range_of(self._memo[inner.value])
            if inner.to is DType.INT64 or (low <= r[0] and r[1] <= high):
                return refold(node, [inner.value])
        return self._generic(node)

    def _imm(self, node: IntImm) -> Linear | Expr:
        return self._make({}, node.value) if node.dtype is DType.INT64 else node

    def _generic(self, node: Expr) -> Linear | Expr:
        children = [self._as_expr(self._memo[c]) for c in node.children()]  # type: ignore[index]
        return refold(node, children)

    def _as_expr(self, value: Linear | Expr) -> Expr:
        return self._expr(value) if type(value) is Linear else value  # type: ignore[return-value]


def _signs(terms: dict[Expr, int]) -> tuple[dict[Expr, int], dict[Expr, int]]:
    """Positive terms, and negative terms negated."""
    return {t: k for t, k in terms.items() if k > 0}, {t: -k for t, k in terms.items() if k < 0}


_BOOLEAN = frozenset(
    {BinaryOp.EQ, BinaryOp.NE, BinaryOp.LT, BinaryOp.LE, BinaryOp.AND, BinaryOp.OR}
)
_LINEAR: Mapping[BinaryOp, Callable[[Analyzer, Linear, Linear, Binary], Linear | Expr]] = {
    BinaryOp.ADD: Analyzer._add,
    BinaryOp.SUB: Analyzer._sub,
    BinaryOp.MUL: Analyzer._mul,
    BinaryOp.FLOORDIV: Analyzer._floordiv,
    BinaryOp.FLOORMOD: Analyzer._floormod,
    BinaryOp.TRUNCDIV: Analyzer._trunc,
    BinaryOp.TRUNCMOD: Analyzer._trunc,
    BinaryOp.MIN: Analyzer._extreme,
    BinaryOp.MAX: Analyzer._extreme,
    BinaryOp.LT: Analyzer._compare,
    BinaryOp.LE: Analyzer._compare,
    BinaryOp.EQ: Analyzer._equal,
    BinaryOp.NE: Analyzer._equal,
}
_VISIT: Mapping[type, Callable[[Analyzer, Any], Linear | Expr]] = {
    IntImm: Analyzer._imm,
    Binary: Analyzer._binary,
    Select: Analyzer._choice,
    Call: Analyzer._call,
    Cast: Analyzer._cast,
}
