"""Loops that stream through packed operands fetch ahead of themselves.

Hardware prefetchers stop at page borders and cannot know which panel comes next, so weights that
lie in main memory arrive late: a cold 3 x 3 convolution ran at 71 instead of 170 GFLOP/s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...dtype import DType
from ...ir.expr import Call, Expr, IntImm, Load, Ramp, Var, const, substitute, variables
from ...ir.node import postorder
from ...te.simplify import Analyzer
from ..nodes import Evaluate, For, ForKind, PrimFunc, Seq, Stmt
from ..tree import statements
from .visit import Visit, drive, rebuilt, uses

_MOST_REUSES = 16  # a panel read more often than that costs little to wait for once


@dataclass(frozen=True)
class _Stream:
    """A loop marked for prefetching, and the serial loops around it, outermost first."""

    loop: For
    around: tuple[For, ...]


def prefetch(func: PrimFunc) -> PrimFunc:
    """Loops with `pragma "prefetch"`, a pair (buffer name, iterations ahead), get prefetches of
    the vectors that they will load from that buffer.

        for i in range(5):                  for i in range(5):
          for k in range(K):                  for k in range(K):
            C += A[i, k] * B[j, k]    -->       prefetch(B[j, k + 40])
                                                prefetch(B[j + 1, (i * K + k) // 5])
                                                C += A[i, k] * B[j, k]

    The first reaches past the end of the row into what comes next in memory, which for packed
    operands is what comes next in time. The second appears where a loop around reuses the same
    part (a panel of weights): it brings the next panel into the second-level cache, evenly over
    the time that this one is in use. Addresses past the buffer are harmless to fetch.
    """

    def visit(stmt: Stmt, around: tuple[For, ...]) -> Visit[Stmt]:
        inside = around
        if isinstance(stmt, For):
            # What a thread does next is known inside its part of the iterations only.
            inside = () if stmt.kind is ForKind.PARALLEL else (*around, stmt)
        result = yield rebuilt(stmt, lambda child: visit(child, inside))
        if not isinstance(stmt, For) or "prefetch" not in stmt.annotations:
            return result
        assert isinstance(result, For)
        kept = {k: v for k, v in result.annotations.items() if k != "prefetch"}
        # Copies of a loop share its variable, but not what is around and inside.
        body = Seq((*_fetches(_Stream(stmt, around)), result.body))
        return replace(result, body=body, annotations=kept)

    body = drive(visit(func.body, ()))
    return func if body is func.body else replace(func, body=body)


def _fetches(stream: _Stream) -> tuple[Evaluate, ...]:
    loop = stream.loop
    name, ahead = loop.annotations["prefetch"]
    loads = _loads(loop, name)
    later: dict[Var, Expr] = {loop.var: loop.var + const(ahead)}
    out = [
        Call("prefetch", (Load(load.source, _at(load, later), None),), load.dtype) for load in loads
    ]
    if loads:
        out += _next_panel(stream, loads)
    return tuple(Evaluate(call) for call in out)


def _loads(loop: For, name: str) -> list[Load]:
    """The loop's vector loads from a buffer, as loads of their first elements; not those whose
    place depends on loops inside, which is not known where the prefetch stands, or on data, which
    may not be there for a later iteration."""
    found: dict[Load, None] = {}
    inner = [s.var for s in statements(loop.body) if isinstance(s, For)]
    for node in postorder(loop.body):
        if not isinstance(node, Load) or node.source.name != name or node.lanes == 1:
            continue
        first = tuple(i.base if isinstance(i, Ramp) else i for i in node.indices)
        if uses(first, inner) or not uses(first, [loop.var]):
            continue
        if any(isinstance(n, Load) for n in postorder(first)):
            continue
        if all(i.lanes == 1 for i in first):
            found[Load(node.source, first, None)] = None
    return list(found)


def _at(load: Load, values: dict[Var, Expr]) -> tuple[Expr, ...]:
    return tuple(substitute(i, values) for i in load.indices)


def _next_panel(stream: _Stream, loads: list[Load]) -> list[Call]:
    """Prefetches of the panel after this one, spread over the loop that reuses this one."""
    load = loads[0]
    used = {v for index in load.indices for v in variables(index)}
    inner = [stream.loop]
    reuse: For | None = None
    for loop in reversed(stream.around):
        if loop.var not in used:
            reuse = loop
            break
        inner.append(loop)
    if reuse is None or not all(isinstance(l.extent, IntImm) for l in (*inner, reuse)):
        return []
    times = reuse.extent.value  # type: ignore[attr-defined]
    if not 2 <= times <= _MOST_REUSES:
        return []
    analyzer = Analyzer()
    for loop in (*stream.around, stream.loop):
        analyzer.bind(loop.var, loop.min, loop.extent)
    here = _linear(load, {})
    start = _linear(load, {l.var: l.min for l in inner})
    steps = 1
    for loop in inner:
        steps *= loop.extent.value  # type: ignore[attr-defined]
    width = len(loads) * load_lanes(load)
    done = analyzer.simplify(here - start) + (reuse.var - reuse.min) * (steps * width)
    position = analyzer.simplify(start + steps * width + done // times)
    indices = (*(const(0) for _ in load.indices[1:]), position)
    target = Load(load.source, indices, None)
    return [Call("prefetch", (target, const(2)), load.dtype)]


def load_lanes(load: Load) -> int:
    """Elements of one cache line."""
    return 64 // DType(load.dtype).itemsize


def _linear(load: Load, values: dict[Var, Expr]) -> Expr:
    """The position of a load in its dense buffer."""
    position: Expr = const(0)
    for index, extent in zip(load.indices, load.source.shape, strict=True):
        position = position * extent + substitute(index, values)
    return position
