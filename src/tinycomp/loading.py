"""Modules from files. Where nothing has to be compiled, the compiler is not imported."""

from __future__ import annotations

from pathlib import Path

from .runtime.artifact import Artifact
from .runtime.module import Module
from .runtime.static import static_module


def load(path: str | Path, *, num_threads: int | None = None) -> Module:
    """A module from an artifact.

    Raises:
        ArtifactError: not an artifact, damaged, of another version, or for another machine.
    """
    artifact = Artifact.load(path)
    if artifact.manifest.dims:
        from .compiler import open_dynamic

        return open_dynamic(artifact, num_threads=num_threads)
    return static_module(artifact, num_threads=num_threads)
