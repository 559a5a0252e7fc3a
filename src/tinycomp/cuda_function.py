"""A single kernel for a GPU, made by `build(schedule, args, target="cuda")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .codegen.cuda.access import LaunchAccess, find_accesses
from .codegen.cuda.emit import CudaKernel, emit_cuda
from .codegen.cuda.nvrtc import Cubin, Resources, compile_cuda
from .diagnostics import TinycompError
from .ir.expr import Var
from .runtime.cuda.arrays import stream_handle
from .runtime.cuda.driver import Driver, open_driver
from .runtime.cuda.kernel import DeviceKernel, DeviceView
from .runtime.function import TimeResult
from .runtime.signature import Signature, bind_host
from .target import Target
from .tir.gpu_executor import run as execute
from .tir.nodes import PrimFunc


class LoweredKernel(Protocol):
    """The part of `driver.Lowered` that is needed here."""

    target: Target
    func: PrimFunc
    sizes: Any

    @property
    def signature(self) -> Signature: ...

    def at(self, sizes: dict[Var, int]) -> PrimFunc: ...


class CudaFunction:
    """A kernel in CUDA C++: to read, to compile, to check on the CPU, and to run.

    Symbolic dimensions take their values from the shapes of the arrays; each set of sizes is
    compiled on its own.

    >>> import numpy as np
    >>> from tinycomp import te, build
    >>> A = te.placeholder((1000,), name="A")
    >>> B = te.compute((1000,), lambda i: A[i] * 2.0, name="B")
    >>> s = te.create_schedule(B.op)
    >>> block, thread = s[B].split("i", factor=128)
    >>> s[B].bind(block, "blockIdx.x"), s[B].bind(thread, "threadIdx.x")
    (None, None)
    >>> double = build(s, [A, B], target="cuda -arch=sm_90a")
    >>> a, b = np.ones(1000, "float32"), np.empty(1000, "float32")
    >>> double.simulate(a, b)
    >>> b.sum()
    np.float32(2000.0)
    >>> double.launches[0].grid, double.launches[0].block
    ((8, 1, 1), (128, 1, 1))
    """

    def __init__(self, lowered: LoweredKernel, driver: Driver | None = None) -> None:
        self.lowered, self.target = lowered, lowered.target
        self._driver = driver  # tests pass one; else this machine's is opened by the first call
        self._loaded: dict[tuple[int, ...], DeviceKernel] = {}
        self.signature = lowered.signature
        self.name = self.signature.name
        self._kernels: dict[tuple[int, ...], CudaKernel] = {}
        self._cubins: dict[tuple[int, ...], Cubin] = {}
        self._last: tuple[int, ...] | None = None
        if not lowered.sizes:
            self._kernel({})  # a schedule that the architecture cannot run is refused now

    def __call__(self, *arguments: Any, stream: Any = 0) -> None:
        """Run on the GPU, on arrays on the device or on NumPy arrays; outputs among them.

        Arrays on the device (CuPy, PyTorch) are used as they are, and the launch is enqueued on
        `stream`, the default stream unless given; it is waited for only if the kernel can fail.
        NumPy arrays are copied to the device and back.

        Raises:
            TinycompError: there is no GPU, or the code is for another one.
            InputError: an argument does not fit.
            ExecutionError: the data made an index out of range.
        """
        if any(isinstance(a, np.ndarray) for a in arguments):
            sizes, arrays = bind_host(self.signature, arguments)
            self._device_kernel(sizes).run_on_host(arrays, self.signature.num_outputs)
            return
        kernel, addresses = self._device_arguments(arguments)
        kernel.launch(addresses, stream_handle(stream))
        if kernel.kernel.can_fail:
            kernel.finish(stream_handle(stream))

    def time_evaluator(
        self, number: int = 10, repeat: int = 10, flush_cache: bool = False
    ) -> Callable[..., TimeResult]:
        """A function that takes arrays on the device and returns the time of a run, by events.

        `repeat` times the mean of `number` launches; `flush_cache` empties L2 before every single
        launch, and ignores `number`.
        """
        if number < 1 or repeat < 1:
            raise TinycompError("time_evaluator: number and repeat must be at least 1")

        def evaluate(*arguments: Any) -> TimeResult:
            kernel, addresses = self._device_arguments(arguments)
            return kernel.measure(addresses, number, repeat, flush_cache)

        return evaluate

    def get_source(self, form: str = "cuda") -> str:
        """The code as "tir" (the program of one thread) or "cuda" (CUDA C++).

        Raises:
            TinycompError: unknown form, or symbolic sizes before a first call.
        """
        if form == "tir":
            return str(self.lowered)
        if form != "cuda":
            raise TinycompError(f"unknown form {form!r}", hint='use "tir" or "cuda"')
        return self._current().source

    @property
    def launches(self) -> Sequence[Any]:
        """The kernel launches of a call, with their grids, blocks and shared memory."""
        return self._current().launches

    @property
    def resources(self) -> Mapping[str, Resources]:
        """Registers, spills, stack and shared memory of each kernel, as NVRTC's assembler counts.

        Raises:
            TinycompError: NVRTC is not installed, or does not know the architecture.
        """
        return self.cubin.kernels

    @property
    def cubin(self) -> Cubin:
        """The machine code; no GPU is needed to make it. Raises as `resources`."""
        kernel = self._current()
        assert self._last is not None
        if self._last not in self._cubins:
            compiled = compile_cuda(kernel.source, self.target.arch, f"{self.name}.cu")
            self._cubins[self._last] = compiled
        return self._cubins[self._last]

    @property
    def accesses(self) -> Sequence[LaunchAccess]:
        """How the threads of each launch touch memory: sectors and bank conflicts per access."""
        self._current()
        sizes = dict(zip(self.lowered.sizes, self._last or (), strict=True))
        return find_accesses(self.lowered.at(sizes))

    def simulate(self, *arguments: Any) -> None:
        """Run the program of the threads on the CPU, on NumPy arrays, and look for mistakes.

        Raises:
            InputError: an argument does not fit.
            RaceError: threads depend on each other without a barrier between them.
            VerifyError: an access is out of bounds, or reads what was never written.
            ExecutionError: the data made an index out of range.
        """
        sizes, arrays = bind_host(self.signature, arguments)
        self._kernel(sizes)
        execute(self.lowered.at(sizes), [np.asarray(a) for a in arrays])

    def _device_arguments(self, arguments: Sequence[Any]) -> tuple[DeviceKernel, list[int]]:
        sizes, views = self.signature.bind(arguments, DeviceView)
        return self._device_kernel(sizes), [view.address for view in views]

    def _device_kernel(self, sizes: dict[Var, int]) -> DeviceKernel:
        kernel = self._kernel(sizes)
        assert self._last is not None
        if self._last not in self._loaded:
            driver = self._driver or open_driver()
            self._loaded[self._last] = DeviceKernel(kernel, self.cubin, driver)
        return self._loaded[self._last]

    def _kernel(self, sizes: dict[Var, int]) -> CudaKernel:
        key = tuple(sizes[v] for v in self.lowered.sizes)
        if key not in self._kernels:
            self._kernels[key] = emit_cuda(self.lowered.at(sizes), self.target.arch)
        self._last = key
        return self._kernels[key]

    def _current(self) -> CudaKernel:
        if self._last is None:
            raise TinycompError(
                f"{self.name} has symbolic dimensions and is compiled for each size when called",
                hint="call it or simulate() once; the code of the last size compiled is shown",
            )
        return self._kernels[self._last]
