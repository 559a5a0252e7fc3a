"""tinycomp, a tensor compiler: ONNX models to native code.

>>> import tinycomp
>>> tinycomp.__version__
'0.1.0'

The names below load when they are first used, so that `import tinycomp` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiler import compile
    from .diagnostics import TinycompError
    from .driver import build, lower
    from .extension import Extension
    from .loading import load
    from .runtime.module import Module
    from .target import Target

__version__ = "0.1.0"

__all__ = [
    "Extension", "Module", "Target", "TinycompError", "__version__", "build", "compile", "load",
    "lower",
]  # fmt: skip

_EXPORTS = {
    "build": "tinycomp.driver",
    "compile": "tinycomp.compiler",
    "Extension": "tinycomp.extension",
    "load": "tinycomp.loading",
    "lower": "tinycomp.driver",
    "Module": "tinycomp.runtime.module",
    "Target": "tinycomp.target",
    "TinycompError": "tinycomp.diagnostics",
}
_SUBMODULES = (
    "codegen", "frontend", "ops", "relay", "runtime", "te", "testing", "tir", "visualize",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"tinycomp.{name}")
    raise AttributeError(f"module 'tinycomp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_SUBMODULES})
