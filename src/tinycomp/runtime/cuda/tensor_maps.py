"""Tensor maps, which tell the copy engine (TMA) of Hopper how a tensor lies in memory.

The driver makes their 128 bytes (CUDA driver API, cuTensorMapEncodeTiled); a launch passes them by
value.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ...codegen.cuda.limits import TensorMapSpec
from ...diagnostics import ExecutionError, TinycompError

MAP_BYTES = 128
_ALIGNMENT = 64  # of the result

Encode = Callable[..., int]
"""cuTensorMapEncodeTiled, or what a test has instead; 0 is success."""

# enum CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion of cuda.h
_TYPES = {
    "uint8": 0, "int8": 0, "bool": 0, "uint16": 1, "int16": 1, "uint32": 2, "int32": 3, "uint64": 4,
    "int64": 5, "float16": 6, "float32": 7, "float64": 8, "bfloat16": 9,
}  # fmt: skip
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
_PROMOTE_256 = 3  # L2 fetches 256 bytes at a time


def encode_tensor_map(
    spec: TensorMapSpec, address: int, encode: Encode | None = None
) -> np.ndarray:
    """The map of a tensor at `address`, as an array of one element of 128 bytes.

    Args:
        address: on the device, a multiple of 16.
        encode: in place of the driver's function.

    Raises:
        TinycompError: there is no driver, or it is too old for tensor maps.
        ExecutionError: the driver refuses the map.
    """
    function = _driver_function() if encode is None else encode
    rank = len(spec.dims)
    memory = np.zeros(MAP_BYTES + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    result = memory[start : start + MAP_BYTES]
    status = function(
        ctypes.c_void_p(result.ctypes.data), _TYPES[spec.dtype], ctypes.c_uint32(rank),
        ctypes.c_void_p(address), (ctypes.c_uint64 * rank)(*spec.dims),
        (ctypes.c_uint64 * max(1, rank - 1))(*spec.strides),
        (ctypes.c_uint32 * rank)(*spec.box), (ctypes.c_uint32 * rank)(*[1] * rank),
        0, _SWIZZLES[spec.swizzle], _PROMOTE_256, 0,
    )  # fmt: skip
    if status:
        raise ExecutionError(
            f"the CUDA driver refuses a tensor map (error {status}): {spec.dtype}"
            f"{list(reversed(spec.dims))} in boxes of {list(reversed(spec.box))} at {address:#x}",
            hint="tensors must begin at multiples of 16 bytes",
        )
    return result.view(f"V{MAP_BYTES}")


@functools.cache
def _driver_function() -> Any:
    try:
        function = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    except (OSError, AttributeError) as error:
        raise TinycompError(
            "no CUDA driver that knows tensor maps is found",
            hint="kernels for sm_90a need driver 525 or newer",
        ) from error
    function.restype = ctypes.c_int
    return function
