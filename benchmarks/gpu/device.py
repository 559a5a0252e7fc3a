"""tinycomp's kernels on a device: compiled here, launched by addresses, buffers poisoned before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import Env

from tinycomp.codegen.cuda import CudaKernel, emit_cuda
from tinycomp.codegen.cuda_limits import Launch
from tinycomp.codegen.nvrtc import compile_cuda
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Atom, IRModule
from tinycomp.relay.plan import BufferRef, Copy, KernelCall, Space
from tinycomp.runtime.cuda import CudaModule
from tinycomp.runtime.tensor_maps import encode_tensor_map
from tinycomp.testing.gpu import run_on_cpu
from tinycomp.tir.gpu_executor import run as execute
from tinycomp.tir.nodes import PrimFunc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SHARED_LIMIT_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_DEVICE_TO_DEVICE = 3
POISON = 0xFF  # NaN in every float format, -1 in every signed integer


def load(code: bytes, launches: Sequence[Launch]) -> dict[str, Any]:
    """The functions of a cubin by name, allowed the shared memory that they ask for."""
    import cupy

    module = cupy.cuda.function.Module()
    module.load(code)
    functions = {}
    for launch in launches:
        function = module.get_function(launch.name)
        if launch.dynamic_shared:
            cupy.cuda.driver.funcSetAttribute(
                function.ptr, _SHARED_LIMIT_ATTRIBUTE, launch.dynamic_shared
            )
        functions[launch.name] = function
    return functions


def start(
    function: Any, launch: Launch, addresses: Sequence[int], workspace: int, error: int, stream: Any
) -> None:
    """Enqueue one launch."""
    arguments: list[Any] = [np.uint64(addresses[i]) for i in launch.params]
    arguments += [np.uint64(workspace + offset) for offset in launch.workspace]
    arguments += [encode_tensor_map(m, addresses[m.param]) for m in launch.maps]
    if launch.can_fail:
        arguments += [np.uint64(error), np.int32(1)]
    function(launch.grid, launch.block, tuple(arguments), launch.dynamic_shared, stream)


# ---- one lowered function


def run_func(func: PrimFunc, arrays: Sequence[np.ndarray], env: Env) -> list[np.ndarray]:
    """The arrays after a lowered function ran, on the device or (dry) on the executor."""
    kernel = emit_cuda(func, env.arch)
    cubin = compile_cuda(kernel.source, env.arch, f"{func.name}.cu")
    if env.dry:
        copies = [a.copy() for a in arrays]
        execute(func, copies)
        return copies
    return _run_kernel(kernel, cubin.code, arrays)


def _run_kernel(kernel: CudaKernel, code: bytes, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    import cupy

    functions = load(code, kernel.launches)
    device = [cupy.asarray(a) for a in arrays]
    workspace = cupy.full(kernel.workspace_bytes + 256, POISON, np.uint8)
    error = cupy.zeros(1, np.int32)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.runtime.deviceSynchronize()
    for launch in kernel.launches:
        start(
            functions[launch.name], launch, [d.data.ptr for d in device], workspace.data.ptr,
            error.data.ptr, stream,
        )  # fmt: skip
    stream.synchronize()
    return [cupy.asnumpy(d) for d in device]


# ---- a program of kernels


@dataclass
class Buffers:
    """Arrays on the device for one run of a program."""

    inputs: list[Any]
    outputs: list[Any]
    arena: Any


class Program:
    """A compiled module whose kernels are launched on any set of buffers.

    It runs straight-line plans only; all kernels of a run go to one stream.
    """

    def __init__(self, module: CudaModule, env: Env) -> None:
        self.module, self.env = module, env
        self.plan = module.plan
        self.steps = self.plan.plan.steps
        assert all(isinstance(s, KernelCall | Copy) for s in self.steps), "the plan has branches"
        if env.dry:
            return
        import cupy

        self.cupy = cupy
        self.functions: dict[str, Any] = {}
        for name, code in module.artifact.objects.items():
            self.functions |= load(code, self.plan.launches[name])
        self.constants = cupy.asarray(module.artifact.constants)
        self.error = cupy.zeros(1, np.int32)

    @property
    def kernels(self) -> int:
        """Launches of one run."""
        calls = [s for s in self.steps if isinstance(s, KernelCall)]
        return sum(len(self.plan.launches[c.kernel]) for c in calls)

    def buffers(self, inputs: Sequence[np.ndarray]) -> Buffers:
        """Inputs copied to the device, outputs and working memory poisoned."""
        cupy, plan = self.cupy, self.plan.plan
        outputs = []
        for type_ in plan.outputs:
            raw = cupy.full(max(1, type_.nbytes), POISON, np.uint8)
            outputs.append(raw)
        arena = cupy.full(max(1, plan.arena_bytes), POISON, np.uint8)
        return Buffers([cupy.asarray(_bytes(a)) for a in inputs], outputs, arena)

    def enqueue(self, stream: Any, buffers: Buffers) -> None:
        """All kernels of one run."""
        for step in self.steps:
            if isinstance(step, Copy):
                self.cupy.cuda.runtime.memcpyAsync(
                    self._address(step.target, buffers), self._address(step.source, buffers),
                    step.source.nbytes, _DEVICE_TO_DEVICE, stream.ptr,
                )  # fmt: skip
                continue
            assert isinstance(step, KernelCall)
            addresses = [self._address(ref, buffers) for ref in step.args]
            base = 0 if step.workspace is None else self._address(step.workspace, buffers)
            for launch in self.plan.launches[step.kernel]:
                function = self.functions[launch.name]
                start(function, launch, addresses, base, self.error.data.ptr, stream)

    def _address(self, ref: BufferRef, buffers: Buffers) -> int:
        if ref.space is Space.INPUT:
            return buffers.inputs[ref.position].data.ptr + ref.offset
        if ref.space is Space.OUTPUT:
            return buffers.outputs[ref.position].data.ptr + ref.offset
        base = self.constants if ref.space is Space.CONSTANT else buffers.arena
        return base.data.ptr + ref.position + ref.offset

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for inputs; dry, on the executor."""
        if self.env.dry:
            named = dict(zip([s.name for s in self.module.inputs], inputs, strict=True))
            return list(run_on_cpu(self.module, named).values())
        buffers = self.buffers(inputs)
        stream = self.cupy.cuda.Stream(non_blocking=True)
        self.cupy.cuda.runtime.deviceSynchronize()
        self.enqueue(stream, buffers)
        stream.synchronize()
        return self.results(buffers)

    def results(self, buffers: Buffers) -> list[np.ndarray]:
        """What a run left in the outputs."""
        return [
            self.cupy.asnumpy(raw)[: t.nbytes].view(t.dtype.numpy).reshape(t.static_shape)
            for raw, t in zip(buffers.outputs, self.plan.plan.outputs, strict=True)
        ]


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def compile_graph(
    env: Env,
    make: Callable[..., Atom],
    *inputs: tuple[Sequence[int], str],
    precision: str = "fp32",
    constants: Mapping[int, np.ndarray] | None = None,
) -> Program:
    """A graph of operators, `make(builder, *inputs)`, compiled; inputs are (shape, dtype).

    `constants` are the inputs, by position, whose values are known: weights.
    """
    builder = Builder(default_ops())
    known = constants or {}
    args = [
        builder.const(known[i]) if i in known else builder.param(f"x{i}", shape, dtype)
        for i, (shape, dtype) in enumerate(inputs)
    ]
    function = builder.finish(make(builder, *args))
    names = tuple(p.name for p in function.params)
    return compile_module(env, IRModule({"main": function}, names, ("y",)), precision)


def compile_module(env: Env, model: Any, precision: str = "fp32") -> Program:
    """A model compiled for the device."""
    module = compile_with(Config.from_environment(), model, target=env.target, precision=precision)
    assert isinstance(module, CudaModule)
    return Program(module, env)


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """‖got - wanted‖ / ‖wanted‖ in float64; infinite if NaNs and infinities differ."""
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(b)
    norm = float(np.linalg.norm(b[finite]))
    return float(np.linalg.norm((a - b)[finite])) / (norm or 1.0)
