"""A single kernel for a GPU, made by `build(schedule, args, target="cuda")`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .codegen.cuda import CudaKernel, emit_cuda
from .codegen.nvrtc import Cubin, Resources, compile_cuda
from .diagnostics import TinycompError
from .ir.expr import Var
from .runtime.signature import Signature, check_aliasing, host_array
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

    def __init__(self, lowered: LoweredKernel) -> None:
        self.lowered, self.target = lowered, lowered.target
        self.signature = lowered.signature
        self.name = self.signature.name
        self._kernels: dict[tuple[int, ...], CudaKernel] = {}
        self._cubins: dict[tuple[int, ...], Cubin] = {}
        self._last: tuple[int, ...] | None = None
        if not lowered.sizes:
            self._kernel({})  # a schedule that the architecture cannot run is refused now

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

    def simulate(self, *arguments: Any) -> None:
        """Run the program of the threads on the CPU, on NumPy arrays, and look for mistakes.

        Raises:
            InputError: an argument does not fit.
            RaceError: threads depend on each other without a barrier between them.
            VerifyError: an access is out of bounds, or reads what was never written.
            ExecutionError: the data made an index out of range.
        """
        outputs = self.signature.outputs
        sizes, arrays = self.signature.bind(
            arguments, lambda value, buffer: host_array(value, buffer, buffer in outputs)
        )
        check_aliasing(self.signature, arrays)
        self._kernel(sizes)
        execute(self.lowered.at(sizes), [np.asarray(a) for a in arrays])

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
