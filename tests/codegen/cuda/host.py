"""Runs generated CUDA C++ on the CPU: g++ compiles it, and every GPU thread that waits for others
is a real thread.

Not a performance model of anything; it shows that the text means what the loop IR means, including
barriers and shuffles. What is GPU assembly is replaced: half-precision conversions, asynchronous
copies (which happen at once), and matrix instructions, which follow the layouts of their records.
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

from tinycomp.codegen.cuda.emit import CudaKernel
from tinycomp.tir.tensor_intrinsics.warp import MMA, Mma

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
static long long __double_as_longlong(double x) { long long y; memcpy(&y, &x, 8); return y; }
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
_COPIES = """
template <int N> void cp_async(void* to, const void* from, bool take) {
  if (take) memcpy(to, from, N); else memset(to, 0, N);
}
static void async_commit() {}
template <int N> void async_wait() {}
"""
_MATRICES = """
static unsigned int lane_registers[1024][8];
static const unsigned short* lane_rows[1024];
static float bits_to_float(unsigned int x) { float y; memcpy(&y, &x, 4); return y; }
static void load_matrix(const void* row, bool transposed, unsigned int* out) {
  std::barrier<>& all = *warp_barriers[thread_number / 32];
  lane_rows[thread_number] = (const unsigned short*)row;
  all.arrive_and_wait();
  const unsigned short** rows = lane_rows + thread_number / 32 * 32;
  int g = thread_number % 32 / 4, q = thread_number % 4;
  for (int m = 0; m < 4; ++m) {
    unsigned int low = transposed ? rows[8 * m + 2 * q][g] : rows[8 * m + g][2 * q];
    unsigned int high = transposed ? rows[8 * m + 2 * q + 1][g] : rows[8 * m + g][2 * q + 1];
    out[m] = low | high << 16;
  }
  all.arrive_and_wait();
}
"""
_LOADS = "\n".join(
    f"""static void ldmatrix_x4{trans}_1(const void* row, unsigned int* r) {{
  load_matrix(row, {flag}, r);
}}
static void ldmatrix_x4{trans}_2(const void* row, unsigned int* r0, unsigned int* r1) {{
  unsigned int r[4];
  load_matrix(row, {flag}, r);
  r0[0] = r[0]; r0[1] = r[1]; r1[0] = r[2]; r1[1] = r[3];
}}"""
    for trans, flag in (("", "false"), ("_trans", "true"))
)
_ELEMENT = {
    "float16": "half_to_float(bits)", "bfloat16": "bits_to_float(bits << 16)",
    "float32": "bits_to_float(bits & 0xffffe000u)", "int8": "(signed char)bits",
    "uint8": "(unsigned char)bits",
}  # fmt: skip


def _matrix_product(record: Mma) -> str:
    """The instruction on the registers of all lanes."""
    type_ = "float" if record.accumulator.is_float else "int"
    packed, bits = record.a.packed, record.a.bits
    places = []
    for layout in (record.a, record.b):  # of element (row, k): its lane and number there
        rows, columns = layout.indices()
        table = np.zeros(layout.shape, np.int64)
        for lane, element in np.ndindex(rows.shape):
            table[rows[lane, element], columns[lane, element]] = lane * 64 + element
        places.append(", ".join(map(str, table.reshape(-1))))
    rows, columns = (", ".join(map(str, x.reshape(-1))) for x in record.c.indices())
    count = record.a.registers
    return f"""
static void {record.name.replace(".", "_")}(
    {type_}* d, const unsigned int* a, const unsigned int* b) {{
  static const int a_at[] = {{{places[0]}}}, b_at[] = {{{places[1]}}};
  static const int row[] = {{{rows}}}, column[] = {{{columns}}};
  std::barrier<>& all = *warp_barriers[thread_number / 32];
  for (int r = 0; r < {count}; ++r) lane_registers[thread_number][r] = a[r];
  for (int r = 0; r < {record.b.registers}; ++r) lane_registers[thread_number][4 + r] = b[r];
  all.arrive_and_wait();
  unsigned int (*lanes)[8] = lane_registers + thread_number / 32 * 32;
  auto bits_of = [&](int at, int first) {{
    unsigned int bits = lanes[at / 64][first + at % 64 / {packed}] >> at % {packed} * {bits};
    return {"bits & 0xffffu" if bits == 16 else "bits"};
  }};
  auto left = [&](unsigned int bits) {{ return {_ELEMENT[record.dtype]}; }};
  auto right = [&](unsigned int bits) {{ return {_ELEMENT[record.right]}; }};
  for (int e = 0; e < {record.c.elements}; ++e) {{
    int at = thread_number % 32 * {record.c.elements} + e;
    for (int k = 0; k < {record.depth}; ++k)
      d[e] += left(bits_of(a_at[row[at] * {record.depth} + k], 0))
            * right(bits_of(b_at[column[at] * {record.depth} + k], 4));
  }}
  all.arrive_and_wait();
}}"""


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
_ASSEMBLY = re.compile(  # device functions that are GPU assembly
    r"(?:template <int N> )?__device__ __forceinline__ (?:float half_to_float|"
    r"unsigned short float_to_half|float round_tf32|void cp_async|void async_commit|"
    r"void async_wait|void ldmatrix_\w+|void mma_\w+)\(.*?\n}\n?",
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
        text = _ASSEMBLY.sub("", kernel.source)
        together = "__syncthreads" in text or "__shfl" in text
        before = [_COMMON, _THREADS] if together else [_COMMON]
        driver = _THREADS_DRIVER if together else _SERIAL_DRIVER
        warps = [m for m in MMA.values() if f"{m.name.replace('.', '_')}(" in text]
        matrices = [_MATRICES, _LOADS, *map(_matrix_product, warps)] if warps else []
        parts = [*before, _HALF, _COPIES, *matrices, text, _CALL, driver, calls]
        source.write_text("\n".join(parts))
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
