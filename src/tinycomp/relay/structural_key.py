"""A hash of what a function computes: functions of equal keys can share one kernel."""

from __future__ import annotations

import hashlib

from ..diagnostics import InternalError
from .nodes import Atom, Call, Constant, Function, Tuple, TupleGetItem, Var


def structural_key(function: Function) -> str:
    """A hash of the operators, attributes, types, wiring and constants of a function.

    Names of variables and spans do not count, so one kernel serves all functions of one key.

    Raises:
        InternalError: there are functions nested in it.

    >>> from tinycomp.types import tensor_type
    >>> x, y = (Var(name, tensor_type((2,))) for name in "xy")
    >>> structural_key(Function((x,), (), x)) == structural_key(Function((y,), (), y))
    True
    """
    numbers: dict[Var, int] = {p: i for i, p in enumerate(function.params)}

    def atom_text(atom: Atom) -> str:
        if isinstance(atom, Constant):
            data = atom.data
            return (
                f"{atom.type}:{data.tobytes().hex() if data.size <= 1 else _digest(data.tobytes())}"
            )
        return f"%{numbers[atom]}"

    lines = [f"({', '.join(str(p.type) for p in function.params)})"]
    for binding in function.bindings:
        value = binding.value
        if isinstance(value, Call) and not isinstance(value.op, Function):
            head = f"{value.op.name}{value.attrs!r}"
        elif isinstance(value, Tuple):
            head = "tuple"
        elif isinstance(value, TupleGetItem):
            head = f"get{value.index}"
        else:
            raise InternalError("structural_key: a function with nested functions has no key")
        lines.append(f"{binding.var.type} = {head}({', '.join(map(atom_text, value.args))})")
        numbers[binding.var] = len(numbers)
    lines.append(atom_text(function.result))
    return _digest("\n".join(lines).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
