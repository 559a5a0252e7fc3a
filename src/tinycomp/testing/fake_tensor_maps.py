"""Tensor maps of the device made of NumPy: what cuTensorMapEncodeTiled is given, in 128 bytes.

How a real map is laid out is the driver's business; here it is a struct that `decode` reads back,
after `encode` has checked the rules of the CUDA driver API ("Tensor Map Object Management").
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import Any

from ..codegen.cuda.limits import TensorMapSpec
from ..dtype import DType
from ..runtime.cuda.tensor_maps import MAP_BYTES, SWIZZLES, TYPES

_RANK = 5  # at most
_LAYOUT = struct.Struct(f"<Q4B{_RANK}Q{_RANK - 1}Q{_RANK}I")  # ends before byte MAP_BYTES
_MAGIC = 0x7A
_INVALID = 1  # CUDA_ERROR_INVALID_VALUE
_ITEMSIZE = {number: DType(name).itemsize for name, number in TYPES.items()}
_SPAN = {number: span for span, number in SWIZZLES.items()}


@dataclass(frozen=True, slots=True)
class DecodedMap:
    """What a map says, in the terms of cuda.h."""

    address: int
    type: int
    swizzle: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]

    def describes(self, spec: TensorMapSpec) -> bool:
        """Whether it is the map of a tensor of this kind, wherever that lies."""
        return (self.type, self.swizzle, self.dims, self.strides, self.box) == (
            TYPES[spec.dtype], SWIZZLES[spec.swizzle], spec.dims, spec.strides, spec.box,
        )  # fmt: skip


def encode(
    result: Any, type_: int, rank: Any, address: Any, dims: Any, strides: Any, box: Any, steps: Any,
    interleave: int, swizzle: int, promotion: int, fill: int,
) -> int:  # fmt: skip
    """cuTensorMapEncodeTiled: the status."""
    del promotion, fill
    found = DecodedMap(
        address.value or 0,
        type_,
        swizzle,
        tuple(dims),
        tuple(strides)[: rank.value - 1],
        tuple(box),
    )
    if not 1 <= rank.value <= _RANK or result.value % 64 or interleave or set(steps) != {1}:
        return _INVALID
    if not _is_allowed(found):
        return _INVALID
    packed = _LAYOUT.pack(
        found.address, _MAGIC, rank.value, type_, swizzle, *_filled(found.dims, _RANK),
        *_filled(found.strides, _RANK - 1), *_filled(found.box, _RANK),
    )  # fmt: skip
    ctypes.memmove(result, packed.ljust(MAP_BYTES, b"\0"), MAP_BYTES)
    return 0


def decode(data: bytes) -> DecodedMap | None:
    """What a map says; None if the bytes are none."""
    address, magic, rank, type_, swizzle, *rest = _LAYOUT.unpack(data[: _LAYOUT.size])
    if magic != _MAGIC or len(data) != MAP_BYTES:
        return None
    dims, strides, box = rest[:_RANK], rest[_RANK : 2 * _RANK - 1], rest[2 * _RANK - 1 :]
    return DecodedMap(
        address, type_, swizzle, tuple(dims[:rank]), tuple(strides[: rank - 1]), tuple(box[:rank])
    )


def _is_allowed(map: DecodedMap) -> bool:
    row = map.box[0] * _ITEMSIZE[map.type]
    span = _SPAN[map.swizzle]
    return (
        map.address > 0
        and map.address % 16 == 0
        and all(1 <= n <= 1 << 32 for n in map.dims)
        and all(n % 16 == 0 and n < 1 << 40 for n in map.strides)
        and all(1 <= n <= 256 for n in map.box)
        and row % 16 == 0
        and (not span or row <= span)
    )


def _filled(values: tuple[int, ...], count: int) -> tuple[int, ...]:
    return values + (0,) * (count - len(values))
