"""Roofline plots: what kernels reach, under what the machine can do (Williams et al., CACM 2009).

>>> point = Point("matmul", flops=2 * 64**3, nbytes=3 * 64 * 64 * 4, seconds=1e-5)
>>> round(point.gflops, 1), round(point.intensity, 1)
(52.4, 10.7)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..diagnostics import TinycompError
from .peaks import Peaks, measure_peaks


@dataclass(frozen=True, slots=True)
class Point:
    """One kernel: its floating-point operations, the bytes it must move, and its time."""

    name: str
    flops: float
    nbytes: float
    seconds: float

    @property
    def gflops(self) -> float:
        """1e9 operations per second."""
        return self.flops / self.seconds / 1e9

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.nbytes


def roof(intensity: float, gflops: float, gbps: float) -> float:
    """The most GFLOP/s that a kernel of this intensity can reach."""
    return min(gflops, intensity * gbps)


def plot(
    points: Sequence[Point],
    path: str | Path,
    *,
    peaks: Peaks | None = None,
    num_threads: int = 1,
    title: str = "Roofline",
) -> None:
    """Draw kernels under the measured roofs, as PNG or SVG by the ending of `path`.

    Args:
        peaks: of this machine; measured for `num_threads` threads if not given.

    Raises:
        TinycompError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import (  # type: ignore[import-not-found]
            FigureCanvasAgg,
        )
        from matplotlib.figure import Figure  # type: ignore[import-not-found]
    except ImportError as error:
        raise TinycompError(
            "a roofline plot needs matplotlib", hint="pip install tinycomp[plot]"
        ) from error
    peaks = peaks or measure_peaks(num_threads)
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", yscale="log")
    ridge = peaks.gflops / peaks.memory_gbps
    intensities = [p.intensity for p in points] or [1.0]
    low = min([0.05, *(i / 2 for i in intensities)])
    high = max([4 * ridge, *(i * 2 for i in intensities)])
    for gbps, label, style in (
        (peaks.memory_gbps, "memory", "-"),
        (peaks.cache_gbps, "cache", "--"),
    ):
        corner = min(max(peaks.gflops / gbps, low), high)
        xs = [low, corner, high]
        ys = [roof(x, peaks.gflops, gbps) for x in xs]
        axes.plot(xs, ys, style, color="#444", linewidth=1.5, label=f"{label} {gbps:.0f} GB/s")
    axes.annotate(
        f"{peaks.gflops:.0f} GFLOP/s peak, {peaks.num_threads} thread(s)",
        (high, peaks.gflops), xytext=(-4, 5), textcoords="offset points", ha="right",
    )  # fmt: skip
    for number, point in enumerate(points):
        share = point.gflops / roof(point.intensity, peaks.gflops, peaks.memory_gbps)
        label = f"{point.name}: {point.gflops:.1f} GFLOP/s, {share:.0%} of the roof"
        axes.plot(point.intensity, point.gflops, "o", color=f"C{number % 10}", label=label)
    axes.set_xlabel("FLOP per byte")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(title)
    axes.set_xlim(low, high)
    axes.set_ylim(top=peaks.gflops * 2)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=120)
