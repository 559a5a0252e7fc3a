import sys

import pytest

from tinycomp.diagnostics import TinycompError
from tinycomp.runtime.peaks import Peaks
from tinycomp.runtime.roofline import Point, plot, roof

PEAKS = Peaks(1, 100.0, 80.0, 10.0)
POINTS = [Point("sum", 1e6, 4e6, 1e-3), Point("matmul", 2e9, 1e7, 0.03)]


def test_roof_is_the_lower_of_bandwidth_and_peak():
    assert roof(1.0, 100.0, 10.0) == 10.0
    assert roof(50.0, 100.0, 10.0) == 100.0


def test_point():
    assert POINTS[0].gflops == pytest.approx(1.0)
    assert POINTS[0].intensity == 0.25


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot_is_written(tmp_path, ending):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"roofline.{ending}"
    plot(POINTS, path, peaks=PEAKS)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") if ending == "png" else b"<svg" in data


def test_missing_matplotlib_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(TinycompError, match="needs matplotlib"):
        plot(POINTS, tmp_path / "x.png", peaks=PEAKS)
