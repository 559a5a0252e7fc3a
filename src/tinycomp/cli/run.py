"""`tinycomp run MODEL.tc --inputs in.npz --outputs out.npz`"""

from __future__ import annotations

import argparse
import time

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
    parser.add_argument("--outputs", metavar="FILE.npz", help="write the outputs here")
    add_input_options(parser)
    add_json_option(parser)
    add_compile_options(parser)


def run(args: argparse.Namespace) -> int:
    import numpy as np

    module = load_or_compile(args, args.model)
    inputs = make_inputs(args, module)
    start = time.perf_counter()
    outputs = module.run(inputs)
    seconds = time.perf_counter() - start
    if args.outputs:
        try:
            with open(args.outputs, "wb") as file:
                np.savez(file, **outputs)  # type: ignore[arg-type]
        except OSError as error:
            raise TinycompError(f"cannot write {args.outputs}: {error.strerror}") from error
    rows = [(name, *_summary(array)) for name, array in outputs.items()]
    if args.json:
        keys = ("name", "dtype", "shape", "min", "mean", "max")
        print_json({"seconds": seconds, "outputs": [dict(zip(keys, r, strict=True)) for r in rows]})
    else:
        print_table("outputs", ("name", "dtype", "shape", "min", "mean", "max"), rows)
        compiling = " (and compiling, if these sizes are new)" if module.dims else ""
        note(f"first run{compiling}: {seconds * 1e3:.3f} ms")
    return 0


def _summary(array) -> tuple[str, list[int], float | None, float | None, float | None]:
    shape = list(array.shape)
    if not array.size:
        return str(array.dtype), shape, None, None, None
    values = array.astype("float64")
    low, mean, high = (float(f"{v:.6g}") for v in (values.min(), values.mean(), values.max()))
    return str(array.dtype), shape, low, mean, high
