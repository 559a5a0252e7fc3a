"""What several primitives share: guarding blocks, single-child chains, axis kinds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ...diagnostics import ScheduleError
from ...ir.expr import Expr, Var, call, variables
from ...ir.node import rewrite
from ...te.tensor import IterKind
from ..nodes import Block, For, PrimFunc, Seq, Stmt
from ..tree import blocks_in, loop_of


def guard_blocks(body: Stmt, condition: Expr) -> Stmt:
    """Every block in `body` runs only where `condition` holds."""
    guard = call("likely", condition)

    def step(node: Stmt) -> Stmt:
        return replace(node, predicate=node.predicate & guard) if isinstance(node, Block) else node

    return rewrite(body, step)


def axis_kinds(func: PrimFunc, axis: Var) -> set[IterKind]:
    """The kinds of the block axes that a loop takes part in."""
    kinds: set[IterKind] = set()
    for block in blocks_in(loop_of(func, axis)):
        for iter_var, binding in zip(block.iter_vars, block.bindings, strict=True):
            if axis in variables(binding):
                kinds.add(iter_var.kind)
    return kinds


def require_spatial(func: PrimFunc, axis: Var, call_name: str) -> None:
    """ScheduleError if the loop runs over a reduction axis."""
    if axis_kinds(func, axis) - {IterKind.SPATIAL}:
        raise ScheduleError(
            f"{call_name}({axis.name}): {axis.name!r} is a reduction axis; its iterations update one "
            "accumulator and cannot run at once",
            hint=f"s.rfactor(tensor, {axis.name}) turns it into an axis of partial results first",
            excerpt=str(loop_of(func, axis)),
        )


def chain(func: PrimFunc, axes: Iterable[Var], call_name: str) -> list[For]:
    """The perfectly nested loops from the outermost to the innermost of `axes`, all included.

    Raises:
        ScheduleError: they are not nested directly in each other.
    """
    wanted = list(axes)
    loops = [loop_of(func, a) for a in wanted]
    for start in loops:
        nest: list[For] = []
        stmt: Stmt = start
        while isinstance(stmt, For):
            nest.append(stmt)
            if all(any(l.var is a for l in nest) for a in wanted):
                return nest
            stmt = (
                stmt.body.stmts[0]
                if isinstance(stmt.body, Seq) and len(stmt.body.stmts) == 1
                else stmt.body
            )
    names = ", ".join(a.name for a in wanted)
    raise ScheduleError(
        f"{call_name}({names}): the loops are not nested directly in each other",
        hint="another statement sits between them (a compute_at inside?); reorder before computing at",
        excerpt=str(func.body),
    )
