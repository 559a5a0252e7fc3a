"""`tinycomp compile MODEL.onnx -o MODEL.tc`"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.cuda.driver import present_arch
from .common import (
    add_compile_options,
    add_json_option,
    compile_model,
    human_bytes,
    note,
    print_json,
    require_file,
)

if TYPE_CHECKING:
    from ..runtime.module import Module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an ONNX file")
    parser.add_argument("-o", "--output", help="the artifact; default: the model's name with .tc")
    parser.add_argument(
        "--dump-ir", metavar="DIR", help="also write the model at every level to this folder"
    )
    add_json_option(parser)
    add_compile_options(parser)


def run(args: argparse.Namespace) -> int:
    require_file(args.model)
    output = Path(args.output or Path(args.model).with_suffix(".tc").name)
    start = time.perf_counter()
    module = compile_model(args, args.model)
    module.save(output)
    seconds = time.perf_counter() - start
    if args.dump_ir:
        _dump(module, Path(args.dump_ir))
    manifest = module.manifest
    size = output.stat().st_size
    if args.json:
        print_json(
            {
                "artifact": str(output),
                "bytes": size,
                "seconds": seconds,
                "target": str(manifest.target),
                "kernels": len(manifest.kernels),
                "arena_bytes": manifest.arena_bytes,
                "unshared_bytes": manifest.unshared_bytes,
                "dims": {name: str(r) for name, r in module.dims.items()},
                "variants": module.variants,
            }
        )
        return 0
    if module.dims:
        note(f"{output}: {human_bytes(size)}, {seconds:.2f} s")
        _describe_dims(module)
    else:
        note(
            f"{output}: {human_bytes(size)}, {len(manifest.kernels)} kernel calls, "
            f"{human_bytes(manifest.arena_bytes)} working memory "
            f"({human_bytes(manifest.unshared_bytes)} without reuse), {seconds:.2f} s"
        )
    note(f"target: {manifest.target}")
    if manifest.target.kind == "cuda" and args.target.split() == ["cuda"] and not present_arch():
        note("no GPU is found here; for another one, --target 'cuda -arch=sm_80'")
    return 0


def _describe_dims(module: Module) -> None:
    """What is compiled of a model with open dimensions, and what will be."""
    dims = ", ".join(f"{name}={r}" for name, r in module.dims.items())
    compiled = "; ".join(
        ", ".join(f"{name}={size}" for name, size in sizes.items()) for sizes in module.variants
    )
    note(f"open dimensions: {dims}; compiled for: {compiled or 'no sizes yet'}")
    if not compiled:
        name = next(iter(module.dims))
        note(
            "each set of sizes is compiled when it is first run; "
            f"--dim {name}=8 fixes one, --dim {name}=1,8,32 compiles these now"
        )


def _dump(module: Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for level in module.levels:
        (folder / f"{level}.txt").write_text(module.ir(level))
