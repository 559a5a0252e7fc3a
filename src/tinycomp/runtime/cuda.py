"""A model compiled for a GPU. CuPy holds memory, streams and the CUDA graph.

Not run on a GPU yet: see benchmarks/gpu/PENDING.md. Everything but running works without one.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..diagnostics import ExecutionError, Span, TinycompError
from ..relay.plan import Branch, BufferRef, Copy, KernelCall, Repeat, Space, Step, all_steps
from .arrays import check_input, check_names
from .artifact import Artifact
from .cuda_driver import present_arch
from .cuda_plan import CudaPlan
from .module import Module
from .profiler import Profile
from .tensor_maps import encode_tensor_map

LEVELS = ("relay", "te", "tir", "cuda")
_SHARED_LIMIT_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class CudaModule(Module):
    """A model compiled for a GPU; made by `tinycomp.compile(..., target="cuda")` or `load`.

    `run` takes NumPy arrays, which are copied, and CuPy or other DLPack arrays on the device,
    which are not; results are CuPy arrays if any input was on the device, else NumPy arrays.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.num_threads = 1
        self._device: _Device | None = None

    @property
    def levels(self) -> tuple[str, ...]:
        return LEVELS

    @property
    def plan(self) -> CudaPlan:
        """Steps, launches, and what each kernel uses of the machine."""
        return CudaPlan.from_json(self._artifact.texts["plan"])

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name for inputs by name.

        Raises:
            TinycompError: no GPU, no driver or no CuPy; or a GPU that the code is not for.
            InputError: an input is missing, unknown, or of another dtype or shape.
            ExecutionError: the data made an index out of range.
        """
        check_names(inputs, self.inputs)
        if self._device is None:
            self._device = _Device(self._artifact, self.plan)
        return self._device.run(inputs, self)

    def profile(self, inputs: Mapping[str, Any], *, repeat: int = 10) -> Profile:
        raise TinycompError(
            "profiling on a GPU is not available yet", hint="use nsys or ncu on `tinycomp run`"
        )


def _import_cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise TinycompError(
            "running on a GPU needs CuPy, which is not installed",
            hint='pip install "tinycomp[cuda]"',
        ) from error


def _require_gpu(arch: str) -> None:
    present = present_arch()
    if not present:
        raise TinycompError(
            f"this module is compiled for CUDA ({arch}), but no GPU or CUDA driver is found",
            hint="run it on a machine with an NVIDIA GPU, or compile for the CPU: target='llvm'; "
            "`tinycomp doctor` shows what is found",
        )
    wanted, have = arch.removeprefix("sm_"), present.removeprefix("sm_")
    specific = wanted.endswith(("a", "f"))
    fits = wanted == have if specific else wanted[:-1] == have.rstrip("a")[:-1]
    if not fits:
        raise TinycompError(
            f"this module is compiled for {arch}, but the GPU is {present}",
            hint=f"compile it again with target='cuda -arch={present}'",
        )


class _Device:
    """Kernels and memory of a model on the current device, and its recorded graph."""

    def __init__(self, artifact: Artifact, plan: CudaPlan) -> None:
        _require_gpu(artifact.manifest.target.arch)
        self.cupy = cupy = _import_cupy()
        self.plan = plan
        self.functions: dict[str, Any] = {}
        for kernel, code in artifact.objects.items():
            module = cupy.cuda.function.Module()
            module.load(code)
            for launch in plan.launches[kernel]:
                function = module.get_function(launch.name)
                if launch.dynamic_shared:
                    cupy.cuda.driver.funcSetAttribute(
                        function.ptr, _SHARED_LIMIT_ATTRIBUTE, launch.dynamic_shared
                    )
                self.functions[launch.name] = function
        self.constants = cupy.asarray(artifact.constants)
        self.arena = cupy.empty(max(1, plan.plan.arena_bytes), np.uint8)
        self.error = cupy.zeros(1, np.int32)
        types = plan.plan
        self.inputs = [cupy.empty(t.static_shape, t.dtype.numpy) for t in types.inputs]
        self.outputs = [cupy.empty(t.static_shape, t.dtype.numpy) for t in types.outputs]
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.calls = [s for s in all_steps(plan.plan.steps) if isinstance(s, KernelCall)]
        self.graph: Any = None
        if not any(isinstance(s, Branch | Repeat) for s in plan.plan.steps):
            with self.stream:
                self.stream.begin_capture()
                self._run(plan.plan.steps)
                self.graph = self.stream.end_capture()

    def run(self, inputs: Mapping[str, Any], module: CudaModule) -> dict[str, Any]:
        cupy = self.cupy
        on_device = False
        with self.stream:
            for spec, target in zip(module.inputs, self.inputs, strict=True):
                value = inputs[spec.name]
                if hasattr(value, "__cuda_array_interface__"):
                    on_device = True
                    target[...] = cupy.asarray(value)
                else:
                    target.set(np.ascontiguousarray(check_input(value, spec)), stream=self.stream)
            if self.graph is None:
                self._run(self.plan.plan.steps)
            else:
                self.graph.launch(self.stream)
            results = [output.copy() for output in self.outputs]
        self.stream.synchronize()
        self._check()
        names = [spec.name for spec in module.outputs]
        arrays = results if on_device else [r.get() for r in results]
        return dict(zip(names, arrays, strict=True))

    def _check(self) -> None:
        code = int(self.error[0]) if any(c.can_fail for c in self.calls) else 0
        if code:
            self.error.fill(0)
            raise ExecutionError(
                "an index computed from the inputs is out of range",
                span=Span(self.calls[code - 1].span.nodes),
                hint="check the inputs: token ids and positions must lie inside their tables",
            )

    def _run(self, steps: Sequence[Step]) -> None:
        """Enqueue the steps. A condition is read back, so branches wait for the device."""
        work: list[Step] = list(reversed(steps))
        while work:
            step = work.pop()
            if isinstance(step, KernelCall):
                self._launch(step)
            elif isinstance(step, Copy):
                source, target = self._address(step.source), self._address(step.target)
                self.cupy.cuda.runtime.memcpyAsync(
                    target,
                    source,
                    step.source.nbytes,
                    3,
                    self.stream.ptr,  # device to device
                )
            elif isinstance(step, Branch):
                taken = step.then_steps if self._condition(step.condition) else step.else_steps
                work.extend(reversed(taken))
            elif isinstance(step, Repeat):
                work.append(Branch(step.condition, (*step.body_steps, step), ()))
                work.extend(reversed(step.condition_steps))

    def _launch(self, call: KernelCall) -> None:
        addresses = [self._address(ref) for ref in call.args]
        base = 0 if call.workspace is None else self._address(call.workspace)
        for launch in self.plan.launches[call.kernel]:
            arguments: list[Any] = [np.uint64(addresses[i]) for i in launch.params]
            arguments += [np.uint64(base + offset) for offset in launch.workspace]
            arguments += [encode_tensor_map(m, addresses[m.param]) for m in launch.maps]
            if launch.can_fail:
                number = next(i for i, c in enumerate(self.calls) if c is call)
                arguments += [np.uint64(self.error.data.ptr), np.int32(number + 1)]
            self.functions[launch.name](
                launch.grid, launch.block, tuple(arguments), launch.dynamic_shared, self.stream
            )

    def _address(self, ref: BufferRef) -> int:
        if ref.space is Space.INPUT:
            return self.inputs[ref.position].data.ptr + ref.offset
        if ref.space is Space.OUTPUT:
            return self.outputs[ref.position].data.ptr + ref.offset
        base = self.constants if ref.space is Space.CONSTANT else self.arena
        return base.data.ptr + ref.position + ref.offset

    def _condition(self, ref: BufferRef) -> bool:
        value = np.zeros(1, np.bool_)
        self.cupy.cuda.runtime.memcpyAsync(
            value.ctypes.data,
            self._address(ref),
            1,
            2,
            self.stream.ptr,  # device to host
        )
        self.stream.synchronize()
        return bool(value[0])
