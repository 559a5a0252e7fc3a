"""Loads object code into this process.

>>> import ctypes
>>> from tinycomp.codegen.llvm import compile_kernels
>>> from tinycomp.target import Target
>>> code = compile_kernels(["define i64 @answer() {\\n  ret i64 42\\n}"], Target.host())
>>> loaded = load_object(code)
>>> ctypes.CFUNCTYPE(ctypes.c_int64)(loaded.address("answer"))()
42
>>> loaded.close()
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import llvmlite.binding as binding

from ..diagnostics import InternalError
from ..target import Target
from .machine import target_machine
from .runtime_abi import PARALLEL_FOR, POOL_CREATE, POOL_ENTER

_linking = threading.Lock()  # symbols given to the linker are global to the process


class LoadedObject:
    """Object code in memory. It stays until `close` or until this object is collected."""

    def __init__(self, objects: Sequence[bytes], imports: Mapping[str, int]) -> None:
        machine = target_machine(Target.host())
        # In the global context: the garbage collector could free one of our own before the engine.
        empty = binding.parse_assembly("")
        self._engine = binding.create_mcjit_compiler(empty, machine)
        with _linking:
            for name, address in imports.items():
                binding.add_symbol(name, address)
            for data in objects:
                self._engine.add_object_file(binding.ObjectFileRef.from_data(data))
            self._engine.finalize_object()

    def address(self, symbol: str) -> int:
        """The address of a function or variable.

        Raises:
            InternalError: there is no such symbol.
        """
        address = self._engine.get_function_address(symbol)
        if not address:
            raise InternalError(f"object code has no symbol {symbol!r}")
        return address

    def close(self) -> None:
        """Unload; addresses become invalid."""
        self._engine.close()

    def keep_forever(self) -> None:
        """Never unload, not even when the interpreter ends; for code that threads still run.

        No further addresses can be looked up.
        """
        self._engine.detach()


def load_object(
    objects: bytes | Sequence[bytes], imports: Mapping[str, int] | None = None
) -> LoadedObject:
    """Load object files made for this machine.

    Args:
        objects: one object file or several that refer to each other.
        imports: addresses of symbols that neither they nor the C library define.
    """
    return LoadedObject([objects] if isinstance(objects, bytes) else objects, imports or {})


@dataclass(frozen=True, slots=True)
class PoolRuntime:
    """The thread pool of this process: its address, and what compiled code imports."""

    pool: int
    imports: Mapping[str, int]


@functools.cache
def pool_runtime() -> PoolRuntime:
    """The process-wide thread pool, made at the first call; threads start when first needed.

    Its code is never unloaded, because sleeping workers may outlive the interpreter's objects.
    """
    from .llvm import compile_kernels  # loading what is compiled already does not need these
    from .threadpool import emit_threadpool

    target = Target.host()
    loaded = load_object(compile_kernels([emit_threadpool(target)], target))
    imports = {name: loaded.address(name) for name in (PARALLEL_FOR, POOL_ENTER)}
    create = ctypes.CFUNCTYPE(ctypes.c_void_p)(loaded.address(POOL_CREATE))
    loaded.keep_forever()
    return PoolRuntime(create() or 0, imports)
