"""How far outputs are from a reference: relative to each output's largest value.

>>> import numpy as np
>>> compare({"y": np.float32([1, 4])}, {"y": np.float32([1, 2])})[0].difference
1.0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

TINY = 1e-6  # an output that is all but zero is compared with this instead of its largest value


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output beside its reference.

    Attributes:
        difference: largest absolute difference over the reference's largest absolute value;
            infinite where shapes, dtypes, NaNs or infinities differ.
        index: where it is.
        problem: what differs besides values, or empty.
    """

    name: str
    difference: float
    index: tuple[int, ...] = ()
    got: float = 0.0
    expected: float = 0.0
    problem: str = ""


def compare(got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> list[Comparison]:
    """Every output of `expected` beside the one of the same name in `got`."""
    return [
        compare_arrays(name, got[name], value)
        if name in got
        else Comparison(name, np.inf, problem="missing")
        for name, value in expected.items()
    ]


def compare_arrays(name: str, got: np.ndarray, expected: np.ndarray) -> Comparison:
    """One output beside its reference; NaN agrees with NaN, inf with inf of the same sign."""
    if got.shape != expected.shape:
        return Comparison(name, np.inf, problem=f"shape {got.shape}, expected {expected.shape}")
    if got.dtype != expected.dtype:
        return Comparison(name, np.inf, problem=f"dtype {got.dtype}, expected {expected.dtype}")
    if not expected.size:
        return Comparison(name, 0.0)
    a, b = got.astype(np.float64), expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(b)
    scale = max(TINY, float(np.abs(b[finite]).max(initial=0.0)))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b) / scale)
    difference = np.where(np.isnan(difference), np.inf, difference)
    index = tuple(int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))
    return Comparison(name, float(difference[index]), index, float(a[index]), float(b[index]))
