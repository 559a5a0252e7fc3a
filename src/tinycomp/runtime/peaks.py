"""What this machine can do, measured: floating-point peak and copy bandwidth."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..target import Target

_ACCUMULATORS = 12  # enough independent chains to hide the latency of a multiply-add


@dataclass(frozen=True, slots=True)
class Peaks:
    """Of `num_threads` threads together: float32 GFLOP/s, GB/s in caches and in memory."""

    num_threads: int
    gflops: float
    cache_gbps: float
    memory_gbps: float


def measure_peaks(num_threads: int) -> Peaks:
    """Measure with a loop of vector multiply-adds and with copies; takes about 0.2 s."""
    import llvmlite.binding as llvm

    target = Target.host()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, jit=True
    )
    lanes = target.vector_bits // 32
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_fma_loop(lanes)), machine)
    loop = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(
        engine.get_function_address("fma_loop")
    )
    iterations = 1 << 19
    seconds = _fastest(num_threads, lambda _: loop(iterations, _sink().ctypes.data))
    flops = 2.0 * lanes * _ACCUMULATORS * iterations * num_threads
    return Peaks(
        num_threads,
        flops / seconds / 1e9,
        _copy_gbps(num_threads, target.l2_bytes // 4, 256),
        _copy_gbps(num_threads, 32 << 20, 1),
    )


def _sink() -> np.ndarray:
    return np.zeros(64, np.float32)


def _copy_gbps(num_threads: int, nbytes: int, repeat: int) -> float:
    buffers = [np.zeros((2, nbytes), np.uint8) for _ in range(num_threads)]

    def copy(index: int) -> None:
        target, source = buffers[index]
        for _ in range(repeat):
            np.copyto(target, source)

    return 2 * nbytes * repeat * num_threads / _fastest(num_threads, copy) / 1e9


def _fastest(num_threads: int, work: Callable[[int], object], rounds: int = 5) -> float:
    """Seconds of the fastest round in which every thread does `work(index)` once."""
    best = float("inf")
    for _ in range(rounds):
        barrier = threading.Barrier(num_threads + 1)

        def body(index: int, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            work(index)

        threads = [threading.Thread(target=body, args=(i,)) for i in range(num_threads)]
        for thread in threads:
            thread.start()
        barrier.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        best = min(best, time.perf_counter() - start)
    return best


def _fma_loop(lanes: int) -> str:
    """LLVM IR of `void fma_loop(i64 n, ptr sink)`: n rounds of independent multiply-adds."""
    vector = f"<{lanes} x float>"
    half = f"<{', '.join(['float 5.0e-01'] * lanes)}>"
    phis, steps, tail = [], [], []
    for i in range(_ACCUMULATORS):
        phis.append(f"  %a{i} = phi {vector} [ {half}, %entry ], [ %b{i}, %loop ]")
        steps.append(
            f"  %b{i} = call {vector} @llvm.fma.v{lanes}f32({vector} %a{i}, {vector} {half}, "
            f"{vector} {half})"
        )
        tail.append(f"  store volatile {vector} %b{i}, ptr %sink, align 4")
    return "\n".join(
        [
            f"declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})",
            "define void @fma_loop(i64 %n, ptr %sink) {",
            "entry:",
            "  br label %loop",
            "loop:",
            "  %i = phi i64 [ 0, %entry ], [ %j, %loop ]",
            *phis,
            *steps,
            "  %j = add i64 %i, 1",
            "  %more = icmp slt i64 %j, %n",
            "  br i1 %more, label %loop, label %done",
            "done:",
            *tail,
            "  ret void",
            "}",
        ]
    )
