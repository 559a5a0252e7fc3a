"""compute_at: produce just what one iteration of a consumer's loop needs, inside that loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...diagnostics import ScheduleError
from ...ir.expr import BinaryOp, Expr, IntImm, Load, Var, binary, call, const, substitute
from ...te.simplify import Analyzer
from ...te.tensor import IterKind
from ..nodes import Block, Buffer, For, PrimFunc, Seq, Stmt
from ..region import Interval, region
from ..tree import (
    block_of,
    blocks_in,
    loads_in,
    loop_of,
    loops_above,
    path_to,
    read_buffers,
    replace_stmt,
    statements,
    written_buffers,
)


def compute_at(func: PrimFunc, block_name: str, axis: Var) -> PrimFunc:
    """Move the nest of a block to the start of the body of loop `axis`, shrunk to what is read there.

        for i: B[i] = f(i)                for i.outer:
        for i.outer:               -->      for b in range(8): B[i.outer*8 + b] = f(i.outer*8 + b)
          for i.inner: C = B[...]           for i.inner: C = B[...]

    Raises:
        ScheduleError: a reader of the block is outside the loop, or the block writes an output.
    """
    block = block_of(func, block_name)
    target = loop_of(func, axis)
    outputs = written_buffers(block)
    _check(func, block, target, outputs)
    nest = own_nest(func, block)
    without = replace_stmt(func, nest, None)
    target = loop_of(without, axis)
    analyzer = Analyzer()
    inner: dict[Var, Interval] = {}
    for loop in loops_above(without, target):
        analyzer.bind(loop.var, loop.min, loop.extent)
    analyzer.bind(target.var, target.min, target.extent)
    for loop in _loops_inside(target.body):
        inner[loop.var] = (loop.min, loop.min + loop.extent - 1)
        analyzer.bind(loop.var, loop.min, loop.extent)
    accesses = _accesses(target.body, outputs)
    regions = region(accesses, outputs[0].shape, inner, analyzer)
    moved = rebuild_nest(block, regions, analyzer)
    stmts = target.body.stmts if isinstance(target.body, Seq) else (target.body,)
    position = next(i for i, s in enumerate(stmts) if any(b in read_buffers(s) for b in outputs))
    body = Seq((*stmts[:position], moved, *stmts[position:]))
    return replace_stmt(without, target, replace(target, body=body))


def rebuild_nest(block: Block, regions: Sequence[tuple[Expr, Expr]], analyzer: Analyzer) -> Stmt:
    """Fresh loops around a block, spatial ones over `regions` (start, extent), then reductions."""
    bindings: list[Expr] = []
    loops: list[tuple[Var, Expr, Expr]] = []
    predicate = const(True, "bool")
    spatial = iter(regions)
    for iter_var in block.iter_vars:
        var = Var(iter_var.name)
        if iter_var.kind is not IterKind.SPATIAL:
            loops.append((var, iter_var.min, iter_var.extent))
            bindings.append(var)
            continue
        start, extent = next(spatial)
        analyzer.bind(var, 0, extent)
        top = iter_var.min + iter_var.extent
        inside = binary(BinaryOp.LT, start + var, top)
        if not analyzer.proves(inside) and not _harmless(
            block, iter_var.var, start + var, analyzer
        ):
            if isinstance(start, IntImm):
                extent = analyzer.simplify(top - start)
            else:
                predicate = predicate & call("likely", inside)
        loops.append((var, const(0), extent))
        bindings.append(start + var)
        if not analyzer.proves(start >= iter_var.min):
            predicate = predicate & call("likely", start + var >= iter_var.min)
    stmt: Stmt = replace(block, bindings=tuple(bindings), predicate=predicate)
    for var, start, extent in reversed(loops):
        stmt = For(var, start, extent, stmt)
    return stmt


def _harmless(block: Block, axis: Var, value: Expr, analyzer: Analyzer) -> bool:
    """Whether running past the end of an axis reads only inside buffers: then the block may
    compute values nobody uses (its own buffer is enlarged to the region), which keeps register
    tiles whole. True for operands that were padded to the tile."""
    own = written_buffers(block)
    for load in loads_in(block):
        if load.source in own:
            continue
        for index, extent in zip(load.indices, load.source.shape, strict=True):
            moved = substitute(index, {axis: value})
            if moved is index:
                continue
            if not (analyzer.proves(moved < extent) and analyzer.proves(moved >= 0)):
                return False
    return all(not _guards(load) for load in loads_in(block))


def _guards(load: Load) -> bool:
    return load.predicate is not None


def _check(func: PrimFunc, block: Block, target: For, outputs: Sequence[Buffer]) -> None:
    name, axis = block.name, target.var.name
    if any(b in func.params for b in outputs):
        raise ScheduleError(
            f"compute_at({name}, {axis}): {name!r} is an output; only intermediate stages move",
            hint=f"s.cache_write({name}, 'local') makes an intermediate stage that can",
        )
    inside = blocks_in(target)
    for reader in blocks_in(func.body):
        if (
            reader is not block
            and any(b in read_buffers(reader) for b in outputs)
            and reader not in inside
        ):
            raise ScheduleError(
                f"compute_at({name}, {axis}): block {reader.name!r} reads {name!r} outside the loop",
                hint="compute it at a loop that contains all its readers",
                excerpt=str(func.body),
            )
    if block in inside:
        raise ScheduleError(f"compute_at({name}, {axis}): the block is already inside this loop")
    if not any(b in read_buffers(r) for r in inside for b in outputs):
        raise ScheduleError(f"compute_at({name}, {axis}): nothing inside the loop reads {name!r}")


def own_nest(func: PrimFunc, block: Block) -> Stmt:
    """The largest nest of loops that holds only this block."""
    path = path_to(func.body, lambda s: s is block)
    assert path is not None
    top: Stmt = block
    for stmt in reversed(path[:-1]):
        if not isinstance(stmt, For):
            break
        top = stmt
    return top


def _loops_inside(stmt: Stmt) -> list[For]:
    return [s for s in statements(stmt) if isinstance(s, For)]


def _accesses(stmt: Stmt, buffers: Sequence[Buffer]) -> list[tuple[Expr, ...]]:
    """The indices with which blocks inside read the buffers, in terms of loop variables."""
    accesses: list[tuple[Expr, ...]] = []
    for block in blocks_in(stmt):
        values = {v.var: b for v, b in zip(block.iter_vars, block.bindings, strict=True)}
        for load in loads_in(block.body):
            if load.source in buffers:
                accesses.append(tuple(substitute(i, values) for i in load.indices))
    return accesses
