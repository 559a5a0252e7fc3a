"""Blocks to plain statements: bindings substituted, reductions started, predicates as Ifs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from ...ir.expr import BinaryOp, Call, Expr, Var, all_of, binary, variables
from ...te.tensor import IterKind
from ..nodes import ONCE, Block, Buffer, For, If, PrimFunc, Stmt
from ..tree import written_buffers
from .visit import Visit, conjuncts, drive, make_if, rebuilt, rename, seq, substituter, uses

CARRIES = "carries"  # annotation of a loop: buffers that hold values from one iteration to the next


@dataclass
class _Started:
    """What a loop needs for the reductions that start at it."""

    inits: list[Stmt] = field(default_factory=list)
    carries: list[Buffer] = field(default_factory=list)


def lower_blocks(func: PrimFunc) -> PrimFunc:
    """Replace every Block by its body.

    The init of a reduction becomes a nest of its own before the outermost reduction loop, over
    copies of the spatial loops inside; so `for k: for i unrolled: C[i] += ...` starts with
    `for i unrolled: C[i] = 0`. Where spatial and reduction loops are mixed (one fused loop), init
    stays inside, under `if` all reduction variables are at their first value.
    """
    started: defaultdict[For, _Started] = defaultdict(_Started)
    seen: set[Var] = set()  # every loop gets a variable of its own, which later passes rely on

    def visit(stmt: Stmt, path: tuple[Stmt, ...]) -> Visit[Stmt]:
        if isinstance(stmt, Block):
            return (yield visit(_body(stmt, path, started), path))
        if isinstance(stmt, For):
            stmt = rename(stmt) if stmt.var in seen else stmt
            seen.add(stmt.var)
        result = yield rebuilt(stmt, lambda child: visit(child, (*path, stmt)))
        todo = started.pop(stmt, None) if isinstance(stmt, For) else None
        if todo is None:
            return result
        if todo.carries and isinstance(result, For):
            result = replace(
                result, annotations={**result.annotations, CARRIES: tuple(todo.carries)}
            )
        return seq([*todo.inits, result])

    return replace(func, body=drive(visit(func.body, ())))


def _body(block: Block, path: tuple[Stmt, ...], started: defaultdict[For, _Started]) -> Stmt:
    """The block's statements in terms of the loops; registers its init with the right loop."""
    bind = substituter(
        {axis.var: value for axis, value in zip(block.iter_vars, block.bindings, strict=True)}
    )
    guards, marks = _guards(block, path, started)
    body = bind(block.body)
    for mark in marks:
        body = make_if(mark, body)
    if block.init is None:
        return make_if(all_of(guards), body)
    init = bind(block.init)
    reduced = [
        (value, axis)
        for axis, value in zip(block.iter_vars, block.bindings, strict=True)
        if axis.kind is IterKind.REDUCE
    ]
    reduce_vars = {v for value, _ in reduced for v in variables(value)}
    first = next(
        (i for i, s in enumerate(path) if isinstance(s, For) and s.var in reduce_vars), None
    )
    for mark in marks:
        init = make_if(mark, init)
    if first is None:
        return make_if(all_of(guards), seq([init, body]))
    outermost = path[first]
    assert isinstance(outermost, For)
    nest = _init_nest(init, guards, path[first:], reduce_vars)
    if nest is not None:
        started[outermost].inits.append(nest)
        return make_if(all_of(guards), body)
    started[outermost].carries.extend(written_buffers(block.body))
    at_first = all_of(binary(BinaryOp.EQ, value, axis.min) for value, axis in reduced)
    return make_if(all_of(guards), seq([make_if(at_first, init), body]))


def _guards(
    block: Block, path: tuple[Stmt, ...], started: defaultdict[For, _Started]
) -> tuple[list[Expr], list[Expr]]:
    """The conditions under which the block runs: plain ones, and marks of what one thread does for
    all. Notes which loops carry the block's buffers, because it does not compute them anew."""
    plain: list[Expr] = []
    marks: list[Expr] = []
    bound = {v for b in block.bindings for v in variables(b)}
    for guard in conjuncts(block.predicate):
        if not isinstance(guard, Call) or guard.name != ONCE:
            plain.append(guard)
            continue
        used = set(variables(guard))
        loops = [s for s in path if isinstance(s, For) and s.var in used]
        for loop in loops:
            started[loop].carries.extend(written_buffers(block.body))
        repeated = any(l.thread.startswith("threadIdx") and l.var not in bound for l in loops)
        if repeated:
            marks.append(guard)
        else:
            plain.append(guard.args[0])
    return plain, marks


def _init_nest(
    init: Stmt, guards: list[Expr], path: tuple[Stmt, ...], reduce_vars: set[Var]
) -> Stmt | None:
    """`init` under copies of the spatial loops of `path`; None if reduction variables decide which
    elements to start, or how far a spatial loop goes."""
    if uses(init, reduce_vars):
        return None
    inner = {s.var for s in path if isinstance(s, For)}
    for step in reversed(path):
        if isinstance(step, If):
            guards = guards + conjuncts(step.condition)
    nest = init
    spatial = inner - reduce_vars
    for guard in guards:
        if not uses(guard, reduce_vars):
            nest = make_if(guard, nest)
        elif uses(guard, spatial):
            return None
    for loop in reversed(path):
        if not isinstance(loop, For) or loop.var in reduce_vars or not uses(nest, [loop.var]):
            continue
        if uses([loop.min, loop.extent], reduce_vars):
            return None
        nest = rename(replace(loop, body=nest))
    return nest
