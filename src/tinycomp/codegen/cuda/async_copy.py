"""Asynchronous copies from global to shared memory (cp.async, PTX ISA; sm_80 and later)."""

from __future__ import annotations

from typing import Any

from ...ir.expr import Broadcast, Call, Expr, Load, all_of, is_const
from ...tir.nodes import Scope, Store
from ..expressions import access_of
from .types import bare

_SIZES = (4, 8, 16)  # bytes

ASYNC_HELPERS: dict[str, str] = {
    "cp_async": """\
// N bytes to shared memory, or zeros; only copies of 16 bytes can leave the first cache out.
template <int N> __device__ __forceinline__ void cp_async(void* to, const void* from, bool take) {
  unsigned int at;
  asm("{ .reg .u64 p; cvta.to.shared.u64 p, %1; cvt.u32.u64 %0, p; }" : "=r"(at) : "l"(to));
  if (N == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :: "r"(at), "l"(from), "r"(take ? N : 0) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
        :: "r"(at), "l"(from), "n"(N), "r"(take ? N : 0) : "memory");
}""",
    "async_commit": """\
__device__ __forceinline__ void async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}""",
    "async_wait": """\
// Until at most N groups are under way.
template <int N> __device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}""",
}


def async_copy(emitter: Any, store: Store) -> str:
    """The statement that starts a copy; "" if it is no aligned copy of 4, 8 or 16 bytes, which
    then happens at once."""
    conditions: list[Expr] = []
    value = store.value
    while isinstance(value, Call) and value.name == "if_then_else" and _is_zero(value.args[2]):
        conditions.append(value.args[0])
        value = value.args[1]
    if not isinstance(value, Load) or any(c.lanes > 1 for c in conditions):
        return ""
    source: Any = value.source
    places = [(store.buffer, store.indices), (source, value.indices)]
    accesses = [access_of(buffer, indices) for buffer, indices in places]
    simplify = emitter.names.analyzer.simplify
    indices = [simplify(access.index) for access in accesses]
    lanes = accesses[0].lanes
    plain = store.predicate is None and value.predicate is None and lanes == accesses[1].lanes
    if not plain or lanes * source.dtype.itemsize not in _SIZES or source.scope is not Scope.GLOBAL:
        return ""
    for (buffer, _), access, index in zip(places, accesses, indices, strict=True):
        if access.scattered or (lanes > 1 and not emitter.is_wide(buffer, lanes, index)):
            return ""
    condition = simplify(all_of(conditions))
    emitter.begin([*indices, condition])
    to, at = (
        f"{emitter.names.buffers[buffer]} + {bare(emitter.lanes(index)[0])}"
        for (buffer, _), index in zip(places, indices, strict=True)
    )
    take = bare(emitter.lanes(condition)[0])
    nbytes = lanes * source.dtype.itemsize
    return f"{emitter.out.use('cp_async')}<{nbytes}>({to}, {at}, {take});"


def _is_zero(expr: Expr) -> bool:
    return is_const(expr.value if isinstance(expr, Broadcast) else expr, 0)
