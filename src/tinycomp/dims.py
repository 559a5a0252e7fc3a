"""What is said about a dimension that a model leaves open: a size, a range, or buckets.

>>> DimRange.parse("1..64"), DimRange.parse("1,8,32").buckets
(DimRange(min=1, max=64, buckets=(), auto=False), (1, 8, 32))
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .diagnostics import InputError, TinycompError

_TEXT = re.compile(
    r"(?P<single>\d+)|(?P<any>\*)|(?P<min>\d+)\.\.(?P<max>\d*)|(?P<list>\d+(,\d+)+)"
    r"|(?P<auto>auto)(\.\.(?P<limit>\d+))?"
)


@dataclass(frozen=True, slots=True)
class DimRange:
    """The sizes that an open dimension may have.

    Attributes:
        min, max: inclusive; no `max` is no upper bound.
        buckets: sizes, ascending, that are compiled ahead of time; smaller ones are allowed.
        auto: powers of two, and `max`, are buckets that are compiled when they are needed.
    """

    min: int = 0
    max: int | None = None
    buckets: tuple[int, ...] = ()
    auto: bool = False

    @staticmethod
    def of(value: Any, name: str = "") -> DimRange:
        """A range from what users write: None (any size), 8, (1, 64), buckets [1, 8, 32], or
        "auto" and "auto..512" for buckets made when they are needed.

        Raises:
            TinycompError: it is none of these.

        >>> DimRange.of((1, 64)), DimRange.of(8).fixed
        (DimRange(min=1, max=64, buckets=(), auto=False), 8)
        """
        if value is None or isinstance(value, DimRange):
            return value or DimRange()
        try:
            if isinstance(value, tuple):
                low, high = value
                return DimRange(_size(low), None if high is None else _size(high))._checked()
            if isinstance(value, str) and value.startswith("auto"):
                return DimRange.parse(value)
            if isinstance(value, list):
                sizes = sorted({_size(v) for v in value})
                if len(sizes) == 1:
                    return DimRange.of(sizes[0])
                return DimRange(0, sizes[-1], tuple(sizes))
            return DimRange(_size(value), _size(value))
        except (TypeError, ValueError, IndexError):
            raise TinycompError(
                f"dims: {value!r} of {name!r} is not a size",
                hint='give a size 8, a range (1, 64), buckets [1, 8, 32] or "auto", or None for '
                "any size",
            ) from None

    @staticmethod
    def parse(text: str) -> DimRange:
        """A range from `8`, `1..64`, `1..`, `1,8,32`, `*`, `auto` or `auto..64`.

        Raises:
            ValueError: the text is none of these.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(text)
        if match["single"]:
            return DimRange.of(int(text))
        if match["list"]:
            return DimRange.of([int(part) for part in text.split(",")])
        if match["any"]:
            return DimRange()
        if match["auto"]:
            return DimRange(0, int(match["limit"]) if match["limit"] else None, auto=True)
        return DimRange.of((int(match["min"]), int(match["max"]) if match["max"] else None))

    @property
    def fixed(self) -> int | None:
        """The size, if there is only one."""
        return self.min if self.min == self.max else None

    def bucket(self, size: int) -> int | None:
        """The smallest bucket that takes a size; None if there is none.

        >>> DimRange.of([1, 8, 32]).bucket(5), DimRange.of("auto..100").bucket(70)
        (8, 100)
        """
        if self.auto:
            power = 1 << max(size - 1, 0).bit_length()
            return power if self.max is None else min(power, self.max)
        return next((b for b in self.buckets if b >= size), None)

    def below(self, bucket: int) -> int:
        """The size up to which smaller buckets than this one are used; itself if it is no bucket.

        >>> r = DimRange.of([1, 8, 32])
        >>> r.below(32), r.below(1), r.below(7), DimRange.of("auto..100").below(100)
        (8, 0, 7, 64)
        """
        if self.auto:
            return (
                (1 << (bucket - 1).bit_length()) // 2 if self.bucket(bucket) == bucket else bucket
            )
        if bucket not in self.buckets:
            return bucket
        return max((b for b in self.buckets if b < bucket), default=0)

    def check(self, name: str, size: int) -> None:
        """Refuse a size outside the range.

        Raises:
            InputError: naming the dimension and the range.
        """
        if size < self.min or (self.max is not None and size > self.max):
            raise InputError(
                f"dimension {name} has size {size}, but the model was compiled for {self}",
                hint=f"compile it for a wider range of {name} (dims=, --dim)",
            )

    def _checked(self) -> DimRange:
        if self.max is not None and self.max < self.min:
            raise ValueError(self)
        return self

    @property
    def has_buckets(self) -> bool:
        """Whether sizes may run in larger ones."""
        return self.auto or bool(self.buckets)

    def __str__(self) -> str:
        if self.auto:
            return "auto" if self.max is None else f"auto..{self.max}"
        if self.buckets:
            return ",".join(map(str, self.buckets))
        if self.max is None:
            return f"{self.min}.." if self.min else "*"
        return str(self.min) if self.fixed is not None else f"{self.min}..{self.max}"


def split_dims(dims: Mapping[str, Any] | None) -> tuple[dict[str, int], dict[str, DimRange]]:
    """Fixed sizes by name, and what is said about the other dimensions."""
    ranges = {name: DimRange.of(value, name) for name, value in (dims or {}).items()}
    fixed = {name: r.fixed for name, r in ranges.items() if r.fixed is not None}
    return fixed, {name: r for name, r in ranges.items() if name not in fixed}


def _size(value: Any) -> int:
    size = operator.index(value)
    if size < 0:
        raise ValueError(value)
    return size
