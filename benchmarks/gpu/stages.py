"""The stages of run.sh.

    python3 benchmarks/gpu/stages.py STAGE... [--only GLOB] [--dry-run] [--seconds N]

`--dry-run` needs no GPU: kernels are generated and compiled, small ones run on the CPU's executor,
and nothing is timed. Peers that are not installed become failed rows.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # the stages, and the tests they borrow from

from harness import (  # noqa: E402
    Case,
    Env,
    Report,
    Supervisor,
    machine_facts,
    output_folder,
    work,
)

STAGES = ("smoke", "correctness", "sanitizer", "ceilings", "kernels", "gemm", "attention", "conv",
          "models")  # fmt: skip


def cases_of(stage: str, only: str = "*") -> list[Case]:
    """The cases of a stage whose names match a glob."""
    module = importlib.import_module(f"stage_{stage}")
    return [case for case in module.cases() if fnmatch.fnmatchcase(case.name, only)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Checks and measurements on a GPU")
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--only", default="*", help="cases whose names match this glob")
    parser.add_argument("--dry-run", action="store_true", help="no GPU: compile and simulate")
    parser.add_argument("--seconds", type=float, default=510, help="for each stage (510)")
    parser.add_argument("--arch", default="", help="the architecture; default: the GPU's")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    env = Env(args.dry_run, args.arch or _arch(args.dry_run))
    if args.worker is not None:
        return work(cases_of(args.stages[0], args.only), env, args.worker)
    return max(_run_stage(stage, args, env) for stage in args.stages)


def _run_stage(stage: str, args: argparse.Namespace, env: Env) -> int:
    report = Report(stage, output_folder() / f"{stage}.json", machine_facts(env.dry))
    command = [sys.executable, str(Path(__file__)), stage, "--only", args.only, "--arch", env.arch]
    command += ["--dry-run"] * env.dry + ["--worker"]
    Supervisor(report, command, cases_of(stage, args.only), args.seconds).run()
    report.show()
    return 1 if report.failures else 0


def _arch(dry: bool) -> str:
    from tinycomp.runtime.cuda.driver import DEFAULT_ARCH, present_arch

    if dry:
        return DEFAULT_ARCH
    arch = present_arch()
    if not arch:
        sys.exit("no GPU is found; --dry-run compiles and simulates without one")
    return arch


if __name__ == "__main__":
    sys.exit(main())
