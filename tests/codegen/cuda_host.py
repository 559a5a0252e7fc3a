"""Runs generated CUDA C++ on the CPU: g++ compiles it, and every GPU thread that waits for others
is a real thread.

Not a performance model of anything; it shows that the text means what the loop IR means, including
barriers and shuffles. Half-precision conversions, which are GPU assembly, are replaced.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tinycomp.codegen.cuda import CudaKernel

_COMMON = """
#include <cstdint>
#include <cstring>
#include <math.h>
#include <utility>
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static
struct Index { int x, y, z; };
static thread_local Index threadIdx, blockIdx;
static float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
static int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
static double __longlong_as_double(long long x) { double y; memcpy(&y, &x, 8); return y; }
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static double rsqrt(double x) { return 1.0 / sqrt(x); }
static int __popc(unsigned x) { return __builtin_popcount(x); }
static int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
"""
_THREADS = """
#include <barrier>
#include <memory>
#include <thread>
#include <vector>
static thread_local int thread_number;
static std::unique_ptr<std::barrier<>> block_barrier;
static std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;
static void __syncthreads() { block_barrier->arrive_and_wait(); }
static double slots[1024];
static long long integer_slots[1024];
template <typename T> T exchange(T* slots, T x, int mask) {
  std::barrier<>& all = *warp_barriers[thread_number / 32];
  slots[thread_number] = x;
  all.arrive_and_wait();
  T result = slots[thread_number ^ mask];
  all.arrive_and_wait();
  return result;
}
static float __shfl_xor_sync(unsigned, float x, int m) { return exchange<double>(slots, x, m); }
static double __shfl_xor_sync(unsigned, double x, int m) { return exchange<double>(slots, x, m); }
template <typename T> T __shfl_xor_sync(unsigned, T x, int m) {
  return (T)exchange<long long>(integer_slots, x, m);
}
"""
_HALF = """
static float round_tf32(float x) {
  unsigned b; memcpy(&b, &x, 4); b = (b + 0x1000u) & 0xffffe000u;
  float y; memcpy(&y, &b, 4); return x != x ? x : y;
}
static float half_to_float(unsigned short b) { _Float16 h; memcpy(&h, &b, 2); return h; }
static unsigned short float_to_half(float x) {
  _Float16 h = (_Float16)x; unsigned short b; memcpy(&b, &h, 2); return b;
}
"""
_CALL = """
template <typename... A, size_t... I>
void call(void (*f)(A...), void** args, std::index_sequence<I...>) { f((A)(intptr_t)args[I]...); }
static void place(int b, int t, Index grid, Index block) {
  threadIdx = {t % block.x, t / block.x % block.y, t / block.x / block.y};
  blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
}
"""
_SERIAL_DRIVER = """
template <typename... A> void run(void (*f)(A...), void** args, Index grid, Index block) {
  for (int b = 0; b < grid.x * grid.y * grid.z; ++b)
    for (int t = 0; t < block.x * block.y * block.z; ++t) {
      place(b, t, grid, block);
      call(f, args, std::index_sequence_for<A...>{});
    }
}
"""
_THREADS_DRIVER = """
template <typename... A> void run(void (*f)(A...), void** args, Index grid, Index block) {
  int count = block.x * block.y * block.z;
  for (int b = 0; b < grid.x * grid.y * grid.z; ++b) {
    block_barrier = std::make_unique<std::barrier<>>(count);
    warp_barriers.clear();
    for (int w = 0; w < count; w += 32)
      warp_barriers.push_back(std::make_unique<std::barrier<>>(count - w < 32 ? count - w : 32));
    std::vector<std::thread> threads;
    for (int t = 0; t < count; ++t)
      threads.emplace_back([=] {
        thread_number = t;
        place(b, t, grid, block);
        call(f, args, std::index_sequence_for<A...>{});
      });
    for (auto& thread : threads) thread.join();
  }
}
"""
_HALF_HELPER = re.compile(
    r"__device__ __forceinline__ "
    r"(?:float half_to_float|unsigned short float_to_half|float round_tf32)\(.*?\n}\n?",
    re.DOTALL,
)


class HostKernel:
    """A kernel whose CUDA C++ is compiled for the CPU; calling it returns the error code."""

    def __init__(self, kernel: CudaKernel, folder: Path) -> None:
        if shutil.which("g++") is None:
            pytest.skip("g++ is not installed")
        self.kernel = kernel
        calls = "\n".join(
            f'extern "C" void launch_{i}(void** args) {{ run({one.name}, args, '
            f"{{{', '.join(map(str, one.grid))}}}, {{{', '.join(map(str, one.block))}}}); }}"
            for i, one in enumerate(kernel.launches)
        )
        source, library = folder / f"{kernel.name}.cpp", folder / f"{kernel.name}.so"
        text = _HALF_HELPER.sub("", kernel.source)
        together = "__syncthreads" in text or "__shfl" in text
        before = [_COMMON, _THREADS] if together else [_COMMON]
        driver = _THREADS_DRIVER if together else _SERIAL_DRIVER
        source.write_text("\n".join([*before, _HALF, text, _CALL, driver, calls]))
        command = ["g++", "-std=c++20", "-O0", "-fwrapv", "-ffp-contract=off", "-shared", "-fPIC"]
        done = subprocess.run(
            [*command, "-w", "-pthread", "-o", str(library), str(source)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[:3000]
        self.library = ctypes.CDLL(str(library))

    def __call__(self, *arrays: np.ndarray) -> int:
        error = np.zeros(1, np.int32)
        workspace = np.zeros(self.kernel.workspace_bytes + 256, np.uint8)
        base = workspace.ctypes.data
        base += -base % 256
        for index, launch in enumerate(self.kernel.launches):
            pointers = [arrays[i].ctypes.data for i in launch.params]
            pointers += [base + offset for offset in launch.workspace]
            if launch.can_fail:
                pointers += [error.ctypes.data, 7]
            table = (ctypes.c_void_p * len(pointers))(*pointers)
            getattr(self.library, f"launch_{index}")(table)
        return int(error[0])


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address that wide accesses need."""
    space = np.empty(array.nbytes + 64, np.uint8)
    start = -space.ctypes.data % 64
    out = space[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def all_aligned(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [aligned(a) for a in arrays]
