"""`tinycomp profile MODEL.tc [--trace trace.json]`"""

from __future__ import annotations

import argparse

from ..diagnostics import TinycompError
from .common import (
    add_compile_options,
    add_input_options,
    add_json_option,
    load_or_compile,
    make_inputs,
    note,
    print_json,
    print_table,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an artifact, or an ONNX file to compile first")
    parser.add_argument("--repeat", type=int, default=20, help="runs; the medians are shown")
    parser.add_argument("--trace", metavar="FILE", help="write a Chrome/Perfetto trace")
    parser.add_argument("--top", type=int, help="show only the N slowest kernels")
    add_input_options(parser)
    add_json_option(parser)
    add_compile_options(parser)


def run(args: argparse.Namespace) -> int:
    module = load_or_compile(args, args.model)
    profile = module.profile(make_inputs(args, module), repeat=max(1, args.repeat))
    if args.trace:
        try:
            profile.save_trace(args.trace)
        except OSError as error:
            raise TinycompError(f"cannot write {args.trace}: {error.strerror}") from error
        note(f"trace: {args.trace} (open it in chrome://tracing or ui.perfetto.dev)")
    if args.json:
        print_json(profile.to_json())
        return 0
    rows = [
        (
            f"{row.milliseconds:.4f}", f"{row.share:.1%}", f"{row.gflops:.1f}",
            f"{row.gbps:.1f}", f"{row.roofline:.0%}", row.kernel.label or row.kernel.name,
            ", ".join(row.kernel.nodes[:4]) + (", ..." if len(row.kernel.nodes) > 4 else ""),
        )
        for row in sorted(profile.rows, key=lambda r: -r.milliseconds)[: args.top]
    ]  # fmt: skip
    columns = ("ms", "share", "GFLOP/s", "GB/s", "roofline", "operators", "ONNX nodes")
    print_table(f"{args.model}, {module.num_threads} threads", columns, rows)
    peaks = profile.peaks
    note(
        f"{profile.milliseconds:.3f} ms in all; measured peaks: {peaks.gflops:.0f} GFLOP/s, "
        f"{peaks.cache_gbps:.0f} GB/s in caches, {peaks.memory_gbps:.0f} GB/s in memory"
    )
    return 0
