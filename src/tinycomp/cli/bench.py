"""`tinycomp bench MODEL.tc --compare ort,openvino`

Each engine runs in a process of its own; timed rounds alternate between them, so that a machine
whose speed drifts slows all of them alike. Ratios are medians over rounds of one engine's median
time to tinycomp's in the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..diagnostics import TinycompError
from .common import (
    add_compile_options,
    add_input_options,
    add_json_option,
    human_bytes,
    load_or_compile,
    make_inputs,
    note,
    print_json,
    print_table,
    progress,
)

ENGINES = ("ort", "openvino")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an artifact, or an ONNX file to compile first")
    parser.add_argument(
        "--compare", default="", metavar="ENGINES", help="other engines: ort,openvino"
    )
    parser.add_argument("--onnx", metavar="FILE", help="the ONNX file that an artifact is made of")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="of each engine in each round (default 0.5)"
    )
    add_input_options(parser)
    add_json_option(parser)
    add_compile_options(parser)


def run(args: argparse.Namespace) -> int:
    import numpy as np

    engines = [e for e in args.compare.split(",") if e]
    unknown = [e for e in engines if e not in ENGINES]
    if unknown:
        raise TinycompError(
            f"unknown engine {unknown[0]!r}", hint="engines are " + ", ".join(ENGINES)
        )
    module = load_or_compile(args, args.model)
    onnx_path = _onnx_file(args, module) if engines else ""
    with tempfile.TemporaryDirectory() as folder:
        artifact, inputs = Path(folder, "model.tc"), Path(folder, "inputs.npz")
        module.save(artifact)
        np.savez(inputs, **make_inputs(args, module))  # type: ignore[arg-type]
        workers = [
            Worker(engine, str(artifact) if engine == "tinycomp" else onnx_path, str(inputs),
                   module.num_threads)
            for engine in ("tinycomp", *engines)
        ]  # fmt: skip
        try:
            _measure(workers, args.rounds, args.seconds)
        finally:
            for worker in workers:
                worker.stop()
    if workers[0].error:
        raise TinycompError(f"the model does not run: {workers[0].error}")
    _print(args, [_summary(worker, workers[0]) for worker in workers])
    return 0


def _onnx_file(args: argparse.Namespace, module: Any) -> str:
    """The ONNX file beside an artifact; other engines cannot read the artifact itself."""
    source = module.manifest.source
    for candidate in (args.onnx, source, Path(args.model).parent / Path(source).name):
        if candidate and Path(candidate).is_file():
            return str(candidate)
    raise TinycompError(
        f"--compare needs the ONNX file; {source or 'its place'} is not known here",
        hint="give it with --onnx FILE",
    )


@dataclass
class Worker:
    """An engine in a process of its own; it answers each line on stdin with a line of JSON."""

    engine: str
    path: str
    inputs: str
    threads: int
    rounds: list[list[float]] = field(default_factory=list)
    ready: dict[str, Any] = field(default_factory=dict)
    peak_bytes: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "tinycomp.cli.bench_worker", self.engine, self.path,
                   self.inputs, str(self.threads)]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and read the answer; a worker that died has an error instead."""
        if self.error:
            return {}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            if line:
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline() or '{"error": "it crashed"}')
        except (BrokenPipeError, json.JSONDecodeError) as error:
            answer = {"error": f"it crashed: {error}"}
        self.error = answer.get("error", "")
        return answer

    def stop(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def _measure(workers: list[Worker], rounds: int, seconds: float) -> None:
    with progress() as report:
        for worker in workers:
            worker.ready = worker.ask("")
        for done in range(rounds):
            report("rounds", done, rounds)
            for worker in workers:
                answer = worker.ask(f"go {seconds}")
                worker.rounds.append(answer.get("times", []))
                worker.peak_bytes = answer.get("peak_bytes", worker.peak_bytes)
        report("rounds", rounds, rounds)


def _summary(worker: Worker, ours: Worker) -> dict[str, Any]:
    """One engine's row; times in milliseconds."""
    if worker.error:
        return {"engine": worker.engine, "error": worker.error}
    times = sorted(t * 1e3 for r in worker.rounds for t in r)
    ratios = [
        statistics.median(theirs) / statistics.median(own)
        for theirs, own in zip(worker.rounds, ours.rounds, strict=True)
        if theirs and own
    ]
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "engine": worker.engine,
        "runs": len(times),
        "median_ms": statistics.median(times),
        "p50_ms": cuts[49],
        "p90_ms": cuts[89],
        "p99_ms": cuts[98],
        "min_ms": times[0],
        "load_ms": worker.ready["load_s"] * 1e3,
        "first_run_ms": worker.ready["first_s"] * 1e3,
        "peak_bytes": worker.peak_bytes,
        "ratio": statistics.median(ratios) if ratios else None,
    }


def _print(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    if args.json:
        print_json(rows)
        return
    for row in rows:
        if "error" in row:
            note(f"{row['engine']}: {row['error']}")
    times = ("median_ms", "p50_ms", "p90_ms", "p99_ms", "min_ms", "load_ms", "first_run_ms")
    cells = [
        (row["engine"], row["runs"], *(f"{row[k]:.3f}" for k in times),
         human_bytes(row["peak_bytes"]), f"{row['ratio']:.2f}x" if row["ratio"] else "")
        for row in rows
        if "error" not in row
    ]  # fmt: skip
    columns = ("engine", "runs", "median ms", "p50", "p90", "p99", "min", "load", "first run",
               "peak memory", "time / tinycomp's")  # fmt: skip
    print_table(str(args.model), columns, cells)
