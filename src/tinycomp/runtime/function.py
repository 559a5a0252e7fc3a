"""One compiled kernel as a Python callable, and its timing."""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..codegen.jit import load_object, pool_runtime
from ..codegen.llvm import KernelIR, compile_kernels
from ..codegen.runtime_abi import PARALLEL_FOR, POOL_ENTER, RuntimeState
from ..diagnostics import ExecutionError
from ..target import Target
from .arrays import address, aligned_empty

_FLUSH_BYTES = 64 << 20  # beyond what one core's share of the caches holds


class NativeKernel:
    """A kernel's machine code, loaded into this process. Calls may come from several threads.

    Args:
        ir: the kernel, as `codegen.llvm.emit_kernel` made it for this machine.
        num_threads: threads that its parallel loops use.
    """

    def __init__(self, ir: KernelIR, target: Target, num_threads: int) -> None:
        self._ir, self._num_threads = ir, num_threads
        runtime = pool_runtime()
        self._code = load_object(compile_kernels([ir.llvm_text], target), runtime.imports)
        self._address = self._code.address(ir.name)
        self._pool = runtime.pool
        self._enter = None
        if PARALLEL_FOR in ir.llvm_text:
            self._enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(runtime.imports[POOL_ENTER])
        self._idle: deque[tuple[RuntimeState, np.ndarray]] = deque()
        self._native: Any = None

    def call(
        self, arrays: Sequence[np.ndarray], count: int = 1, sizes: Sequence[int] = ()
    ) -> float:
        """Run `count` times on arrays in the order of the kernel's parameters; seconds taken.

        Args:
            sizes: the values of the kernel's symbolic sizes.

        Raises:
            ExecutionError: an index computed from the data was out of range.
        """
        state, workspace = self._memory(sizes)
        arguments = [ctypes.addressof(state), *map(address, arrays), *sizes]
        if self._ir.has_workspace:
            arguments.append(address(workspace))
        if self._native is None:
            types: list[Any] = [ctypes.c_void_p] * len(arguments)
            types[1 + len(arrays) : 1 + len(arrays) + len(sizes)] = [ctypes.c_int64] * len(sizes)
            self._native = ctypes.CFUNCTYPE(None, *types)(self._address)
        native = self._native
        if self._enter is not None:
            self._enter(ctypes.addressof(state))
        start = time.perf_counter()
        for _ in range(count):
            native(*arguments)
        seconds = time.perf_counter() - start
        failed, state.error = state.error, 0
        self._idle.append((state, workspace))
        if failed:
            raise ExecutionError(
                f"{self._ir.name}: an index computed from the inputs is out of range"
            )
        return seconds

    def _memory(self, sizes: Sequence[int]) -> tuple[RuntimeState, np.ndarray]:
        """The state and the workspace of one call at a time."""
        try:
            state, workspace = self._idle.pop()
        except IndexError:
            state = RuntimeState(num_threads=self._num_threads, pool=self._pool)
            workspace = np.empty(0, np.uint8)
        nbytes = self._ir.workspace_at(sizes, self._num_threads)
        if workspace.nbytes < nbytes:
            workspace = aligned_empty((nbytes,), np.dtype(np.uint8))
        return state, workspace


@dataclass(frozen=True, slots=True)
class TimeResult:
    """Seconds per run: one value for each repeat, itself the mean of `number` runs."""

    results: tuple[float, ...]
    number: int

    @property
    def median(self) -> float:
        return float(np.median(self.results))

    @property
    def mean(self) -> float:
        return float(np.mean(self.results))

    @property
    def min(self) -> float:
        return min(self.results)

    @property
    def max(self) -> float:
        return max(self.results)

    @property
    def spread(self) -> float:
        """The interquartile range as a share of the median."""
        low, high = np.percentile(self.results, [25, 75])
        return float((high - low) / self.median) if self.median else 0.0

    def __str__(self) -> str:
        return (
            f"{self.median * 1e3:.4f} ms median, {self.mean * 1e3:.4f} ms mean, spread "
            f"{self.spread:.1%} ({len(self.results)} x {self.number} runs)"
        )


def measure(
    kernel: NativeKernel,
    arrays: Sequence[np.ndarray],
    sizes: Sequence[int],
    number: int,
    repeat: int,
    min_repeat_ms: float,
    flush_cache: bool,
) -> TimeResult:
    """Time a kernel after one run to warm up; see `Function.time_evaluator`."""
    kernel.call(arrays, 1, sizes)
    if flush_cache:
        junk = np.zeros(_FLUSH_BYTES // 8)
        times = []
        for _ in range(repeat):
            junk += 1.0
            times.append(kernel.call(arrays, 1, sizes))
        return TimeResult(tuple(times), 1)
    seconds = kernel.call(arrays, number, sizes)
    while seconds * 1e3 < min_repeat_ms:
        grow = min_repeat_ms / max(seconds * 1e3, 1e-3) * 1.1
        number = max(number + 1, int(number * min(grow, 10.0)))
        seconds = kernel.call(arrays, number, sizes)
    return TimeResult(
        tuple(kernel.call(arrays, number, sizes) / number for _ in range(repeat)), number
    )
