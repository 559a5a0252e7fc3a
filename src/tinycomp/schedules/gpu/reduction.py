"""Reductions with one thread per output element: pooling, depthwise convolution, short sums.

Neighbouring threads compute neighbouring outputs, so where the last axis is not reduced their
reads are neighbours too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ir.expr import as_int
from ...te.tensor import ComputeOp
from ..common import Kernel, inline_injective
from .bind import bind_flat

_MAX_UNROLLED_WINDOW = 32


def schedule_outputs(kernel: Kernel, reduction: ComputeOp, keep: Sequence[ComputeOp] = ()) -> None:
    """One reduction and the elementwise work around it, but for the stages in `keep`."""
    inline_injective(kernel, keep)
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    schedule = kernel.schedule
    if not out.axis:
        return
    accumulator = reduction.output(0)
    if out is reduction:
        if reduction.num_outputs > 1:
            bind_flat(kernel.stage(out), list(kernel.stage(out).axes[: len(out.axis)]))
            return
        accumulator = schedule.cache_write(accumulator, "local")
    stage = kernel.stage(out)
    thread = bind_flat(stage, list(stage.axes))
    inner = schedule[accumulator]
    inner.compute_at(stage, thread)
    window = math.prod(as_int(a.extent) for a in reduction.reduce_axis)
    if window <= _MAX_UNROLLED_WINDOW:
        for axis in inner.axes[-len(reduction.reduce_axis) :]:
            inner.unroll(axis)
