"""Kernels without reductions: everything inlined into one pass over the output."""

from __future__ import annotations

import math

from ..ir.expr import Binary, BinaryOp, Expr, IntImm, Var, substitute, variables
from ..ir.node import postorder
from ..te.simplify import Analyzer
from ..tir.schedule import Stage
from ..tir.tree import loads_in
from .common import Kernel, cycles_of, extent_of, inline_injective, parallel_outer, vectorize_last

_TILE = 16  # rows of a transposed tile: the elements of one cache line of float32


def schedule_elementwise(kernel: Kernel) -> None:
    """Rows over threads, the last axis in vectors."""
    inline_injective(kernel)
    for op in kernel.stages:
        if kernel.is_output(op):
            lanes = min(kernel.target.lanes(t.dtype) for t in kernel.outputs)
            schedule_injective(kernel.stage(op), lanes, cycles_of(op, kernel.target))


def schedule_injective(stage: Stage, lanes: int, cycles: float) -> None:
    """One nest of spatial loops, by the order in which it reads."""
    axes = list(stage.axes)
    if not axes:
        return
    across = transposed_axis(stage)
    if across is not None:
        _schedule_transposed(stage, axes, across, lanes, cycles)
        return
    pieces = merged_axis(stage, lanes)
    if pieces is not None:
        axes += stage.split(axes.pop(), factor=pieces)
    inner = [axes.pop()]
    # A short last axis is not worth a vector of its own: fuse inwards until there is enough.
    while axes and math.prod(extent_of(stage, a) for a in inner) < lanes:
        inner.insert(0, axes.pop())
    fused = stage.fuse(*inner)
    if not axes and extent_of(stage, fused) > 4 * lanes:
        head, fused = stage.split(fused, factor=_chunk(extent_of(stage, fused), lanes))
        axes = [head]
    vectorize_last(stage, fused, lanes)
    parallel_outer(stage, axes, cycles)


def merged_axis(stage: Stage, lanes: int) -> int | None:
    """The extent d of the inner one of two input axes that a reshape merged into the last axis i,
    so that i // d and i % d are read, where vectors would cross from one to the next."""
    last, extent = stage.block.iter_vars[-1].var, extent_of(stage, stage.axes[-1])
    for node in postorder(stage.block.body):
        if isinstance(node, Binary) and node.op in _DIVISIONS and node.a is last:
            d = node.b.value if isinstance(node.b, IntImm) else 0
            if lanes <= 2 * d < 2 * extent and extent % d == 0 and d % lanes:
                return d
    return None


_DIVISIONS = (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD)


def transposed_axis(stage: Stage) -> Var | None:
    """The loop along which a transposing stage reads contiguous memory, if that is not the last.

    None where the last axis is contiguous in some input, or nothing is.
    """
    block = stage.block
    bound = {v.var: binding for v, binding in zip(block.iter_vars, block.bindings, strict=True)}
    last = block.iter_vars[-1].var
    analyzer = Analyzer()
    for v in block.iter_vars:
        analyzer.bind(v.var, v.min, v.extent)
    contiguous: list[Var] = []
    for load in loads_in(block.body):
        if not load.indices:
            return None
        index = analyzer.simplify(load.indices[-1])
        found = variables(index)
        if last in found and not _is_far(analyzer, index, last):
            return None
        contiguous += [v for v in found if v in bound and v is not last]
    loops = set(stage.axes)
    axes = [b for v in contiguous if isinstance(b := bound[v], Var) and b in loops]
    wide = [a for a in axes if extent_of(stage, a) > 1]
    return wide[0] if wide and extent_of(stage, stage.axes[-1]) > 1 else None


def _is_far(analyzer: Analyzer, index: Expr, var: Var) -> bool:
    """Whether a step of `var` moves the index by at least a cache line."""
    step = analyzer.simplify(substitute(index, {var: var + 1}) - index)
    return isinstance(step, IntImm) and abs(step.value) >= _TILE


def _schedule_transposed(
    stage: Stage, axes: list[Var], across: Var, lanes: int, cycles: float
) -> None:
    """Tiles, so that both the lines read and the lines written stay in the cache.

    A short last axis (three colours) is written out instead, and the vectors run along the input.
    """
    last = axes[-1]
    outside = [a for a in axes if a not in (across, last)]
    position = axes.index(across)
    if extent_of(stage, last) * 2 <= lanes:
        head, vector = stage.split(across, factor=lanes)
        outside.insert(position, head)
        stage.reorder(*outside, last, vector)
        stage.unroll(last)
    else:
        head, row = stage.split(across, factor=_TILE)
        tail, vector = stage.split(last, factor=lanes)
        outside.insert(position, head)
        outside.append(tail)
        stage.reorder(*outside, row, vector)
    stage.vectorize(vector)
    parallel_outer(stage, outside[:-1] or outside, cycles)


def _chunk(extent: int, lanes: int) -> int:
    """A chunk of a long single axis for one thread at a time: whole vectors, about 1024."""
    size = 1024
    while extent % size and size > lanes:
        size //= 2
    return size if extent % size == 0 else 1024
