"""Loops split where their guards change, so that most iterations run without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from ...ir.expr import FALSE, TRUE, BinaryOp, Expr, IntImm, Var, all_of, binary, const
from ...te.simplify import Analyzer
from ..nodes import For, ForKind, If, PrimFunc, Seq, Stmt
from ..tree import child_statements, statements
from .guards import Comparisons, Guard, atoms, guard_of
from .visit import Visit, copy, drive, is_nothing, make_if, rebuild_stmt, seq, substituter

MAX_GROWTH = 4  # statements of copies per statement of the function (after unrolling)
MIN_BUDGET = 256  # statements of copies that even small functions may have
VECTOR = 16  # lanes that count as one statement

Range = tuple[int, int]  # first and last iteration


def loop_partition(func: PrimFunc) -> PrimFunc:
    """Split loops, outermost first, into ranges in which their guards are decided.

        for i.o in 17: for i.i in 12:                for i.o in 16: for i.i in 12: body
          if i.o*12 + i.i < 197: body       -->      for i.i in 12: if i.i < 5: body

    Guards are the comparisons in Ifs and in conditions of values (padding, concatenation), affine
    in the loop's variable. A parallel loop stays one loop, with versions of its body under `if`;
    so does a loop with guards in one part of its body only, or guards that involve more than
    constants: under the `if` they hold. Over symbolic sizes, a serial loop becomes up to three: the
    iterations in which all guards hold, and what comes before and after.

        for i.o in (n + 7) // 8: for i.i in 8:       for i.o in n // 8: for i.i in 8: body
          if i.o*8 + i.i < n: body           -->     for i.o in n // 8, (n + 7) // 8: ...
    """
    return _Partition(func).run()


class _Partition:
    def __init__(self, func: PrimFunc) -> None:
        self.func = func
        self.analyzer = Analyzer(func.sizes)
        self.comparisons = Comparisons()
        self.bound: set[Var] = set()
        self.switches: set[Expr] = set()  # conditions whose else branch is rarely taken
        self.budget = max(MIN_BUDGET, MAX_GROWTH * cost(func.body))

    def run(self) -> PrimFunc:
        body = drive(self.visit(self.func.body, True))
        return self.func if body is self.func.body else replace(self.func, body=body)

    def visit(self, stmt: Stmt, hot: bool) -> Visit[Stmt]:
        """Partition the loops inside; `hot` is False where most iterations do not come."""
        if isinstance(stmt, For) and stmt.kind in (ForKind.SERIAL, ForKind.PARALLEL):
            ranges, guards = self.whole(stmt)
            if len(ranges) > 1:
                loops = []
                for part in self.parts(stmt, guards, ranges):
                    loops.append((yield self.visit(part, hot)))
                return seq(loops)
            thirds = self.symbolic(stmt) if hot and self.func.sizes else None
            if thirds is not None:
                before, interior, after = thirds
                before, after = (yield self.visit(before, False)), (yield self.visit(after, False))
                return seq([before, (yield self.visit(interior, hot)), after])
            stmt = self.branches(stmt, hot)
        children = []
        slow = stmt.otherwise if isinstance(stmt, If) and stmt.condition in self.switches else None
        for child in stmt.children():
            if isinstance(child, Stmt):
                child = yield self.visit(child, hot and child is not slow)
            children.append(child)
        return rebuild_stmt(stmt, children)

    def guards(self, loop: For) -> list[Guard]:
        conditions = self.comparisons(loop.body)
        if not conditions:
            return []
        loops = [s for s in statements(loop) if isinstance(s, For)]
        for inner in loops:
            if inner.var not in self.bound:
                self.bound.add(inner.var)
                self.analyzer.bind(inner.var, inner.min, inner.extent)
        inside = {inner.var for inner in loops[1:]}
        found = (guard_of(c, loop.var, inside, self.analyzer) for c in conditions)
        return [g for g in found if g is not None]

    def whole(self, loop: For) -> tuple[list[Range], list[Guard]]:
        """The ranges into which to split a serial loop, by guards that concern all its body."""
        if loop.kind is not ForKind.SERIAL:
            return [], []
        groups = self.groups(loop).values()
        guards = [g for place, group in groups if place is loop.body for g in group]
        guards = [g for g in guards if g.rest is None]
        return self.ranges(loop, guards, loop.body), guards

    def symbolic(self, loop: For) -> tuple[Stmt, Stmt, Stmt] | None:
        """The iterations of a serial loop before those in which its guards hold, these without the
        guards, and those after; None if bounds are constant, or it costs too much."""
        if loop.kind is not ForKind.SERIAL:
            return None
        groups = self.groups(loop).values()
        guards = [g for place, group in groups if place is loop.body for g in group]
        guards = [g for g in guards if g.coefficient and not g.depends_on(loop.var)]
        bounds = [g.first_iteration() if g.coefficient > 0 else g.end() for g in guards]
        if all(isinstance(e, IntImm) for e in (loop.min, loop.extent, *bounds)):
            return None
        start, stop = loop.min, self.analyzer.simplify(loop.min + loop.extent)
        first, end = start, stop
        for guard, bound in zip(guards, bounds, strict=True):
            if guard.coefficient > 0:
                first = binary(BinaryOp.MAX, first, bound)
            else:
                end = binary(BinaryOp.MIN, end, bound)
        first = self.analyzer.simplify(binary(BinaryOp.MIN, first, stop))
        end = self.analyzer.simplify(binary(BinaryOp.MAX, first, end))
        price = cost(loop.body) * ((first is not start) + (end is not stop))
        if not price or price > self.budget:
            return None
        self.budget -= price
        holds = substituter({g.condition: TRUE for g in guards})
        interior = replace(self.between(loop, first, end), body=holds(loop.body))
        before, after = self.between(loop, start, first), self.between(loop, end, stop)
        return copy(before), interior, copy(after)

    def between(self, loop: For, first: Expr, end: Expr) -> For:
        return replace(loop, min=first, extent=self.analyzer.simplify(end - first))

    def branches(self, loop: For, hot: bool) -> For:
        """The loop with versions of parts of its body, smallest parts first."""
        handled: set[object] = set()
        while True:
            places: dict[tuple[Stmt, bool], list[Guard]] = {}
            for key, (place, guards) in self.groups(loop).items():
                if key not in handled:
                    places.setdefault((place, guards[0].rest is None), []).extend(guards)
            if not places:
                return loop
            place, is_fixed = min(places, key=lambda p: cost(p[0]))
            guards = places[place, is_fixed]
            handled |= {self.key(g, loop) for g in guards}
            if not is_fixed:
                loop = self.switch(loop, guards, place) if hot else loop
            elif len(ranges := self.ranges(loop, guards, place)) > 1:
                loop = self.branch(loop, guards, ranges, place)

    def groups(self, loop: For) -> dict[object, tuple[Stmt, list[Guard]]]:
        """Guards that change at the same iterations, with the statement they are all in."""
        found: dict[object, list[Guard]] = {}
        for guard in self.guards(loop):
            found.setdefault(self.key(guard, loop), []).append(guard)
        return {key: (self.place(loop.body, guards), guards) for key, guards in found.items()}

    def key(self, guard: Guard, loop: For) -> object:
        """What two guards share that change at the same iterations."""
        if guard.rest is None:
            return guard.boundaries()
        return self.analyzer.simplify(guard.always(loop.var))

    def place(self, body: Stmt, guards: list[Guard]) -> Stmt:
        """The part of `body` to make versions of: all of it, or the one statement of an innermost
        sequence that all guards are in."""
        wanted = {g.condition for g in guards}
        place = node = body
        while True:
            inside = [
                c for c in child_statements(node) if not wanted.isdisjoint(self.comparisons(c))
            ]
            here = isinstance(node, If) and not wanted.isdisjoint(atoms(node.condition))
            if here or len(inside) != 1:
                return place
            if isinstance(node, Seq):
                place = inside[0]
            node = inside[0]

    def ranges(self, loop: For, guards: list[Guard], place: Stmt) -> list[Range]:
        """The loop's iterations cut where guards change; none if that costs too much."""
        if not isinstance(loop.min, IntImm) or not isinstance(loop.extent, IntImm):
            return []
        start, stop = loop.min.value, loop.min.value + loop.extent.value
        cuts = {b for g in guards for b in g.boundaries()}
        ends = [start, *sorted(b for b in cuts if start < b < stop), stop]
        price = (len(ends) - 2) * cost(place)
        if price > self.budget:
            return []
        self.budget -= price
        return [(first, end - 1) for first, end in pairwise(ends)]

    def parts(self, loop: For, guards: list[Guard], ranges: list[Range]) -> Iterator[Stmt]:
        """One loop per range (no loop for one iteration), without the guards it decides."""
        for first, last in ranges:
            body = _decided(loop.body, guards, first, last)
            if is_nothing(body):
                continue
            if first == last:
                yield copy(substituter({loop.var: const(first)})(body))
            else:
                size = const(last - first + 1)
                yield copy(replace(loop, min=const(first), extent=size, body=body))

    def branch(self, loop: For, guards: list[Guard], ranges: list[Range], place: Stmt) -> For:
        """The whole loop, with one version of `place` for each range of its iterations."""
        versions: list[Stmt] = []
        for first, last in ranges:
            version = copy(_decided(place, guards, first, last))
            once = {loop.var: const(first)} if first == last else {}
            versions.append(substituter(once)(version))
        result = versions.pop()
        for (_, last), version in zip(reversed(ranges[:-1]), reversed(versions), strict=True):
            result = make_if(loop.var <= last, version, result)
        return replace(loop, body=substituter({place: result})(loop.body))

    def switch(self, loop: For, guards: list[Guard], place: Stmt) -> For:
        """Two versions of `place`, whose guards are not about constants only: one for when they
        hold, without them. Only if one of them is inside a further loop."""
        nested = [s.body for s in statements(place) if isinstance(s, For)]
        inside = {c for body in nested for c in self.comparisons(body)}
        price = cost(place)
        if price > self.budget or not any(g.condition in inside for g in guards):
            return loop
        condition = all_of(self.analyzer.simplify(g.always(loop.var)) for g in guards)
        if isinstance(condition, IntImm):
            return loop
        self.budget -= price
        fast = substituter({g.condition: TRUE for g in guards})(place)
        self.switches.add(condition)
        both = make_if(condition, fast, copy(place))
        return replace(loop, body=substituter({place: both})(loop.body))


def _decided(stmt: Stmt, guards: list[Guard], first: int, last: int) -> Stmt:
    """`stmt` without the guards that are decided for iterations first..last."""
    values = {g.condition: g.decided(first, last) for g in guards}
    known = {c: TRUE if value else FALSE for c, value in values.items() if value is not None}
    return substituter(known)(stmt)


def cost(stmt: Stmt) -> int:
    """Statements after unrolling."""
    total = 0
    stack = [(stmt, 1)]
    while stack:
        node, times = stack.pop()
        inner = child_statements(node)
        if not inner:
            total += times
        if isinstance(node, For) and isinstance(node.extent, IntImm):
            if node.kind is ForKind.UNROLLED:
                times *= node.extent.value
            elif node.kind is ForKind.VECTORIZED:
                times *= -(-node.extent.value // VECTOR)
        stack += [(child, times) for child in inner]
    return total
