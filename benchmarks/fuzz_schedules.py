"""Run random schedules natively against the interpreter, as many as wanted.

    python benchmarks/fuzz_schedules.py --cases 50000 --log fuzz.jsonl

Every case is a seed, so a run is repeated by its `--start`. Prints what each primitive accepted
and refused, and the failures with the few steps that they need; the exit status is their number.

With `--log`, each thousand of seeds adds a line to a file. The same command later leaves out the
seeds that the file has, whichever version of tinycomp they ran with (the line says which), so a
run that was stopped goes on, and `--again 7008` repeats single seeds after a fix.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tinycomp.runtime.cache import source_digest
from tinycomp.testing.fuzz_runner import Report, fuzz

CHUNK = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--most-failures", type=int, default=20)
    parser.add_argument("--again", type=int, nargs="+", default=[], help="these seeds alone")
    parser.add_argument("--symbolic", action="store_true", help="schedules for any sizes")
    parser.add_argument("--log", type=Path, help="goes on where this file ends")
    options = parser.parse_args()
    if options.again:
        report = fuzz(options.again, options.most_failures, symbolic=options.symbolic)
        print(report)
        return min(len(report.failures), 99)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # outlives the terminal
    records = _records(options.log)
    done = {r["first"]: r for r in records}
    started, source = time.monotonic(), source_digest()
    for first in range(options.start, options.start + options.cases, CHUNK):
        seeds = range(first, min(first + CHUNK, options.start + options.cases))
        if done.get(first, {}).get("cases", 0) >= len(seeds):
            continue
        report = fuzz(seeds, options.most_failures, symbolic=options.symbolic)
        record = _record(seeds, report, source)
        records.append(record)
        if options.log:
            with options.log.open("a") as file:
                file.write(json.dumps(record) + "\n")
        failed = sum(len(r["failures"]) for r in records)
        cases = sum(r["cases"] for r in records)
        print(f"{time.monotonic() - started:7.0f} s: seeds {first} to {seeds[-1]}; {cases} cases, "
              f"{failed} failures", flush=True)  # fmt: skip
        if failed >= options.most_failures:
            break
    print(_summary(records))
    return min(sum(len(r["failures"]) for r in records), 99)


def _record(seeds: Sequence[int], report: Report, source: str) -> dict:
    return {
        "first": seeds[0],
        "cases": report.cases,
        "source": source[:12],
        "accepted": report.accepted,
        "refused": report.refused,
        "failures": [str(f) for f in report.failures],
    }


def _records(path: Path | None) -> list[dict]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _summary(records: Sequence[dict]) -> str:
    sources = Counter()
    accepted: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for record in records:
        sources[record["source"]] += record["cases"]
        accepted.update(record["accepted"])
        refused.update(record["refused"])
    failures = [f for r in records for f in r["failures"]]
    versions = ", ".join(f"{n} with version {s}" for s, n in sources.items())
    lines = [f"{sources.total()} cases ({versions}), {len(failures)} failures"]
    for name in sorted(accepted | refused):
        share = accepted[name] / (accepted[name] + refused[name])
        lines.append(
            f"  {name:24} {accepted[name]:7} accepted {refused[name]:7} refused {share:6.0%}"
        )
    return "\n".join([*lines, *failures])


if __name__ == "__main__":
    sys.exit(main())
