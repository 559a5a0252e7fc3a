"""Device functions around the PTX instructions of tile programs, without headers.

Addresses in shared memory are 32-bit. (PTX ISA: mbarrier, cp.async.bulk.tensor, wgmma, setmaxnreg,
barrier.cluster.)
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ...dtype import DType
from ...tir.tile.layout import Major, WgmmaShape

_INLINE = "__device__ __forceinline__"


def _mbarrier_wait(name: str, scope: str) -> str:
    return f"""\
// Until the phase of this parity has ended.
{_INLINE} void mbarrier_wait{name}(unsigned int barrier, unsigned int parity) {{
  asm volatile(
      "{{\\n.reg .pred done;\\n"
      "again: mbarrier.try_wait.parity{scope}.shared::cta.b64 done, [%0], %1;\\n"
      "@!done bra again;\\n}}" :: "r"(barrier), "r"(parity) : "memory");
}}"""


_FIXED: dict[str, str] = {
    "TensorMap": "struct __align__(64) TensorMap { unsigned long long opaque[16]; };",
    "shared_address": f"""\
{_INLINE} unsigned int shared_address(const void* pointer) {{
  unsigned int address;
  asm("{{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }}"
      : "=r"(address) : "l"(pointer));
  return address;
}}""",
    "cluster_rank": f"""\
{_INLINE} int cluster_rank() {{
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}}""",
    "cluster_sync": f"""\
{_INLINE} void cluster_sync() {{
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}}""",
    "mbarrier_init": f"""\
{_INLINE} void mbarrier_init(unsigned int barrier, int count) {{
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(count) : "memory");
}}""",
    "fence_mbarrier_init": f"""\
{_INLINE} void fence_mbarrier_init() {{
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}}""",
    "mbarrier_wait": _mbarrier_wait("", ""),
    "mbarrier_wait_cluster": _mbarrier_wait("_cluster", ".acquire.cluster"),
    "mbarrier_arrive": f"""\
{_INLINE} void mbarrier_arrive(unsigned int barrier) {{
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}}""",
    "mbarrier_arrive_at": f"""\
// In another block of the cluster.
{_INLINE} void mbarrier_arrive_at(unsigned int barrier, int rank) {{
  asm volatile(
      "{{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1;"
      " mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote]; }}"
      :: "r"(barrier), "r"(rank) : "memory");
}}""",
    "mbarrier_expect": f"""\
{_INLINE} void mbarrier_expect(unsigned int barrier, int bytes) {{
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :: "r"(barrier), "r"(bytes) : "memory");
}}""",
    "tma_prefetch": f"""\
{_INLINE} void tma_prefetch(const TensorMap& map) {{
  asm volatile("prefetch.tensormap [%0];" :: "l"(&map) : "memory");
}}""",
    "tma_commit": f"""\
{_INLINE} void tma_commit() {{
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}}""",
    "tma_wait": f"""\
// Until at most N groups of stores still read shared memory.
template <int N> {_INLINE} void tma_wait() {{
  asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(N) : "memory");
}}""",
    "fence_async": f"""\
{_INLINE} void fence_async() {{
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}}""",
    "named_barrier": f"""\
{_INLINE} void named_barrier(int name, int threads) {{
  asm volatile("bar.sync %0, %1;" :: "r"(name), "r"(threads) : "memory");
}}""",
    "named_arrive": f"""\
{_INLINE} void named_arrive(int name, int threads) {{
  asm volatile("bar.arrive %0, %1;" :: "r"(name), "r"(threads) : "memory");
}}""",
    "set_registers_down": f"""\
template <int N> {_INLINE} void set_registers_down() {{
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N));
}}""",
    "set_registers_up": f"""\
template <int N> {_INLINE} void set_registers_up() {{
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N));
}}""",
    "wgmma_fence": f"""\
{_INLINE} void wgmma_fence() {{
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}}""",
    "wgmma_commit": f"""\
{_INLINE} void wgmma_commit() {{
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}}""",
    "wgmma_wait": f"""\
template <int N> {_INLINE} void wgmma_wait() {{
  asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
}}""",
    "wgmma_hold": f"""\
// Uses of registers stay behind this.
template <int N> {_INLINE} void wgmma_hold(float* d) {{
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i]) :: "memory");
}}
template <int N, typename T> {_INLINE} void wgmma_hold(T* d) {{
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(d[i]) :: "memory");
}}""",
    "pack_half": f"""\
{_INLINE} unsigned int pack_half(float low, float high) {{
  unsigned int bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}}""",
    "pack_bfloat16": f"""\
{_INLINE} unsigned int pack_bfloat16(float low, float high) {{
  unsigned int bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}}""",
    "wgmma_descriptor": f"""\
{_INLINE} unsigned long long wgmma_descriptor(
    unsigned int address, unsigned long long layout) {{
  return layout | (unsigned long long)((address & 0x3ffff) >> 4);
}}""",
}

_PTX_TYPE = {
    DType.FLOAT16: "f16", DType.BFLOAT16: "bf16", DType.FLOAT32: "tf32", DType.INT8: "s8",
    DType.UINT8: "u8", DType.INT32: "s32",
}  # fmt: skip


def wgmma_name(shape: WgmmaShape, a: Major | None, b: Major) -> str:
    """The name of the device function of one wgmma; without `a`, A is in registers.

    >>> wgmma_name(WgmmaShape(256, DType.BFLOAT16), Major.K, Major.MN)
    'wgmma_n256_bf16_k_mn'
    """
    types = _PTX_TYPE[shape.dtype] + (f"_{_PTX_TYPE[shape.right]}" if shape.right else "")
    return f"wgmma_n{shape.n}_{types}_{a or 'r'}_{b}"


def _wgmma(n: str, type_: str, right: str, a: str, b: str) -> str:
    dtype = next(d for d, text in _PTX_TYPE.items() if text == type_)
    k, registers = 32 // dtype.itemsize, int(n) // 2
    integer = dtype in (DType.INT8, DType.UINT8)
    acc, constraint, held = ("s32", "+r", "int") if integer else ("f32", "+f", "float")
    operands = ", ".join(f"%{i}" for i in range(registers))
    signs = "" if integer else ", 1, 1"
    if a == "r":  # four registers
        parameter = f"const {'float' if type_ == 'tf32' else 'unsigned int'}* a"
        bits = "__float_as_uint({})" if type_ == "tf32" else "{}"
        inputs = ", ".join(f'"r"({bits.format(f"a[{i}]")})' for i in range(4))
        left, after = f"{{{', '.join(f'%{registers + i}' for i in range(4))}}}", registers + 4
        signs += f", {int(b == 'mn')}" * (dtype.itemsize == 2)
    else:
        parameter, inputs = "unsigned long long a", '"l"(a)'
        left, after = f"%{registers}", registers + 1
        signs += f", {int(a == 'mn')}, {int(b == 'mn')}" * (dtype.itemsize == 2)
    outputs = ", ".join(f'"{constraint}"(d[{i}])' for i in range(registers))
    return f"""\
{_INLINE} void wgmma_n{n}_{type_}{f"_{right}" if right else ""}_{a}_{b}(
    {held}* d, {parameter}, unsigned long long b, int accumulate) {{
  asm volatile(
      "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{after + 1}, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{n}k{k}.{acc}.{type_}.{right or type_} "
      "{{{operands}}}, {left}, %{after}, p{signs};\\n}}"
      : {outputs} : {inputs}, "l"(b), "r"(accumulate));
}}"""


def _tma(kind: str, rank: str) -> str:
    """A copy of a box of a tensor with `rank` dimensions."""
    dims = range(int(rank))
    ints = "".join(f", int c{i}" for i in dims)
    if kind == "prefetch":
        at = ", ".join(f"%{i + 1}" for i in dims)
        inputs = ", ".join(f'"r"(c{i})' for i in dims)
        return f"""\
{_INLINE} void tma_prefetch_{rank}d(const TensorMap& map{ints}) {{
  asm volatile("cp.async.bulk.prefetch.tensor.{rank}d.L2.global.tile [%0, {{{at}}}];"
               :: "l"(&map), {inputs} : "memory");
}}"""
    if kind == "store":
        at = ", ".join(f"%{i + 2}" for i in dims)
        inputs = "".join(f', "r"(c{i})' for i in dims)
        return f"""\
{_INLINE} void tma_store_{rank}d(const TensorMap& map, unsigned int source{ints}) {{
  asm volatile("cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group [%0, {{{at}}}], [%1];"
               :: "l"(&map), "r"(source){inputs} : "memory");
}}"""
    at = ", ".join(f"%{i + 3}" for i in dims)
    inputs = "".join(f', "r"(c{i})' for i in dims)
    count = len(dims) + 3
    mode = tap = ""
    if kind.startswith("im2col"):
        taps = range(len(dims) - 2)
        mode, tap = ".im2col", f", {{{', '.join(f'%{count + i}' for i in taps)}}}"
        inputs += "".join(f', "h"(t{i})' for i in taps)
        ints += "".join(f", unsigned short t{i}" for i in taps)
        count += len(taps)
    many = kind.endswith("multicast")
    mask = (".multicast::cluster", f", %{count}", ', "h"(mask)') if many else ("", "", "")
    parameter = ", unsigned short mask" if many else ""
    return f"""\
{_INLINE} void tma_{kind}_{rank}d(
    unsigned int target, const TensorMap& map, unsigned int barrier{ints}{parameter}) {{
  asm volatile(
      "cp.async.bulk.tensor.{rank}d.shared::cluster.global{mode}.mbarrier::complete_tx::bytes"
      "{mask[0]} [%0], [%1, {{{at}}}], [%2]{tap}{mask[1]};"
      :: "r"(target), "l"(&map), "r"(barrier){inputs}{mask[2]} : "memory");
}}"""


_FAMILIES: tuple[tuple[re.Pattern[str], Callable[..., str]], ...] = (
    (re.compile(r"wgmma_n(\d+)_([a-z0-9]+)(?:_(s8|u8))?_(k|mn|r)_(k|mn)"), _wgmma),
    (re.compile(r"tma_((?:im2col_)?(?:load|multicast)|store|prefetch)_(\d)d"), _tma),
)
NAMES = frozenset(_FIXED)


def tile_helpers(names: set[str]) -> dict[str, str]:
    """The texts of the device functions of tile programs among `names`, in order."""
    wanted = set(names)
    if any(name.startswith("tma_") for name in names):
        wanted.add("TensorMap")
    found = {name: text for name, text in _FIXED.items() if name in wanted}
    for name in sorted(wanted - NAMES):
        for pattern, write in _FAMILIES:
            if match := pattern.fullmatch(name):
                found[name] = write(*match.groups())
    return found
