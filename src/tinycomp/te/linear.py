"""Linear forms: how the analyzer represents scalar int64 expressions.

A form is `sum(coefficient * atom) + constant`; an atom is what is not linear itself (a variable, a
quotient, a product, a load). `LinearForms` holds what is known about atoms and computes with
forms; `simplify.Analyzer` turns expressions into forms.
"""

from __future__ import annotations

import math

from ..dtype import DType
from ..ir.expr import Binary, BinaryOp, Expr, IntImm, Var
from ..ir.fold import wrap
from . import bounds as ranges
from .bounds import INF, UNKNOWN, Range

_MAX_NESTING = 8  # how far quotients look into nested quotients and remainders


class Linear:
    """`sum(terms[atom] * atom) + const`, with its range. Immutable."""

    __slots__ = ("const", "exact", "expr", "hi", "lo", "terms")

    def __init__(
        self, terms: dict[Expr, int], constant: int, lo: float, hi: float, exact: bool
    ) -> None:
        self.terms, self.const, self.lo, self.hi, self.exact = terms, constant, lo, hi, exact
        self.expr: Expr | None = None


class LinearForms:
    """Facts about atoms, and arithmetic on forms over them."""

    def __init__(self) -> None:
        self._range: dict[Expr, Range] = {}  # of variables and atoms
        self._limit: dict[Var, Linear] = {}  # symbolic inclusive upper limits of variables
        self._inexact: set[Expr] = set()  # atoms that may wrap
        self._rank: dict[Expr, int] = {}  # order of first use: the order of equal terms
        self._quotient: dict[Expr, tuple[Expr, int, Linear]] = {}  # y % c -> (y // c, c, y)
        self._memo: dict[Expr, Linear | Expr] = {}  # normal forms of all expressions seen

    def _record(self, expr: Expr, r: Range, exact: bool) -> Linear:
        """Make `expr` an atom with this range."""
        self._range[expr] = r
        self._rank.setdefault(expr, len(self._rank))
        if not exact:
            self._inexact.add(expr)
        result = Linear({expr: 1}, 0, r[0], r[1], exact)
        result.expr = expr
        self._memo[expr] = result
        return result

    def _form(self, expr: Expr) -> Linear:
        """The form of an expression seen before, maybe before everything was forgotten."""
        return self._linear(expr)

    def _make(self, terms: dict[Expr, int], constant: int) -> Linear:
        if self._quotient:
            constant += self._join_remainders(terms) + self._join_quotients(terms)
        lo = hi = constant
        exact = True
        for atom, k in terms.items():
            low, high = self._range[atom]
            lo, hi = (lo + k * low, hi + k * high) if k > 0 else (lo + k * high, hi + k * low)
            exact = exact and atom not in self._inexact
        return Linear(terms, constant, *((lo, hi) if exact else UNKNOWN), exact)

    def _join_quotients(self, terms: dict[Expr, int]) -> int:
        """y // c * c + y % c -> y; returns what is constant of it."""
        constant = 0
        for atom in [t for t in terms if t in self._quotient]:
            quotient, c, y = self._quotient[atom]
            k = terms.get(atom, 0)
            if k and terms.get(quotient) == k * c:
                del terms[atom], terms[quotient]
                constant += _add_scaled(terms, y, k)
        return constant

    def _join_remainders(self, terms: dict[Expr, int]) -> int:
        """y // c % m * c + y % c -> y % (m * c), as of an index that was taken apart and put
        together again; returns what is constant of it."""
        constant = 0
        for low in [t for t in terms if t in self._quotient]:
            quotient, c, y = self._quotient[low]
            k = terms.get(low, 0)
            for high in [t for t in terms if k and terms[t] == k * c and t in self._quotient]:
                _, m, digit = self._quotient[high]
                if digit.terms == {quotient: 1} and not digit.const:
                    del terms[low], terms[high]
                    constant += _add_scaled(terms, self._mod_const(y, m * c), k)
                    break
        return constant

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
        assert result is not None
        form.expr = result
        self._memo.setdefault(result, form)
        return result

    def _upper(self, form: Linear) -> float:
        """An upper bound of the form, also through the symbolic limits of variables."""
        best = form.hi
        for _ in range(_MAX_NESTING if self._limit or best == INF else 0):
            raised = self._raise_to_limit(form)
            if raised is None:
                break
            form = raised
            best = min(best, form.hi)
        return best

    def _raise_to_limit(self, form: Linear) -> Linear | None:
        """A larger form, if there is one: a variable replaced by its symbolic limit, or
        c * (x // c) by x."""
        for t, k in form.terms.items():
            if k < 0:
                continue
            quotient = self._without_quotient(form, t, k)
            if quotient is not None:
                return quotient
            larger = self._limit.get(t)  # type: ignore[call-overload]
            factors = factors_of(t)
            for p, q in (factors, factors[::-1]) if len(factors) == 2 else ():
                if larger is not None or self._form(q).lo < 0:
                    continue
                limit, high = self._limit.get(p), self._form(p).hi  # type: ignore[call-overload]
                if limit is not None:
                    larger = self._product(limit, self._form(q))
                elif high < INF and q in form.terms:
                    larger = self._scale(self._form(q), int(high))
            if larger is not None:
                rest = {u: n for u, n in form.terms.items() if u is not t}
                return self._combine(self._make(rest, form.const), larger, k)
        return None

    def _without_quotient(self, form: Linear, t: Expr, k: int) -> Linear | None:
        """A larger form without the term k * t, if t is x // c: c * (x // c) is at most x, and
        x // c - y // c at most (x - y) / c, rounded up."""
        divided = _divided_by_const(t)
        if divided is None or divided[0] is not BinaryOp.FLOORDIV:
            return None
        c, x = divided[1], self._linear(t.a)  # type: ignore[attr-defined]
        rest = {u: n for u, n in form.terms.items() if u is not t}
        if k % c == 0:
            return self._combine(self._make(rest, form.const), x, k // c)
        for other in [u for u in rest if rest[u] == -k and _divided_by_const(u) == divided]:
            most = self._combine(x, self._linear(other.a), -1).hi  # type: ignore[attr-defined]
            if most < INF:
                del rest[other]
                return self._make(rest, form.const - k * (-int(most) // c))
        return None

    def _linear(self, expr: Expr) -> Linear:
        """The form of any scalar int64 expression."""
        raise NotImplementedError  # the analyzer knows the forms of operators

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
        factors = sorted(factors_of(p) + factors_of(q), key=self._rank.__getitem__)
        result = factors[0]
        for factor in factors[1:]:
            product = Binary(BinaryOp.MUL, result, factor)
            if product not in self._memo:
                r = ranges.mul(self._range[result], self._range[factor])
                exact = result not in self._inexact and factor not in self._inexact
                self._record(product, r, exact)
            result = product
        return result

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
            factors = factors_of(atom)
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
            scaled = self._make({t: k // g for t, k in big.items()}, constant)
            return self._combine(result, self._div_const(scaled, c // g, depth))
        if len(rest.terms) == 1 and depth < _MAX_NESTING:
            (atom, k), *_ = rest.terms.items()
            inner = _divided_by_const(atom) if k == 1 else None
            if inner is not None:
                op, c1 = inner
                x = self._form(atom.a)  # type: ignore[attr-defined]
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
            self._record(atom, ranges.floordiv((rest.lo, rest.hi), (c, c)), True)
        return self._combine(result, self._memo[atom])  # type: ignore[arg-type]

    def _mod_const(self, a: Linear, c: int, depth: int = 0) -> Linear:
        terms, constant = dict(a.terms), a.const
        for atom, k in a.terms.items():  # x % c1 * k is x * k modulo c if c divides c1 * k
            inner = _divided_by_const(atom)
            if k % c and inner and inner[0] is BinaryOp.FLOORMOD and inner[1] * k % c == 0:
                x = self._form(atom.a)  # type: ignore[attr-defined]
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
            self._record(atom, ranges.floormod((rest.lo, rest.hi), (c, c)), True)
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


def _add_scaled(terms: dict[Expr, int], form: Linear, k: int) -> int:
    """terms += k * form, in place; returns the constant."""
    for t, n in form.terms.items():
        terms[t] = terms.get(t, 0) + k * n
        if not terms[t]:
            del terms[t]
    return k * form.const


def _int(value: int) -> Expr:
    return IntImm(value, DType.INT64)


def factors_of(atom: Expr) -> list[Expr]:
    """The factors of a monomial; a product that was kept whole is its own factor."""
    factors: list[Expr] = []
    while isinstance(atom, Binary) and atom.op is BinaryOp.MUL and not _is_sum(atom.b):
        factors.append(atom.b)
        atom = atom.a
    return [atom, *reversed(factors)]


def _is_sum(expr: Expr) -> bool:
    return isinstance(expr, Binary) and expr.op in (BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL)


def _divided_by_const(atom: Expr) -> tuple[BinaryOp, int] | None:
    """(operator, divisor) of a quotient or remainder by a positive constant."""
    if isinstance(atom, Binary) and atom.op in (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD):
        divisor = atom.b
        if isinstance(divisor, IntImm) and divisor.value > 0:
            return atom.op, divisor.value
    return None
