"""What is sorted in place of numbers: integers that compare like them, with their places.

Ascending order of the records of a line is the order that is wanted: the smallest or the largest
numbers first, NaN above all numbers, and among equal ones those that come first. No two records
of a line are equal, so whatever way of sorting them is stable.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..dtype import DType
from ..ir.expr import Expr, call, const, select
from ..ir.instruction import reinterpret
from ..ops.window import accumulation_dtype

Fields = tuple[Expr, ...]


@dataclass(frozen=True)
class Records:
    """Records of numbers of a dtype: key and place in one integer, if both fit, else in two.

    >>> Records(DType.FLOAT32).fields, Records(DType.INT64).fields
    ((<DType.INT64: 'int64'>,), (<DType.INT64: 'int64'>, <DType.INT64: 'int64'>))
    """

    dtype: DType
    descending: bool = False

    @property
    def key_bits(self) -> int:
        return accumulation_dtype(self.dtype).bits

    @property
    def fields(self) -> tuple[DType, ...]:
        return (DType.INT64,) * (1 if self.key_bits <= 32 else 2)

    @property
    def last(self) -> Fields:
        """Comes after every record."""
        return tuple(const(dtype.max_value, dtype) for dtype in self.fields)

    def record(self, value: Expr, place: Expr) -> Fields:
        """Of a number at a place below 2^32 of its line."""
        key = sort_key(value)
        key = ~key if self.descending else key
        return ((key << 32) | place,) if len(self.fields) == 1 else (key, place)

    def place(self, record: Fields) -> Expr:
        return record[0] & 0xFFFFFFFF if len(record) == 1 else record[1]

    def before(self, a: Fields, b: Fields) -> Expr:
        if len(a) == 1:
            return a[0] < b[0]
        return (a[0] < b[0]) | (a[0].equal(b[0]) & (a[1] < b[1]))

    def digit(self, record: Fields, number: int, bits: int) -> Expr:
        """Digit `number` of the key, the lowest first, as an unsigned number of `bits` bits."""
        shift = number * bits + (32 if len(record) == 1 else 0)
        digit = (record[0] >> shift) & ((1 << bits) - 1)
        sign = (number + 1) * bits == self.key_bits
        return digit ^ (1 << bits - 1) if sign else digit


def sort_key(value: Expr) -> Expr:
    """An int64, within the range of as many bits as the number is computed in, that compares as
    the number does; both zeros are equal, and NaN is the largest.

    The bits of floats are sign and magnitude: those of negative ones are turned around.
    """
    dtype = accumulation_dtype(value.dtype)
    if dtype is DType.UINT64:
        return reinterpret(value ^ const(1 << 63, dtype), DType.INT64)
    if not dtype.is_float:
        wide = value.astype(DType.INT64)
        return wide - (1 << dtype.bits - 1) if dtype.is_unsigned else wide
    number = value.astype(dtype)
    whole = DType.INT32 if dtype is DType.FLOAT32 else DType.INT64
    bits = reinterpret(select(number.equal(0), const(0, dtype), number), whole)
    most = const(whole.max_value, whole)
    key = select(bits < 0, bits ^ most, bits)
    return select(call("isnan", number), most, key).astype(DType.INT64)
