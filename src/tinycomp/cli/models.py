"""`tinycomp models [NAME -o FILE.onnx]`"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

from ..diagnostics import TinycompError
from .common import add_json_option, human_bytes, note, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="which model; without it, the names are listed")
    parser.add_argument("-o", "--output", help="default: NAME.onnx")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    from ..testing.models import builders

    table = builders()
    if args.name is None:
        if args.json:
            print_json(sorted(table))
        else:
            print("\n".join(sorted(table)))
        return 0
    if args.name not in table:
        close = difflib.get_close_matches(args.name, table, 1)
        raise TinycompError(
            f"there is no built-in model {args.name!r}",
            hint=f"did you mean {close[0]!r}?" if close else "`tinycomp models` lists them",
        )
    data = table[args.name]().SerializeToString()
    output = Path(args.output or f"{args.name}.onnx")
    try:
        output.write_bytes(data)
    except OSError as error:
        raise TinycompError(f"cannot write {output}: {error.strerror}") from error
    note(f"{output}: {human_bytes(len(data))}")
    if args.json:
        print_json({"model": str(output), "bytes": len(data)})
    return 0
