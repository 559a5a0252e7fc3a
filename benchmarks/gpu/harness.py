"""What all stages share: cases, rows that survive a crash, facts about the machine, tables.

A stage is a list of cases. They run one after the other in a worker process; a case that fails
becomes a row that says how, and if it breaks the GPU's context, crashes or hangs, a new worker
goes on with the next case. The JSON file is written after every row.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinycomp.runtime.cuda.driver import Driver

Row = dict[str, Any]
"""`case`, `engine`, and what was found: `us`, `tflops`, `gbps`, `error`, `ok`, or `failed`."""

PACKAGES = ("tinycomp", "numpy", "cupy-cuda13x", "torch", "triton", "jax", "nvidia-cuda-nvrtc",
            "nvidia-cudnn-cu13", "nvidia-cublas", "llvmlite", "onnx")  # fmt: skip
DRY_SIZE = 80  # enough for tile programs, which need 64 rows
BROKEN_CONTEXT = 3  # exit status of a worker that cannot use the GPU any more


@dataclass(frozen=True)
class Env:
    """Where cases run.

    Attributes:
        dry: without a GPU: everything runs once, at small sizes, tinycomp on a device made of NumPy
            and the others on the CPU. Nothing is timed.
        driver: the device; default: this machine's.
        compile_only: nothing runs: kernels are compiled at their real sizes, without a GPU.
    """

    dry: bool
    arch: str
    driver: Driver | None = None
    compile_only: bool = False

    @property
    def device(self) -> str:
        """Where PyTorch's tensors are."""
        return "cpu" if self.dry else "cuda"

    def sizes(self, *sizes: int, most: int = DRY_SIZE) -> tuple[int, ...]:
        """Extents of a computation; none above `most` in a dry run."""
        return tuple(min(n, most) for n in sizes) if self.dry else sizes

    @property
    def target(self) -> str:
        return f"cuda -arch={self.arch}"


@dataclass(frozen=True)
class Case:
    """A name, and what yields its rows; `seconds` is how long it may take."""

    name: str
    run: Callable[[Env], Iterable[Row]]
    seconds: float = 120


@dataclass
class Report:
    """The rows of a stage, on disk after each."""

    stage: str
    path: Path
    facts: Row
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        text = json.dumps({**self.facts, "stage": self.stage, "rows": self.rows}, indent=1)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text + "\n")
        temporary.replace(self.path)
        print("  ".join(f"{k}={_short(v)}" for k, v in row.items()), flush=True)

    @property
    def failures(self) -> list[Row]:
        return [r for r in self.rows if "failed" in r or r.get("ok") is False]

    def show(self) -> None:
        """A table of all rows, and the failures again below it."""
        columns = list(dict.fromkeys(k for row in self.rows for k in row if k != "failed"))
        cells = [[_short(row.get(c, "")) for c in columns] for row in self.rows]
        _table(f"{self.stage}: {len(self.rows)} rows", columns, cells)
        for row in self.failures:
            reason = row.get("failed", "wrong")
            print(f"FAILED {row['case']} {row.get('engine', '')}: {reason}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def machine_facts(dry: bool) -> Row:
    """Date, device, driver and versions, for the head of every JSON file."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = "none: NumPy and the CPU; nothing is timed"
    if not dry:
        query = "--query-gpu=name,driver_version,clocks.sm,power.limit,memory.total"
        try:
            gpu = subprocess.run(
                ["nvidia-smi", query, "--format=csv,noheader"],
                capture_output=True, text=True, timeout=30, check=True,
            ).stdout.strip()  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            gpu = f"unknown: {error}"
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "device": gpu, "dry": dry, "versions": versions}


# ---- the parent


@dataclass
class Supervisor:
    """Runs the cases of a stage in workers, until they are done or the time is up."""

    report: Report
    command: list[str]  # starts a worker; the number of its first case is appended
    cases: Sequence[Case]
    deadline: float  # seconds for all of them

    def run(self) -> None:
        start, first = time.monotonic(), 0
        while first < len(self.cases):
            left = self.deadline - (time.monotonic() - start)
            if left <= 0:
                for case in self.cases[first:]:
                    self.report.add({"case": case.name, "failed": "not run: time was up"})
                return
            first = self._worker(first, start + self.deadline)

    def _worker(self, first: int, end: float) -> int:
        """Run one worker; the number of the first case that is still to be run."""
        process = subprocess.Popen(
            [*self.command, str(first)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
        current, limit = first, min(end, time.monotonic() + self.cases[first].seconds + 60)
        while True:
            try:
                line = lines.get(timeout=max(0.01, limit - time.monotonic()))
            except queue.Empty:
                process.kill()
                process.wait()
                reason = "stage out of time" if limit >= end else "it took too long"
                self._fail(current, reason)
                return current + 1
            if line is None:
                break
            kind, _, rest = line.partition(" ")
            if kind == "CASE":
                current = int(rest)
                limit = min(end, time.monotonic() + self.cases[current].seconds)
            elif kind == "ROW":
                self.report.add(json.loads(rest))
            else:
                print(line, end="" if line.endswith("\n") else "\n", flush=True)
        status = process.wait()
        if status == 0:
            return len(self.cases)
        if status != BROKEN_CONTEXT:
            self._fail(current, f"the worker died with status {status}")
        return current + 1

    def _fail(self, number: int, reason: str) -> None:
        self.report.add({"case": self.cases[number].name, "failed": reason})


def _pump(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


# ---- the worker


def work(cases: Sequence[Case], env: Env, first: int) -> int:
    """Run cases and print their rows; the exit status."""
    for number in range(first, len(cases)):
        print(f"CASE {number}", flush=True)
        if env.dry:
            env = dry_env(env.arch)  # without what the case before left there
        for row in guarded(cases[number], env):
            print("ROW " + json.dumps(row), flush=True)
        _give_back_memory()
        if not env.compile_only and not _context_works(env):
            return BROKEN_CONTEXT
    return 0


def dry_env(arch: str) -> Env:
    """A dry run, on a device of its own."""
    from tinycomp.testing.fake_cuda import FakeDriver

    return Env(True, arch, FakeDriver(arch=arch, total=8 << 30))


def guarded(case: Case, env: Env) -> Iterator[Row]:
    """The rows of a case; one that raises ends in a row that says what it raised."""
    start = time.perf_counter()
    head: Row = {"case": case.name, **({"dry": True} if env.dry else {})}
    rows = iter(case.run(env))
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # any failure of a case is a result, and the others go on
            text = f"{type(error).__name__}: {error}".strip()
            yield {**head, "failed": text[:600], "s": time.perf_counter() - start}
            return
        yield {**head, **row}


class Skipped(Exception):
    """Something that is not to be had here, which is no failure."""


def engine_failed(engine: str, error: Exception) -> Row:
    """The row of an engine that failed where others of its case go on."""
    if isinstance(error, Skipped):
        return {"engine": engine, "skipped": str(error)}
    return {"engine": engine, "failed": f"{type(error).__name__}: {error}".strip()[:600]}


def _give_back_memory() -> None:
    """What PyTorch keeps for itself is needed by the next case."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()


def _context_works(env: Env) -> bool:
    """Whether the GPU still does what it is told: an illegal access ends that for good."""
    from tinycomp.diagnostics import TinycompError
    from tinycomp.runtime.cuda.driver import open_driver

    driver = env.driver or open_driver()
    try:
        driver.use()
        driver.synchronize(0)
    except TinycompError as error:
        print(f"the context is broken: {error}", flush=True)
        return False
    return True


def output_folder() -> Path:
    folder = Path(os.environ.get("OUT", Path(__file__).parent / "results"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
