"""The object code of an artifact, loaded into this process."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Mapping

from ..codegen.jit import load_object
from ..codegen.runtime_abi import MAIN, PARALLEL_FOR, POOL_CREATE, POOL_ENTER, RuntimeState
from . import bulk
from .arrays import address, resident
from .artifact import Artifact

POOL_OBJECT = "threadpool"
"""The artifact's object that holds the thread pool; the others are kernels and the entry."""

_EntryType = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 6)
_linking = threading.Lock()  # symbols given to the linker are global to the process


class NativeModel:
    """The entry function of a model, ready to be called from any thread.

    Attributes:
        entry: `tinycomp_main`, see `codegen.entry`; ctypes releases the interpreter lock.
        constants: address of the constants.
    """

    def __init__(self, artifact: Artifact, num_threads: int) -> None:
        objects = dict(artifact.objects)
        imports, pool = _thread_pool(objects.pop(POOL_OBJECT))
        with _linking:
            self._code = load_object(list(objects.values()), imports)
        self._num_threads, self._pool = num_threads, pool
        self.entry = _EntryType(self._code.address(MAIN))
        self._constants = resident(artifact.constants.nbytes)
        bulk.copy(self._constants, artifact.constants)
        self.constants = address(self._constants)

    def new_state(self) -> RuntimeState:
        """The runtime state of one call at a time."""
        return RuntimeState(num_threads=self._num_threads, pool=self._pool)


@functools.cache
def _thread_pool(object_code: bytes) -> tuple[Mapping[str, int], int]:
    """What models import from the pool's code, and the pool that all of them share.

    There is one per process and version of the code.
    """
    with _linking:
        code = load_object(object_code)
    imports = {name: code.address(name) for name in (PARALLEL_FOR, POOL_ENTER)}
    pool = ctypes.CFUNCTYPE(ctypes.c_void_p)(code.address(POOL_CREATE))()
    code.keep_forever()  # its threads run until the process ends
    return imports, pool
