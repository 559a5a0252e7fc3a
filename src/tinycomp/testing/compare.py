"""Asserting that outputs agree with a reference.

>>> import numpy as np
>>> assert_close({"y": np.float32([1, 4])}, {"y": np.float32([1, 2])})
Traceback (most recent call last):
AssertionError: 1 of 1 outputs differ by more than 0.0001 of their largest value
  'y': 1.00e+00 at [1]: 4.0, expected 2.0
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..runtime.compare import Comparison, compare


def assert_close(
    got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tolerance: float = 1e-4
) -> None:
    """Every output of `expected` has its counterpart in `got`, of the same shape and dtype, and
    differs by at most `tolerance` of its largest value; NaNs and infinities are at the same places.

    Raises:
        AssertionError: naming the outputs that differ, the worst first, and where.
    """
    bad = [c for c in compare(got, expected) if not c.difference <= tolerance]
    if not bad:
        return
    bad.sort(key=lambda c: -c.difference)
    lines = "\n".join(f"  {c.name!r}: {_describe(c)}" for c in bad[:5])
    more = f"\n  and {len(bad) - 5} more" if len(bad) > 5 else ""
    raise AssertionError(
        f"{len(bad)} of {len(expected)} outputs differ by more than {tolerance:g} of their "
        f"largest value\n{lines}{more}"
    )


def _describe(c: Comparison) -> str:
    if c.problem:
        return c.problem
    return f"{c.difference:.2e} at {list(c.index)}: {c.got}, expected {c.expected}"
