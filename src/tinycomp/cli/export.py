"""`tinycomp export MODEL.onnx|MODEL.tc --format cuda -o DIR`"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from ..diagnostics import TinycompError
from .common import add_compile_options, load_or_compile, note, require_file

_MARK = re.compile(r"^// ---- (\w+)$", re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an ONNX file or an artifact compiled for CUDA")
    parser.add_argument("--format", choices=["cuda"], default="cuda", help="what to write")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="the folder")
    add_compile_options(parser)


def run(args: argparse.Namespace) -> int:
    """One .cu file and one cubin per kernel, and plan.json: steps, launches, memory."""
    require_file(args.model)
    if args.target == "llvm":
        args.target = "cuda"
    module = load_or_compile(args, args.model)
    if module.manifest.target.kind != "cuda":
        raise TinycompError(
            f"{args.model} is compiled for {module.manifest.target}",
            hint="give the ONNX file, or an artifact compiled with --target cuda",
        )
    if module.dims:
        raise TinycompError(
            f"the dimensions {', '.join(module.dims)} are open", hint="fix them: --dim NAME=SIZE"
        )
    artifact = module.artifact
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    parts = _MARK.split(artifact.texts["cuda"])[1:]
    for name, source in zip(parts[::2], parts[1::2], strict=True):
        (folder / f"{name}.cu").write_text(source.strip() + "\n")
        (folder / f"{name}.cubin").write_bytes(artifact.objects[name])
    plan = json.dumps(json.loads(artifact.texts["plan"]), indent=1)
    (folder / "plan.json").write_text(plan + "\n")
    (folder / "constants.bin").write_bytes(artifact.constants.tobytes())
    note(f"{folder}: {len(parts) // 2} kernels for {module.manifest.target}")
    return 0
