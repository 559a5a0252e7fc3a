"""One engine of `tinycomp bench`: load, run once, then answer `go SECONDS` lines with times.

python -m tinycomp.cli.bench_worker ENGINE MODEL INPUTS.npz THREADS
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]
Run = Callable[[], Any]


def load_tinycomp(path: str, feeds: Feeds, threads: int) -> Run:
    import tinycomp

    module = tinycomp.load(path, num_threads=threads)
    return lambda: module.run(feeds)


def load_ort(path: str, feeds: Feeds, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def load_openvino(path: str, feeds: Feeds, threads: int) -> Run:
    import openvino  # type: ignore[import-not-found]

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({name: list(array.shape) for name, array in feeds.items()})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer(feeds)


LOADERS = {"tinycomp": load_tinycomp, "ort": load_ort, "openvino": load_openvino}


def timed_runs(run: Run, seconds: float) -> list[float]:
    """Seconds of each run, for about `seconds`, at least three."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def peak_bytes() -> int:
    """The most memory this process had. (`ru_maxrss` would include its parent before the exec.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    engine, path, inputs, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what an engine prints does not mix with the answers
    with np.load(inputs, allow_pickle=False) as stored:
        feeds = {name: stored[name] for name in stored.files}
    try:
        start = time.perf_counter()
        run = LOADERS[engine](path, feeds, int(threads))
        loaded = time.perf_counter()
        run()
        first = time.perf_counter()
    except Exception as error:  # whatever an engine raises is its row in the table
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}) + "\n")
        return
    answers.write(json.dumps({"load_s": loaded - start, "first_s": first - loaded}) + "\n")
    timed_runs(run, 0.1)
    for line in sys.stdin:
        times = timed_runs(run, float(line.split()[1]))
        answers.write(json.dumps({"times": times, "peak_bytes": peak_bytes()}) + "\n")


if __name__ == "__main__":
    main()
