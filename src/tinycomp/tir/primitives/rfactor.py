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

Reductions of several values are factored too, by their combiner: of `argmax` the partial results
are values and indices, and the last stage picks the best of them. As the order of combination
changes, the combiner must be associative and commutative (so this one breaks ties by index).

>>> def better(x, y):
...     first = te.any(x[0] > y[0], te.all(te.equal(x[0], y[0]), x[1] < y[1]))
...     return te.select(first, x[0], y[0]), te.select(first, x[1], y[1])
>>> worst = lambda value, index: (te.min_value(value), te.max_value(index))
>>> pick = te.comm_reducer(better, worst, name="argmax")
>>> k = te.reduce_axis((0, 32), name="k")
>>> best, where = te.compute((), lambda: pick((A[k], k), axis=k), name="best")
>>> s = create_schedule([best, where], [A])
>>> ko, ki = s[best].split("k", factor=8)
>>> [partial.name for partial in s.rfactor(best, ki)]
['best.v0.rf', 'best.v1.rf']
>>> s.stages
['best.v0.rf', 'best.v0']

Source: Suriana, Adams, Kamil: "Parallel associative reductions in Halide" (CGO 2017).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...diagnostics import ScheduleError
from ...ir.expr import Call, Expr, Load, Var, all_of, const, substitute
from ...ir.node import rewrite
from ...te.tensor import IterKind, IterVar
from ..from_te import assign_together
from ..nodes import Alloc, Block, Buffer, For, ForKind, If, PrimFunc, Seq, Stmt, Store
from ..tree import loops_above, replace_stmt, substitute_stmt, written_buffers
from .common import (
    fresh_buffer_name,
    kinds_in,
    only_writer,
    own_loops,
    own_nest,
    require_plain_store,
    result_buffers,
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
    factor_axis: int = -1

    def apply(self, schedule: Schedule) -> CachedTensor | list[CachedTensor]:
        axis = schedule.loop(self.stage, self.axis).var
        schedule.func, buffers = rfactor(schedule.func, self.stage, axis, self.factor_axis)
        handles = schedule.new_stages(buffers)
        return handles[0] if len(handles) == 1 else handles


@dataclass(frozen=True)
class _Partial:
    """The buffers of partial results by those of the results, and where the factored axis is
    among their dimensions."""

    buffers: dict[Buffer, Buffer]
    position: int

    def indices(self, indices: tuple[Expr, ...], own: Expr) -> tuple[Expr, ...]:
        return (*indices[: self.position], own, *indices[self.position :])


def rfactor(
    func: PrimFunc, block_name: str, axis: Var, factor_axis: int = -1
) -> tuple[PrimFunc, list[Buffer]]:
    """Reduce each iteration of loop `axis` apart, then combine the partial results.

    Args:
        factor_axis: which dimension of the partial results the factored axis is; -1 is the last.

    Returns:
        The function and the buffers of partial results, one for each value that is reduced; the
        block that computes them has the name of the first ("B.rf").
    """
    block = only_writer(func, block_name)
    loops = _checked_loops(func, block, axis)
    results = result_buffers(block)
    rank = len(results[0].shape)
    if type(factor_axis) is not int or not -rank - 1 <= factor_axis <= rank:
        raise ScheduleError(
            f"factor_axis {factor_axis!r} is no dimension of the partial results, which have "
            f"{rank + 1}",
            hint=f"an integer from 0 to {rank}; -1, the default, is the last",
        )
    factored = next(l for l in loops if l.var is axis)
    partial = _Partial({}, factor_axis % (rank + 1))
    taken = func
    for result in results:
        shape = partial.indices(result.shape, factored.extent)
        name = fresh_buffer_name(taken, f"{result.name}.rf")
        partial.buffers[result] = Buffer(name, shape, result.dtype)
        taken = replace(taken, allocs=(*taken.allocs, partial.buffers[result]))
    first = _partial_nest(block, loops, factored, partial)
    second = _final_nest(block, loops, factored, partial)
    new = replace_stmt(taken, own_nest(func, block), Seq((first, second)))
    return new, list(partial.buffers.values())


def _checked_loops(func: PrimFunc, block: Block, axis: Var) -> list[For]:
    """The loops of the block, in which the axis may be factored."""
    if kinds_in(block, axis) != {IterKind.REDUCE}:
        raise ScheduleError(
            f"axis {axis.name!r} is not a reduction axis of {block.name!r}",
            hint="split a reduction axis and factor one of the two",
        )
    if block.combiner is None or block.init is None:
        raise ScheduleError(
            f"how stage {block.name!r} combines two results is not known: it was tensorized, or "
            "its initialisation was taken out",
            hint="factor before tensorize and decompose_reduction",
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
    return loops


def _reduce_loops(block: Block, loops: list[For]) -> list[For]:
    return [l for l in loops if IterKind.REDUCE in kinds_in(block, l.var)]


def _partial_nest(block: Block, loops: list[For], factored: For, partial: _Partial) -> Stmt:
    """The block over its loops, the factored one outermost and spatial.

    What the reduction axes were bound to is now computed in the body from the loops themselves;
    so are guards of these loops, which must not keep a partial result from being started.
    """
    own = Var(factored.var.name)
    kept = _spatial(block)
    iter_vars = [v for v, _ in kept]
    bindings = [b for _, b in kept]
    iter_vars.insert(partial.position, IterVar(own, const(0), factored.extent))
    bindings.insert(partial.position, factored.var - factored.min)
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
    body = block.body
    if isinstance(body, If):
        conditions.append(substitute(body.condition, reduce_values))
        body = body.then
    body = _retarget(body, partial, own, reduce_values)
    if conditions:
        body = If(all_of(conditions), body)
    assert block.init is not None
    stmt: Stmt = replace(
        block,
        name=next(iter(partial.buffers.values())).name,
        iter_vars=tuple(iter_vars),
        bindings=tuple(bindings),
        body=body,
        init=_retarget(block.init, partial, own, reduce_values),
        predicate=all_of(rest),
    )
    for loop in reversed([factored, *(l for l in loops if l is not factored)]):
        stmt = replace(loop, body=stmt)
    return stmt


def _spatial(block: Block) -> list[tuple[IterVar, Expr]]:
    """The axes that are not reduced, with their bindings."""
    pairs = zip(block.iter_vars, block.bindings, strict=True)
    return [(v, b) for v, b in pairs if v.kind is not IterKind.REDUCE]


def _unmarked(guard: Expr) -> Expr:
    return guard.args[0] if isinstance(guard, Call) and guard.name == "likely" else guard


def _retarget(stmt: Stmt, partial: _Partial, own: Var, values: dict[Var, Expr]) -> Stmt:
    """Stores to the results become stores to the partial results, also where these are read
    back; scratch is the new block's own."""
    scratch = {
        b: replace(b) for b in written_buffers(stmt) if b not in partial.buffers
    }  # by identity

    def step(node: Any) -> Any:
        if isinstance(node, Load) and node.source in partial.buffers:
            buffer: Any = node.source
            return Load(partial.buffers[buffer], partial.indices(node.indices, own), None)
        if isinstance(node, Store) and node.buffer in partial.buffers:
            indices = partial.indices(node.indices, own)
            return replace(node, buffer=partial.buffers[node.buffer], indices=indices)
        if isinstance(node, Load) and node.source in scratch:
            return Load(scratch[node.source], node.indices, None)  # type: ignore[index]
        if isinstance(node, Store | Alloc) and node.buffer in scratch:
            return replace(node, buffer=scratch[node.buffer])
        return node

    return rewrite(substitute_stmt(stmt, values), step)


def _final_nest(block: Block, loops: list[For], factored: For, partial: _Partial) -> Stmt:
    """The original results as a reduction over the partial ones, in the same spatial loops."""
    own = Var(factored.var.name)
    reduced = _reduce_loops(block, loops)
    spatial = _spatial(block)
    kept = [l for l in loops if not any(l is r for r in reduced)]
    outer = [replace(l, var=Var(l.var.name), kind=ForKind.SERIAL, thread="") for l in kept]
    renamed: dict[Var, Expr] = {l.var: n.var for l, n in zip(kept, outer, strict=True)}
    last = Var(unique(f"{factored.var.name}.final", {l.var.name for l in loops}))
    axis = IterVar(own, const(0), factored.extent, IterKind.REDUCE)
    _, guards = split_guards(block.predicate, [l.var for l in reduced])
    stmt: Stmt = replace(
        block,
        iter_vars=(*(v for v, _ in spatial), axis),
        bindings=(*(substitute(b, renamed) for _, b in spatial), last),
        body=_combine(block, partial, own),
        predicate=all_of(substitute(g, renamed) for g in guards),
    )
    stmt = For(last, const(0), factored.extent, stmt)
    for loop in reversed(outer):
        stmt = replace(loop, body=stmt)
    return stmt


def _combine(block: Block, partial: _Partial, own: Var) -> Stmt:
    """The results take in one set of partial results."""
    combiner = block.combiner
    assert combiner is not None
    indices = tuple(v.var for v, _ in _spatial(block))
    at = partial.indices(indices, own)
    values: dict[Var, Expr] = {}
    for old, new, (result, part) in zip(
        combiner.lhs, combiner.rhs, partial.buffers.items(), strict=True
    ):
        values[old], values[new] = Load(result, indices, None), Load(part, at, None)
    combined = [substitute(result, values) for result in combiner.results]
    return assign_together(list(partial.buffers), indices, combined, block.span)
