"""Finding and replacing statements in a loop tree. Iterative, by identity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..diagnostics import ScheduleError
from ..ir.expr import Expr, Load, Var
from ..ir.fold import refold
from ..ir.node import Node, fold, postorder, rewrite
from .nodes import Block, Buffer, For, PrimFunc, Seq, Stmt, Store


def child_statements(stmt: Stmt) -> list[Stmt]:
    """The statements directly inside `stmt`."""
    kind = type(stmt)
    if kind is For:  # the kinds that searches meet most, without looking at expressions
        return [stmt.body]  # type: ignore[attr-defined]
    if kind is Store:
        return []
    if kind is Seq:
        return list(stmt.stmts)  # type: ignore[attr-defined]
    if kind is Block:
        inside: list[Stmt] = [] if stmt.init is None else [stmt.init]  # type: ignore[attr-defined]
        return [*inside, stmt.body]  # type: ignore[attr-defined]
    return [c for c in stmt.children() if isinstance(c, Stmt)]


def statements(root: Stmt) -> Iterator[Stmt]:
    """`root` and all statements inside, parents first, in text order."""
    stack = [root]
    while stack:
        stmt = stack.pop()
        yield stmt
        stack.extend(reversed(child_statements(stmt)))


def statements_outside(root: Stmt, places: Sequence[Stmt]) -> Iterator[Stmt]:
    """All statements but `places` and what is inside them (which other places may share)."""
    stack = [root]
    while stack:
        stmt = stack.pop()
        if not any(stmt is p for p in places):
            yield stmt
            stack.extend(reversed(child_statements(stmt)))


def path_to(root: Stmt, wanted: Callable[[Stmt], bool]) -> list[Stmt] | None:
    """The statements from `root` down to the first one that is wanted, both included."""
    path: list[Stmt] = []
    stack: list[tuple[int, Stmt]] = [(0, root)]
    while stack:
        depth, stmt = stack.pop()
        del path[depth:]
        path.append(stmt)
        if wanted(stmt):
            return path
        stack.extend((depth + 1, child) for child in reversed(child_statements(stmt)))
    return None


def replace_at(path: Sequence[Stmt], new: Stmt | None) -> Stmt:
    """The tree with the last statement of `path` replaced; None removes it and emptied loops."""
    for parent, old in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
        if isinstance(parent, Seq):
            index = next(i for i, s in enumerate(parent.stmts) if s is old)
            middle = () if new is None else new.stmts if isinstance(new, Seq) else (new,)
            stmts = parent.stmts[:index] + middle + parent.stmts[index + 1 :]
            new = None if not stmts else stmts[0] if len(stmts) == 1 else Seq(stmts)
        elif new is not None:
            new = parent.with_children([new if c is old else c for c in parent.children()])
    return new if new is not None else Seq(())


def replace_stmt(func: PrimFunc, old: Stmt, new: Stmt | None) -> PrimFunc:
    """`func` with one statement replaced or, with None, removed."""
    path = path_to(func.body, lambda s: s is old)
    assert path is not None
    return replace(func, body=replace_at(path, new))


def loop_of(func: PrimFunc, var: Var) -> For:
    """The loop over `var`; ScheduleError if it no longer exists."""
    path = path_to(func.body, lambda s: isinstance(s, For) and s.var is var)
    if path is None:
        raise ScheduleError(
            f"axis {var.name!r} is not a loop of {func.name}: it was split, fused or inlined away",
            hint="use the axes that the earlier call returned; s.show() prints the loops",
            excerpt=str(func.body),
        )
    loop = path[-1]
    assert isinstance(loop, For)
    return loop


def block_of(func: PrimFunc, name: str) -> Block:
    """The block called `name`; ScheduleError if there is none."""
    path = path_to(func.body, lambda s: isinstance(s, Block) and s.name == name)
    if path is None and is_extern(func, name):
        raise ScheduleError(
            f"stage {name!r} is extern: its statements stay as they were written",
            hint="of its result the scope and layout can be chosen, and copies made (cache_read)",
        )
    if path is None:
        raise ScheduleError(
            f"{func.name} has no block {name!r}: it was inlined", hint="s.show() prints the blocks"
        )
    block = path[-1]
    assert isinstance(block, Block)
    return block


def is_extern(func: PrimFunc, name: str) -> bool:
    """Whether a stage is hand-written statements (te.extern), which are no block."""
    inside = blocks_in(func.body)
    outside = statements_outside(func.body, inside)
    return any(isinstance(s, Store) and s.buffer.name == name for s in outside)


def loops_above(func: PrimFunc, stmt: Stmt) -> list[For]:
    """The loops around a statement, outermost first."""
    path = path_to(func.body, lambda s: s is stmt)
    assert path is not None
    return [s for s in path[:-1] if isinstance(s, For)]


def blocks_in(root: Stmt) -> list[Block]:
    """All blocks in text order."""
    return [s for s in statements(root) if isinstance(s, Block)]


def loads_in(stmt: Node) -> list[Load]:
    """Every load in a statement, each once."""
    return [n for n in postorder(stmt) if isinstance(n, Load)]


def stores_in(stmt: Stmt) -> list[Store]:
    return [s for s in statements(stmt) if isinstance(s, Store)]


def written_buffers(stmt: Stmt) -> list[Buffer]:
    """The buffers a statement stores to, each once."""
    return list(dict.fromkeys(s.buffer for s in stores_in(stmt)))


def read_buffers(stmt: Stmt) -> list[Buffer]:
    """The buffers a statement reads, each once; a reduction reads what it accumulates into."""
    return list(dict.fromkeys(load.source for load in loads_in(stmt)))


def substitute_stmt(stmt: Stmt, values: Mapping[Var, Expr]) -> Stmt:
    """`stmt` with variables replaced, in bindings and predicates of blocks too."""

    def step(node: Node, children: list) -> Any:
        if isinstance(node, Var):
            return values.get(node, node)
        return refold(node, children)

    return fold(stmt, step)


def map_buffers(stmt: Stmt, buffers: Mapping[Buffer, Buffer]) -> Stmt:
    """`stmt` reading and writing other buffers in place of the given ones."""

    def step(node: Node) -> Node:
        if isinstance(node, Load) and node.source in buffers:
            return Load(buffers[node.source], node.indices, node.predicate)
        if isinstance(node, Store) and node.buffer in buffers:
            return replace(node, buffer=buffers[node.buffer])
        return node

    return rewrite(stmt, step)
