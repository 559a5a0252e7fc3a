"""The steps by name: what JSON text may hold."""

from __future__ import annotations

from collections.abc import Mapping

from .annotate import Bind, Parallel, Pragma, Unroll, Vectorize
from .cache import CacheRead, CacheWrite, SetScope
from .compute_at import ComputeAt, ComputeRoot
from .fuse import Fuse
from .inline import ComputeInline
from .reorder import Reorder
from .rfactor import Rfactor
from .split import Split
from .step import Step

STEPS: Mapping[str, type[Step]] = {
    step.NAME: step
    for step in (
        Bind, CacheRead, CacheWrite, ComputeAt, ComputeInline, ComputeRoot, Fuse, Parallel, Pragma,
        Reorder, Rfactor, SetScope, Split, Unroll, Vectorize,
    )
}  # fmt: skip
