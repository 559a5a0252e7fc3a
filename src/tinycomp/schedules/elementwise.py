"""Kernels without reductions: everything inlined into one pass over the output."""

from __future__ import annotations

from ..te.tensor import ComputeOp
from .common import (
    Kernel,
    extent_of,
    extents,
    inline_injective,
    parallel_outer,
    vectorize_last,
    work_of,
)


def schedule_elementwise(kernel: Kernel) -> None:
    """Rows over threads, the last axis in vectors."""
    inline_injective(kernel)
    for op in kernel.stages:
        if kernel.is_output(op):
            _schedule_output(kernel, op)


def _schedule_output(kernel: Kernel, op: ComputeOp) -> None:
    stage = kernel.stage(op)
    axes = [a.var for a in op.axis]
    if not axes:
        return
    lanes = min(kernel.target.lanes(t.dtype) for t in kernel.outputs)
    work = work_of(op)
    shape = extents(op)
    last = axes[-1]
    # A short last axis is not worth a vector of its own: fuse inwards until there is enough.
    inner = [last]
    while extent_of_product(shape, len(inner)) < lanes and len(inner) < len(axes):
        inner.insert(0, axes[len(axes) - len(inner) - 1])
    outer = axes[: len(axes) - len(inner)]
    fused = stage.fuse(*inner) if len(inner) > 1 else last
    if not outer and extent_of(stage, fused) > 4 * lanes:
        head, fused = stage.split(fused, factor=_chunk(extent_of(stage, fused), lanes))
        outer = [head]
    vectorize_last(stage, fused, lanes)
    if outer:
        parallel_outer(stage, outer, work)


def extent_of_product(shape: list[int], count: int) -> int:
    """Elements of the last `count` dimensions."""
    total = 1
    for extent in shape[len(shape) - count :]:
        total *= extent
    return total


def _chunk(extent: int, lanes: int) -> int:
    """A chunk of a long single axis for one thread at a time: whole vectors, at least 1024."""
    size = 1024
    while extent % size and size > lanes:
        size //= 2
    return size if extent % size == 0 else 1024
