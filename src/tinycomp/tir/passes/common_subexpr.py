"""What several neighbouring statements compute is computed once.

Within one statement equal expressions are one object, and code generation computes them once. From
one statement to the next a compiler must prove that the store between them changes nothing that the
expression reads; here it is known, since buffers do not overlap:

    B[i] = exp(A[i]) + 1          t = exp(A[i])
    C[i] = exp(A[i]) * 2   -->    B[i] = t + 1
                                  C[i] = t * 2

Only elementary functions are worth a register: loads and arithmetic are left as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...dtype import DType
from ...ir.expr import Call, Expr, Load, Ramp, const
from ...ir.node import postorder
from ..nodes import Alloc, Buffer, PrimFunc, Scope, Seq, Stmt, Store
from .visit import Visit, drive, rebuilt, seq, substituter

COSTLY = frozenset(
    ["exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan",
     "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid",
     "pow", "atan2", "fmod"]
)  # fmt: skip


def common_subexpr(func: PrimFunc) -> PrimFunc:
    """Compute elementary functions that several stores in a row need once, into registers."""
    if not any(_is_costly(n) for n in postorder(func.body)):
        return func
    names = Counter[str]()

    def visit(stmt: Stmt) -> Visit[Stmt]:
        result = yield rebuilt(stmt, visit)
        return _shared(result, names) if isinstance(result, Seq) else result

    body = drive(visit(func.body))
    return func if body is func.body else replace(func, body=body)


def _is_costly(node: object) -> bool:
    return isinstance(node, Call) and node.name in COSTLY


def _shared(stmts: Seq, names: Counter[str]) -> Stmt:
    """The sequence with every run of stores rewritten."""
    parts: list[Stmt] = []
    run: list[Store] = []
    for stmt in (*stmts.stmts, None):
        if isinstance(stmt, Store):
            run.append(stmt)
            continue
        parts.append(_of_run(run, names))
        run = []
        if stmt is not None:
            parts.append(stmt)
    result = seq(parts)
    return stmts if isinstance(result, Seq) and result.stmts == stmts.stmts else result


def _of_run(run: Sequence[Store], names: Counter[str]) -> Stmt:
    """Stores in a row; registers for what they share are filled before the first that needs it."""
    places: dict[Any, list[int]] = {}
    for position, store in enumerate(run):
        for node in dict.fromkeys(_always_evaluated(store.value)):
            if _is_costly(node) and node.dtype is not DType.BOOL:
                places.setdefault(node, []).append(position)
    values: dict[Expr, Expr] = {}
    filled: dict[int, list[Stmt]] = {}
    buffers: list[Buffer] = []
    for node in (n for n in postorder([s.value for s in run]) if n in places):
        assert isinstance(node, Call)
        first, last = places[node][0], places[node][-1]
        if first == last or _is_overwritten(node, run[first:last]):
            continue
        names["common"] += 1
        shape = () if node.lanes == 1 else (const(node.lanes),)
        buffer = Buffer(f"common{names['common']}", shape, node.dtype, Scope.LOCAL)
        index = () if node.lanes == 1 else (Ramp(const(0), const(1), node.lanes),)
        value = substituter(values)(node)
        filled.setdefault(first, []).append(Store(buffer, index, value))
        values[node] = values[value] = Load(buffer, index, None)  # also with what is in registers
        buffers.append(buffer)
    if not buffers:
        return Seq(tuple(run))
    change = substituter(values)
    stmts = [s for i, store in enumerate(run) for s in (*filled.get(i, ()), change(store))]
    result: Stmt = Seq(tuple(stmts))
    for buffer in reversed(buffers):
        result = Alloc(buffer, result)
    return result


def _always_evaluated(value: Expr) -> Iterator[Any]:
    """The parts of an expression that are evaluated whatever its conditions are."""
    stack: list[Any] = [value]
    while stack:
        node = stack.pop()
        yield node
        lazy = isinstance(node, Call) and node.name == "if_then_else"
        children = node.children()
        stack += children[:1] if lazy else children


def _is_overwritten(node: Expr, between: Sequence[Store]) -> bool:
    read = {n.source for n in postorder(node) if isinstance(n, Load)}
    return any(store.buffer in read for store in between)
