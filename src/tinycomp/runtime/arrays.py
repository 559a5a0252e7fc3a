"""Arrays at the border of a compiled model: checked on the way in, aligned on the way out."""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..diagnostics import InputError
from .artifact import ALIGNMENT, ValueSpec

_HUGE_PAGE = 2 << 20

_Byte = ctypes.c_char


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array whose first element lies at a multiple of 64 bytes.

    >>> aligned_empty((3, 5), np.dtype("float32")).ctypes.data % 64
    0
    """
    return allocate(shape, dtype, math.prod(shape) * dtype.itemsize)[0]


def allocate(shape: tuple[int, ...], dtype: np.dtype, nbytes: int) -> tuple[np.ndarray, int]:
    """What `aligned_empty` gives, and its address; for callers that know its `nbytes`."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = ctypes.addressof(_Byte.from_buffer(raw.data))  # faster than the array interface
    offset = -start % ALIGNMENT
    return np.ndarray(shape, dtype, raw, offset), start + offset


def resident(nbytes: int) -> np.ndarray:
    """Zeroed bytes for a model's constants or arena, in huge pages where the system has them.

    Weights are read once per call from end to end; in small pages the misses of address
    translation cost more than the reads (resnet50 on one Emerald Rapids core: 65 against 51 ms).
    """
    if nbytes < _HUGE_PAGE:
        return aligned_empty((nbytes,), np.dtype(np.uint8))
    memory = mmap.mmap(-1, nbytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(memory, np.uint8)
    start = -address(raw) % _HUGE_PAGE
    return raw[start : start + nbytes]


def address(array: np.ndarray) -> int:
    """Where the first element of the array lies."""
    return array.__array_interface__["data"][0]


def as_array(value: Any, name: str) -> np.ndarray:
    """A NumPy array from one, or from anything with DLPack or an array interface; no copy.

    Raises:
        InputError: `value` is nothing of the kind.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        if hasattr(value, "__array_interface__") or hasattr(value, "__array__"):
            return np.asarray(value)
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"input {name!r}: {type(value).__name__} cannot be read as an array: {error}",
            hint="move it to the CPU and detach it, or convert it to a NumPy array",
        ) from error
    if isinstance(value, bool | int | float | list | tuple):
        return _from_python(value, name)
    raise InputError(
        f"input {name!r} is a {type(value).__name__}, not an array",
        hint="pass a NumPy array or anything with __dlpack__ or __array_interface__",
    )


def _from_python(value: Any, name: str) -> np.ndarray:
    """A number or nested lists of numbers as an array."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"input {name!r} is not a rectangle of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"input {name!r} is not made of numbers that an array can hold")
    return array


def _take_dtype(array: np.ndarray, spec: ValueSpec) -> np.ndarray:
    """Python numbers in the dtype of the spec, unless that would change them.

    Floats may be rounded. An empty list has no numbers to change.
    """
    with np.errstate(all="ignore"):
        converted = array.astype(spec.dtype.numpy)
    different = np.asarray(converted != array)
    if different.any() and not spec.dtype.is_float:
        raise InputError(f"input {spec.name!r}: {array[different][0]} is no value of {spec.dtype}")
    return converted


def check_input(value: Any, spec: ValueSpec) -> np.ndarray:
    """`value` as a dense, aligned array of the dtype and shape of `spec`.

    A Python number or list takes the dtype of the spec; arrays must have it already, since a
    silent conversion hides mistakes. Copies only what is not dense or not aligned.

    Raises:
        InputError: wrong dtype or shape.
    """
    array = as_array(value, spec.name)
    if array.dtype != spec.dtype.numpy:
        if array is value or not isinstance(value, bool | int | float | list | tuple):
            raise InputError(
                f"input {spec.name!r} has dtype {array.dtype}, expected {spec.dtype}",
                hint=f'convert it: x.astype("{spec.dtype}")',
            )
        array = _take_dtype(array, spec)
    if array.shape != spec.shape:
        raise InputError(_shape_difference(array.shape, spec))
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = np.require(array, requirements=("C", "A"))
    return array


def check_output(value: Any, spec: ValueSpec) -> np.ndarray:
    """A NumPy array that a result is written to.

    Raises:
        InputError: it does not fit, or cannot be written.
    """
    fits = isinstance(value, np.ndarray) and value.dtype == spec.dtype.numpy
    if not fits or value.shape != spec.shape or not value.flags.c_contiguous:
        raise InputError(f"out: the array for {spec.name!r} is no dense {spec}")
    if not (value.flags.writeable and value.flags.aligned):
        raise InputError(f"out: the array for {spec.name!r} is read-only, or not aligned")
    return value


def _shape_difference(shape: Sequence[int], spec: ValueSpec) -> str:
    text = f"input {spec.name!r} has shape {list(shape)}, expected {list(spec.shape)}"
    if len(shape) != len(spec.shape):
        return f"{text}: it has {len(shape)} dimensions, not {len(spec.shape)}"
    wrong = [
        f"dimension {i} is {got}, not {expected}"
        for i, (got, expected) in enumerate(zip(shape, spec.shape, strict=True))
        if got != expected
    ]
    return f"{text}: {'; '.join(wrong)}"


def check_names(given: Iterable[str], specs: Sequence[ValueSpec]) -> None:
    """Refuse missing and unknown input names, all in one message.

    Raises:
        InputError: listing both, with the name that was probably meant.
    """
    expected = [spec.name for spec in specs]
    given = list(given)
    problems = []
    missing = [name for name in expected if name not in given]
    if missing:
        problems.append("missing " + ", ".join(map(repr, missing)))
    for name in given:
        if name not in expected:
            close = _closest(str(name), missing or expected)
            problems.append(f"unknown {name!r}" + (f", did you mean {close!r}?" if close else ""))
    if problems:
        raise InputError(
            f"inputs do not fit the model: {'; '.join(problems)}",
            hint="the model's inputs are " + ", ".join(map(str, specs)),
        )


def _closest(name: str, candidates: Sequence[str]) -> str:
    """The candidate that was probably meant, whatever its case; empty if none is near."""
    folded = {candidate.casefold(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.casefold(), folded, 1)
    return folded[close[0]] if close else ""


def bind_arguments(
    args: Sequence[Any], kwargs: Mapping[str, Any], specs: Sequence[ValueSpec]
) -> dict[str, Any]:
    """Positional and keyword arguments by input name, as a Python call binds them."""
    if len(args) > len(specs):
        raise InputError(f"{len(args)} inputs were given, the model has {len(specs)}")
    bound = {spec.name: value for spec, value in zip(specs, args, strict=False)}
    for name, value in kwargs.items():
        if name in bound:
            raise InputError(f"input {name!r} was given by position and by name")
        bound[name] = value
    return bound


def random_inputs(specs: Sequence[ValueSpec], seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded inputs: normal floats, random bools and bytes; of the wider integers the first is
    taken to be token ids (0 to 31), further ones masks (ones)."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {}
    ids_seen = False
    for spec in specs:
        shape = tuple(d if isinstance(d, int) else 1 for d in spec.shape)
        dtype = spec.dtype.numpy
        if spec.dtype.is_float:
            array = rng.standard_normal(shape).astype(dtype)
        elif spec.dtype.bits == 8:
            high = 2 if dtype.kind == "b" else 128
            array = rng.integers(0, high, shape).astype(dtype)
        elif ids_seen:
            array = np.ones(shape, dtype)
        else:
            array = rng.integers(0, 32, shape).astype(dtype)
            ids_seen = True
        inputs[spec.name] = np.asarray(array)
    return inputs
