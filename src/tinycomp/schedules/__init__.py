"""From a fused relay function to a lowered kernel, by default schedules.

Schedules belong to the shape of the computation, not to operators: matmul, window (convolution),
lane reductions (pooling, depthwise convolution), rows (softmax, normalisation), elementwise.
"""

from __future__ import annotations

from functools import partial

from ..extension import NO_EXTENSION, Extension
from ..ir.expr import BinaryOp
from ..relay.nodes import Call, Function
from ..relay.op import Op
from ..target import Target
from ..te.tensor import ExternOp, topological
from ..tir.lower import lower
from ..tir.lower_gpu import lower_gpu
from ..tir.nodes import PrimFunc
from ..tir.schedule import Schedule, create_schedule
from ..tir.verify import verify
from .arg_reduction import expand_arg_reduction
from .collapse import collapse_dims
from .common import Kernel, inline_injective, reduces_last_axis
from .cumulative import expand_cumulative
from .elementwise import schedule_elementwise
from .gpu import build_gpu_kernel
from .gpu.bind import bind_unbound
from .long_reduction import is_long_reduction, schedule_long_reduction
from .matmul import schedule_matmul
from .matmul_bytes import byte_dot, schedule_matmul_bytes
from .reduction import schedule_lane_reduction
from .rows import schedule_rows, shared_rows
from .scatter import elements_of, expand_scatter, slices_of
from .to_te import Compute, to_te
from .topk import expand_topk
from .window import schedule_conv

__all__ = ["build_kernel", "default_schedule"]


def expansions(target: Target) -> dict[str, Compute]:
    """Expansions of operators that CPU schedules use instead of `Op.compute`: hand-written loops
    where an element of the result is not best computed on its own."""
    return {
        "argmax": partial(expand_arg_reduction, "argmax", target),
        "argmin": partial(expand_arg_reduction, "argmin", target),
        "cumsum": partial(expand_cumulative, BinaryOp.ADD, target),
        "cumprod": partial(expand_cumulative, BinaryOp.MUL, target),
        "scatter_elements": partial(expand_scatter, elements_of),
        "scatter_nd": partial(expand_scatter, slices_of),
        "topk": expand_topk,
    }


def build_kernel(
    function: Function, target: Target, name: str, extension: Extension = NO_EXTENSION
) -> PrimFunc:
    """The lowered kernel of a primitive function under its default schedule."""
    if target.kind == "cuda":
        own = _hooked_schedule(function, target, name, extension)
        if own is not None:
            return lower_gpu(bind_unbound(own.func))
        return build_gpu_kernel(function, target, name)
    func = lower(default_schedule(function, target, name, extension).func, target)
    for lowering_pass in extension.lowering:
        func = lowering_pass(func, target)
        verify(func, lowered=True)
    return func


def default_schedule(
    function: Function, target: Target, name: str, extension: Extension = NO_EXTENSION
) -> Schedule:
    """The default schedule of a primitive function, not yet lowered."""
    own = _hooked_schedule(function, target, name, extension)
    if own is not None:
        return own
    inputs, outputs = to_te(collapse_dims(function), expansions(target))
    schedule = create_schedule(outputs, inputs, name)
    kernel = Kernel(schedule, outputs, target)
    tags = {op.tag: op for op in kernel.stages if op.tag}
    reductions = kernel.reductions
    if "matmul_packed" in tags:
        schedule_matmul(kernel, tags["matmul_packed"])
    elif "matmul_bytes" in tags and (instruction := byte_dot(target)) is not None:
        schedule_matmul_bytes(kernel, tags["matmul_bytes"], instruction)
    elif "conv2d_nhwc" in tags:
        schedule_conv(kernel, tags["conv2d_nhwc"])
    elif any(isinstance(op, ExternOp) for op in topological(outputs)):
        inline_injective(kernel)  # hand-written loops are on threads already
    elif not reductions:
        schedule_elementwise(kernel)
    elif function.attrs.get("stitched") or (len(reductions) > 1 and len(outputs) == 1):
        schedule_rows(kernel, function.attrs.get("rows", shared_rows(reductions)))
    elif len(outputs) == 1 and reductions[0].num_outputs == 1:
        along_memory = reduces_last_axis(reductions[0])
        if is_long_reduction(kernel, reductions[0], along_memory):
            schedule_long_reduction(kernel, reductions[0], along_memory)
        elif along_memory:
            schedule_rows(kernel, shared_rows(reductions))
        else:
            schedule_lane_reduction(kernel, reductions[0])
    return schedule


def _hooked_schedule(
    function: Function, target: Target, name: str, extension: Extension
) -> Schedule | None:
    """The schedule of the first hook that makes one."""
    values = (b.value for b in function.bindings)
    names = [v.op.name for v in values if isinstance(v, Call) and isinstance(v.op, Op)]
    for hook in (extension.schedules[n] for n in dict.fromkeys(names) if n in extension.schedules):
        inputs, outputs = to_te(collapse_dims(function))
        kernel = Kernel(create_schedule(outputs, inputs, name), outputs, target)
        if hook(kernel):
            return kernel.schedule
    return None
