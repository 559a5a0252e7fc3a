"""The `tinycomp` command: arguments, dispatch, and how failures end.

Exit codes: 0 ok, 1 user error, 2 unsupported model, 3 mismatch, 4 internal error. Data goes to
stdout, messages to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..diagnostics import InternalError, TinycompError

COMMANDS = {
    "compile": "compile a model to an artifact",
    "run": "run a model or artifact once on given or generated inputs",
    "verify": "compare the outputs of a model with a reference engine",
    "bench": "time a model or artifact, beside other engines if wanted",
    "inspect": "inputs, outputs, operators, FLOPs, fused groups, memory",
    "export": "write the CUDA sources of a model to a folder",
    "profile": "time per fused kernel, with its ONNX nodes and share of the roofline",
    "models": "write one of the built-in example models",
    "doctor": "what tinycomp finds on this machine",
}


class _Parser(argparse.ArgumentParser):
    """Wrong usage is a user error: exit code 1 (argparse's own 2 means an unsupported model)."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(TinycompError.exit_code, f"error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each lives in the module of its name."""
    parser = _Parser(prog="tinycomp", description="A tensor compiler: ONNX models to native code.")
    parser.add_argument("--version", action="version", version=f"tinycomp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        command.add_argument("--debug", action="store_true", help="show Python tracebacks")
        module = importlib.import_module(f".{name}", __package__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        code = args.run(args)
        sys.stdout.flush()  # so that a closed pipe is noticed here
        return code
    except TinycompError as error:
        _report(str(error), args.debug)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `tinycomp ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the process boundary: a bug ends in one line and its exit code
        text = str(error) if isinstance(error, InternalError) else _bug(error)
        _report(text + "\n  hint: run again with --debug to see where", args.debug)
        return InternalError.exit_code


def _bug(error: Exception) -> str:
    return str(InternalError(f"{type(error).__name__}: {error}"))


def _report(text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"error: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
