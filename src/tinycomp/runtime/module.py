"""A compiled model that can be called.

>>> import tinycomp                                           # doctest: +SKIP
>>> module = tinycomp.load("model.tc")                        # doctest: +SKIP
>>> module.run({"input": x})["output"].shape                  # doctest: +SKIP
(1, 1000)
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..diagnostics import ArtifactError, ExecutionError, InputError, Span, TinycompError
from ..dims import DimRange
from ..extension import NO_EXTENSION, Extension
from ..target import default_num_threads
from .arrays import (
    address,
    allocate,
    as_array,
    bind_arguments,
    check_input,
    check_names,
    check_output,
    resident,
)
from .artifact import ALIGNMENT, Artifact, Manifest, ValueSpec, foreign_reason
from .native import NativeModel
from .profiler import Profile, make_profile

LEVELS = ("relay", "te", "tir", "llvm", "asm")
CUDA_LEVELS = ("relay", "te", "tir", "cuda", "access")


class Module:
    """A model compiled for this machine; made by `tinycomp.compile` or `tinycomp.load`.

    Calls may come from several Python threads at once and run in parallel: each has its own
    working memory, and the interpreter lock is released meanwhile. It works in a forked child too.

    Args:
        artifact: the compiled model.
        num_threads: threads that one call may use; default: `TINYCOMP_NUM_THREADS`, else the
            cores this process may use.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        num_threads: int | None = None,
    ) -> None:
        self._artifact = artifact
        self.num_threads = choose_threads(num_threads, artifact.manifest.max_threads)
        self._native: NativeModel | None = None
        if not foreign_reason(artifact.manifest.target):
            self._native = NativeModel(artifact, self.num_threads)
        self._idle: deque[_Frame] = deque()
        self._inputs = [
            (spec.name, spec.shape, spec.dtype.numpy, spec) for spec in artifact.manifest.inputs
        ]
        self._outputs = [
            (spec.name, _static(spec), spec.dtype.numpy, _nbytes(spec))
            for spec in artifact.manifest.outputs
        ]

    @property
    def manifest(self) -> Manifest:
        """Target, versions, kernels and memory of the compiled model."""
        return self._artifact.manifest

    @property
    def artifact(self) -> Artifact:
        """Machine code, constants and texts, as they are saved."""
        return self._artifact

    @property
    def levels(self) -> tuple[str, ...]:
        """What `ir` shows, from the graph down."""
        return LEVELS

    @property
    def dims(self) -> Mapping[str, DimRange]:
        """The open dimensions by name; empty if all sizes are fixed."""
        return self.manifest.dims

    @property
    def variants(self) -> tuple[dict[str, int], ...]:
        """The sizes of open dimensions that are compiled: one set, empty if there are none."""
        return ({},)

    @property
    def inputs(self) -> tuple[ValueSpec, ...]:
        """Name, shape and dtype of the inputs, in the model's order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[ValueSpec, ...]:
        """Name, shape and dtype of the outputs, in the model's order."""
        return self.manifest.outputs

    def run(
        self, inputs: Mapping[str, Any], *, out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """The outputs, by name in the model's order, for inputs by name.

        Inputs are NumPy arrays or anything with DLPack or the array interface, of exactly the
        model's dtypes and shapes. The results are new arrays, aligned to 64 bytes.

        Args:
            out: dense NumPy arrays for some or all outputs, by name; written and returned instead
                of new ones.

        Raises:
            InputError: an input is missing, unknown, or of another dtype or shape; or an array
                for an output does not fit.
            ExecutionError: the data made an index out of range.
        """
        return self._call(inputs, None, out)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Inputs by position or name; one array, or a tuple if the model has several outputs."""
        results = self.run(bind_arguments(args, kwargs, self.inputs))
        return next(iter(results.values())) if len(results) == 1 else tuple(results.values())

    def profile(self, inputs: Mapping[str, Any], *, repeat: int = 10) -> Profile:
        """Time of each kernel, the median of `repeat` runs after a warm-up."""
        stamps = np.zeros((repeat + 1, len(self.manifest.kernels) + 1), np.int64)
        for row in stamps:
            self._call(inputs, row)
        return make_profile(self.manifest, self.num_threads, stamps[1:])

    def _call(
        self,
        inputs: Mapping[str, Any],
        stamps: np.ndarray | None,
        out: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        arrays = []
        if len(inputs) != len(self._inputs):
            check_names(inputs, self.inputs)
        for name, shape, dtype, spec in self._inputs:
            try:
                value = inputs[name]
            except KeyError:
                check_names(inputs, self.inputs)
                raise
            if (
                type(value) is not np.ndarray
                or value.dtype is not dtype
                or value.shape != shape
                or not value.flags.c_contiguous
                or not value.flags.aligned
            ):
                value = check_input(value, spec)
            arrays.append(value)
        if self._native is None:
            raise ArtifactError(
                f"this module is compiled for {foreign_reason(self.manifest.target)}",
                hint="save it and run it on such a machine",
            )
        results, targets = {}, []
        for name, shape, dtype, nbytes in self._outputs:
            results[name], target = allocate(shape, dtype, nbytes)
            targets.append(target)
        given = {} if out is None else self._check_out(out, arrays)
        for index, spec in enumerate(self.outputs if given else ()):
            if given.get(spec.name):
                assert out is not None
                results[spec.name], targets[index] = out[spec.name], address(out[spec.name])
        try:
            frame = self._idle.pop()
        except IndexError:
            frame = _Frame(self._native, self.manifest)
        frame.inputs[:] = [address(a) for a in arrays]
        frame.outputs[:] = targets
        status = frame.run(stamps)
        self._idle.append(frame)
        if status:
            self._fail(status - 1)
        for name, direct in given.items():
            if not direct:
                assert out is not None
                out[name][...] = results[name]
                results[name] = out[name]
        return results

    def _check_out(
        self, out: Mapping[str, np.ndarray], inputs: list[np.ndarray]
    ) -> dict[str, bool]:
        """For each array given for an output whether it is written directly.

        One that shares memory with an input or another such array, or does not begin at a multiple
        of 64 bytes, is copied into at the end.
        """
        specs = {spec.name: spec for spec in self.outputs}
        direct: dict[str, bool] = {}
        for name, array in out.items():
            if name not in specs:
                raise InputError(f"out: the model has no output {name!r}")
            check_output(array, specs[name])
            others = [*inputs, *(a for n, a in out.items() if n != name)]
            shared = any(np.may_share_memory(array, o) for o in others)
            direct[name] = not shared and address(array) % ALIGNMENT == 0
        return direct

    def _fail(self, index: int) -> None:
        kernels = self.manifest.kernels
        span = Span(kernels[index].nodes) if index < len(kernels) else Span()
        raise ExecutionError(
            "an index computed from the inputs is out of range",
            span=span,
            hint="check the inputs: token ids, positions and indices must lie inside their tables",
        )

    def pad(self, value: Any, spec: ValueSpec) -> Any:
        """An array in the larger shape of `spec`, on the side (host or device) where it is.

        The last elements along each axis are repeated, which are values that the model takes.
        """
        array = check_input(value, replace(spec, shape=as_array(value, spec.name).shape))
        padded = allocate(_static(spec), array.dtype, _nbytes(spec))[0]
        padded[tuple(slice(n) for n in array.shape)] = array
        for axis, (have, want) in enumerate(zip(array.shape, padded.shape, strict=True)):
            if have < want:
                before = (slice(None),) * axis
                padded[(*before, slice(have, None))] = padded[(*before, slice(have - 1, have))]
        return padded

    def save(self, path: str | Path) -> None:
        """Write the artifact, one file that `tinycomp.load` and `tinycomp run` take."""
        self._artifact.save(path)

    def ir(self, level: str, extension: Extension = NO_EXTENSION) -> str:
        """The model at one level: "relay" (fused), "te", "tir", then "llvm" or "asm"; for a GPU
        "cuda", and "access": what the threads of each launch ask memory for.

        Below relay these are the kernels, each distinct one once; `extension` is what the model
        was compiled with.

        Raises:
            TinycompError: no such level, or another version of tinycomp, or with another extension,
                made the artifact.
        """
        if level not in self.levels:
            names = ", ".join(self.levels)
            raise TinycompError(f"unknown level {level!r}", hint=f"levels are {names}")
        if level in self._artifact.texts:
            return self._artifact.texts[level]
        from ..levels import render  # above this layer: showing a kernel generates it again

        return render(self._artifact, level, extension)

    def get_source(self, form: str = "") -> str:
        """The generated code: "cuda" of a module for a GPU, "llvm" or "asm" of one for a CPU."""
        return self.ir(form or ("cuda" if self.manifest.target.kind == "cuda" else "llvm"))

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"<tinycomp.Module ({inputs}) -> ({outputs}) for {self.manifest.target}>"


class _Frame:
    """The memory of one running call: pointer tables, arena, and the native runtime state."""

    def __init__(self, native: NativeModel, manifest: Manifest) -> None:
        self.native = native
        self.inputs = (ctypes.c_void_p * len(manifest.inputs))()
        self.outputs = (ctypes.c_void_p * len(manifest.outputs))()
        self.arena = resident(manifest.arena_bytes)
        self.state = native.new_state()
        self._arguments = (
            ctypes.addressof(self.state),
            ctypes.addressof(self.inputs),
            ctypes.addressof(self.outputs),
            native.constants,
            address(self.arena),
        )

    def run(self, stamps: np.ndarray | None) -> int:
        status = self.native.entry(*self._arguments, 0 if stamps is None else address(stamps))
        if status:
            self.state.error = 0
        return status


def _nbytes(spec: ValueSpec) -> int:
    return math.prod(_static(spec)) * spec.dtype.itemsize


def choose_threads(wanted: int | None, planned: int) -> int:
    """The threads of a module whose memory was planned for `planned`."""
    if wanted is None:
        wanted = min(Config.from_environment().num_threads or default_num_threads(), planned)
    if wanted < 1:
        raise TinycompError(f"num_threads must be at least 1, not {wanted}")
    if wanted > planned:
        raise TinycompError(
            f"this artifact was compiled for up to {planned} threads, not {wanted}",
            hint=f"compile it again with num_threads={wanted} (--threads {wanted})",
        )
    return wanted


def _static(spec: ValueSpec) -> tuple[int, ...]:
    return tuple(d for d in spec.shape if isinstance(d, int))
