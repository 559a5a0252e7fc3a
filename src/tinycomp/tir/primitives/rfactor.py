"""rfactor: a reduction loop becomes an axis of partial results.

The new loop over the factored axis is spatial: it may be vectorised or run in parallel.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A, k = te.placeholder((32,), name="A"), te.reduce_axis((0, 32), name="k")
>>> B = te.compute((), lambda: te.sum(A[k], axis=k), name="B")
>>> s = create_schedule(B, [A])
>>> ko, ki = s[B].split("k", factor=8)
>>> print(s.func.body)
for k.outer in range(4):
    for k.inner in range(8):
        with block("B"): reduce k = k.outer * 8 + k.inner
            init:
                B[] = 0f32
            B[] = B[] + A[k]
>>> BF = s.rfactor(B, ki)
>>> print(s.func.body)
for k.inner in range(8):
    for k.outer in range(4):
        with block("B.rf"): k.inner = k.inner, reduce k.outer = k.outer
            init:
                B.rf[k.inner] = 0f32
            B.rf[k.inner] = B.rf[k.inner] + A[k.outer * 8 + k.inner]
for k.inner.final in range(8):
    with block("B"): reduce k.inner = k.inner.final
        init:
            B[] = 0f32
        B[] = B[] + B.rf[k.inner]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import Binary, Call, Expr, Load, Var, all_of, const, substitute
from ...ir.node import Node, rewrite
from ...te.tensor import IterKind, IterVar
from ..nodes import Block, Buffer, For, ForKind, If, PrimFunc, Seq, Stmt, Store
from ..tree import loops_above, replace_stmt
from .common import (
    fresh_buffer_name,
    kinds_in,
    only_writer,
    own_loops,
    own_nest,
    require_plain_store,
    split_guards,
    unique,
)
from .step import Step

if TYPE_CHECKING:
    from ..schedule import CachedTensor, Schedule


@dataclass(frozen=True)
class Rfactor(Step):
    NAME, OF_SCHEDULE = "rfactor", True
    axis: str

    def apply(self, schedule: Schedule) -> CachedTensor:
        axis = schedule.loop(self.stage, self.axis).var
        schedule.func, buffer = rfactor(schedule.func, self.stage, axis)
        return schedule.new_stage(buffer)


def rfactor(func: PrimFunc, block_name: str, axis: Var) -> tuple[PrimFunc, Buffer]:
    """Reduce each iteration of loop `axis` apart, then combine the partial results.

    Returns:
        The function and the buffer of partial results, whose last dimension is the factored
        axis; the block that computes it has its name ("B.rf").
    """
    block = only_writer(func, block_name)
    if kinds_in(block, axis) != {IterKind.REDUCE}:
        raise ScheduleError(
            f"axis {axis.name!r} is not a reduction axis of {block_name!r}",
            hint="split a reduction axis and factor one of the two",
        )
    update = block.body.then if isinstance(block.body, If) else block.body
    conditional = isinstance(block.body, If) and block.body.otherwise is not None
    if conditional or not isinstance(update, Store) or not isinstance(block.init, Store):
        raise ScheduleError(
            f"stage {block_name!r} is not one plain reduction with its own init",
            hint="reductions of several values, or decomposed ones, cannot be factored",
        )
    require_plain_store(block)
    loops = own_loops(func, block)
    outside = [l for l in loops_above(func, block) if not any(l is o for o in loops)]
    shared = [l for l in outside if IterKind.REDUCE in kinds_in(block, l.var)]
    if shared:
        raise ScheduleError(
            f"other stages are computed inside the reduction loop {shared[0].var.name!r}",
            hint="factor before computing other stages there",
        )
    _combine(update, update.value)
    factored = next(l for l in loops if l.var is axis)
    name = fresh_buffer_name(func, f"{update.buffer.name}.rf")
    partial = Buffer(name, (*update.buffer.shape, factored.extent), update.buffer.dtype)
    first = _partial_nest(block, loops, factored, partial)
    second = _final_nest(block, loops, factored, partial)
    func = replace_stmt(func, own_nest(func, block), Seq((first, second)))
    return replace(func, allocs=(*func.allocs, partial)), partial


def _reduce_loops(block: Block, loops: list[For]) -> list[For]:
    return [l for l in loops if IterKind.REDUCE in kinds_in(block, l.var)]


def _partial_nest(block: Block, loops: list[For], factored: For, partial: Buffer) -> Stmt:
    """The block over its loops, the factored one outermost and spatial.

    What the reduction axes were bound to is now computed in the body from the loops themselves;
    so are guards of these loops, which must not keep a partial result from being started.
    """
    own = Var(factored.var.name)
    iter_vars: list[IterVar] = []
    bindings: list[Expr] = []
    for iter_var, binding in zip(block.iter_vars, block.bindings, strict=True):
        if iter_var.kind is not IterKind.REDUCE:
            iter_vars.append(iter_var)
            bindings.append(binding)
    iter_vars.append(IterVar(own, const(0), factored.extent))  # in the order of its indices
    bindings.append(factored.var - factored.min)
    values: dict[Var, Expr] = {factored.var: own + factored.min}
    for loop in _reduce_loops(block, loops):
        if loop is not factored:
            copy = Var(loop.var.name)
            iter_vars.append(IterVar(copy, loop.min, loop.extent, IterKind.REDUCE))
            bindings.append(loop.var)
            values[loop.var] = copy
    reduce_values = {
        v.var: substitute(b, values)
        for v, b in zip(block.iter_vars, block.bindings, strict=True)
        if v.kind is IterKind.REDUCE
    }
    guards, rest = split_guards(block.predicate, values)
    conditions = [substitute(_unmarked(g), values) for g in guards]
    if isinstance(block.body, If):
        conditions.append(substitute(block.body.condition, reduce_values))
    body = _retarget(_update(block), partial, own, reduce_values)
    if conditions:
        body = If(all_of(conditions), body)
    init = _retarget(block.init, partial, own, reduce_values)
    stmt: Stmt = replace(
        block,
        name=partial.name,
        iter_vars=tuple(iter_vars),
        bindings=tuple(bindings),
        body=body,
        init=init,
        predicate=all_of(rest),
    )
    for loop in reversed([factored, *(l for l in loops if l is not factored)]):
        stmt = replace(loop, body=stmt)
    return stmt


def _update(block: Block) -> Store:
    """The store that accumulates, which may be under a condition."""
    update = block.body.then if isinstance(block.body, If) else block.body
    assert isinstance(update, Store)
    return update


def _unmarked(guard: Expr) -> Expr:
    return guard.args[0] if isinstance(guard, Call) and guard.name == "likely" else guard


def _retarget(stmt: Stmt | None, partial: Buffer, own: Var, values: dict[Var, Expr]) -> Stmt:
    """A store to the result becomes one to the partial results, also where it is read back."""
    assert isinstance(stmt, Store)
    old = stmt.buffer

    def step(node: Node) -> Node:
        if isinstance(node, Load) and node.source is old:
            return Load(partial, (*node.indices, own), None)
        return node

    value = rewrite(substitute(stmt.value, values), step)
    return Store(partial, (*stmt.indices, own), value, None, stmt.span)


def _final_nest(block: Block, loops: list[For], factored: For, partial: Buffer) -> Stmt:
    """The original result as a reduction over the partial results, in the same spatial loops."""
    update = _update(block)
    own = Var(factored.var.name)
    reduced = _reduce_loops(block, loops)
    spatial = [
        (v, b)
        for v, b in zip(block.iter_vars, block.bindings, strict=True)
        if v.kind is not IterKind.REDUCE
    ]
    kept = [l for l in loops if not any(l is r for r in reduced)]
    outer = [replace(l, var=Var(l.var.name), kind=ForKind.SERIAL, thread="") for l in kept]
    renamed: dict[Var, Expr] = {l.var: n.var for l, n in zip(kept, outer, strict=True)}
    last = Var(unique(f"{factored.var.name}.final", {l.var.name for l in loops}))
    axis = IterVar(own, const(0), factored.extent, IterKind.REDUCE)
    new = Load(partial, (*update.indices, own), None)
    _, guards = split_guards(block.predicate, [l.var for l in reduced])
    stmt: Stmt = Block(
        block.name,
        (*(v for v, _ in spatial), axis),
        (*(substitute(b, renamed) for _, b in spatial), last),
        replace(update, value=_combine(update, new)),
        block.init,
        all_of(substitute(g, renamed) for g in guards),
        block.annotations,
        block.span,
    )
    stmt = For(last, const(0), factored.extent, stmt)
    for loop in reversed(outer):
        stmt = replace(loop, body=stmt)
    return stmt


def _combine(update: Store, new: Expr) -> Expr:
    """The update with `new` in place of the value it combines into the old one."""
    previous = Load(update.buffer, update.indices, None)
    value = update.value
    while isinstance(value, Call) and value.name == "if_then_else" and value.args[2] is previous:
        value = value.args[1]  # a condition decides which values take part
    if isinstance(value, Binary) and value.a is previous:
        return value.with_children([previous, new])
    if isinstance(value, Binary) and value.b is previous:
        return value.with_children([new, previous])
    raise ScheduleError(
        f"the reduction {update} is not of the form old = old op new",
        hint="sum, prod, min, max, any and all can be factored",
    )
