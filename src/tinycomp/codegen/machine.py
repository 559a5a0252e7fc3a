"""LLVM's code generators, apart from what makes LLVM IR, so that loading code needs only this."""

from __future__ import annotations

import functools

import llvmlite.binding as binding

from ..diagnostics import TinycompError
from ..target import Target


def target_machine(target: Target, opt: int = 3) -> binding.TargetMachine:
    """LLVM's code generator for `target`.

    Raises:
        TinycompError: LLVM does not know the target.
    """
    _initialize()
    try:
        found = binding.Target.from_triple(target.triple)
    except RuntimeError as error:
        raise TinycompError(f"LLVM does not support the target {target}: {error}") from error
    return found.create_target_machine(
        cpu=target.cpu, features=target.features, opt=opt, reloc="pic", codemodel="default"
    )


@functools.cache
def _initialize() -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
