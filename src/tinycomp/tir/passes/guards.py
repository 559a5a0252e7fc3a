"""Affine guards: the comparisons in a loop's body, and for which iterations they are decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...dtype import DType
from ...ir.expr import Binary, BinaryOp, Call, Expr, IntImm, Load, Select, Var, const, variables
from ...ir.node import fold, postorder
from ...te.simplify import Analyzer
from ..nodes import If, Stmt


@dataclass(frozen=True)
class Guard:
    """`coefficient * var + rest + [low, high] >= 0`, where [low, high] are the values that the
    loops inside contribute, and `rest` is fixed outside (None if there is nothing)."""

    condition: Expr
    coefficient: int
    low: int
    high: int
    rest: Expr | None

    def boundaries(self) -> tuple[int, int]:
        """The iterations at which the condition starts or ends to hold, and to fail; `rest` must
        be absent. Between the two it depends on the loops inside."""
        c, low, high = self.coefficient, self.low, self.high
        if c > 0:  # holds from -low / c on, fails before
            return -(low // c), (-1 - high) // c + 1
        return low // -c + 1, -((-1 - high) // -c)  # holds up to low / -c, fails after

    def depends_on(self, var: Var) -> bool:
        """Whether `rest` changes with the loop too."""
        return self.rest is not None and var in variables(self.rest)

    def first_iteration(self) -> Expr:
        """From where on the guard holds whatever the loops inside do; of a positive coefficient."""
        return const(0) - self._total() // self.coefficient

    def end(self) -> Expr:
        """Up to where it does so, exclusive; of a negative coefficient."""
        return self._total() // -self.coefficient + 1

    def _total(self) -> Expr:
        return const(self.low) if self.rest is None else self.rest + self.low

    def decided(self, first: int, last: int) -> bool | None:
        """The condition's value if the same for all iterations first..last, else None."""
        ends = self.coefficient * first, self.coefficient * last
        if min(ends) + self.low >= 0:
            return True
        return False if max(ends) + self.high < 0 else None

    def always(self, var: Var) -> Expr:
        """A condition on `var` under which the guard holds whatever the loops inside do."""
        total = var * self.coefficient + self.low
        return (total if self.rest is None else total + self.rest) >= 0


class Comparisons:
    """The integer comparisons that the conditions in a statement consist of, each once.

    Calling it is cheap for statements made of parts that it has seen.
    """

    def __init__(self) -> None:
        self._memo: dict[Any, tuple[Expr, ...]] = {}

    def __call__(self, stmt: Stmt) -> tuple[Expr, ...]:
        return fold(stmt, self._step, self._memo)

    def _step(self, node: Any, parts: list[tuple[Expr, ...]]) -> tuple[Expr, ...]:
        found = [p for p in parts if p]
        if isinstance(node, If | Select):
            found.append(atoms(node.condition))
        elif isinstance(node, Call) and node.name == "if_then_else":
            found.append(atoms(node.args[0]))
        if len(found) < 2:
            return found[0] if found else ()
        return tuple(dict.fromkeys(c for part in found for c in part))


def atoms(condition: Expr) -> tuple[Expr, ...]:
    """The comparisons that a condition is made of."""
    found: list[Expr] = []
    stack = [condition]
    while stack:
        node = stack.pop()
        if isinstance(node, Binary) and node.op in (BinaryOp.AND, BinaryOp.OR):
            stack += [node.a, node.b]
        elif isinstance(node, Call) and node.name in ("likely", "not"):
            stack.append(node.args[0])
        elif is_comparison(node):
            found.append(node)
    return tuple(found)


def is_comparison(node: Expr) -> bool:
    """Whether this is `<` or `<=` of scalar indices; not of data, which may change meanwhile."""
    if not isinstance(node, Binary) or node.op not in (BinaryOp.LT, BinaryOp.LE):
        return False
    if node.a.dtype is not DType.INT64 or node.lanes > 1:
        return False
    return not any(isinstance(part, Load) for part in postorder(node))


def linear_terms(expr: Expr) -> tuple[dict[Expr, int], int]:
    """A sum as {term: coefficient} and a constant; what is not linear is a term itself."""
    terms: dict[Expr, int] = {}
    constant = 0
    stack = [(expr, 1)]
    while stack:
        node, factor = stack.pop()
        if isinstance(node, IntImm):
            constant += factor * node.value
        elif isinstance(node, Binary) and node.op is BinaryOp.ADD:
            stack += [(node.a, factor), (node.b, factor)]
        elif isinstance(node, Binary) and node.op is BinaryOp.SUB:
            stack += [(node.a, factor), (node.b, -factor)]
        elif isinstance(node, Binary) and node.op is BinaryOp.MUL and isinstance(node.b, IntImm):
            stack.append((node.a, factor * node.b.value))
        else:
            terms[node] = terms.get(node, 0) + factor
    return {t: c for t, c in terms.items() if c}, constant


def guard_of(condition: Expr, var: Var, inner: set[Var], analyzer: Analyzer) -> Guard | None:
    """The comparison as a guard of the loop over `var` around the loops `inner`.

    None if it does not depend on `var`, or the loops inside contribute without bounds.
    """
    assert isinstance(condition, Binary)
    difference = condition.b - condition.a
    if condition.op is BinaryOp.LT:
        difference = difference - 1
    terms, low = linear_terms(analyzer.simplify(difference))
    high = low
    rest: Expr | None = None
    depends = var in terms
    coefficient = terms.pop(var, 0)
    for term, factor in terms.items():
        mentioned = {n for n in postorder(term) if isinstance(n, Var)}
        if mentioned & inner:
            least, most = analyzer.bounds(term)
            if least is None or most is None:
                return None
            low += min(factor * least, factor * most)
            high += max(factor * least, factor * most)
        else:
            depends = depends or var in mentioned
            rest = term * factor if rest is None else rest + term * factor
    return Guard(condition, coefficient, low, high, rest) if depends else None
