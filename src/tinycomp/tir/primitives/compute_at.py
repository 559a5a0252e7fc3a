"""compute_at and compute_root: where a stage is computed.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((18,), name="A")
>>> B = te.compute((18,), lambda i: A[i] * 2.0, name="B")
>>> C = te.compute((16,), lambda i: B[i] + B[i + 2], name="C")
>>> s = create_schedule(C, [A])
>>> outer, inner = s[C].split("i", factor=8)
>>> print(s.func.body)
for i in range(18):
    with block("B"): i = i
        B[i] = A[i] * 2f32
for i.outer in range(2):
    for i.inner in range(8):
        with block("C"): i = i.outer * 8 + i.inner
            C[i] = B[i] + B[i + 2]
>>> s[B].compute_at(s[C], outer)
>>> print(s.func.body)
for i.outer in range(2):
    for i in range(10):
        with block("B"): i = i.outer * 8 + i
            B[i] = A[i] * 2f32
    for i.inner in range(8):
        with block("C"): i = i.outer * 8 + i.inner
            C[i] = B[i] + B[i + 2]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import (
    TRUE,
    BinaryOp,
    Call,
    Expr,
    IntImm,
    Load,
    Var,
    binary,
    call,
    const,
    substitute,
)
from ...ir.node import postorder
from ...te.simplify import Analyzer
from ...te.tensor import IterKind
from ..nodes import Block, Buffer, For, PrimFunc, Scope, Seq, Stmt
from ..region import Interval, region
from ..tree import (
    blocks_in,
    is_extern,
    loads_in,
    loop_of,
    loops_above,
    map_buffers,
    path_to,
    read_buffers,
    replace_stmt,
    statements_outside,
)
from .common import (
    loops_in,
    only_writer,
    own_nest,
    require_inputs_at,
    require_plain_store,
    result_buffers,
    root_of,
    unique,
    written_extents,
)
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class ComputeAt(Step):
    NAME = "compute_at"
    consumer: str
    axis: str

    def apply(self, schedule: Schedule) -> None:
        axis = schedule.loop(self.consumer, self.axis).var
        schedule.func = compute_at(schedule.func, self.stage, axis)


@dataclass(frozen=True)
class ComputeRoot(Step):
    NAME = "compute_root"

    def apply(self, schedule: Schedule) -> None:
        schedule.func = compute_root(schedule.func, self.stage)


def compute_at(func: PrimFunc, block_name: str, axis: Var) -> PrimFunc:
    """Move the nest of a block into loop `axis`, before its readers, shrunk to what these read.

    The nest is built anew, one serial loop per axis of the stage: shape it after moving it. A
    buffer in shared memory, moved inside loops over threads, holds what all of these read; its own
    loops are bound to the same thread axes to compute it together.

    Raises:
        ScheduleError: a reader of the block is outside the loop, the block writes an output, or
            what it reads itself is not complete there.
    """
    block = only_writer(func, block_name)
    target = loop_of(func, axis)
    outputs = result_buffers(block)
    _check(func, block, target, outputs)
    require_plain_store(block)
    require_inputs_at(func, block, target)
    without = replace_stmt(func, own_nest(func, block), None)
    target = loop_of(without, axis)
    analyzer = Analyzer(func.sizes)
    above = [*loops_above(without, target), target]
    for loop in above:
        analyzer.bind(loop.var, loop.min, loop.extent)
    regions = regions_read(target.body, outputs, analyzer, _threads_that_share(above, outputs))
    names = {l.var.name for l in above}
    moved, shape = rebuild_nest(func, block, _by_axis(block, regions), analyzer, names)
    stmts = target.body.stmts if isinstance(target.body, Seq) else (target.body,)
    position = next(i for i, s in enumerate(stmts) if any(b in read_buffers(s) for b in outputs))
    body = Seq((*stmts[:position], moved, *stmts[position:]))
    without = replace_stmt(without, target, replace(target, body=body))
    return _enlarged(without, outputs, shape)


def _threads_that_share(above: Sequence[For], buffers: Sequence[Buffer]) -> list[For]:
    """The thread loops around a place all of whose iterations see one copy of shared buffers."""
    if not all(b.scope is Scope.SHARED for b in buffers):
        return []
    return [l for l in above if l.thread.startswith(("threadIdx", "vthread"))]


def regions_read(
    stmt: Stmt, buffers: Sequence[Buffer], analyzer: Analyzer, also_over: Sequence[For] = ()
) -> list[tuple[Expr, Expr]]:
    """Start and extent of what the blocks inside read of the buffers, in each dimension; in all
    iterations of the loops `also_over` together."""
    inner: dict[Var, Interval] = {}
    for loop in (*also_over, *loops_in(stmt)):
        inner[loop.var] = (loop.min, loop.min + loop.extent - 1)
        analyzer.bind(loop.var, loop.min, loop.extent)
    return region(_accesses(stmt, buffers), buffers[0].shape, inner, analyzer)


def rebuild_nest(
    func: PrimFunc,
    block: Block,
    ranges: Sequence[tuple[Expr, Expr] | None],
    analyzer: Analyzer,
    taken: set[str],
    guard: Expr = TRUE,
    may_exceed: bool = True,
) -> tuple[Stmt, list[Expr]]:
    """Fresh loops around a block, one per axis, over the part (start, extent) or, for None, all;
    under a further `guard`.

    A part may reach past the end of the axis. Where computing there is harmless it is done (if
    `may_exceed`), which keeps register tiles whole; else the block is guarded.

    Returns:
        The nest, and the shape that the block's buffers need.
    """
    bindings: list[Expr] = []
    loops: list[tuple[Var, Expr, Expr]] = []
    shape: list[Expr] = []
    predicate = guard
    names = set(taken)
    for iter_var, part in zip(block.iter_vars, ranges, strict=True):
        var = Var(unique(iter_var.name, names))
        names.add(var.name)
        if part is None:
            loops.append((var, iter_var.min, iter_var.extent))
            bindings.append(var)
            if iter_var.kind is not IterKind.REDUCE:
                shape.append(iter_var.min + iter_var.extent)
            continue
        start, extent = part
        analyzer.bind(var, 0, extent)
        value = start + var
        bindings.append(value)
        top = iter_var.min + iter_var.extent
        inside = binary(BinaryOp.LT, value, top)
        needed: Expr = top
        if not analyzer.proves(inside):
            highest = analyzer.bounds(value)[1] if may_exceed else None
            if highest is not None and _harmless(func, block, iter_var.var, value, analyzer):
                needed = const(highest + 1)
            elif isinstance(start, IntImm):
                extent = analyzer.simplify(top - start)
            else:
                predicate = predicate & call("likely", inside)
        if iter_var.kind is not IterKind.REDUCE:
            shape.append(needed)
        loops.append((var, const(0), extent))
        if not analyzer.proves(start >= iter_var.min):
            predicate = predicate & call("likely", value >= iter_var.min)
    stmt: Stmt = replace(block, bindings=tuple(bindings), predicate=predicate)
    for var, start, extent in reversed(loops):
        stmt = For(var, start, extent, stmt)
    return stmt, shape


def _by_axis(block: Block, regions: Sequence[tuple[Expr, Expr]]) -> list[tuple[Expr, Expr] | None]:
    """The regions of a buffer's dimensions, in the order of the block's axes; None for reduced."""
    rest = iter(regions)
    return [None if v.kind is IterKind.REDUCE else next(rest) for v in block.iter_vars]


def _harmless(func: PrimFunc, block: Block, axis: Var, value: Expr, analyzer: Analyzer) -> bool:
    """Whether running past the end of an axis reads only what exists: then the block may compute
    values nobody uses. True for operands that were padded to the tile."""
    own = result_buffers(block)
    shapes = {b: written_extents(func, b) for b in read_buffers(block) if b not in own}
    if any(isinstance(n, Call) and n.name == "checked_index" for n in postorder(block)):
        return False  # it would report an index that nobody uses
    for load in loads_in(block):
        if load.predicate is not None:
            return False
        if load.source in own:
            continue
        shape = shapes[load.source]
        for d, index in enumerate(load.indices):
            moved = substitute(index, {axis: value})
            if moved is index:
                continue
            if shape is None:
                return False
            extent = shape[d]
            if not (analyzer.proves(moved < extent) and analyzer.proves(moved >= 0)):
                return False
    return True


def _enlarged(func: PrimFunc, buffers: Sequence[Buffer], shape: Sequence[Expr]) -> PrimFunc:
    """`func` with buffers of at least this shape (a tile that reaches past the end is stored)."""
    larger: dict[Buffer, Buffer] = {}
    for buffer in buffers:
        dims = tuple(
            new if _exceeds(new, old) else old for new, old in zip(shape, buffer.shape, strict=True)
        )
        if any(new is not old for new, old in zip(dims, buffer.shape, strict=True)):
            larger[buffer] = replace(buffer, shape=dims)
    return exchange_buffers(func, larger) if larger else func


def _exceeds(new: Expr, old: Expr) -> bool:
    return isinstance(new, IntImm) and isinstance(old, IntImm) and new.value > old.value


def exchange_buffers(func: PrimFunc, buffers: Mapping[Buffer, Buffer]) -> PrimFunc:
    """`func` with other intermediate buffers in place of the given ones."""
    allocs = tuple(buffers.get(b, b) for b in func.allocs)
    return replace(func, body=map_buffers(func.body, buffers), allocs=allocs)


def compute_root(func: PrimFunc, block_name: str) -> PrimFunc:
    """Compute the whole stage before its readers, as every stage starts; undoes compute_at.

    Raises:
        ScheduleError: the stage reads what is computed inside the loops it would leave.
    """
    if is_extern(func, block_name):  # it never left
        return func
    block = only_writer(func, block_name)
    nest = own_nest(func, block)
    root = root_of(func, block)
    if nest is root:
        return func
    outputs = result_buffers(block)
    if any(b in func.params for b in outputs) or not _is_read(func, block, outputs):
        raise ScheduleError(
            f"other stages are computed inside the loops of {block_name!r}",
            hint="move those to the root, or compute them elsewhere",
        )
    if any(v.kind is IterKind.ORDERED for v in block.iter_vars):
        raise ScheduleError(
            f"{block_name!r} is computed at each time of a scan and cannot leave its time loop",
            hint="s.show() prints the loops",
        )
    require_plain_store(block)
    require_inputs_at(func, block, None)
    moved, shape = rebuild_nest(
        func, block, [None] * len(block.iter_vars), Analyzer(func.sizes), set()
    )
    position = 0 if root is func.body else _index(func.body, root)
    body = replace_stmt(func, nest, None).body
    stmts = body.stmts if root is not func.body and isinstance(body, Seq) else (body,)
    func = replace(func, body=Seq((*stmts[:position], moved, *stmts[position:])))
    # No tile reaches past the end any more.
    return exchange_buffers(func, {b: replace(b, shape=tuple(shape)) for b in outputs})


def _index(sequence: Stmt, wanted: Stmt) -> int:
    assert isinstance(sequence, Seq)
    return next(i for i, s in enumerate(sequence.stmts) if s is wanted)


def _is_read(func: PrimFunc, block: Block, outputs: Sequence[Buffer]) -> bool:
    return any(
        b in read_buffers(r) for r in blocks_in(func.body) if r is not block for b in outputs
    )


def _check(func: PrimFunc, block: Block, target: For, outputs: Sequence[Buffer]) -> None:
    name, axis = block.name, target.var.name
    if any(b in func.params for b in outputs):
        raise ScheduleError(
            f"{name!r} is an output; only intermediate stages move",
            hint=f's.cache_write("{name}", "local") makes an intermediate stage that can',
        )
    inside = blocks_in(target)
    if any(s is target for s in loops_in(own_nest(func, block))):
        raise ScheduleError(
            f"{axis!r} is a loop of {name!r} itself", hint="name a loop of a stage that reads it"
        )
    if not any(b in read_buffers(r) for r in inside if r is not block for b in outputs):
        raise ScheduleError(
            f"nothing inside loop {axis!r} reads {name!r}",
            hint=_place_readers_first(func, block, outputs),
        )
    reader = reader_outside(func, [target, own_nest(func, block)], outputs)
    if reader is not None:
        raise ScheduleError(
            f"{reader} reads {name!r} outside of loop {axis!r}",
            hint="compute it at a loop that contains all its readers; readers are placed first",
        )


def _place_readers_first(func: PrimFunc, block: Block, outputs: Sequence[Buffer]) -> str:
    readers = [
        r.name
        for r in blocks_in(func.body)
        if r is not block and any(b in read_buffers(r) for b in outputs)
    ]
    if not readers:
        return "nothing reads it"
    return (
        f"{', '.join(map(repr, readers))} reads it: name a loop around that; where that moves too, "
        "place it first (calls apply at once, so consumers come before their producers)"
    )


def reader_outside(func: PrimFunc, places: Sequence[Stmt], buffers: Sequence[Buffer]) -> str | None:
    """What reads the buffers outside of some statements, for an error; None if nothing does."""
    for stmt in statements_outside(func.body, places):
        own = [c for c in stmt.children() if not isinstance(c, Stmt)]
        if any(isinstance(n, Load) and n.source in buffers for n in postorder(own)):
            path = path_to(func.body, lambda s, stmt=stmt: s is stmt) or []
            names = [s.name for s in path if isinstance(s, Block)]
            return f"stage {names[-1]!r}" if names else "an extern stage"
    return None


def _accesses(stmt: Stmt, buffers: Sequence[Buffer]) -> list[tuple[Expr, ...]]:
    """The indices with which blocks inside read the buffers, in terms of loop variables."""
    accesses: list[tuple[Expr, ...]] = []
    for block in blocks_in(stmt):
        values = {v.var: b for v, b in zip(block.iter_vars, block.bindings, strict=True)}
        for load in loads_in(block):
            if load.source in buffers:
                accesses.append(tuple(substitute(i, values) for i in load.indices))
    return accesses
