"""What compiled code and its callers agree on: the runtime state and symbol names.

The runtime state `rt` is one block of memory per running call of a model:

| offset | type | field | meaning |
|---|---|---|---|
| 0 | i64 | num_threads | threads that share a parallel loop, at least 1 |
| 8 | i64 | error | set to 1 by a kernel that found an index out of range |
| 16 | ptr | pool | the thread pool, or null to run everything on the caller |
| 24 | i64 | pid | process id, stored by `tinycomp_pool_enter` |

Kernel: `void name(ptr rt, ptr p0, ..., ptr pn[, i64 n0, ...][, ptr workspace])`: parameters, values
of symbolic sizes (models have none), and the workspace of `KernelIR.workspace_at` bytes, 64-byte
aligned.
"""

from __future__ import annotations

import ctypes

NUM_THREADS, ERROR, POOL, PID = 0, 8, 16, 24

PARALLEL_FOR = "tinycomp_parallel_for"
POOL_CREATE = "tinycomp_pool_create"
POOL_DESTROY = "tinycomp_pool_destroy"
POOL_ENTER = "tinycomp_pool_enter"
MAIN = "tinycomp_main"


class RuntimeState(ctypes.Structure):
    """The runtime state as ctypes sees it.

    >>> RuntimeState(num_threads=2).error
    0
    """

    _fields_ = (
        ("num_threads", ctypes.c_int64),
        ("error", ctypes.c_int64),
        ("pool", ctypes.c_void_p),
        ("pid", ctypes.c_int64),
    )
