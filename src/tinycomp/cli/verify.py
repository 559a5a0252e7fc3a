"""`tinycomp verify MODEL.onnx --against ort [--layerwise]`"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..diagnostics import MismatchError
from ..precision import PrecisionPolicy
from .common import (
    add_compile_options,
    add_input_options,
    add_json_option,
    compile_model,
    make_inputs,
    note,
    parse_overrides,
    print_json,
    print_table,
    require_file,
)

if TYPE_CHECKING:
    from ..runtime.compare import Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an ONNX file")
    parser.add_argument("--against", choices=["ort"], default="ort", help="the reference engine")
    parser.add_argument(
        "--tolerance", type=float,
        help="largest difference allowed, relative to the output's largest value "
        "(default 1e-4; 1e-3 for tf32 and fp16, 1e-2 for bf16)",
    )  # fmt: skip
    parser.add_argument(
        "--layerwise", action="store_true",
        help="compare every intermediate tensor too, to find the node that differs first",
    )  # fmt: skip
    add_input_options(parser)
    add_json_option(parser)
    add_compile_options(parser)


def run(args: argparse.Namespace) -> int:
    from ..runtime.compare import compare
    from .layerwise import first_difference
    from .reference import run_reference

    require_file(args.model)
    if args.tolerance is None:
        policy = PrecisionPolicy.of(args.precision, parse_overrides(args.precision_of))
        args.tolerance = max(p.tolerance for p in policy.used)
    module = compile_model(args, args.model)
    inputs = make_inputs(args, module)
    results = compare(module.run(inputs), run_reference(args.against, args.model, inputs))
    bad = [r for r in results if r.problem or not r.difference <= args.tolerance]
    layer = first_difference(args, inputs) if args.layerwise else None
    if args.json:
        print_json({"ok": not bad, "tolerance": args.tolerance, "outputs": results, "layer": layer})
    else:
        rows = [(r.name, f"{r.difference:.2e}", _place(r), "ok" if r not in bad else "DIFFERS")
                for r in results]  # fmt: skip
        print_table("outputs", ("output", "difference", "at", "verdict"), rows)
        if args.layerwise:
            note(layer.describe() if layer else "no intermediate tensor differs")
    if bad:
        worst = max(bad, key=lambda r: r.difference)
        raise MismatchError(
            f"{len(bad)} of {len(results)} outputs differ from {args.against} by more than "
            f"{args.tolerance:g} of their largest value; worst: {worst.name!r} by "
            f"{worst.problem or format(worst.difference, '.2e')}",
            hint="" if args.layerwise else "--layerwise shows which node differs first",
        )
    return 0


def _place(result: Comparison) -> str:
    if result.problem:
        return result.problem
    return f"{list(result.index)}: {result.got:.7g}, expected {result.expected:.7g}"
