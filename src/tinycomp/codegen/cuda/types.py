"""Names of element types in CUDA C++, and literals of them."""

from __future__ import annotations

import math
import struct

from ...dtype import DType

VALUE: dict[DType, str] = {
    DType.BOOL: "bool", DType.INT8: "signed char", DType.INT16: "short", DType.INT32: "int",
    DType.INT64: "long long", DType.UINT8: "unsigned char", DType.UINT16: "unsigned short",
    DType.UINT32: "unsigned int", DType.UINT64: "unsigned long long", DType.FLOAT16: "float",
    DType.BFLOAT16: "float", DType.FLOAT32: "float", DType.FLOAT64: "double",
}  # fmt: skip
"""The type that values are computed in; 16-bit floats are storage types, computed as float."""

STORED: dict[DType, str] = {
    **VALUE,
    DType.FLOAT16: "unsigned short",
    DType.BFLOAT16: "unsigned short",
}
"""The type of an element in memory."""

UNSIGNED = {8: "unsigned char", 16: "unsigned short", 32: "unsigned int", 64: "unsigned long long"}


def integer(value: int, dtype: DType, narrow: bool = False) -> str:
    """An integer or bool literal; `narrow` says that the index is held as int.

    >>> integer(3, DType.INT64, True), integer(3, DType.INT64), integer(-(2**31), DType.INT32)
    ('3', '3LL', '(-2147483647 - 1)')
    """
    if dtype is DType.BOOL:
        return "true" if value else "false"
    suffix = {DType.INT64: "" if narrow else "LL", DType.UINT64: "ULL", DType.UINT32: "u"}
    end = suffix.get(dtype, "")
    if value in (-(2**63), -(2**31)):
        return f"({value + 1}{end} - 1)"
    return f"{value}{end}" if value >= 0 else f"({value}{end})"


def floating(value: float, dtype: DType) -> str:
    """A literal that gives exactly the rounded value; special values by their bits.

    >>> floating(0.1, DType.FLOAT32), floating(float("-inf"), DType.FLOAT32)
    ('0.1f', '__int_as_float((int)0xff800000u)')
    """
    if dtype is DType.FLOAT64:
        if math.isfinite(value):
            return repr(float(value)) if value >= 0 else f"({float(value)!r})"
        bits = struct.unpack("<Q", struct.pack("<d", value))[0]
        return f"__longlong_as_double((long long)0x{bits:016x}ULL)"
    import numpy as np

    single = np.float32(np.asarray(value).astype(dtype.numpy).astype(np.float32))
    if not np.isfinite(single):
        return f"__int_as_float((int)0x{int(single.view(np.uint32)):08x}u)"
    text = str(single)
    if "." not in text and "e" not in text:
        text += ".0"
    return f"{text}f" if not np.signbit(single) else f"({text}f)"


def bare(text: str) -> str:
    """The text without a pair of parentheses around all of it.

    >>> bare("(a + b)"), bare("(a) + (b)")
    ('a + b', '(a) + (b)')
    """
    if not text.startswith("(") or not text.endswith(")"):
        return text
    depth = 0
    for position, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if not depth and position < len(text) - 1:
            return text
    return text[1:-1]
