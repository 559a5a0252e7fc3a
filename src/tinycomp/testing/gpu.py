"""Running models compiled for a GPU on the CPU, by the executor of GPU loop IR.

Slow, and meant for tests: every kernel is checked for races, missing barriers and accesses out of
bounds while it runs, over the same planned memory as on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..ir.expr import as_int
from ..kernels import kernel_name
from ..levels import kernel_functions
from ..relay.plan import (
    Branch,
    BufferRef,
    Copy,
    ExecutionPlan,
    KernelCall,
    Parallel,
    Repeat,
    Space,
    Step,
)
from ..runtime.cuda.module import CudaModule
from ..schedules import build_kernel
from ..tir.gpu_executor import run
from ..tir.nodes import PrimFunc

Runner = Callable[[KernelCall, Sequence[np.ndarray]], None]


def run_plan(
    plan: ExecutionPlan,
    kernels: Mapping[str, PrimFunc],
    inputs: Sequence[np.ndarray],
    constants: np.ndarray,
    check_races: bool = True,
) -> list[np.ndarray]:
    """The outputs of a plan.

    Args:
        kernels: lowered by `lower_gpu`, by the names in the plan.
        inputs: one array for each of `plan.inputs`.
        constants: bytes of the constant pool.
    """
    outputs = [np.zeros(t.static_shape, t.dtype.numpy) for t in plan.outputs]
    spaces: dict[Space, list[np.ndarray]] = {
        Space.INPUT: [_bytes(a) for a in inputs],
        Space.OUTPUT: [_bytes(a) for a in outputs],
        Space.CONSTANT: [constants],
        Space.ARENA: [np.full(plan.arena_bytes, 0xFF, np.uint8)],  # NaN: unwritten memory shows
    }

    def place(ref: BufferRef) -> np.ndarray:
        if ref.space in (Space.INPUT, Space.OUTPUT):
            return spaces[ref.space][ref.position][ref.offset : ref.offset + ref.nbytes]
        start = ref.position + ref.offset
        return spaces[ref.space][0][start : start + ref.nbytes]

    work: list[Step] = list(reversed(plan.steps))
    while work:
        step = work.pop()
        if isinstance(step, KernelCall):
            func = kernels[step.kernel]
            run(func, _arguments(func, [place(ref) for ref in step.args]), check_races)
        elif isinstance(step, Copy):
            place(step.target)[:] = place(step.source)
        elif isinstance(step, Branch):
            taken = step.then_steps if place(step.condition)[0] else step.else_steps
            work.extend(reversed(taken))
        elif isinstance(step, Repeat):
            again = Branch(step.condition, (*step.body_steps, step), ())
            work.append(again)
            work.extend(reversed(step.condition_steps))
        elif isinstance(step, Parallel):
            work.extend(s for steps in reversed(step.branches) for s in reversed(steps))
    return outputs


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _arguments(func: PrimFunc, places: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [
        place.view(buffer.dtype.numpy).reshape([as_int(d) for d in buffer.shape])
        for buffer, place in zip(func.params, places, strict=True)
    ]


def run_on_cpu(
    module: CudaModule, inputs: Mapping[str, np.ndarray], check_races: bool = True
) -> dict[str, np.ndarray]:
    """The outputs of a model compiled for a GPU, by name, from its loop IR on the CPU.

    The kernels are generated again from the artifact; their machine code is not run.
    """
    target = module.manifest.target
    functions = kernel_functions(module.artifact)
    kernels = {kernel_name(f): build_kernel(f, target, kernel_name(f)) for f in functions}
    arrays = [np.asarray(inputs[spec.name]) for spec in module.inputs]
    results = run_plan(module.plan.plan, kernels, arrays, module.artifact.constants, check_races)
    return dict(zip([s.name for s in module.outputs], results, strict=True))
