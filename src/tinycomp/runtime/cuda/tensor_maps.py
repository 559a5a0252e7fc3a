"""Tensor maps, which tell the copy engine (TMA) of Hopper how a tensor lies in memory.

The driver makes their 128 bytes (CUDA driver API, cuTensorMapEncodeTiled, and for the windows of
images cuTensorMapEncodeIm2col); a launch passes them by value.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from ...codegen.cuda.limits import TensorMapSpec
from ...diagnostics import ExecutionError

MAP_BYTES = 128
_ALIGNMENT = 64  # of the result

MapBytes = ctypes.c_ubyte * MAP_BYTES
"""A tensor map as a kernel argument."""

Encode = Callable[..., int]
"""The driver's function for a map, see `entry_point`, or what stands for it; 0 is success."""

# enum CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion of cuda.h
TYPES = {
    "uint8": 0, "int8": 0, "bool": 0, "uint16": 1, "int16": 1, "uint32": 2, "int32": 3, "uint64": 4,
    "int64": 5, "float16": 6, "float32": 7, "float64": 8, "bfloat16": 9,
}  # fmt: skip
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
_PROMOTE_256 = 3  # L2 fetches 256 bytes at a time


def entry_point(spec: TensorMapSpec) -> str:
    """The function of the driver that makes this map."""
    return "cuTensorMapEncodeIm2col" if spec.lower else "cuTensorMapEncodeTiled"


def encode_tensor_map(spec: TensorMapSpec, address: int, encode: Encode) -> ctypes.Array:
    """The map of a tensor at `address`, a multiple of 16, on the device.

    Raises:
        ExecutionError: `encode` refuses it.
    """
    rank = len(spec.dims)
    memory = np.zeros(MAP_BYTES + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    result = MapBytes.from_buffer(memory.data, start)
    status = encode(
        ctypes.c_void_p(ctypes.addressof(result)), TYPES[spec.dtype], ctypes.c_uint32(rank),
        ctypes.c_void_p(address), (ctypes.c_uint64 * rank)(*spec.dims),
        (ctypes.c_uint64 * max(1, rank - 1))(*spec.strides), *_extent(spec, rank),
        0, SWIZZLES[spec.swizzle], _PROMOTE_256, 0,
    )  # fmt: skip
    if status:
        raise ExecutionError(
            f"the CUDA driver refuses a tensor map (error {status}): {spec.dtype}"
            f"{list(reversed(spec.dims))} in boxes of {list(reversed(spec.box))} at {address:#x}",
            hint="tensors must begin at multiples of 16 bytes",
        )
    return result


def _extent(spec: TensorMapSpec, rank: int) -> tuple[object, ...]:
    """What one copy moves, and from which elements."""
    if not spec.lower:
        return (ctypes.c_uint32 * rank)(*spec.box), (ctypes.c_uint32 * rank)(*[1] * rank)
    corners = ((ctypes.c_int32 * (rank - 2))(*corner) for corner in (spec.lower, spec.upper))
    steps = (ctypes.c_uint32 * rank)(1, *spec.steps, 1)
    channels, pixels = map(ctypes.c_uint32, spec.box)
    return (*corners, channels, pixels, steps)
