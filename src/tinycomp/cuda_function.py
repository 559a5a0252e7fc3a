"""A single kernel for a GPU, made by `build(schedule, args, target="cuda")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .codegen.cuda.access import LaunchAccess, find_accesses
from .codegen.cuda.emit import CudaKernel, SymbolicKernel, emit_symbolic, fits_int
from .codegen.cuda.limits import check_launch
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
from .tir.specialize import specialize_sizes

_MOST_CALLS = 1024  # sets of sizes whose launches are remembered


class LoweredKernel(Protocol):
    """The part of `driver.Lowered` that is needed here."""

    target: Target
    sizes: Any

    @property
    def func(self) -> PrimFunc: ...

    @property
    def signature(self) -> Signature: ...

    def at(self, sizes: dict[Var, int]) -> PrimFunc: ...


class CudaFunction:
    """A kernel in CUDA C++: to read, to compile, to check on the CPU, and to run.

    Symbolic sizes take their values from the shapes of the arrays. The code is for all of them: it
    takes `int n`, and, where indices of a call might not fit an int, is compiled once more with
    `long long n`. With `specialize`, each set of sizes is compiled on its own.

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

    def __init__(
        self, lowered: LoweredKernel, driver: Driver | None = None, specialize: bool = False
    ) -> None:
        self.lowered, self.target = lowered, lowered.target
        self._driver = driver  # tests pass one; else this machine's is opened by the first call
        self.signature = lowered.signature
        self.name = self.signature.name
        self._specialize = specialize and bool(lowered.sizes)
        self._codes: dict[Any, _Code] = {}  # by sizes if specialized, else by whether it is wide
        self._calls: dict[tuple[int, ...], _Call] = {}
        self._fits: dict[tuple[int, ...], bool] = {}
        self._last: _Call | None = None
        if not lowered.sizes:
            self._call({})  # a schedule that the architecture cannot run is refused now
        elif not self._specialize:
            self._code(False)

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
            call = self._call(sizes)
            outputs = self.signature.num_outputs
            self._on_device(call).run_on_host(arrays, outputs, call.kernel)
            return
        call, addresses = self._device_arguments(arguments)
        device = self._on_device(call)
        device.launch(addresses, stream_handle(stream), call.kernel)
        if call.kernel.can_fail:
            device.finish(stream_handle(stream))

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
            call, addresses = self._device_arguments(arguments)
            device = self._on_device(call)
            return device.measure(addresses, number, repeat, flush_cache, call.kernel)

        return evaluate

    def get_source(self, form: str = "cuda") -> str:
        """The code as "tir" (the program of one thread) or "cuda" (CUDA C++).

        Raises:
            TinycompError: unknown form, or specialised code before a first call.
        """
        if form == "tir":
            return str(self.lowered)
        if form != "cuda":
            raise TinycompError(f"unknown form {form!r}", hint='use "tir" or "cuda"')
        return self._current().symbolic.source

    @property
    def launches(self) -> Sequence[Any]:
        """The kernel launches of the last call, with their grids, blocks and shared memory; before
        a first one those of symbolic sizes have expressions in them."""
        if self._last is None:
            return self._current().symbolic.launches
        return self._last.kernel.launches

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
        code = self._current()
        if code.cubin is None:
            source = code.symbolic.source
            code.cubin = compile_cuda(source, self.target.arch, f"{self.name}.cu")
        return code.cubin

    @property
    def accesses(self) -> Sequence[LaunchAccess]:
        """How the threads of each launch touch memory: sectors and bank conflicts per access; with
        symbolic sizes, in the last call."""
        if self._last is None:
            sizes = ", ".join(f"{v.name}=..." for v in self.lowered.sizes)
            raise TinycompError(
                f"{self.name} has symbolic sizes, which no call has given yet",
                hint=f"accesses_at({sizes})",
            )
        return find_accesses(specialize_sizes(self._last.code.func, self._last.sizes))

    def accesses_at(self, **sizes: int) -> Sequence[LaunchAccess]:
        """`accesses` for given values of the symbolic sizes, by their names."""
        names = {v.name: v for v in self.lowered.sizes}
        if names.keys() != sizes.keys():
            raise TinycompError(f"the sizes of {self.name} are {list(names)}, got {list(sizes)}")
        self._call({names[name]: value for name, value in sizes.items()})
        return self.accesses

    def simulate(self, *arguments: Any) -> None:
        """Run the program of the threads on the CPU, on NumPy arrays, and look for mistakes.

        Raises:
            InputError: an argument does not fit.
            RaceError: threads depend on each other without a barrier between them.
            VerifyError: an access is out of bounds, or reads what was never written.
            ExecutionError: the data made an index out of range.
        """
        sizes, arrays = bind_host(self.signature, arguments)
        call = self._call(sizes)
        execute(call.code.func, [np.asarray(a) for a in arrays], sizes=sizes)

    def _device_arguments(self, arguments: Sequence[Any]) -> tuple[_Call, list[int]]:
        sizes, views = self.signature.bind(arguments, DeviceView)
        return self._call(sizes), [view.address for view in views]

    def _on_device(self, call: _Call) -> DeviceKernel:
        if call.code.device is None:
            driver = self._driver or open_driver()
            call.code.device = DeviceKernel(call.kernel, self.cubin, driver)
        return call.code.device

    def _call(self, sizes: dict[Var, int]) -> _Call:
        """What is launched for these sizes.

        Raises:
            ScheduleError: the grid is over the limits of the architecture.
        """
        key = tuple(sizes[v] for v in self.lowered.sizes)
        call = self._calls.get(key)
        if call is None:
            code = self._code(key if self._specialize else not self._fits_int(key))
            known = dict(zip(self.lowered.sizes, key, strict=True))
            call = _Call(code, known, code.symbolic.at(known))
            for launch in call.kernel.launches:
                check_launch(launch, self.target.arch, code.func.span)
            if len(self._calls) >= _MOST_CALLS:
                self._calls.clear()
            self._calls[key] = call
        self._last = call
        return call

    def _code(self, key: Any) -> _Code:
        if key not in self._codes:
            if self._specialize:
                func = self.lowered.at(dict(zip(self.lowered.sizes, key, strict=True)))
            else:
                func = self.lowered.func
            wide = key is True
            self._codes[key] = _Code(func, emit_symbolic(func, self.target.arch, wide=wide))
        return self._codes[key]

    def _fits_int(self, sizes: tuple[int, ...]) -> bool:
        """Whether indices of a call fit an int; asked for powers of two, so seldom."""
        if not sizes:
            return True
        return any(
            self._fits_up_to(bounds)
            for bounds in (tuple((1 << n.bit_length()) - 1 for n in sizes), sizes)
        )

    def _fits_up_to(self, bounds: tuple[int, ...]) -> bool:
        if bounds not in self._fits:
            known = dict(zip(self.lowered.sizes, bounds, strict=True))
            self._fits[bounds] = fits_int(self.lowered.func, known)
        return self._fits[bounds]

    def _current(self) -> _Code:
        if self._last is not None:
            return self._last.code
        if self._specialize:
            raise TinycompError(
                f"{self.name} is specialized: it is compiled for each set of sizes when called",
                hint="call it or simulate() once; the code of the last size compiled is shown",
            )
        return self._code(False)


@dataclass
class _Code:
    """One source, with what is made of it when it is needed."""

    func: PrimFunc
    symbolic: SymbolicKernel
    cubin: Cubin | None = None
    device: DeviceKernel | None = None


@dataclass(frozen=True)
class _Call:
    """The code and the launches for some sizes."""

    code: _Code
    sizes: dict[Var, int]
    kernel: CudaKernel
