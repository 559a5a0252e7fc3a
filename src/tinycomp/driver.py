"""From a schedule to a function to call: `lower` and `build`, as in TVM.

>>> import numpy as np
>>> from tinycomp import te
>>> A = te.placeholder((8,), name="A")
>>> B = te.compute((8,), lambda i: A[i] * 2.0, name="B")
>>> s = te.create_schedule(B.op)
>>> double = build(s, [A, B])
>>> a, b = np.arange(8, dtype="float32"), np.empty(8, "float32")
>>> double(a, b)
>>> b.tolist()
[0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .codegen.inspect import SpillReport, find_spills
from .codegen.llvm import KernelIR, assembly, emit_kernel
from .config import Config
from .cuda_function import CudaFunction
from .diagnostics import InputError, TinycompError
from .ir.expr import Load, Var, const
from .runtime.artifact import foreign_reason
from .runtime.cuda.driver import choose_target
from .runtime.function import NativeKernel, TimeResult, measure
from .runtime.signature import Signature, bind_host
from .schedules.gpu.bind import bind_unbound
from .target import Target, default_num_threads
from .te.tensor import Tensor
from .tir.lower import lower as lower_func
from .tir.lower_gpu import lower_gpu
from .tir.nodes import Buffer, PrimFunc
from .tir.schedule import Schedule
from .tir.specialize import specialize, specialize_sizes

Argument = Tensor | Var


class Lowered:
    """A scheduled computation with its arguments; prints as loops.

    Attributes:
        scheduled: the function with its blocks, as the schedule left it.
        arguments: for each argument of a call, its parameter, or the symbolic size it gives.
    """

    def __init__(
        self, scheduled: PrimFunc, arguments: Sequence[Buffer | Var], target: Target
    ) -> None:
        self.scheduled, self.arguments, self.target = scheduled, tuple(arguments), target
        self.sizes = scheduled.sizes
        self._func: PrimFunc | None = None

    @property
    def func(self) -> PrimFunc:
        """The plain loops that code generation takes, for any values of the symbolic sizes."""
        if self._func is None:
            self._func = lower_for(self.scheduled, self.target)
        return self._func

    @property
    def signature(self) -> Signature:
        """What the arguments of a call mean."""
        func = self.scheduled
        return Signature(func.name, self.arguments, func.params, func.num_outputs, func.sizes)

    def at(self, sizes: dict[Var, int]) -> PrimFunc:
        """The plain loops made anew for given values of the symbolic sizes."""
        return lower_for(specialize_sizes(self.scheduled, sizes), self.target)

    def __str__(self) -> str:
        return str(self.func)

    __repr__ = __str__


def lower_for(func: PrimFunc, target: Target) -> PrimFunc:
    """The plain loops of a scheduled function for a target; on a GPU what the schedule left
    unbound gets a sound binding."""
    if target.kind == "cuda":
        return lower_gpu(bind_unbound(func))
    return lower_func(func, target)


def lower(
    schedule: Schedule,
    args: Sequence[Argument],
    name: str = "main",
    *,
    target: str | Target = "llvm",
    simple_mode: bool = False,
) -> Lowered:
    """The loops of a schedule as a function of `args`.

    Args:
        args: every placeholder and every output, in the order in which a call passes them; also
            scalars (`te.var`), which a call passes as numbers.
        simple_mode: stop at the scheduled loops with their blocks, which are shorter to read.

    Raises:
        TinycompError: an argument is missing, given twice, or no input or output.
    """
    func = replace(schedule.func, name=name)
    scalars = [a for a in args if isinstance(a, Var) and a not in func.sizes]
    parameters: dict[Var, Buffer] = {v: Buffer(v.name, (const(1),), v.dtype) for v in scalars}
    if scalars:
        zero = (const(0),)
        func = specialize(func, {v: Load(b, zero, None) for v, b in parameters.items()})
        func = replace(func, params=(*parameters.values(), *func.params))
    own = {b.name: b for b in func.params}
    arguments: list[Buffer | Var] = []
    for argument in args:
        if isinstance(argument, Var):
            arguments.append(parameters.get(argument, argument))
        else:
            buffer = own.get(schedule.buffer_name(argument))
            if buffer is None:
                raise _intermediate(argument, name)
            arguments.append(buffer)
    _check_complete(name, func, arguments)
    if simple_mode:
        return _Simple(func, arguments, choose_target(target))
    return Lowered(func, arguments, choose_target(target))


class _Simple(Lowered):
    def __str__(self) -> str:
        return str(self.scheduled)

    __repr__ = __str__


def _intermediate(tensor: Tensor, name: str) -> TinycompError:
    return TinycompError(
        f"{name}: {tensor.name!r} is neither an input nor an output of the schedule",
        hint=f"to keep its values make it an output: te.create_schedule([..., {tensor.name}])",
    )


def _check_complete(name: str, func: PrimFunc, arguments: Sequence[Buffer | Var]) -> None:
    for i, argument in enumerate(arguments):
        if argument in arguments[:i]:
            raise TinycompError(f"{name}: the argument {argument.name!r} is given twice")
    missing = [b.name for b in func.params if b not in arguments]
    if missing:
        raise TinycompError(
            f"{name}: args lacks {', '.join(map(repr, missing))}",
            hint="list every placeholder that is read and every output",
        )


def build(
    schedule: Schedule | Lowered,
    args: Sequence[Argument] | None = None,
    target: str | Target = "llvm",
    name: str = "main",
    *,
    num_threads: int | None = None,
    specialize: bool = False,
) -> Function | CudaFunction:
    """Compile a schedule to a function `f(*arrays)` that writes its outputs in place.

    Args:
        schedule: a schedule, or what `lower` gave.
        args: see `lower`.
        target: "llvm" for this machine, "llvm -mcpu=NAME" to look at another one's code, or
            "cuda", "cuda -arch=sm_90a": see `CudaFunction`.
        num_threads: threads of parallel loops; default: `TINYCOMP_NUM_THREADS`, else the cores
            that this process may use.
        specialize: with symbolic sizes (`te.var`), compile anew for each set of sizes that calls
            bring, with all guards on them decided; otherwise one code takes any sizes.

    Raises:
        TinycompError: args do not fit the schedule, or the target cannot be compiled for.
        ScheduleError: the schedule needs a size to be known that is symbolic.
    """
    target = schedule.target if isinstance(schedule, Lowered) else choose_target(target)
    if not isinstance(schedule, Lowered):
        if args is None:
            raise TinycompError("build needs args: the inputs and outputs in the order of a call")
        schedule = lower(schedule, args, name, target=target)
    if target.kind == "cuda":
        return CudaFunction(schedule, specialize=specialize)
    threads = num_threads or Config.from_environment().num_threads or default_num_threads()
    return Function(schedule, threads, specialize)


class Function:
    """A compiled kernel; made by `build`.

    Symbolic sizes take their values from the shapes of the arrays. The code is for all of them, or,
    with `specialize`, made anew for each new set of sizes.
    """

    def __init__(self, lowered: Lowered, num_threads: int, specialize: bool = False) -> None:
        self.lowered, self.target, self.num_threads = lowered, lowered.target, num_threads
        self.signature = lowered.signature
        self.name = self.signature.name
        self._specialize = specialize and bool(lowered.sizes)
        self._kernels: dict[tuple[int, ...], NativeKernel] = {}
        self._ir: KernelIR | None = None
        if not self._specialize:
            self._ir = emit_kernel(lowered.func, self.target)
            if not foreign_reason(self.target):
                self._kernels[()] = NativeKernel(self._ir, self.target, num_threads)

    @property
    def entry_name(self) -> str:
        """The native symbol."""
        return self.name

    def __call__(self, *arguments: Any) -> None:
        """Run on arrays (NumPy, or anything with DLPack), outputs among them, and scalars.

        Arrays are used as they are, never copied: dtype and shape must be exact, memory dense.

        Raises:
            InputError: an argument does not fit.
            ExecutionError: the data made an index out of range.
        """
        kernel, arrays, sizes = self._prepare(arguments)
        kernel.call(arrays, 1, sizes)

    def time_evaluator(
        self,
        func_name: str | None = None,
        dev: Any = None,
        number: int = 10,
        repeat: int = 5,
        min_repeat_ms: float = 0.0,
        flush_cache: bool = False,
    ) -> Callable[..., TimeResult]:
        """A function that takes what a call takes and returns the time of a run.

        After one run to warm up, `repeat` times the mean of `number` runs; `number` grows until
        one repeat takes `min_repeat_ms`. `flush_cache` empties the caches before every single
        run, and ignores `number` and `min_repeat_ms`. `func_name` and `dev` are TVM's; there is
        one function here and one device.
        """
        if number < 1 or repeat < 1:
            raise TinycompError("time_evaluator: number and repeat must be at least 1")

        def evaluate(*arguments: Any) -> TimeResult:
            kernel, arrays, sizes = self._prepare(arguments)
            return measure(kernel, arrays, sizes, number, repeat, min_repeat_ms, flush_cache)

        return evaluate

    def get_source(self, form: str = "ll") -> str:
        """The code as "tir" (loops), "ll" (LLVM IR) or "asm".

        Raises:
            TinycompError: unknown form, or specialised code before a first call.
        """
        if form == "tir":
            return str(self.lowered)
        if form not in ("ll", "asm"):
            raise TinycompError(f"unknown form {form!r}", hint='use "tir", "ll" or "asm"')
        if self._ir is None:
            raise TinycompError(
                f"{self.name} is specialized: it is compiled for each set of sizes when called",
                hint="call it once; the code of the last size compiled is shown",
            )
        return self._ir.llvm_text if form == "ll" else assembly(self._ir.llvm_text, self.target)

    def spills(self) -> SpillReport:
        """Vector registers that the machine code moves to the stack and back inside loops."""
        return find_spills(self.get_source("asm"))

    def _prepare(
        self, arguments: Sequence[Any]
    ) -> tuple[NativeKernel, list[np.ndarray], tuple[int, ...]]:
        """The kernel for some arguments, and what it takes: arrays, and sizes."""
        reason = foreign_reason(self.target)
        if reason:
            raise InputError(f"{self.name} is compiled for {reason}", hint="only look at its code")
        sizes, arrays = bind_host(self.signature, arguments)
        key = tuple(sizes[v] for v in self.lowered.sizes)
        if not self._specialize:
            return self._kernels[()], arrays, key
        kernel = self._kernels.get(key)
        if kernel is None:
            self._ir = emit_kernel(self.lowered.at(sizes), self.target)
            kernel = self._kernels[key] = NativeKernel(self._ir, self.target, self.num_threads)
        return kernel, arrays, ()


__all__ = ["CudaFunction", "Function", "Lowered", "TimeResult", "build", "lower"]
