"""Compiling the kernels of a fused function for a GPU, and the artifact around them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .codegen.cuda.emit import CudaKernel, emit_cuda
from .codegen.cuda.limits import Launch
from .codegen.cuda.nvrtc import Resources, compile_cuda, library
from .cost import function_flops
from .extension import NO_EXTENSION, Extension
from .kernels import kernel_infos, kernel_name, kernel_precisions, primitive_functions, specs
from .levels import kernels_text
from .relay.constant_pool import ConstantPool
from .relay.nodes import Function, IRModule
from .relay.passes.branches import ONE, Workers
from .relay.passes.fuse_ops import label_of
from .relay.passes.plan_memory import KernelInfo, plan_memory
from .runtime.arrays import aligned_empty
from .runtime.artifact import Artifact, Manifest
from .runtime.cache import Cache, content_key, source_digest
from .runtime.cuda.plan import CudaPlan, launch_from_json
from .schedules import build_kernel
from .schedules.gpu import PLAIN
from .target import Target

_PLAIN_NOTE = "plain schedule"  # in the source and the manifest
_STREAMS = Workers(4, 3_000.0)  # of a GPU; branches of a graph meet in about a microsecond each
_ROOM = 66  # blocks: half of the multiprocessors of an H100
_LAUNCH = 2_000.0  # nanoseconds of a small kernel in a graph, from its start to that of the next
_FLOPS_PER_NANOSECOND = 10_000  # of a kernel that fills half a GPU, without tensor cores
_WORKERS = 2  # NVRTC runs beside the generation of the next kernels


@dataclass(frozen=True, slots=True)
class CompiledCudaKernel:
    """The source and machine code of a kernel, and how to launch it."""

    name: str
    source: str
    launches: tuple[Launch, ...]
    workspace_bytes: int
    flops: int
    resources: Mapping[str, Resources]
    cubin: bytes

    def planned(self) -> KernelInfo:
        """What the memory planner needs to know."""
        can_fail = any(launch.can_fail for launch in self.launches)
        return KernelInfo(self.name, self.workspace_bytes, can_fail, self.nanoseconds())

    def nanoseconds(self) -> float | None:
        """Estimated time; None for a kernel whose blocks leave no room for another's."""
        if any(math.prod(launch.grid) > _ROOM for launch in self.launches):
            return None
        return _LAUNCH * len(self.launches) + self.flops / _FLOPS_PER_NANOSECOND

    def to_bytes(self) -> bytes:
        head = json.dumps(
            [self.name, self.source, [asdict(one) for one in self.launches],
             self.workspace_bytes, self.flops,
             {name: asdict(r) for name, r in self.resources.items()}]
        ).encode()  # fmt: skip
        return len(head).to_bytes(4, "little") + head + self.cubin

    @staticmethod
    def from_bytes(data: bytes) -> CompiledCudaKernel:
        size = int.from_bytes(data[:4], "little")
        name, source, launches, workspace, flops, resources = json.loads(data[4 : 4 + size])
        return CompiledCudaKernel(
            name,
            source,
            tuple(launch_from_json(one) for one in launches),
            workspace,
            flops,
            {entry: Resources(**r) for entry, r in resources.items()},
            data[4 + size :],
        )


def generate_cuda(
    function: Function, target: Target, extension: Extension = NO_EXTENSION
) -> CudaKernel:
    """te, schedule, tir and CUDA C++ of one primitive function."""
    name = kernel_name(function)
    func = build_kernel(function, target, name, extension)
    comment = label_of(function)
    if PLAIN in func.attrs:
        comment += f"\n{_PLAIN_NOTE}: {func.attrs[PLAIN]}"
    return emit_cuda(func, target.arch, comment, target.programmatic)


def compile_cuda_kernels(
    main: Function,
    target: Target,
    cache: Cache,
    report: Callable[[str, int, int], None],
    extension: Extension = NO_EXTENSION,
) -> dict[str, CompiledCudaKernel]:
    """The distinct kernels of a fused function, by structural key, compiled for `target.arch`.

    Raises:
        TinycompError: NVRTC is missing, or does not know the architecture.
    """
    functions = primitive_functions(main)
    if functions:
        library()  # say at once that it is missing
    pending: dict[str, CompiledCudaKernel | Future[CompiledCudaKernel]] = {}
    report("compile kernels", 0, len(functions))
    with ThreadPoolExecutor(_WORKERS) as pool:
        for done, (key, function) in enumerate(functions.items()):
            entry = content_key(
                "cuda", key, kernel_name(function), repr(target), extension.key, source_digest()
            )
            stored = cache.get(entry)
            if stored is not None:
                pending[key] = CompiledCudaKernel.from_bytes(stored)
            else:
                kernel = generate_cuda(function, target, extension)
                flops = function_flops(function)
                pending[key] = pool.submit(_finish, kernel, flops, target, cache, entry)
            report("compile kernels", done + 1, len(functions))
        return {k: p.result() if isinstance(p, Future) else p for k, p in pending.items()}


def _finish(
    kernel: CudaKernel, flops: int, target: Target, cache: Cache, entry: str
) -> CompiledCudaKernel:
    cubin = compile_cuda(kernel.source, target.arch, f"{kernel.name}.cu")
    compiled = CompiledCudaKernel(
        kernel.name, kernel.source, kernel.launches, kernel.workspace_bytes, flops,
        cubin.kernels, cubin.code,
    )  # fmt: skip
    cache.put(entry, compiled.to_bytes())
    return compiled


def _precisions(main: Function, kernels: Mapping[str, CompiledCudaKernel]) -> dict[str, str]:
    """What each kernel computes in: a product that was allowed tf32, or was split for tensor cores,
    but got none is float32 still. One that no default schedule fits says so."""
    found = kernel_precisions(main)
    for kernel in kernels.values():
        asked = found[kernel.name]
        if "mma." in kernel.source:
            found[kernel.name] = f"{asked} (tensor cores)"
        else:
            found[kernel.name] = asked.replace("tf32", "fp32").replace("bf16x6", "fp32")
        if f"// {_PLAIN_NOTE}" in kernel.source:
            found[kernel.name] += f" ({_PLAIN_NOTE})"
    return found


def assemble_cuda(
    module: IRModule,
    kernels: Mapping[str, CompiledCudaKernel],
    target: Target,
    options: Mapping[str, Any],
    parameters: int,
) -> Artifact:
    """Memory plan, launches and constants around compiled kernels."""
    import llvmlite

    pool = ConstantPool()
    plan = plan_memory(
        module.main,
        lambda b: kernels[b.value.op.attrs["key"]].planned(),  # type: ignore[union-attr]
        pool,
        ONE if target.programmatic else _STREAMS,  # streams that meet wait for whole kernels
    )
    constants = aligned_empty((pool.nbytes,), np.dtype(np.uint8))
    pool.write_into(constants)
    manifest = Manifest(
        target=target,
        inputs=specs(module.input_names, plan.inputs, "input"),
        outputs=specs(module.output_names, plan.outputs, "output"),
        kernels=kernel_infos(plan, kernels, _precisions(module.main, kernels)),
        arena_bytes=plan.arena_bytes,
        unshared_bytes=plan.unshared_bytes,
        parameters=parameters,
        options=dict(options),
        generator=source_digest(),
        llvmlite=llvmlite.__version__,
    )
    held = {k.name: k for k in kernels.values()}
    extra = CudaPlan(
        plan,
        {name: k.launches for name, k in held.items()},
        {name: k.resources for name, k in held.items()},
    )
    texts = {
        "relay": str(module),
        "kernels": kernels_text(module.main),
        "cuda": "\n\n".join(f"// ---- {n}\n{k.source}" for n, k in held.items()),
        "plan": extra.to_json(),
    }
    return Artifact(manifest, {n: k.cubin for n, k in held.items()}, constants, texts)
