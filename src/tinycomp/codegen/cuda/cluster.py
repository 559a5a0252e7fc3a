"""Blocks of a cluster: meeting, and reaching each other's shared memory (PTX ISA, barrier.cluster
and mapa; sm_90 and newer).

The cluster is part of the grid: `blockIdx.x` counts clusters here and blocks on the machine.
"""

from __future__ import annotations

from ...diagnostics import ScheduleError
from ...ir.expr import as_int
from ...tir.nodes import For, Stmt
from ...tir.primitives.annotate import CLUSTER
from ...tir.tree import statements

CLUSTER_HELPERS: dict[str, str] = {
    "cluster_map": """\
// Where another block of the cluster has what this one has at `here`.
template <typename T> __device__ __forceinline__ T* cluster_map(T* here, int block) {
  T* there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(here), "r"(block));
  return there;
}""",
    "cluster_arrive": """\
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}""",
    "cluster_wait": """\
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}""",
}


def cluster_size(root: Stmt) -> int:
    """How many blocks of a launch are one cluster; 1 where they are on their own.

    Raises:
        ScheduleError: loops of different lengths are bound to the axis.
    """
    loops = [s for s in statements(root) if isinstance(s, For) and s.thread == CLUSTER]
    sizes = {as_int(loop.extent) for loop in loops}
    if len(sizes) > 1:
        raise ScheduleError(f"{CLUSTER} has the extents {sorted(sizes)}")
    return sizes.pop() if sizes else 1
