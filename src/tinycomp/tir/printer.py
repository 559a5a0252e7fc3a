"""Loop IR as Python-like text.

def kernel(A: float32[8], B: float32[8]):
    for i.outer in parallel(2):
        with block("B"): i = i.outer * 4 + i.inner
            B[i] = A[i] + 1f32
"""

from __future__ import annotations

from typing import Any

from ..te.simplify import Analyzer
from .nodes import (
    Alloc,
    Async,
    Block,
    Buffer,
    Collective,
    Evaluate,
    For,
    ForKind,
    If,
    IterKind,
    PrimFunc,
    Scope,
    Seq,
    Stmt,
    Store,
)
from .tile.printer import op_parts

_INDENT = "    "


def stmt_text(stmt: Stmt, indent: int = 0) -> str:
    """`stmt` as text, one line per statement, nested by indentation."""
    lines: list[str] = []
    stack: list[tuple[Any, int]] = [(stmt, indent)]  # what is left to print; a str is one line
    while stack:
        item, depth = stack.pop()
        if isinstance(item, str):
            lines.append(_INDENT * depth + item)
        else:
            stack.extend(reversed(_parts(item, depth)))
    return "\n".join(lines) if lines else _INDENT * indent + "pass"


def func_text(func: PrimFunc) -> str:
    """`func` as text: its signature, the buffers it allocates, and its body."""
    split = len(func.params) - func.num_outputs
    inputs = ", ".join(_buffer_text(b) for b in func.params[:split])
    outputs = ", ".join(_buffer_text(b) for b in func.params[split:])
    lines = [f"def {func.name}({inputs}) -> ({outputs}):"]
    lines += [f"{_INDENT}alloc {_buffer_text(b)}" for b in func.allocs]
    return "\n".join([*lines, stmt_text(func.body, 1)])


def _buffer_text(buffer: Buffer) -> str:
    scope = "" if buffer.scope is Scope.GLOBAL else f" in {buffer.scope}"
    return f"{buffer.name}: {buffer.dtype}[{', '.join(map(str, buffer.shape))}]{scope}"


def _parts(stmt: Stmt, depth: int) -> list[tuple[Any, int]]:
    """The lines and statements that `stmt` consists of, each with its indentation."""
    match stmt:
        case Seq():
            return [(s, depth) for s in stmt.stmts] or [("pass", depth)]
        case For():
            return [(_loop_text(stmt), depth), (stmt.body, depth + 1)]
        case Block():
            return _block_parts(stmt, depth)
        case Store():
            mask = "" if stmt.predicate is None else f" if {stmt.predicate}"
            target = f"{stmt.buffer.name}[{', '.join(map(str, stmt.indices))}{mask}]"
            return [(f"{target} = {stmt.value}", depth)]
        case If():
            parts: list[tuple[Any, int]] = [
                (f"if {stmt.condition}:", depth),
                (stmt.then, depth + 1),
            ]
            if stmt.otherwise is not None:
                parts += [("else:", depth), (stmt.otherwise, depth + 1)]
            return parts
        case Alloc():
            return [(f"alloc {_buffer_text(stmt.buffer)}", depth), (stmt.body, depth)]
        case Evaluate():
            return [(str(stmt.value), depth)]
        case Async():
            return [("with asynchronous copies:", depth), (stmt.body, depth + 1)]
        case Collective():
            return [(f"with warp({stmt.op.name}):", depth), (stmt.body, depth + 1)]
    parts_of_tiles = op_parts(stmt, depth)
    if parts_of_tiles is not None:
        return parts_of_tiles
    raise TypeError(f"not a statement: {type(stmt).__name__}")


def _loop_text(loop: For) -> str:
    end = Analyzer().simplify(loop.min + loop.extent)
    first = "" if str(loop.min) == "0" else f"{loop.min}, {end}"
    name = "range" if loop.kind is ForKind.SERIAL else str(loop.kind)
    thread = f', "{loop.thread}"' if loop.thread else ""
    notes = f"  # {_notes(loop.annotations)}" if loop.annotations else ""
    return f"for {loop.var.name} in {name}({first or loop.extent}{thread}):{notes}"


def _notes(annotations: Any) -> str:
    return ", ".join(f"{key}={value}" for key, value in annotations.items())


def _block_parts(block: Block, depth: int) -> list[tuple[Any, int]]:
    marks = {IterKind.SPATIAL: "", IterKind.REDUCE: "reduce ", IterKind.ORDERED: "ordered "}
    bound = ", ".join(
        f"{marks[v.kind]}{v.name} = {e}"
        for v, e in zip(block.iter_vars, block.bindings, strict=True)
    )
    where = "" if str(block.predicate) == "True" else f" where {block.predicate}"
    notes = f"  # {_notes(block.annotations)}" if block.annotations else ""
    title = f'with block("{block.name}"){where}: {bound}'.rstrip() + notes
    parts: list[tuple[Any, int]] = [(title, depth)]
    if block.init is not None:
        parts += [("init:", depth + 1), (block.init, depth + 2)]
    return [*parts, (block.body, depth + 1)]
