"""Allocation of intermediate buffers where they are used, no larger than what is used there."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...ir.expr import Expr, IntImm, Load, Var, as_int, const
from ...ir.fold import refold
from ...ir.node import fold, postorder
from ...te.simplify import Analyzer
from ..nodes import Alloc, Buffer, For, PrimFunc, Scope, Stmt, Store
from ..region import Interval, interval, union
from .lower_blocks import CARRIES
from .visit import Visit, drive, rebuild_stmt, uses

Path = tuple[Stmt, ...]


@dataclass
class _Uses:
    """Where and with which indices a buffer is accessed."""

    common: Path = ()  # from the root to the lowest statement around all uses
    loops: dict[For, None] = field(default_factory=dict)  # around any use
    accesses: dict[tuple[Expr, ...], None] = field(default_factory=dict)

    def add(self, path: Path, indices: tuple[Expr, ...]) -> None:
        if not self.accesses:
            self.common = path
        same = sum(1 for _ in _common(self.common, path))
        self.common = self.common[:same]
        self.accesses[indices] = None
        self.loops.update(dict.fromkeys(s for s in path if isinstance(s, For)))


def _common(a: Path, b: Path) -> Path:
    """The longest common beginning."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x is not y:
            break
        count += 1
    return a[:count]


def compact_buffers(func: PrimFunc) -> PrimFunc:
    """Place each buffer of `func.allocs` by an Alloc around its uses, as deep inside loops as they
    allow, shrunk to the region that one run of the Alloc touches.

    A buffer that a loop carries from one iteration to the next stays outside that loop. Guards
    are not used to shrink: a partial tile keeps the size of a full one.
    """
    analyzer = Analyzer(func.sizes)
    found = _collect(func, analyzer)
    places: defaultdict[Stmt, list[Buffer]] = defaultdict(list)
    moved: dict[Buffer, tuple[Buffer, list[Expr]]] = {}
    for buffer in func.allocs:
        if buffer not in found:
            continue
        outside = _outside(buffer, found[buffer])
        smaller, lows = _shrink(buffer, found[buffer], outside, analyzer)
        smaller = _aligned(smaller)
        moved[buffer] = smaller, lows
        places[outside[-1]].append(smaller)
    body = _apply(func.body, places, moved, analyzer)
    return replace(func, body=body, allocs=())


def _collect(func: PrimFunc, analyzer: Analyzer) -> dict[Buffer, _Uses]:
    found: dict[Buffer, _Uses] = defaultdict(_Uses)
    wanted = set(func.allocs)

    def visit(stmt: Stmt, path: Path) -> Visit[None]:
        path = (*path, stmt)
        if isinstance(stmt, For):
            analyzer.bind(stmt.var, stmt.min, stmt.extent)
        if isinstance(stmt, Store) and stmt.buffer in wanted:
            found[stmt.buffer].add(path, stmt.indices)
        own = [c for c in stmt.children() if not isinstance(c, Stmt)]
        for load in postorder(own):
            if isinstance(load, Load) and load.source in wanted:
                found[load.source].add(path, load.indices)
        for child in stmt.children():
            if isinstance(child, Stmt):
                yield visit(child, path)

    drive(visit(func.body, ()))
    return dict(found)


def _outside(buffer: Buffer, uses_: _Uses) -> Path:
    """The path to the statement that the Alloc goes around."""
    for depth, stmt in enumerate(uses_.common):
        if isinstance(stmt, For) and buffer in stmt.annotations.get(CARRIES, ()):
            return uses_.common[: depth + 1]
    return uses_.common


def _shrink(
    buffer: Buffer, uses_: _Uses, outside: Path, analyzer: Analyzer
) -> tuple[Buffer, list[Expr]]:
    """The buffer reduced to what is touched inside, and the first index of each dimension."""
    whole = buffer, [const(0)] * len(buffer.shape)
    if buffer.scope is Scope.CLUSTER:  # its shape says how the blocks divide it
        return whole
    around = {s for s in outside[:-1] if isinstance(s, For)}
    if buffer.scope is Scope.SHARED:  # common to the threads of a block
        around = {s for s in around if not s.thread.startswith("threadIdx")}
    if not around:
        return whole
    inner: dict[Var, Interval] = {
        s.var: (s.min, s.min + s.extent - 1) for s in uses_.loops if s not in around
    }
    if any(uses([low, high], inner) for low, high in inner.values()):
        return whole
    spans = [
        _span([i[d] for i in uses_.accesses], size, inner, analyzer)
        for d, size in enumerate(buffer.shape)
    ]
    return replace(buffer, shape=tuple(e for _, e in spans)), [low for low, _ in spans]


def _aligned(buffer: Buffer) -> Buffer:
    """The buffer with the stride that its schedule wants (`storage_align`), if it can have it."""
    if buffer.aligned is None:
        return buffer
    dimension, factor, offset = buffer.aligned
    inner = buffer.shape[dimension + 1 :]
    if not inner or not all(isinstance(d, IntImm) for d in inner):
        return buffer
    first, *rest = map(as_int, inner)
    for extent in range(first, first + factor):
        if extent * math.prod(rest) % factor == offset:
            shape = (*buffer.shape[: dimension + 1], const(extent), *inner[1:])
            return replace(buffer, shape=shape)
    return buffer


def _span(
    indices: list[Expr], size: Expr, inner: Mapping[Var, Interval], analyzer: Analyzer
) -> tuple[Expr, Expr]:
    """The first index and the number of indices that cover all accesses of one dimension.

    That may be more than its size: a tile that reaches past the end computes values nobody uses.
    """
    bounds: Interval | None = None
    for index in dict.fromkeys(indices):
        found = interval(index, inner, analyzer)
        if found is None:
            bounds = None
            break
        bounds = found if bounds is None else union(bounds, found, analyzer)
    if bounds is not None:
        low, extent = bounds[0], analyzer.simplify(bounds[1] - bounds[0] + 1)
        if isinstance(extent, IntImm) and not uses(low, inner):
            return low, extent
    last = [analyzer.bounds(index)[1] for index in indices]
    if isinstance(size, IntImm) and all(x is not None for x in last):
        size = const(max(size.value, *(x + 1 for x in last if x is not None)))
    return const(0), size


def _apply(
    root: Stmt,
    places: dict[Stmt, list[Buffer]],
    moved: dict[Buffer, tuple[Buffer, list[Expr]]],
    analyzer: Analyzer,
) -> Stmt:
    def shifted(indices: tuple[Expr, ...], lows: list[Expr]) -> tuple[Expr, ...]:
        pairs = zip(indices, lows, strict=True)
        return tuple(analyzer.simplify(index - low) for index, low in pairs)

    def step(node: Any, children: list[Any]) -> Any:
        if not isinstance(node, Stmt):
            result = refold(node, children)
            if isinstance(result, Load) and result.source in moved:
                buffer, lows = moved[result.source]
                return Load(buffer, shifted(result.indices, lows), result.predicate)
            return result
        stmt = rebuild_stmt(node, children)
        if isinstance(stmt, Store) and stmt.buffer in moved:
            buffer, lows = moved[stmt.buffer]
            stmt = replace(stmt, buffer=buffer, indices=shifted(stmt.indices, lows))
        if isinstance(stmt, For) and CARRIES in stmt.annotations:
            others = {k: v for k, v in stmt.annotations.items() if k != CARRIES}
            stmt = replace(stmt, annotations=others)
        for buffer in reversed(places.get(node, ())):
            stmt = Alloc(buffer, stmt)
        return stmt

    return fold(root, step)
