"""Loads object code into this process.

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
from collections.abc import Mapping, Sequence

import llvmlite.binding as binding

from ..diagnostics import InternalError
from ..target import Target
from .llvm import target_machine


class LoadedObject:
    """Object code in memory. It stays until `close` or until this object is collected."""

    def __init__(self, objects: Sequence[bytes], imports: Mapping[str, int]) -> None:
        machine = target_machine(Target.host())
        empty = binding.parse_assembly("", binding.create_context())
        for name, address in imports.items():
            binding.add_symbol(name, address)
        self._engine = binding.create_mcjit_compiler(empty, machine)
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
        """Never unload, not even when the interpreter ends; for code that threads still run."""
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


__all__ = ["LoadedObject", "ctypes", "load_object"]
