"""Arrays on the device at the border of a model: of CuPy, PyTorch, or anything else.

Inputs come through the CUDA Array Interface (version 3; CuPy, PyTorch, Numba) or DLPack (JAX);
results are CuPy arrays, which export both.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...diagnostics import InputError, TinycompError
from ...dtype import DType
from ..artifact import ValueSpec

_LEGACY_STREAM = 1  # of the interface: the default stream, which is handle 0 of the driver


class ArrayLibrary(Protocol):
    """Makes arrays on the device; `CupyArrays` is the real one."""

    def empty(self, shape: tuple[int, ...], dtype: Any, stream: int) -> Any: ...
    def contiguous(self, value: Any, stream: int) -> Any: ...
    def pad(self, value: Any, spec: ValueSpec, stream: int) -> Any: ...


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """An array on the device, as seen by a call.

    Attributes:
        address: of its first element.
        nbytes: from there, if it is dense.
        owner: what keeps the memory.
    """

    address: int
    nbytes: int
    owner: Any
    dense: bool = True


def is_on_device(value: Any) -> bool:
    """Whether an array lies in GPU memory."""
    if type(value).__module__ == "numpy":
        return False
    if getattr(value, "__cuda_array_interface__", None) is not None:
        return True
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and device()[0] in (2, 13)  # kDLCUDA, kDLCUDAManaged


def device_array(
    value: Any, spec: ValueSpec, what: str, arrays: ArrayLibrary, stream: int
) -> DeviceArray:
    """The memory of an array on the device, checked against `spec`.

    What is not dense is copied, if `what` is an input; the stream must be behind the producer's.

    Raises:
        InputError: another GPU, wrong dtype or shape, or an output that is not dense.
    """
    require_first_gpu(value, f"{what} {spec.name!r}")
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:  # only DLPack
        value = arrays.contiguous(value, stream)
        interface = value.__cuda_array_interface__
    found = _read(interface, spec, what, value)
    if found.dense:
        return found
    if what != "input":
        raise InputError(f"{what} {spec.name!r} is not dense and row-major")
    copy = arrays.contiguous(value, stream)
    return _read(copy.__cuda_array_interface__, spec, what, copy)


def require_first_gpu(value: Any, what: str) -> None:
    """Refuse an array on another GPU than the first, where kernels run.

    Raises:
        InputError: it is on another.
    """
    device = getattr(value, "__dlpack_device__", None)
    number = device()[1] if device is not None else 0
    if number:
        raise InputError(
            f"{what} is on GPU {number}, but kernels run on GPU 0",
            hint="move it there, or let CUDA_VISIBLE_DEVICES name the GPU to use",
        )


def producer_stream(value: Any) -> int | None:
    """The stream whose work must be waited for before an array is read; None if none is named."""
    interface = getattr(value, "__cuda_array_interface__", None) or {}
    handle = interface.get("stream")
    return 0 if handle == _LEGACY_STREAM else handle


def _read(interface: Any, spec: ValueSpec, what: str, owner: Any) -> DeviceArray:
    dtype, shape = spec.dtype.numpy, tuple(interface["shape"])
    typestr = interface["typestr"]
    if not holds(typestr, spec.dtype):
        raise InputError(
            f"{what} {spec.name!r} has element type {typestr}, expected {spec.dtype} ({dtype.str})",
            hint="convert it on the device first",
        )
    if shape != spec.shape:
        raise InputError(
            f"{what} {spec.name!r} has shape {list(shape)}, expected {list(spec.shape)}"
        )
    dense = is_dense(shape, interface.get("strides"), dtype.itemsize)
    nbytes = math.prod(shape) * dtype.itemsize
    return DeviceArray(interface["data"][0], nbytes, owner, dense)


def holds(typestr: str, dtype: DType) -> bool:
    """Whether elements of the interface's type are a dtype's; it has no name for bfloat16."""
    return typestr == dtype.numpy.str or (dtype is DType.BFLOAT16 and typestr in ("<V2", "<u2"))


def is_dense(shape: Sequence[int], strides: Sequence[int] | None, itemsize: int) -> bool:
    """Whether elements lie row by row without gaps; no strides mean that they do."""
    dense, step = True, itemsize
    for size, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        dense = dense and (size == 1 or stride == step)
        step *= size
    return dense or 0 in shape


def stream_handle(stream: Any) -> int:
    """The driver's handle of a stream: an int, or a stream of CuPy, PyTorch or cuda.core.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(stream, int):
        return 0 if stream == _LEGACY_STREAM else stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("ptr", "cuda_stream", "handle"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise InputError(
        f"stream is a {type(stream).__name__}",
        hint="pass its handle as an int, or a stream of CuPy or PyTorch",
    )


class CupyArrays:
    """Device arrays by CuPy, which is imported when the first is made.

    Raises:
        TinycompError: when used, if CuPy is not installed.
    """

    def empty(self, shape: tuple[int, ...], dtype: Any, stream: int) -> Any:
        cupy = _cupy()
        with cupy.cuda.ExternalStream(stream):
            return cupy.empty(shape, dtype)

    def contiguous(self, value: Any, stream: int) -> Any:
        """A dense CuPy array of any array on the device."""
        cupy = _cupy()
        with cupy.cuda.ExternalStream(stream):
            return cupy.ascontiguousarray(self._adopt(value))

    def pad(self, value: Any, spec: ValueSpec, stream: int) -> Any:
        """The array in the larger shape of `spec`; its last elements of each axis are repeated."""
        cupy = _cupy()
        with cupy.cuda.ExternalStream(stream):
            array = self._adopt(value)
            widths = [(0, w - h) for h, w in zip(array.shape, spec.shape, strict=True)]  # type: ignore[operator]
            return cupy.pad(array, widths, mode="edge")

    def _adopt(self, value: Any) -> Any:
        cupy = _cupy()
        if hasattr(value, "__cuda_array_interface__"):
            return cupy.asarray(value)
        try:
            return cupy.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"a {type(value).__name__} cannot be read through DLPack: {error}",
                hint="pass an array of CuPy or PyTorch",
            ) from error


def _cupy() -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise TinycompError(
            "arrays on a GPU need CuPy, which is not installed",
            hint='pip install "tinycomp[cuda]"; or pass NumPy arrays, or out=',
        ) from error
