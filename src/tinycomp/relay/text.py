"""Graph IR as text, which `tinycomp.relay.parser` reads back.

    def @main(%x: float32[1, 3], %c: bool[]) {
      %0: float32[1, 3] = nn.relu(%x)  # Relu_0
      %1: float32[1, 3] = add(%0, const(float32[1], [1.0]))  # Add_0
      %2: float32[1, 3] = if(%c, %1)
        fn (%y: float32[1, 3]) {
          %y
        }
        fn (%y: float32[1, 3]) {
          %0: float32[1, 3] = clip(%y, a_min=0.0)
          %0
        }
      %2
    }

Attributes equal to their defaults are left out. Large constants are shown by the hash of their
content; `constant_table` gives the arrays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np

from ..diagnostics import Span
from ..ir.expr import Expr
from .nodes import (
    Atom,
    Binding,
    Constant,
    Function,
    If,
    IRModule,
    Tuple,
    TupleGetItem,
    Var,
    While,
    all_functions,
    regions,
)
from .op import Attrs

INLINE_LIMIT = 16  # constants of at most this many elements are written out
_PLAIN = re.compile(r"\w+")
_PLAIN_SPAN = re.compile(r'[^\s,"#]+')


def module_text(module: IRModule) -> str:
    """All functions of a module, and the names of its inputs and outputs."""
    names = {"inputs": tuple(module.input_names), "outputs": tuple(module.output_names)}
    head = _attributes({**names, **module.attrs})
    functions = (_text(f, f"def @{name}") for name, f in module.functions.items())
    return f"module({head})\n\n" + "\n\n".join(functions) + "\n"


def function_text(function: Function) -> str:
    """One function, with those nested in it."""
    return _text(function, "fn ")


def binding_text(binding: Binding) -> str:
    """One binding on one line, nested functions left out; names as they are, even if not unique."""
    return _binding(binding, _Names())


def constant_table(module: IRModule | Function) -> dict[str, np.ndarray]:
    """The arrays of the constants that the text shows by hash."""
    roots = module.functions.values() if isinstance(module, IRModule) else (module,)
    atoms = (
        atom
        for root in roots
        for function in all_functions(root)
        for atom in (function.result, *(a for b in function.bindings for a in b.args))
    )
    large = {a for a in atoms if isinstance(a, Constant) and a.data.size > INLINE_LIMIT}
    return {content_hash(constant.data): constant.data for constant in large}


def content_hash(array: np.ndarray) -> str:
    """16 hexadecimal digits that name an array's dtype, shape and content."""
    digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    flat = np.ascontiguousarray(array).reshape(-1)  # not tobytes(): weights may be large
    digest.update(flat.view(np.uint8).data)
    return digest.hexdigest()[:16]


class _Names:
    """Unique names for the variables of one function."""

    def __init__(self) -> None:
        self._names: dict[Var, str] = {}
        self._taken: set[str] = set()
        self._counters: dict[str, int] = {}

    def __call__(self, var: Var) -> str:
        name = self._names.get(var)
        if name is None:
            name = var.name
            while name in self._taken:
                self._counters[var.name] = self._counters.get(var.name, 0) + 1
                name = f"{var.name}_{self._counters[var.name]}"
            self._taken.add(name)
            self._names[var] = name
        return "%" + (name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False))


def _text(root: Function, head: str) -> str:
    """Lines of `root`; a generator per open function, so that nesting costs no recursion."""
    lines: list[str] = []
    stack = [(_function(root, head), "")]
    while stack:
        generator, indent = stack[-1]
        item = next(generator, None)
        if item is None:
            stack.pop()
        elif isinstance(item, Function):
            stack.append((_function(item, "fn "), indent + "    "))
        else:
            lines.append(indent + item)
    return "\n".join(lines)


def _function(function: Function, head: str) -> Iterator[str | Function]:
    names = _Names()
    params = ", ".join(f"{names(p)}: {p.type}" for p in function.params)
    attrs = _attributes(function.attrs)
    yield f"{head}({params}) {f'[{attrs}] ' if attrs else ''}{{"
    for binding in function.bindings:
        yield "  " + _binding(binding, names)
        yield from regions(binding.value)
    yield "  " + _atom(function.result, names)
    yield "}"


def _binding(binding: Binding, names: _Names) -> str:
    value = binding.value
    args = [_atom(a, names) for a in binding.args]
    if isinstance(value, Tuple):
        text = f"({', '.join(args)}{',' if len(args) == 1 else ''})"
    elif isinstance(value, TupleGetItem):
        text = f"{args[0]}.{value.index}"
    elif isinstance(value, If):
        text = f"if({', '.join(args)})"
    elif isinstance(value, While):
        count = len(value.init)
        captured = f"; {', '.join(args[count:])}" if value.captured else ""
        text = f"while({', '.join(args[:count])}{captured})"
    else:
        attrs = _attributes(_changed(value.attrs))
        name = "call" if isinstance(value.op, Function) else value.op.name
        text = f"{name}({', '.join([*args, attrs] if attrs else args)})"
    return f"{names(binding.var)}: {binding.var.type} = {text}{_span(binding.span)}"


def _span(span: Span) -> str:
    if not span.nodes:
        return ""
    return "  # " + ", ".join(
        n if _PLAIN_SPAN.fullmatch(n) else json.dumps(n, ensure_ascii=False) for n in span.nodes
    )


def _atom(atom: Atom, names: _Names) -> str:
    if isinstance(atom, Var):
        return names(atom)
    if atom.data.size > INLINE_LIMIT:
        return f"const({atom.type}, sha={content_hash(atom.data)})"
    return f"const({atom.type}, {literal(atom.data.ravel().tolist())})"


def _changed(attrs: Attrs) -> dict[str, Any]:
    """The attributes that are not at their defaults."""
    fields = {}
    for f in dataclasses.fields(attrs):
        value = getattr(attrs, f.name)
        if f.default is dataclasses.MISSING or value != f.default:
            fields[f.name] = value
    return fields


def _attributes(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={literal(v)}" for k, v in values.items() if is_literal(v))


_SCALARS = (bool, int, float, str, type(None), np.generic, Expr)


def is_literal(value: Any) -> bool:
    """Whether text can hold an attribute value: a scalar, or tuples and lists of them."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, tuple | list):
            pending.extend(item)
        elif not isinstance(item, _SCALARS):
            return False
    return True


def literal(value: Any) -> str:
    """An attribute value as a Python-like literal.

    `inf`, `-inf` and `nan` are floats; symbolic dimensions stand in backquotes.
    """
    if isinstance(value, Expr):
        return f"`{value}`"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        inner = ", ".join(map(literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    return repr(value)
