"""Few results of much data on a CPU: pieces of it over threads, whose results are then combined.

    part[c] = sum of x over piece c        # in parallel
    result = sum of part[c] over c         # in order

The pieces depend on the shape only, so results do not depend on the number of threads.
"""

from __future__ import annotations

import math

from ..ir.expr import as_int
from ..te.tensor import ComputeOp, Tensor
from .common import PARALLEL_CYCLES, Kernel, cycles_of, extents, inline_injective, vectorize_last
from .rows import reduce_in_vectors

_PIECES = 64
_TASKS = 16  # results, or vectors of them, that keep threads busy by themselves
_MIN_PIECE = 1024  # elements of each result


def is_long_reduction(kernel: Kernel, reduction: ComputeOp, along_memory: bool) -> bool:
    """Whether the results are too few to be spread over threads, and the work is worth it.

    Args:
        along_memory: the last axis is reduced; otherwise it becomes vectors of results.
    """
    lanes = 1 if along_memory else kernel.target.lanes(reduction.output(0).dtype)
    tasks = math.prod(extents(reduction)) / lanes
    length = math.prod(as_int(a.extent) for a in reduction.reduce_axis)
    cycles = cycles_of(reduction, kernel.target)
    return tasks < _TASKS and length >= _PIECES * _MIN_PIECE and cycles >= 2 * PARALLEL_CYCLES


def schedule_long_reduction(kernel: Kernel, reduction: ComputeOp, along_memory: bool) -> None:
    """One reduction and elementwise work before and after it."""
    inline_injective(kernel)
    rank = len(reduction.axis)
    stage = kernel.stage(reduction)
    piece, rest = stage.split(stage.fuse(*stage.axes[rank:]), nparts=_PIECES)
    part = kernel.schedule.rfactor(reduction.output(0), piece)
    pieces = kernel.schedule[part]
    lanes = kernel.target.lanes(reduction.output(0).dtype)
    if along_memory:
        reduce_in_vectors(kernel, part, pieces.axes[-1], lanes, at=rank)
    else:
        _reduce_columns(kernel, part, rest.name, lanes)
    pieces.parallel(next(a for a in pieces.axes if a.name == piece.name))


def _reduce_columns(kernel: Kernel, part: Tensor, length: str, lanes: int) -> None:
    """All results of a piece at once, in registers, the last axis in vectors."""
    own = kernel.schedule[kernel.schedule.cache_write(part, "local")]
    pieces = kernel.schedule[part]
    *results, piece = pieces.axes
    pieces.reorder(piece, *results)
    own.compute_at(pieces, piece)
    loops = {axis.name: axis for axis in own.axes}
    spatial = [loops[axis.name] for axis in results]
    own.reorder(loops[length], *spatial)
    vectorize_last(own, spatial[-1], lanes)
