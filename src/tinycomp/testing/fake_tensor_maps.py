"""Tensor maps of the device made of NumPy: what cuTensorMapEncode* is given, in 128 bytes.

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
_WALK = 6  # numbers of an im2col map: two corners and steps
_LAYOUT = struct.Struct(f"<Q4B{_RANK}Q{_RANK - 1}Q{_RANK}I{_WALK}b")  # ends before byte MAP_BYTES
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
    walk: tuple[int, ...] = ()  # lower and upper corner and steps of an im2col map

    def describes(self, spec: TensorMapSpec) -> bool:
        """Whether it is the map of a tensor of this kind, wherever that lies."""
        return (self.type, self.swizzle, self.dims, self.strides, self.box, self.walk) == (
            TYPES[spec.dtype], SWIZZLES[spec.swizzle], spec.dims, spec.strides, spec.box,
            spec.lower + spec.upper + spec.steps,
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
    if not 1 <= rank.value <= _RANK or interleave or set(steps) != {1}:
        return _INVALID
    return _write(result, found)


def encode_im2col(
    result: Any, type_: int, rank: Any, address: Any, dims: Any, strides: Any, lower: Any,
    upper: Any, channels: Any, pixels: Any, steps: Any, interleave: int, swizzle: int,
    promotion: int, fill: int,
) -> int:  # fmt: skip
    """cuTensorMapEncodeIm2col for images [N, H, W, C]: the status."""
    del promotion, fill
    channel_step, *walk, image_step = steps
    found = DecodedMap(
        address.value or 0, type_, swizzle, tuple(dims), tuple(strides),
        (channels.value, pixels.value), (*lower, *upper, *walk),
    )  # fmt: skip
    corners = (*lower, *upper)
    if rank.value != 4 or interleave or (channel_step, image_step) != (1, 1):
        return _INVALID
    if not all(-128 <= c < 128 for c in corners) or not all(1 <= s <= 8 for s in walk):
        return _INVALID
    return _write(result, found)


def _write(result: Any, map: DecodedMap) -> int:
    if result.value % 64 or not _is_allowed(map):
        return _INVALID
    packed = _LAYOUT.pack(
        map.address, _MAGIC, len(map.dims), map.type, map.swizzle, *_filled(map.dims, _RANK),
        *_filled(map.strides, _RANK - 1), *_filled(map.box, _RANK), *_filled(map.walk, _WALK),
    )  # fmt: skip
    ctypes.memmove(result, packed.ljust(MAP_BYTES, b"\0"), MAP_BYTES)
    return 0


def decode(data: bytes) -> DecodedMap | None:
    """What a map says; None if the bytes are none."""
    address, magic, rank, type_, swizzle, *rest = _LAYOUT.unpack(data[: _LAYOUT.size])
    if magic != _MAGIC or len(data) != MAP_BYTES:
        return None
    walk = tuple(rest[-_WALK:]) if any(rest[-_WALK:]) else ()
    dims, strides, box = rest[:_RANK], rest[_RANK : 2 * _RANK - 1], rest[2 * _RANK - 1 : -_WALK]
    box = box[: 2 if walk else rank]
    return DecodedMap(
        address, type_, swizzle, tuple(dims[:rank]), tuple(strides[: rank - 1]), tuple(box), walk
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
