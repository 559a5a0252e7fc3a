"""Where the time of a model goes: per kernel, beside what the machine could do.

The roofline of a kernel is the longer of its floating-point operations at the machine's
measured peak and its bytes at the measured bandwidth (of the caches, if its arguments fit).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .artifact import KernelInfo, Manifest
from .peaks import Peaks, measure_peaks


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel call of the plan.

    Attributes:
        start, milliseconds: medians, in ms from the start of the run.
        gflops, gbps: 1e9 floating-point operations, and bytes moved, per second.
        roofline: share of the roofline that it reaches, 0 to 1.
        share: of the whole run's time.
    """

    kernel: KernelInfo
    start: float
    milliseconds: float
    gflops: float
    gbps: float
    roofline: float
    share: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Times of every kernel call, in the order of execution."""

    rows: tuple[KernelTime, ...]
    milliseconds: float
    peaks: Peaks

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def save_trace(self, path: str | Path) -> None:
        """Write a trace that chrome://tracing and Perfetto open."""
        events = [
            {
                "name": row.kernel.label or row.kernel.name, "cat": "kernel", "ph": "X",
                "ts": row.start * 1e3, "dur": row.milliseconds * 1e3, "pid": 0, "tid": 0,
                "args": {
                    "kernel": row.kernel.name, "nodes": list(row.kernel.nodes),
                    "GFLOP/s": row.gflops, "GB/s": row.gbps, "roofline": row.roofline,
                },
            }
            for row in self.rows
        ]  # fmt: skip
        Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}))

    def __str__(self) -> str:
        lines = [f"{'ms':>9} {'share':>6} {'GFLOP/s':>8} {'GB/s':>7} {'roof':>5}  kernel"]
        for row in sorted(self.rows, key=lambda r: -r.milliseconds):
            lines.append(
                f"{row.milliseconds:9.4f} {row.share:6.1%} {row.gflops:8.1f} {row.gbps:7.1f} "
                f"{row.roofline:5.0%}  {row.kernel.label or row.kernel.name}"
                f" ({', '.join(row.kernel.nodes[:3])}{', ...' * (len(row.kernel.nodes) > 3)})"
            )
        return "\n".join([*lines, f"{self.milliseconds:9.4f} ms in all"])


def make_profile(manifest: Manifest, num_threads: int, stamps: np.ndarray) -> Profile:
    """A profile from time stamps, int64 nanoseconds of shape (runs, kernel calls + 1)."""
    stamps = np.maximum.accumulate(stamps, axis=1)  # a call in a branch not taken leaves a zero
    nanoseconds = np.median(np.diff(stamps, axis=1), axis=0)
    cache_bytes = manifest.target.l2_bytes * num_threads
    return profile_of(manifest, nanoseconds, _peaks(num_threads), cache_bytes)


def profile_of(
    manifest: Manifest, nanoseconds: np.ndarray, peaks: Peaks, cache_bytes: int
) -> Profile:
    """A profile from the time of each kernel call; `cache_bytes` are read at the caches' speed."""
    starts = np.concatenate([[0.0], np.cumsum(nanoseconds)])
    total = max(float(nanoseconds.sum()), 1.0)
    rows = [
        _row(kernel, float(start), float(duration), total, peaks, cache_bytes)
        for kernel, start, duration in zip(manifest.kernels, starts, nanoseconds, strict=False)
    ]
    return Profile(tuple(rows), total / 1e6, peaks)


def _row(
    kernel: KernelInfo, start: float, duration: float, total: float, peaks: Peaks, cache: int
) -> KernelTime:
    seconds = max(duration, 1.0) / 1e9
    bandwidth = peaks.cache_gbps if kernel.nbytes <= cache else peaks.memory_gbps
    ideal = max(kernel.flops / peaks.gflops, kernel.nbytes / bandwidth) / 1e9
    return KernelTime(
        kernel,
        start / 1e6,
        duration / 1e6,
        kernel.flops / seconds / 1e9,
        kernel.nbytes / seconds / 1e9,
        ideal / seconds,
        duration / total,
    )


@functools.cache
def _peaks(num_threads: int) -> Peaks:
    return measure_peaks(num_threads)


def total_flops(kernels: Sequence[KernelInfo]) -> int:
    """Floating-point operations of one run."""
    return sum(kernel.flops for kernel in kernels)
