"""What the passes share: traversal with context, sequences, substitution with one memo."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ...ir.expr import Binary, BinaryOp, Call, Expr, IntImm, Load, Var
from ...ir.fold import refold
from ...ir.node import fold, postorder
from ..nodes import For, If, Seq, Stmt
from ..tree import statements

R = TypeVar("R")
Visit = Generator[Any, Any, R]  # yields the visits of parts, receives their results
NOTHING = Seq(())


def drive(visit: Visit[R]) -> R:
    """Run a recursive visit without the Python stack: `yield visit(part)` calls, `return` answers.

    >>> def depth(n):
    ...     return 0 if n == 0 else 1 + (yield depth(n - 1))
    >>> drive(depth(100_000))
    100000
    """
    stack, answer = [visit], None
    while stack:
        try:
            inner = stack[-1].send(answer)
        except StopIteration as stop:
            stack.pop()
            answer = stop.value
        else:
            stack.append(inner)
            answer = None
    return answer  # type: ignore[return-value]


def seq(stmts: Iterable[Stmt]) -> Stmt:
    """The statements one after the other; nested sequences and Ifs of one condition are merged."""
    flat: list[Stmt] = []
    for group in stmts:
        for stmt in group.stmts if isinstance(group, Seq) else (group,):
            if flat and _same_condition(flat[-1], stmt):
                stmt = _merged(flat.pop(), stmt)
            flat.append(stmt)
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def _same_condition(a: Stmt, b: Stmt) -> bool:
    return (
        isinstance(a, If)
        and isinstance(b, If)
        and a.condition is b.condition
        and a.otherwise is None
        and b.otherwise is None
        and not reads_memory(a.condition)
    )


def _merged(a: Any, b: Any) -> Stmt:
    first, second = (s.then.stmts if isinstance(s.then, Seq) else (s.then,) for s in (a, b))
    return If(a.condition, Seq((*first, *second)))


def is_nothing(stmt: Stmt) -> bool:
    return isinstance(stmt, Seq) and not stmt.stmts


def make_if(condition: Expr, then: Stmt, otherwise: Stmt | None = None) -> Stmt:
    """`if condition: then else: otherwise`, decided at once if the condition is constant."""
    if isinstance(condition, IntImm):
        return then if condition.value else otherwise or NOTHING
    if otherwise is not None and is_nothing(otherwise):
        otherwise = None
    if is_nothing(then) and otherwise is None:
        return NOTHING
    return If(condition, then, otherwise)


def conjuncts(condition: Expr) -> list[Expr]:
    """The conditions whose conjunction `condition` is; marks of likely guards are taken off."""
    found: list[Expr] = []
    stack = [condition]
    while stack:
        node = stack.pop()
        if isinstance(node, Binary) and node.op is BinaryOp.AND:
            stack += [node.b, node.a]
        elif isinstance(node, Call) and node.name == "likely":
            stack.append(node.args[0])
        else:
            found.append(node)
    return found


def uses(node: Any, wanted: Iterable[Var]) -> bool:
    """Whether an expression or statement mentions one of the variables."""
    variables = set(wanted)
    return any(n in variables for n in postorder(node))


def reads_memory(expr: Expr) -> bool:
    return any(isinstance(n, Load) for n in postorder(expr))


def rebuild_stmt(stmt: Stmt, children: list[Any]) -> Stmt:
    """`stmt` with these children: decided Ifs are resolved, sequences merged, empty loops gone."""
    if stmt.children() == tuple(children):  # nodes compare by identity
        return stmt
    if isinstance(stmt, If):
        return make_if(*children)
    if isinstance(stmt, Seq):
        return seq(children)
    if isinstance(stmt, For) and (is_nothing(children[2]) or _never(children[1])):
        return NOTHING
    return stmt.with_children(children)


def rebuilt(stmt: Stmt, visit: Callable[[Stmt], Visit[Stmt]]) -> Visit[Stmt]:
    """`stmt` around what `visit` makes of the statements in it."""
    children: list[Any] = []
    for child in stmt.children():
        if isinstance(child, Stmt):
            child = yield visit(child)
        children.append(child)
    return rebuild_stmt(stmt, children)


def _never(extent: Expr) -> bool:
    return isinstance(extent, IntImm) and extent.value <= 0


def rewriter(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function that rewrites expressions and statements bottom-up by `change`, with one memo.

    Calling it for several statements shares the work on their common subexpressions.
    """
    memo: dict[Any, Any] = {}

    def step(node: Any, children: list[Any]) -> Any:
        return change(
            rebuild_stmt(node, children) if isinstance(node, Stmt) else refold(node, children)
        )

    return lambda root: fold(root, step, memo)


def substituter(values: Mapping[Any, Any]) -> Callable[[Any], Any]:
    """A rewriter that puts `values[node]` in place of nodes (variables, or whole expressions)."""
    return rewriter(lambda node: values.get(node, node))


def rename(loop: For) -> For:
    """The same loop over a variable of its own, so that every loop of a function has its own."""
    fresh = Var(loop.var.name, loop.var.dtype)
    return replace(loop, var=fresh, body=substituter({loop.var: fresh})(loop.body))


def copy(stmt: Stmt) -> Stmt:
    """The same statements with loop variables of their own."""
    loops = [s for s in statements(stmt) if isinstance(s, For)]
    fresh = {loop.var: Var(loop.var.name, loop.var.dtype) for loop in loops}

    def change(node: Any) -> Any:
        if isinstance(node, For) and node.var in fresh:  # what is left of a Seq comes here twice
            return replace(node, var=fresh[node.var])
        return fresh.get(node, node)

    return rewriter(change)(stmt) if loops else stmt
