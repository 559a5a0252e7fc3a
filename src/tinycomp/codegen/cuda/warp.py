"""Matrix instructions of warps as inline PTX, one device function for each record.

Registers are passed as pointers into local arrays; once calls and loops are unrolled all offsets
are constants, and the arrays are registers.
"""

from __future__ import annotations

from typing import Any

from ...dtype import DType
from ...ir.expr import Call
from ...tir.tensor_intrinsics.warp import LOADS, MMA, PACKS, Mma
from ..expressions import access_of
from .types import VALUE, bare


def _mma_helper(record: Mma) -> str:
    counts = (record.c.registers, record.a.registers, record.b.registers)
    d, a, b = (
        [f"%{start + i}" for i in range(count)]
        for start, count in zip((0, counts[0], counts[0] + counts[1]), counts, strict=True)
    )
    type_, kind = VALUE[record.accumulator], "f" if record.accumulator is DType.FLOAT32 else "r"
    text = f"{record.ptx} {{{', '.join(d)}}}, {{{', '.join(a)}}}, {{{', '.join(b)}}}, "
    outs = ", ".join(f'"+{kind}"(d[{i}])' for i in range(counts[0]))
    ins = [f'"r"(a[{i}])' for i in range(counts[1])] + [f'"r"(b[{i}])' for i in range(counts[2])]
    return f"""\
__device__ __forceinline__ void {_function(record.name)}(
    {type_}* d, const unsigned int* a, const unsigned int* b) {{
  asm volatile("{text}{{{", ".join(d)}}};"
      : {outs}
      : {", ".join(ins)});
}}"""


def _load_helper(name: str, targets: int) -> str:
    """Two arrays of two registers, or one of four."""
    counts = 4 // targets
    outs = ", ".join(f'"=r"(r{t}[{i}])' for t in range(targets) for i in range(counts))
    trans = ".trans" if name.endswith(".trans") else ""
    registers = ", ".join(f"unsigned int* r{t}" for t in range(targets))
    return f"""\
__device__ __forceinline__ void {_function(name)}_{targets}(const void* row, {registers}) {{
  asm volatile("{{ .reg .u64 p; .reg .u32 s; cvta.to.shared.u64 p, %4; cvt.u32.u64 s, p;\\n"
      "ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%0, %1, %2, %3}}, [s]; }}"
      : {outs} : "l"(row) : "memory");
}}"""


def _pack_helper(name: str, dtype: DType) -> str:
    type_ = {DType.FLOAT16: "f16x2", DType.BFLOAT16: "bf16x2"}[dtype]
    return f"""\
__device__ __forceinline__ void {_function(name)}(unsigned int* to, const float* pair) {{
  asm("cvt.rn.{type_}.f32 %0, %1, %2;" : "=r"(to[0]) : "f"(pair[1]), "f"(pair[0]));
}}"""


def _function(name: str) -> str:
    return name.replace(".", "_")


WARP_HELPERS: dict[str, str] = {
    **{_function(name): _mma_helper(record) for name, record in MMA.items()},
    **{f"{_function(name)}_{n}": _load_helper(name, n) for name in LOADS for n in (1, 2)},
    **{_function(name): _pack_helper(name, dtype) for name, dtype in PACKS.items()},
}


def is_warp_call(call: Call) -> bool:
    return call.name in MMA or call.name in LOADS or call.name in PACKS


def warp_call(emitter: Any, call: Call) -> str:
    """The statement for a call whose arguments are loads that stand for places."""
    places = []
    accesses = [access_of(arg.source, arg.indices) for arg in call.args]  # type: ignore[attr-defined]
    simple = [emitter.names.analyzer.simplify(access.index) for access in accesses]
    emitter.begin(simple)
    memory = call.args[0] if call.name in LOADS else None
    floats = (call.args[-1] if call.name in PACKS else call.args[0], memory)
    for arg, index in zip(call.args, simple, strict=True):
        buffer: Any = arg.source  # type: ignore[attr-defined]
        place = f"{emitter.names.buffers[buffer]} + {bare(emitter.lanes(index)[0])}"
        if buffer.dtype is DType.FLOAT32 and arg not in floats:
            place = f"(unsigned int*)({place})"  # tf32
        places.append(place)
    name = _function(call.name)
    if call.name in LOADS:
        name = f"{name}_{len(places) - 1}"
    return f"{emitter.out.use(name)}({', '.join(places)});"
