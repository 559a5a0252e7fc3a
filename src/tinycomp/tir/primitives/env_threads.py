"""env_threads: the threads that run a nest of several stages, such as a scan.

Loops over blocks that are inside other loops move around the whole nest: each block then runs it
for its own part. That is legal where blocks need nothing of each other. Loops over the threads of a
block stay: lowering puts their axes around the nest, and barriers between its stages.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> X, S = te.placeholder((9, 64), name="X"), te.placeholder((9, 64), name="S")
>>> init = te.compute((1, 64), lambda t, i: X[0, i], name="init")
>>> update = te.compute((9, 64), lambda t, i: S[t - 1, i] + X[t, i], name="update")
>>> total = te.scan(init, update, S, [X], name="total")
>>> s = create_schedule(total, [X])
>>> for stage in ("update", "total"):
...     block, thread = s[stage].split(s[stage].axes[-1], factor=32)
...     s[stage].bind(block, "blockIdx.x"), s[stage].bind(thread, "threadIdx.x")
(None, None)
(None, None)
>>> s["total"].env_threads(["blockIdx.x", "threadIdx.x"])
>>> print(s.func.body.stmts[-1])
for blockIdx.x in thread(2, "blockIdx.x"):  # env_threads=('blockIdx.x', 'threadIdx.x')
    for total.t in range(1, 9):
        for i.inner in thread(32, "threadIdx.x"):
            with block("update"): ordered t = total.t, i = blockIdx.x * 32 + i.inner
                update[t, i] = total[t - 1, i] + X[t, i]
        for total.i1.inner in thread(32, "threadIdx.x"):
            with block("total"): ordered t = total.t, i1 = blockIdx.x * 32 + total.i1.inner
                total[t, i1] = update[t, i1]
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import Expr, IntImm, Load, Var, const, substitute
from ...ir.node import Node, postorder, rewrite
from ...te.simplify import Analyzer
from ..nodes import Block, Buffer, For, ForKind, PrimFunc, Stmt, Store
from ..region import Interval, interval
from ..tree import block_of, blocks_in, path_to, replace_stmt, substitute_stmt
from .annotate import require_thread_name
from .common import loops_in, root_of
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class EnvThreads(Step):
    NAME = "env_threads"
    threads: tuple[str, ...]

    def apply(self, schedule: Schedule) -> None:
        schedule.func = env_threads(schedule.func, self.stage, self.threads)


def env_threads(func: PrimFunc, block_name: str, threads: Sequence[str]) -> PrimFunc:
    """Launch the whole nest that a stage is part of over these thread axes.

    Raises:
        ScheduleError: no loop of the nest is bound to one of them; or, for a block axis, a stage
            of the nest is not spread over it, or needs what another block computes.
    """
    if not threads:
        raise ScheduleError("no threads are given", hint='a list such as ["threadIdx.x"]')
    for thread in threads:
        require_thread_name(thread)
        root = root_of(func, block_of(func, block_name))
        loops = [l for l in loops_in(root) if l.thread == thread]
        if not loops:
            raise ScheduleError(
                f"no loop of the nest of {block_name!r} is bound to {thread}",
                hint=f'bind loops of its stages to it first: s[stage].bind(axis, "{thread}")',
            )
        if thread.startswith("blockIdx") and not _is_outermost(root, loops[0]):
            func = replace_stmt(func, root, _hoisted(root, loops))
    root = root_of(func, block_of(func, block_name))
    outer = next(l for l in loops_in(root))
    notes = {**outer.annotations, EnvThreads.NAME: tuple(threads)}
    return replace_stmt(func, outer, replace(outer, annotations=notes))


def _is_outermost(root: Stmt, loop: For) -> bool:
    """Whether only loops over blocks are around a loop."""
    path = path_to(root, lambda s: s is loop) or []
    return all(isinstance(s, For) and s.thread.startswith("blockIdx") for s in path)


def _hoisted(root: Stmt, loops: Sequence[For]) -> Stmt:
    """One loop over a block axis around the nest in place of those inside."""
    first = loops[0]
    spread = {b for loop in loops for b in blocks_in(loop)}
    for block in blocks_in(root):
        if block not in spread:
            raise ScheduleError(
                f"stage {block.name!r} is in the same nest, but no loop of it is bound to "
                f"{first.thread}: every block would compute all of it",
                hint=f"bind one of its loops to {first.thread} too",
            )
    outer = Var(first.thread)
    values: dict[Var, Expr] = {l.var: outer + l.min for l in loops}
    _require_independent(root, outer, first, values)

    def step(node: Node) -> Node:
        if isinstance(node, For) and node.var in values:
            return substitute_stmt(node.body, {node.var: values[node.var]})
        return node

    return For(outer, const(0), first.extent, rewrite(root, step), ForKind.THREAD, first.thread)


def _require_independent(root: Stmt, outer: Var, first: For, values: dict[Var, Expr]) -> None:
    """ScheduleError unless each block reads of what the nest writes only its own part: one
    dimension of every buffer is divided among the blocks, by all accesses alike."""
    analyzer = Analyzer()
    analyzer.bind(outer, const(0), first.extent)
    inner: dict[Var, Interval] = {}
    for loop in loops_in(root):
        analyzer.bind(loop.var, loop.min, loop.extent)
        if loop.var not in values:
            inner[loop.var] = (loop.min, loop.min + loop.extent - 1)
    accesses = _accesses(root, values)
    for buffer, (stores, places) in accesses.items():
        ranks = range(len(buffer.shape)) if stores else ()
        if stores and not any(
            _divided({p[d] for p in places}, outer, inner, analyzer) for d in ranks
        ):
            raise ScheduleError(
                f"{buffer.name!r} is written and read inside the nest, and blocks along "
                f"{first.thread} do not keep to a part of their own",
                hint="bind an axis that all stages of the nest share, such as the batch, or bind "
                "this one to threadIdx",
            )


def _accesses(
    root: Stmt, values: dict[Var, Expr]
) -> dict[Buffer, tuple[list[Block], list[tuple[Expr, ...]]]]:
    """For each buffer who writes it, and the indices of all its accesses in terms of loops."""
    found: dict[Buffer, tuple[list[Block], list[tuple[Expr, ...]]]] = defaultdict(lambda: ([], []))
    for block in blocks_in(root):
        bound = {
            v.var: substitute(b, values)
            for v, b in zip(block.iter_vars, block.bindings, strict=True)
        }
        for node in postorder([s for s in (block.init, block.body) if s is not None]):
            if isinstance(node, Store):
                found[node.buffer][0].append(block)
                found[node.buffer][1].append(tuple(substitute(i, bound) for i in node.indices))
            elif isinstance(node, Load):
                buffer: Buffer = node.source  # type: ignore[assignment]
                found[buffer][1].append(tuple(substitute(i, bound) for i in node.indices))
    return found


def _divided(
    indices: set[Expr], outer: Var, inner: dict[Var, Interval], analyzer: Analyzer
) -> bool:
    """Whether all indices are `factor * outer + rest` with a rest from one and the same cell of
    `factor` elements."""
    cells: set[tuple[int, int]] = set()
    for index in indices:
        factor = analyzer.simplify(substitute(index, {outer: outer + 1}) - index)
        rest = interval(substitute(index, {outer: const(0)}), inner, analyzer)
        if not isinstance(factor, IntImm) or factor.value < 1 or rest is None:
            return False
        low, high = analyzer.bounds(rest[0])[0], analyzer.bounds(rest[1])[1]
        if low is None or high is None or low // factor.value != high // factor.value:
            return False
        cells.add((factor.value, low // factor.value))
    return len(cells) == 1
