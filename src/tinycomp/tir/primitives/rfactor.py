"""rfactor: a reduction loop becomes an axis of partial results."""

from __future__ import annotations

from dataclasses import replace

from ...diagnostics import ScheduleError
from ...ir.expr import Binary, Expr, Load, Var, all_of, substitute, variables
from ...ir.node import Node, rewrite
from ...te.tensor import IterKind, IterVar
from ..nodes import Block, Buffer, For, ForKind, PrimFunc, Seq, Stmt, Store
from ..passes.visit import conjuncts
from ..tree import block_of, loop_of, loops_above, replace_stmt
from .common import axis_kinds
from .compute_at import own_nest


def rfactor(func: PrimFunc, block_name: str, axis: Var) -> tuple[PrimFunc, str, Buffer]:
    """Reduce each iteration of loop `axis` apart, then combine the partial results.

        for k.outer: for k.inner in range(16):       for k.inner: for k.outer:
          B += A[k.outer*16 + k.inner]        -->      B.rf[k.inner] += A[k.outer*16 + k.inner]
                                                     for k.inner: B += B.rf[k.inner]

    The new loops over the factored axis are free to be vectorised or parallel.

    Returns:
        The function, the name of the block of partial results ("B.rf"), and its buffer.
    """
    block = block_of(func, block_name)
    if axis_kinds(func, axis) != {IterKind.REDUCE}:
        raise ScheduleError(
            f"rfactor({block_name}, {axis.name}): {axis.name!r} is not a reduction axis",
            excerpt=str(loop_of(func, axis)),
        )
    update, init = block.body, block.init
    if not isinstance(update, Store) or not isinstance(init, Store):
        raise ScheduleError(
            f"rfactor({block_name}): reductions of several values cannot be factored yet"
        )
    nest = own_nest(func, block)
    loops = [l for l in loops_above(func, block) if l in _nested(nest)]
    factored = next(l for l in loops if l.var is axis)
    result = update.buffer
    partial = Buffer(f"{result.name}.rf", (*result.shape, factored.extent), result.dtype)
    first = _partial_nest(block, loops, factored, partial)
    second = _final_nest(block, loops, factored, partial)
    func = replace_stmt(func, nest, Seq((first, second)))
    return replace(func, allocs=(*func.allocs, partial)), partial.name, partial


def _nested(nest: Stmt) -> list[Stmt]:
    out: list[Stmt] = []
    while isinstance(nest, For):
        out.append(nest)
        nest = nest.body
    return out


def _partial_nest(block: Block, loops: list[For], factored: For, partial: Buffer) -> Stmt:
    """The block over remaining loops, with the factored axis as a spatial one."""
    own = Var(factored.var.name)
    iter_vars: list[IterVar] = [IterVar(own, factored.min, factored.extent)]
    bindings: list[Expr] = [factored.var]
    values: dict[Var, Expr] = {}
    for iter_var, binding in zip(block.iter_vars, block.bindings, strict=True):
        if iter_var.kind is IterKind.SPATIAL:
            iter_vars.append(iter_var)
            bindings.append(binding)
    for loop in loops:  # what the reduction axes were bound to now comes from loops themselves
        reduces = any(
            v.kind is IterKind.REDUCE and loop.var in variables(b)
            for v, b in zip(block.iter_vars, block.bindings, strict=True)
        )
        if reduces and loop is not factored:
            copy = Var(loop.var.name)
            iter_vars.append(IterVar(copy, loop.min, loop.extent, IterKind.REDUCE))
            bindings.append(loop.var)
            values[loop.var] = copy
    values[factored.var] = own
    reduce_values = {
        v.var: substitute(b, values)
        for v, b in zip(block.iter_vars, block.bindings, strict=True)
        if v.kind is IterKind.REDUCE
    }
    body = _retarget(block.body, partial, own, reduce_values)
    init = _retarget(block.init, partial, own, reduce_values)  # type: ignore[arg-type]
    new = replace(
        block,
        name=partial.name,
        iter_vars=tuple(iter_vars),
        bindings=tuple(bindings),
        body=body,
        init=init,
    )
    stmt: Stmt = new
    for loop in reversed([factored, *(l for l in loops if l is not factored)]):
        stmt = replace(loop, body=stmt)
    return stmt


def _retarget(stmt: Stmt, partial: Buffer, own: Var, values: dict[Var, Expr]) -> Stmt:
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
    update = block.body
    assert isinstance(update, Store)
    own = Var(factored.var.name)
    spatial = [
        (v, b)
        for v, b in zip(block.iter_vars, block.bindings, strict=True)
        if v.kind is IterKind.SPATIAL
    ]
    used = {v for _, binding in spatial for v in variables(binding)}
    outer = [replace(l, var=Var(l.var.name)) for l in loops if l.var in used]
    renamed = {
        l.var: n.var for l, n in zip((l for l in loops if l.var in used), outer, strict=True)
    }
    last = Var(f"{factored.var.name}.final")
    axis = IterVar(own, factored.min, factored.extent, IterKind.REDUCE)
    # A partial result exists where the first iteration of the other reduction loops was not
    # guarded away; only these are combined.
    first = {l.var: l.min for l in loops if l.var not in used}
    guards = [c for c in conjuncts(block.predicate) if factored.var in variables(c)]
    predicate = substitute(all_of(guards), {**first, **renamed, factored.var: last})
    previous = Load(update.buffer, update.indices, None)
    value = _combine(update, previous, Load(partial, (*update.indices, own), None))
    stmt: Stmt = Block(
        block.name,
        (*(v for v, _ in spatial), axis),
        (*(substitute(b, renamed) for _, b in spatial), last),
        Store(update.buffer, update.indices, value, None, update.span),
        block.init,
        predicate,
        block.annotations,
        block.span,
    )
    stmt = For(last, factored.min, factored.extent, stmt)
    for loop in reversed(outer):
        stmt = replace(loop, body=stmt, kind=ForKind.SERIAL)
    return stmt


def _combine(update: Store, previous: Load, new: Expr) -> Expr:
    """The update with `new` in place of the value it combines into `previous`."""
    value = update.value
    if isinstance(value, Binary) and value.a is previous:
        return value.with_children([previous, new])
    if isinstance(value, Binary) and value.b is previous:
        return value.with_children([new, previous])
    raise ScheduleError(
        f"rfactor: the reduction {update} is not of the form old = combine(old, new)",
        hint="conditions on reductions must be written with if_then_else on the value",
    )
