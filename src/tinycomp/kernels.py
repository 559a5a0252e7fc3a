"""Compiling the kernels of a fused function, each distinct one once, through the disk cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from .codegen.llvm import KernelIR, emit_kernel
from .codegen.llvm import compile_kernels as compile_llvm
from .cost import estimated_nanoseconds, function_flops, function_precision
from .extension import NO_EXTENSION, Extension
from .relay.nodes import Call, Function, all_functions
from .relay.passes.plan_memory import KernelInfo
from .relay.plan import ExecutionPlan, KernelCall, all_steps
from .runtime.artifact import KernelInfo as ManifestKernel
from .runtime.artifact import ValueSpec
from .runtime.cache import Cache, content_key, source_digest
from .schedules import build_kernel
from .target import Target

THREADS_MEET = 5_000.0
"""Nanoseconds in which threads wake and meet again."""


class KernelOptions(Protocol):
    """The part of the compile options that kernels depend on."""

    @property
    def target(self) -> Target: ...

    @property
    def extension(self) -> Extension: ...


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """Object code of a kernel and what its caller must provide; see `codegen.llvm.KernelIR`.

    Attributes:
        nanoseconds: estimated, on one thread; None if the kernel uses several.
    """

    name: str
    workspace_bytes: int
    workspace_bytes_per_thread: int
    can_fail: bool
    flops: int
    nanoseconds: float | None
    object_code: bytes

    def planned(self, num_threads: int) -> KernelInfo:
        """What the memory planner needs to know."""
        workspace = self.workspace_bytes + num_threads * self.workspace_bytes_per_thread
        return KernelInfo(self.name, workspace, self.can_fail, self.nanoseconds)

    def to_bytes(self) -> bytes:
        head = json.dumps(
            [self.name, self.workspace_bytes, self.workspace_bytes_per_thread, self.can_fail,
             self.flops, self.nanoseconds]
        ).encode()  # fmt: skip
        return len(head).to_bytes(4, "little") + head + self.object_code

    @staticmethod
    def from_bytes(data: bytes) -> CompiledKernel:
        size = int.from_bytes(data[:4], "little")
        name, shared, per_thread, can_fail, flops, nanoseconds = json.loads(data[4 : 4 + size])
        return CompiledKernel(
            name, shared, per_thread, can_fail, flops, nanoseconds, data[4 + size :]
        )


def primitive_functions(main: Function) -> dict[str, Function]:
    """The distinct kernels of a fused function by structural key, in order of first use."""
    found: dict[str, Function] = {}
    for function in all_functions(main):
        for binding in function.bindings:
            value = binding.value
            if isinstance(value, Call) and isinstance(value.op, Function):
                found.setdefault(value.op.attrs["key"], value.op)
    return found


def kernel_name(function: Function) -> str:
    """A native symbol: the operators, and enough of the key to be unique."""
    return f"{function.attrs['name']}_{function.attrs['key'][:12]}"


def lower_kernel(
    function: Function, target: Target, extension: Extension = NO_EXTENSION
) -> KernelIR:
    """te, schedule, tir and LLVM IR of one primitive function."""
    return emit_kernel(build_kernel(function, target, kernel_name(function), extension), target)


def compile_kernels(
    main: Function,
    options: KernelOptions,
    cache: Cache,
    report: Callable[[str, int, int], None],
) -> Mapping[str, CompiledKernel]:
    """The kernels of `main` by structural key.

    Lowering is Python and stays on this thread; LLVM releases the interpreter lock and runs
    beside it on another.
    """
    functions = primitive_functions(main)
    target = options.target
    pending: dict[str, CompiledKernel | Future[CompiledKernel]] = {}
    report("compile kernels", 0, len(functions))
    with ThreadPoolExecutor(1) as pool:
        for done, (key, function) in enumerate(functions.items()):
            entry = content_key(
                "kernel", key, kernel_name(function), repr(target), options.extension.key,
                source_digest(),
            )  # fmt: skip
            stored = cache.get(entry)
            if stored is not None:
                pending[key] = CompiledKernel.from_bytes(stored)
            else:
                ir = lower_kernel(function, target, options.extension)
                pending[key] = pool.submit(_finish, ir, function, target, cache, entry)
            report("compile kernels", done + 1, len(functions))
        return {k: p.result() if isinstance(p, Future) else p for k, p in pending.items()}


def _finish(
    ir: KernelIR, function: Function, target: Target, cache: Cache, entry: str
) -> CompiledKernel:
    kernel = CompiledKernel(
        ir.name,
        ir.workspace_bytes,
        ir.workspace_bytes_per_thread,
        ir.can_fail,
        function_flops(function),
        None if ir.is_threaded else estimated_nanoseconds(function, target),
        compile_llvm([ir.llvm_text], target),
    )
    cache.put(entry, kernel.to_bytes())
    return kernel


def kernel_precisions(main: Function) -> dict[str, str]:
    """The precision of each kernel of a fused function, by the kernel's name."""
    return {kernel_name(f): function_precision(f) for f in primitive_functions(main).values()}


def specs(names: Sequence[str], types: Sequence[Any], kind: str) -> tuple[ValueSpec, ...]:
    """Inputs or outputs of a model for the manifest; those without names are numbered."""
    names = tuple(names) or tuple(f"{kind}{i}" for i in range(len(types)))
    return tuple(
        ValueSpec(name, type_.static_shape, type_.dtype)
        for name, type_ in zip(names, types, strict=True)
    )


def kernel_infos(
    plan: ExecutionPlan, kernels: Mapping[str, Any], precisions: Mapping[str, str]
) -> tuple[ManifestKernel, ...]:
    """The kernel calls of a plan, for the manifest; `kernels` have name and flops, `precisions`
    are by name."""
    flops = {k.name: k.flops for k in kernels.values()}
    return tuple(
        ManifestKernel(
            step.kernel,
            step.label,
            step.span.nodes,
            flops[step.kernel],
            sum(ref.nbytes for ref in step.args),
            precisions[step.kernel],
        )
        for step in all_steps(plan.steps)
        if isinstance(step, KernelCall)
    )
