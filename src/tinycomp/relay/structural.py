"""Whether two functions are the same program, whatever their variables are called."""

from __future__ import annotations

from ..types import Type
from .nodes import Atom, Binding, Call, Function, IRModule, TupleGetItem, Var, While, regions


def structural_equal(a: IRModule | Function, b: IRModule | Function) -> bool:
    """Whether `first_difference` finds none."""
    return first_difference(a, b) is None


def first_difference(a: IRModule | Function, b: IRModule | Function) -> str | None:
    """Where two programs differ first, as in "main/%3/then: 2 bindings, 3 bindings"; None if equal.

    Names and spans are ignored; constants compare by content (NaN equals NaN). Order of bindings
    counts.
    """
    if isinstance(a, Function) != isinstance(b, Function):
        return "a function is not a module"
    pairs: list[tuple[str, Function, Function]]
    if isinstance(a, Function):
        assert isinstance(b, Function)
        pairs = [("", a, b)]
    else:
        assert isinstance(b, IRModule)
        for what in ("input_names", "output_names"):
            if getattr(a, what) != getattr(b, what):
                return f"{what}: {getattr(a, what)}, {getattr(b, what)}"
        if list(a.functions) != list(b.functions):
            return f"functions: {list(a.functions)}, {list(b.functions)}"
        pairs = [
            (name, a.functions[name], b.functions[name]) for name in reversed(list(a.functions))
        ]
    seen: set[tuple[Function, Function]] = set()
    while pairs:
        path, f, g = pairs.pop()
        if f is g or (f, g) in seen:
            continue
        seen.add((f, g))
        difference = _compare(f, g, path, pairs)
        if difference:
            return f"{path}{difference}"
    return None


def _compare(
    f: Function, g: Function, path: str, pairs: list[tuple[str, Function, Function]]
) -> str | None:
    """The first difference of two functions; pushes their nested functions on `pairs`."""
    if dict(f.attrs) != dict(g.attrs):
        return f": attributes {dict(f.attrs)}, {dict(g.attrs)}"
    if len(f.params) != len(g.params):
        return f": {len(f.params)} parameters, {len(g.params)} parameters"
    renamed: dict[Atom, Atom] = {}
    for p, q in zip(f.params, g.params, strict=True):
        if not _same_type(p.type, q.type):
            return f"/%{p.name}: {p.type}, {q.type}"
        renamed[p] = q
    for x, y in zip(f.bindings, g.bindings, strict=False):
        difference = _compare_bindings(x, y, renamed)
        if difference:
            return f"/%{x.var.name}: {difference}"
        renamed[x.var] = y.var
        pairs.extend(
            (f"{path}/%{x.var.name}/{i}", a, b)
            for i, (a, b) in enumerate(zip(regions(x.value), regions(y.value), strict=True))
        )
    if len(f.bindings) != len(g.bindings):
        return f": {len(f.bindings)} bindings, {len(g.bindings)} bindings"
    return None if _same_atom(f.result, g.result, renamed) else ": the results differ"


def _compare_bindings(x: Binding, y: Binding, renamed: dict[Atom, Atom]) -> str | None:
    if type(x.value) is not type(y.value):
        return f"{type(x.value).__name__}, {type(y.value).__name__}"
    if isinstance(x.value, Call):
        assert isinstance(y.value, Call)
        if type(x.value.op) is not type(y.value.op) or (
            not isinstance(x.value.op, Function) and x.value.op is not y.value.op
        ):
            return f"{_name(x.value)}, {_name(y.value)}"
        if x.value.attrs != y.value.attrs and str(x.value.attrs) != str(y.value.attrs):
            return f"attributes {x.value.attrs}, {y.value.attrs}"
    if isinstance(x.value, TupleGetItem):
        assert isinstance(y.value, TupleGetItem)
        if x.value.index != y.value.index:
            return f"field {x.value.index}, field {y.value.index}"
    if isinstance(x.value, While):
        assert isinstance(y.value, While)
        if len(x.value.init) != len(y.value.init):
            return f"{len(x.value.init)} states, {len(y.value.init)} states"
    if not _same_type(x.var.type, y.var.type):
        return f"{x.var.type}, {y.var.type}"
    if len(x.args) != len(y.args):
        return f"{len(x.args)} arguments, {len(y.args)} arguments"
    for i, (a, b) in enumerate(zip(x.args, y.args, strict=True)):
        if not _same_atom(a, b, renamed):
            return f"argument {i}: {a!r}, {b!r}"
    return None


def _name(call: Call) -> str:
    return "a fused function" if isinstance(call.op, Function) else call.op.name


def _same_type(a: Type, b: Type) -> bool:
    return a == b or str(a) == str(b)  # symbolic dimensions compare by name


def _same_atom(a: Atom, b: Atom, renamed: dict[Atom, Atom]) -> bool:
    if isinstance(a, Var) or isinstance(b, Var):
        return renamed.get(a) is b
    if a is b:
        return True
    return a.type == b.type and a.data.tobytes() == b.data.tobytes()
