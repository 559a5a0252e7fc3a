"""Default schedules for GPUs, by the shape of the computation as on the CPU.

Elementwise work is spread flat over threads; rows (softmax, normalisation) get a warp or a block
each; products and convolutions are tiles in shared memory and registers; everything else has
one thread per output element. What no schedule binds gets a sound binding at the end.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from ... import te
from ...codegen.cuda.limits import shared_limit
from ...diagnostics import ScheduleError
from ...ir.expr import BinaryOp
from ...relay.nodes import Function
from ...target import Target
from ...te.tensor import ExternOp, Tensor, topological
from ...tir.lower_gpu import lower_gpu
from ...tir.nodes import Alloc, PrimFunc, Scope, Seq
from ...tir.passes.share_memory import IN_BLOCK, shared_bytes
from ...tir.schedule import Schedule, create_schedule
from ...tir.tree import statements
from ..collapse import collapse_dims, collapse_reduced
from ..common import Kernel, extents, inline_injective
from ..rows import shared_rows
from ..scatter import elements_of, slices_of
from ..to_te import Compute, to_te
from .attention.expand import expand_attention
from .attention.hopper import build_hopper_attention
from .bind import bind_unbound
from .elementwise import schedule_elementwise, schedule_injective
from .hopper.gemm import build_hopper_product
from .order.cumulative import expand_cumulative
from .order.scatter import expand_scatter
from .order.topk import expand_topk
from .products.conv import expand_conv2d, merge_pixels
from .products.gemm import expand_matmul, expand_matmul_parts, matrix_axes, schedule_gemm
from .products.matmul_bytes import expand_matmul_bytes
from .products.skinny import expand_skinny
from .products.split_k import SLICES, schedule_slices
from .products.tensor_cores import schedule_tensor_cores
from .rows.arg_reduction import expand_arg_reduction
from .rows.columns import column_axis, schedule_columns
from .rows.long_softmax import expand_softmax
from .rows.reduction import schedule_reduction
from .rows.rows import schedule_rows

__all__ = ["PLAIN", "build_gpu_kernel", "default_gpu_schedule"]

PLAIN = "plain_schedule"
"""Attribute of a lowered kernel that no default schedule fits, with the reason."""


def expansions(target: Target) -> dict[str, Compute]:
    """Expansions of operators that GPU schedules use instead of `Op.compute`."""
    matmul = partial(expand_matmul, arch=target.arch)
    return {
        "nn.matmul": lambda *call: expand_skinny(*call) or matmul(*call),
        "nn.matmul_parts": partial(expand_matmul_parts, arch=target.arch),
        "nn.conv2d": partial(expand_conv2d, arch=target.arch),
        "nn.matmul_bytes": partial(expand_matmul_bytes, arch=target.arch),
        "nn.attention": partial(expand_attention, arch=target.arch),
        "argmax": partial(expand_arg_reduction, "argmax"),
        "argmin": partial(expand_arg_reduction, "argmin"),
        "nn.softmax": partial(expand_softmax, "nn.softmax", arch=target.arch),
        "nn.log_softmax": partial(expand_softmax, "nn.log_softmax", arch=target.arch),
        "cumsum": partial(expand_cumulative, BinaryOp.ADD),
        "cumprod": partial(expand_cumulative, BinaryOp.MUL),
        "scatter_elements": partial(expand_scatter, elements_of),
        "scatter_nd": partial(expand_scatter, slices_of),
        "topk": expand_topk,
    }


def build_gpu_kernel(function: Function, target: Target, name: str) -> PrimFunc:
    """The lowered kernel of a primitive function: as a tile program where there is one for it, by
    its default schedule or, where that does not fit the machine, with one thread per output
    element; then the attribute `PLAIN` of the function says why."""
    for build in (build_hopper_product, build_hopper_attention):
        if (kernel := build(function, target, name)) is not None:
            return kernel
    try:
        func = _lowered(default_gpu_schedule(function, target, name))
        needed = _shared_bytes(func)
        if needed <= shared_limit(target.arch):
            return func
        reason = f"{needed} bytes of shared memory, more than {target.arch} has"
    except ScheduleError as error:
        reason = error.message
    inputs, outputs = to_te(collapse_dims(function))
    func = _lowered(create_schedule(outputs, inputs, name))
    return replace(func, attrs={**func.attrs, PLAIN: reason})


def default_gpu_schedule(function: Function, target: Target, name: str) -> Schedule:
    """The default schedule of a primitive function; its last roots may be unbound still."""
    function = collapse_reduced(merge_pixels(collapse_dims(function)))
    inputs, outputs = to_te(function, expansions(target))
    outputs = [t if t.shape else _line(t) for t in outputs]
    kernel = Kernel(create_schedule(outputs, inputs, name), outputs, target)
    tags = {op.tag: op for op in kernel.stages if op.tag}
    reductions = kernel.reductions
    if not {"mma", "gemm"}.isdisjoint(tags):
        if SLICES in tags:
            schedule_slices(kernel, tags[SLICES], _schedule_product)
        else:
            _schedule_product(kernel)
    elif not reductions and any(isinstance(op, ExternOp) for op in topological(outputs)):
        inline_injective(kernel)  # hand-written loops are bound already
        for op in filter(kernel.is_output, kernel.stages):
            schedule_injective(kernel, op)
    elif not reductions:
        kernel = schedule_elementwise(kernel)
    elif len(outputs) == 1 and all(r.num_outputs == 1 for r in reductions):
        stitched = function.attrs.get("stitched") or len(reductions) > 1
        rows = function.attrs.get("rows", shared_rows(reductions))
        if not stitched or _ends_reduced(kernel):
            schedule_reduction(kernel, reductions[0], rows)
        elif (columns := column_axis(kernel)) is not None:
            schedule_columns(kernel, *columns)
        else:
            schedule_rows(kernel, rows)
    elif len(outputs) == 1 and len(reductions) == 1:
        schedule_reduction(kernel, reductions[0], 0)
    return kernel.schedule


def _ends_reduced(kernel: Kernel) -> bool:
    """Whether there is one reduction, and what follows is about its results only."""
    (result,) = (t.op for t in kernel.outputs)
    sizes = [math.prod(extents(op)) for op in (result, *kernel.reductions)]  # type: ignore[arg-type]
    return len(sizes) == 2 and sizes[0] == sizes[1]


def _schedule_product(kernel: Kernel) -> None:
    """A product of matrices, or a convolution as one, on tensor cores or without."""
    tags = {op.tag: op for op in kernel.stages if op.tag}
    if "mma" in tags:
        schedule_tensor_cores(kernel, tags["mma"], matrix_axes)
    else:
        schedule_gemm(kernel, tags["gemm"])


def _line(scalar: Tensor) -> Tensor:
    """A tensor without dimensions as one of one element, to have a loop that can be bound."""
    return te.compute((1,), lambda _: scalar(), name=f"{scalar.name}.line", span=scalar.op.span)  # type: ignore[union-attr]


def _lowered(schedule: Schedule) -> PrimFunc:
    return lower_gpu(bind_unbound(schedule.func))


def _shared_bytes(func: PrimFunc) -> int:
    body = func.body
    while isinstance(body, Alloc) and body.buffer.scope is Scope.GLOBAL:
        body = body.body
    roots = body.stmts if isinstance(body, Seq) else (body,)
    sizes = [
        shared_bytes(
            s.buffer
            for s in statements(root)
            if isinstance(s, Alloc) and s.buffer.scope in IN_BLOCK
        )
        for root in roots
    ]
    return max(sizes, default=0)
