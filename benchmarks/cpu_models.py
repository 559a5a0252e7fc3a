"""Whole models beside ONNX Runtime and OpenVINO on this machine's CPU, answers checked.

    python benchmarks/cpu_models.py MODEL.onnx ... [--dim NAME=VALUE ...] [--threads N] [--out FILE]
    python benchmarks/cpu_models.py --built-in [--out FILE]

For each model: `tinycomp verify` first, then `tinycomp bench`, which runs every engine in a process
of its own, in turns. Prints, per model, medians and the ratio to the fastest peer, then the
geometric mean; writes them with date, machine and versions as JSON.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tinycomp.target import Target, default_num_threads
from tinycomp.testing.models import builders

PEERS = ("onnxruntime", "openvino")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One tinycomp command in a process of its own."""
    line = [sys.executable, "-m", "tinycomp.cli.main", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def measure(model: Path, options: list[str], bench: list[str]) -> dict[str, Any]:
    """The rows of `tinycomp bench`, and whether the outputs agree with ONNX Runtime."""
    checked = command("verify", str(model), "--against", "ort", *options)
    run = command("bench", str(model), "--compare", "ort,openvino", "--json", *options, *bench)
    if run.returncode:
        return {"model": model.stem, "error": (checked.stderr + run.stderr)[-500:]}
    rows = json.loads(run.stdout)
    times = {r["engine"]: r["median_ms"] for r in rows if r.get("median_ms")}
    peers = [t for engine, t in times.items() if engine != "tinycomp"]
    return {
        "model": model.stem,
        "verify": "ok" if checked.returncode == 0 else checked.stdout.strip()[-300:],
        "median_ms": {engine: round(t, 4) for engine, t in times.items()},
        "first_run_ms": {r["engine"]: round(r["first_run_ms"], 3) for r in rows if r.get("runs")},
        "fastest_peer_over_tinycomp": round(min(peers) / times["tinycomp"], 3) if peers else None,
    }


def machine() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in ("tinycomp", "llvmlite", "numpy", *PEERS):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": str(Target.host()),
        "cores": default_num_threads(),
        "versions": versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--built-in", action="store_true", help="the project's own builders")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--threads", default=str(default_num_threads()))
    parser.add_argument("--rounds", default="5")
    parser.add_argument("--seconds", default="0.4")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    options = ["--threads", args.threads, *(part for d in args.dim for part in ("--dim", d))]
    bench = ["--rounds", args.rounds, "--seconds", args.seconds]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        models = list(args.models)
        if args.built_in:
            for name, build in builders().items():
                models.append(Path(folder) / f"{name}.onnx")
                models[-1].write_bytes(build().SerializeToString())
        for model in models:
            rows.append(measure(model, options, bench))
            print(json.dumps(rows[-1]), flush=True)
    ratios = [r["fastest_peer_over_tinycomp"] for r in rows if r.get("fastest_peer_over_tinycomp")]
    summary = {**machine(), "threads": int(args.threads), "models": rows}
    if ratios:
        summary["geomean"] = round(statistics.geometric_mean(ratios), 3)
        summary["lowest"] = min(ratios)
        print(f"geomean {summary['geomean']}, lowest {summary['lowest']}, {len(ratios)} models")
    if args.out:
        args.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
