"""Modules for fixed sizes, by the kind of machine."""

from __future__ import annotations

from .artifact import Artifact
from .cuda.module import CudaModule
from .module import Module


def static_module(artifact: Artifact, *, num_threads: int | None = None) -> Module:
    """The module of an artifact without open dimensions, for the machine it is compiled for."""
    if artifact.manifest.target.kind == "cuda":
        return CudaModule(artifact)
    return Module(artifact, num_threads=num_threads)
