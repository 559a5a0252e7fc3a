"""Which part of a buffer a loop nest touches: symbolic intervals of affine index expressions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..ir.expr import Binary, BinaryOp, Call, Cast, Expr, IntImm, Load, Select, Var, binary, const
from ..ir.node import fold
from ..te.simplify import Analyzer

Interval = tuple[Expr, Expr]  # lowest and highest value, inclusive


def interval(expr: Expr, inner: Mapping[Var, Interval], analyzer: Analyzer) -> Interval | None:
    """The values of `expr` while the `inner` variables range; other variables stay symbolic.

    None where no useful bound is known. Exact for affine expressions in which each inner variable
    occurs once; otherwise a superset.
    """

    def step(node: Expr, parts: list[Interval | None]) -> Interval | None:
        if isinstance(node, Var):
            return inner.get(node, (node, node))
        if isinstance(node, Load):
            return None  # where the bound would be computed, it may not be allowed to read that
        if not parts:
            return (node, node)
        if any(p is None for p in parts):
            return None
        bounds = [p for p in parts if p is not None]
        if all(low is high for low, high in bounds):
            same = node.with_children([low for low, _ in bounds])
            return (same, same)
        if isinstance(node, Binary):
            return _binary(node.op, bounds[0], bounds[1], analyzer)
        if isinstance(node, Cast):
            return tuple(node.with_children([b]) for b in bounds[0])  # type: ignore[return-value]
        if isinstance(node, Select) or (isinstance(node, Call) and node.name == "if_then_else"):
            (low_a, high_a), (low_b, high_b) = bounds[1], bounds[2]
            return (binary(BinaryOp.MIN, low_a, low_b), binary(BinaryOp.MAX, high_a, high_b))
        return None

    result = fold(analyzer.simplify(expr), step)
    if result is None:
        return None
    return analyzer.simplify(result[0]), analyzer.simplify(result[1])


def _binary(op: BinaryOp, a: Interval, b: Interval, analyzer: Analyzer) -> Interval | None:
    (la, ha), (lb, hb) = a, b
    if op is BinaryOp.ADD:
        return la + lb, ha + hb
    if op is BinaryOp.SUB:
        return la - hb, ha - lb
    if op in (BinaryOp.MIN, BinaryOp.MAX):
        return binary(op, la, lb), binary(op, ha, hb)
    if op is BinaryOp.MUL and isinstance(la, IntImm) and la is ha:
        (la, ha), (lb, hb) = b, a
    if not (isinstance(lb, IntImm) and lb is hb):
        return None
    factor = lb.value
    if op is BinaryOp.MUL:
        return (la * factor, ha * factor) if factor >= 0 else (ha * factor, la * factor)
    if op is BinaryOp.FLOORDIV and factor > 0:
        return la // factor, ha // factor
    if op is BinaryOp.FLOORMOD and factor > 0:
        low, high = analyzer.simplify(la // factor), analyzer.simplify(ha // factor)
        if low is high:
            return la % factor, ha % factor
        return const(0), const(factor - 1)
    return None


def union(a: Interval, b: Interval, analyzer: Analyzer) -> Interval:
    """The smallest interval around both; bounds that differ by a constant are compared."""

    def pick(x: Expr, y: Expr, op: BinaryOp) -> Expr:
        difference = analyzer.simplify(x - y)
        if isinstance(difference, IntImm):
            return x if (difference.value <= 0) == (op is BinaryOp.MIN) else y
        return binary(op, x, y)

    return pick(a[0], b[0], BinaryOp.MIN), pick(a[1], b[1], BinaryOp.MAX)


def region(
    accesses: Iterable[tuple[Expr, ...]],
    shape: tuple[Expr, ...],
    inner: Mapping[Var, Interval],
    analyzer: Analyzer,
) -> list[tuple[Expr, Expr]]:
    """For each dimension the start and extent that cover all accesses.

    The extent is constant where the accesses allow it; the whole dimension where nothing better
    is known. The region may reach past the shape (a partial tile): callers guard that.
    """
    whole: list[Interval] = [(const(0), extent - 1) for extent in shape]
    result: list[Interval | None] = [None] * len(shape)
    for indices in accesses:
        for d, index in enumerate(indices):
            found = interval(index, inner, analyzer) or whole[d]
            known = result[d]
            result[d] = found if known is None else union(known, found, analyzer)
    out: list[tuple[Expr, Expr]] = []
    for d, bounds in enumerate(result):
        low, high = bounds or whole[d]
        extent = analyzer.simplify(high - low + 1)
        if not isinstance(extent, IntImm) or (
            not isinstance(low, IntImm) and analyzer.proves(shape[d] < extent)
        ):
            low, extent = const(0), shape[d]
        out.append((low, extent))
    return out
