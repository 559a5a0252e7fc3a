"""Run random schedules natively against the interpreter, as many as wanted.

    python benchmarks/fuzz_schedules.py --cases 50000 --start 100000

Every case is a seed, so a run is repeated by its `--start`. Prints what each primitive accepted
and refused, and the failures with the few steps that they need; the exit status is their number.
"""

from __future__ import annotations

import argparse
import sys
import time

from tinycomp.testing.fuzz_runner import BATCH, Report, fuzz


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--most-failures", type=int, default=20)
    options = parser.parse_args()
    started = time.monotonic()

    def progress(report: Report) -> None:
        if report.cases % (BATCH * 40) == 0:
            seconds = time.monotonic() - started
            failed = ", ".join(str(f.case.seed) for f in report.failures) or "none"
            print(f"{seconds:7.0f} s: {report.cases} cases, failed: {failed}", flush=True)

    seeds = range(options.start, options.start + options.cases)
    report = fuzz(seeds, options.most_failures, progress)
    print(report)
    return min(len(report.failures), 99)


if __name__ == "__main__":
    sys.exit(main())
