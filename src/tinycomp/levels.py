"""A compiled model as text, level by level.

An artifact stores its fused relay. The levels below are generated again from that, so they are
those of the object code as long as the generator is the same, which is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .codegen.cuda.access import find_accesses
from .codegen.llvm import assembly
from .diagnostics import TinycompError
from .extension import NO_EXTENSION, Extension
from .kernels import kernel_name, lower_kernel, primitive_functions
from .relay.nodes import Function
from .relay.parser import parse_function
from .runtime.artifact import Artifact
from .runtime.cache import source_digest
from .schedules import build_kernel
from .schedules.to_te import to_te
from .target import Target
from .te.tensor import ComputeOp, topological

_SEPARATOR = "\n\n"


def render(artifact: Artifact, level: str, extension: Extension = NO_EXTENSION) -> str:
    """The kernels of an artifact at a level: "te", "tir", "llvm", "asm" or "access".

    Raises:
        TinycompError: another version of tinycomp, or another extension, made the artifact.
    """
    used = artifact.manifest.options.get("extension", "")
    if used != extension.name:
        raise TinycompError(
            f"the artifact was compiled with {used or 'no extension'!r}, "
            f"so its {level} cannot be shown with {extension.name or 'no extension'!r}",
            hint="pass the extension it was compiled with: module.ir(level, extension)",
        )
    if artifact.manifest.generator != source_digest():
        raise TinycompError(
            f"another version of tinycomp ({artifact.manifest.tinycomp}) made this artifact, "
            f"its {level} cannot be shown",
            hint="compile the model again to see it",
        )
    one, target = _RENDERERS[level], artifact.manifest.target
    functions = kernel_functions(artifact, extension)
    return "\n\n".join(one(function, target, extension) for function in functions)


def kernel_functions(artifact: Artifact, extension: Extension = NO_EXTENSION) -> list[Function]:
    """The distinct primitive functions that an artifact's kernels compute."""
    ops = extension.op_set()
    texts = artifact.texts["kernels"].split(_SEPARATOR)
    return [parse_function(text, ops) for text in texts if text]


def kernels_text(main: Function) -> str:
    """The distinct primitive functions of a fused function, to store."""
    return _SEPARATOR.join(map(str, primitive_functions(main).values()))


def _te(function: Function, target: Target, extension: Extension) -> str:
    _, outputs = to_te(function)
    lines = [f"# {kernel_name(function)}"]
    for op in topological(outputs):
        if isinstance(op, ComputeOp):
            axes = ", ".join(f"{a.name} < {a.extent}" for a in op.axis)
            lines += [f"{op.output(i).name}[{axes}] = {e}" for i, e in enumerate(op.body)]
    return "\n".join(lines)


def _tir(function: Function, target: Target, extension: Extension) -> str:
    return str(build_kernel(function, target, kernel_name(function), extension))


def _llvm(function: Function, target: Target, extension: Extension) -> str:
    return lower_kernel(function, target, extension).llvm_text


def _asm(function: Function, target: Target, extension: Extension) -> str:
    return assembly(_llvm(function, target, extension), target)


def _access(function: Function, target: Target, extension: Extension) -> str:
    name = kernel_name(function)
    found = find_accesses(build_kernel(function, target, name, extension))
    return "\n".join([f"# {name}", *map(str, found)])


_RENDERERS: Mapping[str, Callable[[Function, Target, Extension], str]] = {
    "te": _te,
    "tir": _tir,
    "llvm": _llvm,
    "asm": _asm,
    "access": _access,
}
