"""tinycomp's kernels on a device: compiled here, run on buffers that are poisoned before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import Env

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.cuda.nvrtc import compile_cuda
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Atom, IRModule
from tinycomp.relay.plan import Branch, KernelCall, Repeat, all_steps
from tinycomp.runtime.cuda.driver import Driver, open_driver
from tinycomp.runtime.cuda.kernel import DeviceKernel
from tinycomp.runtime.cuda.module import CudaModule
from tinycomp.runtime.cuda.program import DeviceProgram, Frame, host_bytes
from tinycomp.testing.fake_cuda import FakeArrays, FakeDriver
from tinycomp.tir.nodes import PrimFunc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

POISON = 0xFF  # NaN in every float format, -1 in every signed integer
_PIECE = 32 << 20


def driver_of(env: Env) -> Driver:
    """The device that cases run on."""
    return env.driver or open_driver()


def run_func(
    func: PrimFunc, arrays: Sequence[np.ndarray], env: Env, num_outputs: int = 1
) -> list[np.ndarray]:
    """The arrays after a lowered function ran on the device."""
    kernel = emit_cuda(func, env.arch)
    cubin = compile_cuda(kernel.source, env.arch, f"{func.name}.cu")
    copies = [np.array(a, order="C") for a in arrays]
    for output in copies[len(copies) - num_outputs :]:
        output.reshape(-1).view(np.uint8)[:] = POISON
    driver = driver_of(env)
    if isinstance(driver, FakeDriver):
        driver.know_kernel(cubin.code, kernel.launches, func)
    DeviceKernel(kernel, cubin, driver).run_on_host(copies, num_outputs)
    return copies


class Program:
    """A compiled model whose kernels run on any number of sets of buffers.

    Where nothing runs it only holds the module. Plans with branches are for `module.run`.
    """

    def __init__(self, module: CudaModule, env: Env) -> None:
        self.module, self.plan = module, module.plan
        self.steps = self.plan.plan.steps
        if env.compile_only:
            return
        self.driver = driver_of(env)
        if isinstance(self.driver, FakeDriver):
            self.driver.know(module.artifact)
            arrays = FakeArrays(self.driver)
            self.module = CudaModule(module.artifact, driver=self.driver, arrays=arrays)
        self.program = DeviceProgram(module.artifact, self.plan, self.driver)

    @property
    def kernels(self) -> int:
        """Launches of one run."""
        calls = [s for s in all_steps(self.steps) if isinstance(s, KernelCall)]
        return sum(len(self.plan.launches[c.kernel]) for c in calls)

    @property
    def has_branches(self) -> bool:
        return any(isinstance(s, Branch | Repeat) for s in all_steps(self.steps))

    def frame(self, inputs: Sequence[np.ndarray]) -> Frame:
        """Buffers of one run: inputs on the device, outputs and working memory poisoned."""
        assert not self.has_branches
        frame, driver = Frame(self.program), self.driver
        staging = driver.allocate_host(_PIECE)
        end = max(o + n for o, n in zip(
            frame.fixed.outputs, self.program.output_bytes, strict=True
        ))  # fmt: skip
        host_bytes(staging, _PIECE)[:] = POISON
        for start in range(frame.arena, end, _PIECE):
            driver.copy(start, staging, min(_PIECE, end - start), frame.stream)
        driver.synchronize(frame.stream)
        driver.free_host(staging)
        for position, array in enumerate(inputs):
            frame.stage(position, np.ascontiguousarray(array), frame.stream)
        driver.synchronize(frame.stream)
        return frame

    def enqueue(self, frame: Frame, stream: int) -> None:
        """All kernels of one run, not as a graph, so that a caller can capture them."""
        frame.enqueue(frame.fixed, stream)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs for inputs."""
        frame = self.frame(inputs)
        self.enqueue(frame, frame.stream)
        return self.results(frame)

    def results(self, frame: Frame) -> list[np.ndarray]:
        """What a run left in the outputs."""
        arrays = [np.empty(t.static_shape, t.dtype.numpy) for t in self.plan.plan.outputs]
        frame.finish(frame.fixed, arrays, frame.stream)
        return arrays


class TorchTensors:
    """PyTorch's tensors on the GPU, as a user of `module.run` has them."""

    def __init__(self) -> None:
        import torch

        self.torch, self.stream = torch, torch.cuda.current_stream()

    def put(self, array: np.ndarray) -> Any:
        from peers.torch_ops import on_device

        return on_device(array)

    def get(self, tensor: Any) -> np.ndarray:
        from peers.torch_ops import to_numpy

        return to_numpy(tensor)

    def finish(self) -> None:
        self.torch.cuda.synchronize()


class FakeTensors:
    """The same on the device made of NumPy."""

    def __init__(self, driver: Driver) -> None:
        assert isinstance(driver, FakeDriver)
        self.driver, self.stream = driver, 0

    def put(self, array: np.ndarray) -> Any:
        return self.driver.array(array)

    def get(self, tensor: Any) -> np.ndarray:
        return tensor.get()

    def finish(self) -> None:
        self.driver.synchronize(self.stream)


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


def compile_module(
    env: Env, model: Any, precision: str = "fp32", target: str = "",
    dims: Mapping[str, int] | None = None,
) -> Program:  # fmt: skip
    """A model compiled for the device."""
    module = compile_with(
        Config.from_environment(), model, target=target or env.target, precision=precision,
        dims=dims,
    )  # fmt: skip
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
