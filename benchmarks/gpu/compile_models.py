"""Compiles models for a GPU, which needs none, and reports what every kernel uses.

    python benchmarks/gpu/compile_models.py MODEL.onnx... [--target cuda -arch=sm_90a]
        [--dims batch=1,seq=12] [--json FILE] [--all]

For each kernel: registers, spills, stack and shared memory as the assembler reports them, seconds
to generate and to compile it. The table shows the totals of each model, the kernels that spill or
use the stack, and with --all every kernel. The exit status is 1 if any model fails, spills or uses
the stack.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from tinycomp.codegen.cuda.nvrtc import Resources, compile_cuda
from tinycomp.compiler import Options, import_model, optimize
from tinycomp.cuda_kernels import generate_cuda
from tinycomp.diagnostics import TinycompError
from tinycomp.kernels import primitive_functions
from tinycomp.ops import default_ops
from tinycomp.relay.pass_infra import PassContext
from tinycomp.target import Target


@dataclass(frozen=True)
class Report:
    """One launch of a kernel."""

    kernel: str
    threads: int
    blocks: int
    shared: int
    generate_s: float
    nvrtc_s: float
    registers: int
    spills: int
    stack: int

    @property
    def is_clean(self) -> bool:
        return not self.spills and not self.stack


def kernels_of(path: str, target: Target, dims: Mapping[str, int]) -> Iterator[Report]:
    """The launches of a model's distinct kernels, compiled one after the other."""
    options = Options(target, dims=dict(dims))
    module = optimize(import_model(path, options), PassContext(default_ops(), target, 3), target)
    for function in primitive_functions(module.main).values():
        start = time.perf_counter()
        kernel = generate_cuda(function, target)
        middle = time.perf_counter()
        cubin = compile_cuda(kernel.source, target.arch, f"{kernel.name}.cu")
        end = time.perf_counter()
        for launch in kernel.launches:
            used: Resources = cubin.kernels[launch.name]
            yield Report(
                launch.name,
                launch.threads,
                launch.grid[0] * launch.grid[1] * launch.grid[2],
                launch.shared_bytes,
                middle - start,
                end - middle,
                used.registers,
                used.spill_stores + used.spill_loads,
                used.stack,
            )
            middle = start = end  # the time belongs to the first launch


def table(reports: list[Report]) -> str:
    lines = [f"  {'registers':>9} {'threads':>7} {'blocks':>7} {'shared':>7} {'spills':>7} "
             f"{'stack':>6} {'gen s':>6} {'nvrtc s':>7}  kernel"]  # fmt: skip
    lines += [
        f"  {r.registers:9} {r.threads:7} {r.blocks:7} {r.shared:7} {r.spills:7} {r.stack:6} "
        f"{r.generate_s:6.2f} {r.nvrtc_s:7.2f}  {r.kernel}"
        for r in reports
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Compile models for a GPU; report registers, spills and times."
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--target", default="cuda -arch=sm_90a")
    parser.add_argument("--dims", default="", help="values of free dimensions: name=size,...")
    parser.add_argument("--json", help="write the results there")
    parser.add_argument("--all", action="store_true", help="show every kernel")
    options = parser.parse_args()
    target = Target.parse(options.target)
    dims = {k: int(v) for k, v in (one.split("=") for one in options.dims.split(",") if one)}
    results: dict[str, object] = {}
    clean = True
    for path in options.models:
        start = time.process_time()
        try:
            reports = list(kernels_of(path, target, dims))
        except TinycompError as error:
            print(f"{path}: FAILS: {error}", flush=True)
            results[path] = {"error": str(error)}
            clean = False
            continue
        bad = [r for r in reports if not r.is_clean]
        clean &= not bad
        generate, nvrtc = sum(r.generate_s for r in reports), sum(r.nvrtc_s for r in reports)
        print(
            f"{path}: {len(reports)} launches, {time.process_time() - start:.1f} s of CPU "
            f"({generate:.1f} s generation, {nvrtc:.1f} s NVRTC), {len(bad)} with spills or stack",
            flush=True,
        )
        if bad or options.all:
            print(table(reports if options.all else bad), flush=True)
        results[path] = {"cpu_s": time.process_time() - start, "kernels": [*map(asdict, reports)]}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
