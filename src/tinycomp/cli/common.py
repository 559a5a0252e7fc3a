"""What several commands share: options, loading a model, inputs, progress and tables."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..diagnostics import ModelError, TinycompError
from ..dims import DimRange
from ..precision import PrecisionPolicy

if TYPE_CHECKING:
    import numpy as np

    from ..runtime.module import Module

Reporter = Callable[[str, int, int], None]

_SHAPE = re.compile(r"\s*(?P<name>\S+?):(?P<shape>\[[\d,\s]*\]|\d+(?:x\d+)*)(?:[\s;,]+|$)")


def parse_input_shapes(texts: Iterable[str]) -> dict[str, list[int]]:
    """Shapes by input name.

    >>> parse_input_shapes(["x:[1,3,224,224]", "mask:1x128 sr:[]"])
    {'x': [1, 3, 224, 224], 'mask': [1, 128], 'sr': []}
    """
    shapes: dict[str, list[int]] = {}
    for text in texts:
        position = 0
        while position < len(text):
            match = _SHAPE.match(text, position)
            if match is None:
                raise TinycompError(
                    f"cannot read the input shape {text[position:]!r}",
                    hint='write "name:[1,3,224,224]" or name:1x3x224x224',
                )
            shapes[match["name"]] = [int(n) for n in re.findall(r"\d+", match["shape"])]
            position = match.end()
    return shapes


def parse_dims(texts: Iterable[str]) -> dict[str, DimRange]:
    """What is said about named dimensions: a size, a range, buckets, or `*` for any size.

    >>> {name: str(r) for name, r in parse_dims(["batch=1,8", "seq=1..128", "n=3"]).items()}
    {'batch': '1,8', 'seq': '1..128', 'n': '3'}
    """
    dims: dict[str, DimRange] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            if not name:
                raise ValueError(text)
            dims[name] = DimRange.parse(value)
        except (ValueError, TinycompError):
            raise TinycompError(
                f"cannot read --dim {text!r}",
                hint="write --dim batch=1, --dim batch=1..64, --dim batch=1,8,32 or --dim batch=*",
            ) from None
    return dims


def parse_overrides(texts: Iterable[str]) -> dict[str, str]:
    """Precisions by glob, in the order given; of a glob given twice, the last.

    >>> parse_overrides(["conv*=bf16", "a=b=fp32"])
    {'conv*': 'bf16', 'a=b': 'fp32'}
    """
    overrides: dict[str, str] = {}
    for text in texts:
        glob, sign, precision = text.rpartition("=")
        if not sign or not glob:
            raise TinycompError(
                f"cannot read --precision-of {text!r}", hint="write --precision-of 'conv*=fp32'"
            )
        overrides.pop(glob, None)
        overrides[glob] = precision
    return overrides


def add_compile_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that may compile."""
    group = parser.add_argument_group("compilation")
    group.add_argument("--target", default="llvm", help='"llvm" (this CPU) or "llvm -mcpu=NAME"')
    group.add_argument(
        "--input-shapes", action="extend", nargs="+", default=[], metavar="NAME:SHAPE",
        help='"x:[1,3,224,224]" or x:1x3x224x224',
    )  # fmt: skip
    group.add_argument(
        "--dim",
        action="append",
        default=[],
        metavar="NAME=SIZES",
        help="an open dimension: 8, a range 1..64, buckets 1,8,32 to compile now, auto or "
        "auto..512 for buckets made when needed, or * for any",
    )
    group.add_argument("--opt-level", type=int, choices=range(4), default=3)
    group.add_argument(
        "--precision",
        default="fp32",
        metavar="FORMAT",
        help="of products and convolutions: fp32, fp32_strict, tf32 (GPU), fp16, bf16"
        "; default fp32",
    )
    group.add_argument(
        "--precision-of", action="extend", nargs="+", default=[], metavar="GLOB=FORMAT",
        help="another precision for nodes or operators: 'conv2d=bf16' '*/head/*=fp32'",
    )  # fmt: skip
    group.add_argument("--tuning-records", metavar="FILE", help="records of the autotuner")
    group.add_argument(
        "--threads", type=int, metavar="N", help="threads; default: all usable cores"
    )
    group.add_argument("--no-cache", action="store_true", help="neither read nor write the cache")


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Where the inputs of a run come from."""
    group = parser.add_argument_group("inputs")
    group.add_argument("--inputs", metavar="FILE.npz", help="arrays by input name")
    group.add_argument(
        "--fill", choices=["random", "zeros", "ones"],
        help="generate the inputs that --inputs does not give (default without it: random)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="of --fill random")


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def load_or_compile(args: argparse.Namespace, path: str) -> Module:
    """A module from an artifact, or compiled from an ONNX file with the command's options."""
    from ..loading import load
    from ..runtime.artifact import is_artifact

    require_file(path)
    if is_artifact(path) or Path(path).suffix == ".tc":
        return load(path, num_threads=args.threads)
    return compile_model(args, path)


def compile_model(args: argparse.Namespace, path: str) -> Module:
    """Compile an ONNX file with the command's options and show progress on stderr."""
    from ..compiler import compile_with
    from ..config import Config

    config = Config.from_environment()
    if args.no_cache:
        config = dataclasses.replace(config, cache=False)
    policy = PrecisionPolicy.of(args.precision, parse_overrides(args.precision_of))
    with progress() as report:
        module = compile_with(
            config,
            path,
            target=args.target,
            input_shapes=parse_input_shapes(args.input_shapes),
            dims=parse_dims(args.dim),
            num_threads=args.threads,
            opt_level=args.opt_level,
            precision=args.precision,
            precision_overrides=parse_overrides(args.precision_of),
            tuning_records=args.tuning_records,
            progress=report,
        )
    if any(p.is_short for p in policy.used) and not args.target.startswith("cuda"):
        note(
            f"precision {policy}: a CPU stores 16 bits and computes in float32; "
            "that saves memory and can cost time"
        )
    return module


def require_file(path: str) -> None:
    """Refuse a path that is not a readable file.

    Raises:
        ModelError: naming the path.
    """
    if not Path(path).is_file():
        kind = "is a folder" if Path(path).is_dir() else "does not exist"
        raise ModelError(f"{path} {kind}", hint="give the path of an .onnx or .tc file")


def make_inputs(args: argparse.Namespace, module: Module) -> dict[str, np.ndarray]:
    """The inputs that the options ask for; arrays of an .npz file win over generated ones.

    Generated inputs have the smallest sizes that open dimensions allow.
    """
    import numpy as np

    from ..runtime.arrays import random_inputs
    from ..runtime.dynamic import sample_specs

    given = load_npz(args.inputs) if args.inputs else {}
    if args.inputs and not args.fill:
        return given
    specs = sample_specs(module.inputs, module.dims)
    if module.dims and not given:
        shown = ", ".join(map(str, specs))
        note(f"dimensions are open ({', '.join(module.dims)}): generated inputs are {shown}")
    inputs = random_inputs(specs, args.seed)
    if args.fill in ("zeros", "ones"):
        fill = np.zeros_like if args.fill == "zeros" else np.ones_like
        inputs = {name: fill(array) for name, array in inputs.items()}
    return {**inputs, **given}


def load_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; object arrays are refused.

    Raises:
        TinycompError: the file is missing or not an .npz file.
    """
    import numpy as np

    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise TinycompError(
                f"{path} holds one array without a name",
                hint="write it with numpy.savez(path, **{input_name: array})",
            )
        with stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError, EOFError) as error:
        reason = "not an .npz file" if "pickle" in str(error) else error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else reason
        raise TinycompError(
            f"cannot read the arrays of {path}: {reason}",
            hint="write it with numpy.savez(path, **{input_name: array})",
        ) from error


def print_json(value: Any) -> None:
    """JSON on stdout. Dataclasses become objects; NaN and infinities, which it lacks, strings."""
    print(json.dumps(_plain(value), indent=1))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def note(text: str) -> None:
    """A message for the person at the terminal."""
    print(text, file=sys.stderr)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout: drawn on a terminal, tab-separated into a pipe."""
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for row in rows:
            print("\t".join(map(str, row)))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell).replace("[", r"\[") for cell in row))
    Console().print(table)


def print_values(pairs: Mapping[str, object]) -> None:
    """`name  value` lines."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        print(f"{name:{width}}  {value}")


def human_bytes(count: float) -> str:
    """
    >>> human_bytes(1536), human_bytes(10)
    ('1.5 KiB', '10 B')
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


@contextlib.contextmanager
def progress() -> Iterator[Reporter]:
    """A reporter `(stage, done, total)`: bars on a terminal, else one line for each stage."""
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def plain(stage: str, done: int, total: int) -> None:
            if stage not in seen:
                seen.add(stage)
                note(f"{stage} ({total})" if total > 1 else stage)

        yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def draw(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield draw
