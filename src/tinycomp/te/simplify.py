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
from collections.abc import Callable, Mapping
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
    as_expr,
    const,
)
from ..ir.fold import refold, wrap
from . import bounds as ranges
from .bounds import INF, UNKNOWN, Range
from .rules import head, rules_by_head

_MAX_PRODUCT_TERMS = 16  # larger products stay atoms, so that forms do not grow
_MAX_NESTING = 8  # how far quotients look into nested quotients and remainders


class Linear:
    """`sum(terms[atom] * atom) + const`, with its range. Immutable."""

    __slots__ = ("const", "exact", "expr", "hi", "lo", "terms")

    def __init__(
        self, terms: dict[Expr, int], constant: int, lo: float, hi: float, exact: bool
    ) -> None:
        self.terms, self.const, self.lo, self.hi, self.exact = terms, constant, lo, hi, exact
        self.expr: Expr | None = None


class Analyzer:
    """Knowledge about variables, and what follows from it. Results are memoised.

    All methods take scalar or vector expressions of any dtype; only integer knowledge is used.
    """

    def __init__(self) -> None:
        self._range: dict[Expr, Range] = {}  # of variables and atoms
        self._limit: dict[Var, Linear] = {}  # symbolic inclusive upper limits of variables
        self._inexact: set[Expr] = set()  # atoms that may wrap
        self._rank: dict[Expr, int] = {}  # order of first use: the order of equal terms
        self._quotient: dict[Expr, tuple[Expr, int, Linear]] = {}  # y % c -> (y // c, c, y)
        self._memo: dict[Expr, Linear | Expr] = {}
        self._bound: dict[Var, Range] = {}

    # -- knowledge ---------------------------------------------------------------------------

    def bind(self, var: Var, min: ExprLike, extent: ExprLike) -> None:
        """From now on `min <= var < min + extent`; symbolic limits are used where possible."""
        low, size = as_expr(min), as_expr(extent)
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

    def _atom(self, expr: Expr, r: Range, exact: bool | None = None) -> Linear:
        if exact is None:
            exact = r[0] > -INF and r[1] < INF
            exact = exact or (not isinstance(expr, Load) and self._exact_children(expr))
        self._range[expr] = r
        self._rank.setdefault(expr, len(self._rank))
        if not exact:
            self._inexact.add(expr)
        result = Linear({expr: 1}, 0, r[0], r[1], exact)
        result.expr = expr
        self._memo[expr] = result
        return result

    def _exact_children(self, expr: Expr) -> bool:
        if isinstance(expr, Call) and expr.name == "checked_index":
            return True
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

    def _make(self, terms: dict[Expr, int], constant: int) -> Linear:
        if self._quotient:
            self._join_quotients(terms)
        lo = hi = constant
        exact = True
        for atom, k in terms.items():
            low, high = self._range[atom]
            lo, hi = (lo + k * low, hi + k * high) if k > 0 else (lo + k * high, hi + k * low)
            exact = exact and atom not in self._inexact
        return Linear(terms, constant, *((lo, hi) if exact else UNKNOWN), exact)

    def _join_quotients(self, terms: dict[Expr, int]) -> None:
        """y // c * c + y % c -> y"""
        for atom in [t for t in terms if t in self._quotient]:
            quotient, c, y = self._quotient[atom]
            k = terms.get(atom, 0)
            if k and terms.get(quotient) == k * c and not y.const:
                del terms[atom], terms[quotient]
                for t, n in y.terms.items():
                    terms[t] = terms.get(t, 0) + k * n
                    if not terms[t]:
                        del terms[t]

    def _combine(self, a: Linear, b: Linear, k: int = 1) -> Linear:
        """a + k * b"""
        terms = dict(a.terms)
        for atom, n in b.terms.items():
            total = terms.get(atom, 0) + k * n
            if total:
                terms[atom] = total
            else:
                del terms[atom]
        return self._make(terms, a.const + k * b.const)

    def _scale(self, a: Linear, k: int) -> Linear:
        return self._make({t: n * k for t, n in a.terms.items()} if k else {}, a.const * k)

    def _expr(self, form: Linear) -> Expr:
        """The normal form as an expression: terms by falling coefficient, constant last."""
        if form.expr is not None:
            return form.expr
        rank = self._rank
        result: Expr | None = None
        for atom, n in sorted(form.terms.items(), key=lambda t: (-t[1], rank[t[0]])):
            size = n if result is None else abs(n)
            term = atom if size == 1 else Binary(BinaryOp.MUL, atom, _int(size))
            if result is None:
                result = term
            else:
                result = Binary(BinaryOp.ADD if n > 0 else BinaryOp.SUB, result, term)
        k = wrap(form.const, DType.INT64)
        if result is None:
            result = _int(k)
        elif k > 0 or k == DType.INT64.min_value:
            result = Binary(BinaryOp.ADD, result, _int(k))
        elif k < 0:
            result = Binary(BinaryOp.SUB, result, _int(-k))
        form.expr = result
        self._memo.setdefault(result, form)
        return result

    def _upper(self, form: Linear) -> float:
        """An upper bound of the form, also through the symbolic limits of variables."""
        best = form.hi
        for _ in range(_MAX_NESTING if self._limit else 0):
            raised = self._raise_to_limit(form)
            if raised is None:
                break
            form = raised
            best = min(best, form.hi)
        return best

    def _raise_to_limit(self, form: Linear) -> Linear | None:
        """A larger form, with one variable replaced by its symbolic limit, if there is one."""
        for t, k in form.terms.items():
            if k < 0:
                continue
            larger = self._limit.get(t)  # type: ignore[call-overload]
            factors = _factors(t)
            for p, q in (factors, factors[::-1]) if len(factors) == 2 else ():
                if larger is not None or self._range[q][0] < 0:
                    continue
                limit, high = self._limit.get(p), self._range[p][1]  # type: ignore[call-overload]
                if limit is not None:
                    larger = self._product(limit, self._linear(q))
                elif high < INF and q in form.terms:
                    larger = self._scale(self._linear(q), int(high))
            if larger is not None:
                rest = {u: n for u, n in form.terms.items() if u is not t}
                return self._combine(self._make(rest, form.const), larger, k)
        return None

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

    def _product(self, a: Linear, b: Linear) -> Linear:
        total = self._combine(self._scale(a, b.const), self._scale(b, a.const))
        terms, constant = dict(total.terms), total.const - a.const * b.const
        for p, m in a.terms.items():
            for q, n in b.terms.items():
                atom = self._monomial(p, q)
                terms[atom] = terms.get(atom, 0) + m * n
                if not terms[atom]:
                    del terms[atom]
        return self._make(terms, constant)

    def _monomial(self, p: Expr, q: Expr) -> Expr:
        """The product of two atoms, factors in order of first use."""
        factors = sorted(_factors(p) + _factors(q), key=self._rank.__getitem__)
        result = factors[0]
        for factor in factors[1:]:
            product = Binary(BinaryOp.MUL, result, factor)
            if product not in self._memo:
                r = ranges.mul(self._range[result], self._range[factor])
                exact = result not in self._inexact and factor not in self._inexact
                self._atom(product, r, exact)
            result = product
        return result

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

    def _split_symbolic(self, a: Linear, b: Linear) -> tuple[Linear, Linear] | None:
        """(q, r) with a = q * b + r and 0 <= r < b, for a divisor that is one atom."""
        if not (a.exact and b.exact) or len(b.terms) != 1 or b.const:
            return None
        (divisor, k), *_ = b.terms.items()
        if k != 1:
            return None
        quotient: dict[Expr, int] = {}
        rest: dict[Expr, int] = {}
        constant = 0
        for atom, n in a.terms.items():
            if atom is divisor:
                constant += n
                continue
            factors = _factors(atom)
            if divisor not in factors:
                rest[atom] = n
                continue
            factors.remove(divisor)
            result = factors[0]
            for factor in factors[1:]:
                result = self._monomial(result, factor)
            quotient[result] = quotient.get(result, 0) + n
        r = self._make(rest, a.const)
        if r.lo >= 0 and self._upper(self._combine(r, b, -1)) <= -1:
            return self._make(quotient, constant), r
        return None

    def _div_const(self, a: Linear, c: int, depth: int = 0) -> Linear:
        whole = {t: k // c for t, k in a.terms.items() if k % c == 0}
        rest = self._make({t: k for t, k in a.terms.items() if k % c}, a.const % c)
        result = self._make(whole, a.const // c)
        if rest.lo > -INF and rest.hi < INF and rest.lo // c == rest.hi // c:
            return self._combine(result, self._make({}, int(rest.lo // c)))
        g, big, small = self._split_by_gcd(rest, c)
        if g > 1:
            constant = rest.const // g if not small else 0
            rest, c = self._make({t: k // g for t, k in big.items()}, constant), c // g
        if c == 1:
            return self._combine(result, rest)
        if len(rest.terms) == 1 and depth < _MAX_NESTING:
            (atom, k), *_ = rest.terms.items()
            inner = _divided_by_const(atom) if k == 1 else None
            if inner is not None:
                op, c1 = inner
                x = self._linear(atom.a)  # type: ignore[attr-defined]
                if op is BinaryOp.FLOORDIV:
                    moved = self._combine(x, self._make({}, rest.const * c1))
                    return self._combine(result, self._div_const(moved, c1 * c, depth + 1))
                if rest.const == 0 and c1 % c == 0:
                    inner_quotient = self._div_const(x, c, depth + 1)
                    return self._combine(
                        result, self._mod_const(inner_quotient, c1 // c, depth + 1)
                    )
        atom = Binary(BinaryOp.FLOORDIV, self._expr(rest), _int(c))
        if atom not in self._memo:
            self._atom(atom, ranges.floordiv((rest.lo, rest.hi), (c, c)), True)
        return self._combine(result, self._memo[atom])  # type: ignore[arg-type]

    def _mod_const(self, a: Linear, c: int, depth: int = 0) -> Linear:
        terms, constant = dict(a.terms), a.const
        for atom, k in a.terms.items():  # x % c1 * k is x * k modulo c if c divides c1 * k
            inner = _divided_by_const(atom)
            if k % c and inner and inner[0] is BinaryOp.FLOORMOD and inner[1] * k % c == 0:
                x = self._linear(atom.a)  # type: ignore[attr-defined]
                del terms[atom]
                constant += k * x.const
                for t, n in x.terms.items():
                    terms[t] = terms.get(t, 0) + k * n
        rest = self._make({t: k for t, k in terms.items() if k % c}, constant % c)
        if rest.lo > -INF and rest.hi < INF and rest.lo // c == rest.hi // c:
            return self._combine(rest, self._make({}, -int(rest.lo // c) * c))
        g, big, small = self._split_by_gcd(rest, c)
        if g > 1:
            low = rest.const if small else rest.const % g
            scaled = self._make({t: k // g for t, k in big.items()}, (rest.const - low) // g)
            high = self._scale(self._mod_const(scaled, c // g, depth + 1), g)
            return self._combine(high, self._make(small, low))
        atom = Binary(BinaryOp.FLOORMOD, self._expr(rest), _int(c))
        if atom not in self._memo:
            self._atom(atom, ranges.floormod((rest.lo, rest.hi), (c, c)), True)
            quotient = self._div_const(rest, c, depth)
            if len(quotient.terms) == 1 and not quotient.const:
                (q, k), *_ = quotient.terms.items()
                if k == 1:
                    self._quotient[atom] = (q, c, rest)
        return self._memo[atom]  # type: ignore[return-value]

    def _split_by_gcd(self, form: Linear, c: int) -> tuple[int, dict[Expr, int], dict[Expr, int]]:
        """(g, big, small): g divides c and the big terms, and 0 <= small + const < g.

        With no small terms the constant may be anything. g is 1 where there is no such split.
        """
        order = sorted(form.terms.items(), key=lambda t: -abs(t[1]))
        gcds: list[int] = []
        g = c
        for _, k in order:
            g = math.gcd(g, k)
            gcds.append(g)
        if gcds and gcds[-1] > 1:
            return gcds[-1], dict(order), {}
        for cut in range(len(order) - 1, 0, -1):
            small = dict(order[cut:])
            rest = self._make(dict(small), form.const)
            if gcds[cut - 1] > 1 and rest.lo >= 0 and rest.hi < gcds[cut - 1]:
                return gcds[cut - 1], dict(order[:cut]), small
        return 1, {}, {}

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


def _int(value: int) -> Expr:
    return IntImm(value, DType.INT64)


def _factors(atom: Expr) -> list[Expr]:
    """The factors of a monomial; a product that was kept whole is its own factor."""
    factors: list[Expr] = []
    while isinstance(atom, Binary) and atom.op is BinaryOp.MUL and not _is_sum(atom.b):
        factors.append(atom.b)
        atom = atom.a
    return [atom, *reversed(factors)]


def _is_sum(expr: Expr) -> bool:
    return isinstance(expr, Binary) and expr.op in (BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL)


def _signs(terms: dict[Expr, int]) -> tuple[dict[Expr, int], dict[Expr, int]]:
    """Positive terms, and negative terms negated."""
    return {t: k for t, k in terms.items() if k > 0}, {t: -k for t, k in terms.items() if k < 0}


def _divided_by_const(atom: Expr) -> tuple[BinaryOp, int] | None:
    """(operator, divisor) of a quotient or remainder by a positive constant."""
    if isinstance(atom, Binary) and atom.op in (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD):
        divisor = atom.b
        if isinstance(divisor, IntImm) and divisor.value > 0:
            return atom.op, divisor.value
    return None


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
