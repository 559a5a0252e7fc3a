"""The stages of run.sh.

    python3 benchmarks/gpu/stages.py STAGE... [--only GLOB] [--dry | --compile] [--seconds N]

`--dry` needs no GPU: every case runs from end to end, small, tinycomp on a device made of NumPy and
the others on the CPU, so that mistakes show before a GPU is there; nothing is timed. `--compile`
needs none either: the kernels of contests and models are compiled at their real sizes. Peers that
are not installed become failed rows.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import math
import os
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
    dry_env,
    machine_facts,
    output_folder,
    work,
)

STAGES = ("smoke", "correctness", "sanitizer", "ceilings", "kernels", "gemm", "attention", "conv",
          "models")  # fmt: skip
COMPILED = ("kernels", "gemm", "attention", "conv", "models")  # whose cases compile alone


def cases_of(stage: str, only: str = "*") -> list[Case]:
    """The cases of a stage whose names match a glob."""
    module = importlib.import_module(f"stage_{stage}")
    return [case for case in module.cases() if fnmatch.fnmatchcase(case.name, only)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Checks and measurements on a GPU")
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--only", default="*", help="cases whose names match this glob")
    parser.add_argument("--dry", action="store_true", help="no GPU: all of it once, small")
    parser.add_argument("--compile", action="store_true", help="no GPU: only compile")
    parser.add_argument(
        "--seconds", type=float, help="for each stage (510; without a GPU as many as it takes)"
    )
    parser.add_argument("--arch", default="", help="the architecture; default: the GPU's")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.compile and (wrong := set(args.stages) - set(COMPILED)):
        parser.error(f"--compile is for {', '.join(COMPILED)}, not for {', '.join(sorted(wrong))}")
    arch = args.arch or _arch(args.dry or args.compile)
    env = dry_env(arch) if args.dry else Env(False, arch, compile_only=args.compile)
    if args.dry:
        os.environ.update(TRITON_INTERPRET="1", JAX_PLATFORMS="cpu")  # before they are imported
    if args.worker is not None:
        return work(cases_of(args.stages[0], args.only), env, args.worker)
    return max(_run_stage(stage, args, env) for stage in args.stages)


def _run_stage(stage: str, args: argparse.Namespace, env: Env) -> int:
    without_gpu = env.dry or env.compile_only
    name = stage + "_dry" * env.dry + "_compile" * env.compile_only  # beside real results
    report = Report(stage, output_folder() / f"{name}.json", machine_facts(without_gpu))
    command = [sys.executable, str(Path(__file__)), stage, "--only", args.only, "--arch", env.arch]
    command += ["--dry"] * env.dry + ["--compile"] * env.compile_only + ["--worker"]
    seconds = args.seconds or (math.inf if without_gpu else 510)
    Supervisor(report, command, cases_of(stage, args.only), seconds).run()
    report.show()
    return 1 if report.failures else 0


def _arch(without_gpu: bool) -> str:
    from tinycomp.runtime.cuda.driver import DEFAULT_ARCH, present_arch

    if without_gpu:
        return DEFAULT_ARCH
    arch = present_arch()
    if not arch:
        sys.exit("no GPU is found; --dry and --compile need none")
    return arch


if __name__ == "__main__":
    sys.exit(main())
