"""The steps by name: what JSON text may hold."""

from __future__ import annotations

from collections.abc import Mapping

from .annotate import Bind, Parallel, Pragma, Unroll, Vectorize
from .cache import CacheRead, CacheWrite, SetScope
from .compute_at import ComputeAt, ComputeRoot
from .decompose_reduction import DecomposeReduction
from .env_threads import EnvThreads
from .fuse import Fuse
from .inline import ComputeInline
from .normalize import Normalize
from .pad import Pad
from .partition import Partition
from .reorder import Reorder
from .reverse_compute_at import ReverseComputeAt
from .reverse_compute_inline import ReverseComputeInline
from .rfactor import Rfactor
from .rolling_buffer import RollingBuffer
from .split import Split
from .step import Step
from .storage import DoubleBuffer, Pipeline, Prefetch, StorageAlign
from .store_predicate import SetStorePredicate
from .tensorize import Tensorize
from .transform_layout import TransformLayout

STEPS: Mapping[str, type[Step]] = {
    step.NAME: step
    for step in (
        Bind, CacheRead, CacheWrite, ComputeAt, ComputeInline, ComputeRoot, DecomposeReduction,
        DoubleBuffer, EnvThreads, Fuse, Normalize, Pad, Parallel, Partition, Pipeline, Pragma,
        Prefetch, Reorder, ReverseComputeAt, ReverseComputeInline, Rfactor, RollingBuffer, SetScope,
        SetStorePredicate, Split, StorageAlign, Tensorize, TransformLayout, Unroll, Vectorize,
    )
}  # fmt: skip
