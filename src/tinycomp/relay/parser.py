"""Reading the text form of graph IR (`tinycomp.relay.text`).

Types of bindings may be left out: they are inferred. `# names` after a binding is its span.
"""

from __future__ import annotations

import ast
import json
import math
import re
import typing
from collections.abc import Generator, Mapping
from enum import Enum
from typing import Any, NoReturn

import numpy as np

from ..diagnostics import NO_SPAN, Span, TypeMismatch, VerifyError
from ..dtype import DType
from ..ir.expr import BinaryOp, Expr, binary
from ..ir.expr import Var as DimVar
from ..types import Dim, TensorType, TupleType, Type, as_dim
from .nodes import (
    Atom,
    Binding,
    Call,
    Constant,
    Function,
    If,
    IRModule,
    Tuple,
    TupleGetItem,
    Value,
    Var,
    While,
)
from .op import NO_ATTRS, Attrs, OpSet
from .text import content_hash
from .verify import infer_type, verify_function, verify_module

_SKIP = re.compile(r"(?:\s|#[^\n]*)*")
_NAME = r'%(?:\w+|"(?:[^"\\]|\\.)*")'
_STRING = r'"(?:[^"\\]|\\.)*"'
_NUMBER = r"[-+]?(?:inf|nan|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\b"
_WORDS = {"True": True, "False": False, "None": None}
_DTYPES = frozenset(DType)
_CLOSE = {"(": ")", "[": "]"}
_DIM_OPERATORS = {
    ast.Add: BinaryOp.ADD,
    ast.Sub: BinaryOp.SUB,
    ast.Mult: BinaryOp.MUL,
    ast.FloorDiv: BinaryOp.FLOORDIV,
    ast.Mod: BinaryOp.FLOORMOD,
}

_Parse = Generator[None, Function, Any]


def parse_function(
    text: str, ops: OpSet, constants: Mapping[str, np.ndarray] | None = None
) -> Function:
    """The function that `function_text` shows.

    Args:
        ops: the operators that the text may name.
        constants: the arrays of constants given by hash, as from `text.constant_table`.

    Raises:
        VerifyError: the text is malformed or ill-typed; names the line.
    """
    parser = _Parser(text, ops, constants or {})
    parser.expect("fn")
    function = parser.function()
    parser.expect_end()
    verify_function(function)
    return function


def parse_module(
    text: str, ops: OpSet, constants: Mapping[str, np.ndarray] | None = None
) -> IRModule:
    """The module that `module_text` shows; arguments and errors as for `parse_function`."""
    parser = _Parser(text, ops, constants or {})
    attrs: dict[str, Any] = {}
    if parser.accept(r"module\("):
        attrs = parser.attributes(r"\)")
    functions: dict[str, Function] = {}
    while parser.accept("def"):
        name = parser.expect(r"@[\w.]+", "a function name")[1:]
        functions[name] = parser.function()
    parser.expect_end()
    inputs, outputs = attrs.pop("inputs", ()), attrs.pop("outputs", ())
    module = IRModule(functions, inputs, outputs, attrs)
    verify_module(module)
    return module


class _Parser:
    def __init__(self, text: str, ops: OpSet, constants: Mapping[str, np.ndarray]) -> None:
        self.text, self.ops, self.constants = text, ops, constants
        self.position = 0
        self.dims: dict[str, DimVar] = {}
        self.types: dict[str, TensorType] = {}
        self.loaded: dict[str, Constant] = {}
        self.hints: dict[type[Attrs], dict[str, Any]] = {}
        self.patterns: dict[str, re.Pattern[str]] = {}

    # --- scanning -------------------------------------------------------------------------------

    def _match(self, pattern: str) -> re.Match[str] | None:
        """The next piece of text, as group 1, after spaces and comments."""
        compiled = self.patterns.get(pattern)
        if compiled is None:
            compiled = self.patterns[pattern] = re.compile(f"{_SKIP.pattern}({pattern})")
        return compiled.match(self.text, self.position)

    def accept(self, pattern: str) -> str | None:
        """The next piece of text if it matches; None, with nothing consumed, otherwise."""
        match = self._match(pattern)
        if match is None:
            return None
        self.position = match.end()
        return match.group(1)

    def expect(self, pattern: str, what: str = "") -> str:
        found = self.accept(pattern)
        if found is None:
            self.fail(f"expected {what or pattern.replace(chr(92), '')!r}")
        return found

    def expect_end(self) -> None:
        if self.accept(r"\S") is not None:
            self.position -= 1
            self.fail("expected the end of the text")

    def fail(self, problem: str) -> NoReturn:
        skipped = _SKIP.match(self.text, self.position)
        position = skipped.end() if skipped else self.position
        line = self.text.count("\n", 0, position) + 1
        lines = self.text.splitlines()
        excerpt = lines[line - 1] if line <= len(lines) else ""
        raise VerifyError(f"line {line}: {problem}", excerpt=excerpt)

    # --- functions ------------------------------------------------------------------------------

    def function(self) -> Function:
        """A function after its keyword; nested ones wait on an explicit stack."""
        stack: list[_Parse] = [self._function()]
        done: Any = None
        while stack:
            try:
                stack[-1].send(done)
            except StopIteration as finished:
                stack.pop()
                done = finished.value
            else:
                stack.append(self._function())
                done = None
        return done

    def _function(self) -> _Parse:
        env: dict[str, Var] = {}
        params: list[Var] = []
        self.expect(r"\(")
        while not self.accept(r"\)"):
            name = self._name()
            self.expect(":")
            params.append(Var(name, self.type()))
            env[name] = params[-1]
            self._separator(r"\)")
        attrs = self.attributes(r"\]") if self.accept(r"\[") else {}
        self.expect(r"\{")
        bindings: list[Binding] = []
        while self._match(_NAME + r"\s*[:=]"):
            binding = yield from self._binding(env)
            bindings.append(binding)
            env[binding.var.name] = binding.var
        result = self._atom(env)
        self.expect(r"\}")
        return Function(tuple(params), tuple(bindings), result, attrs)

    def _binding(self, env: dict[str, Var]) -> _Parse:
        name = self._name()
        type_ = self.type() if self.accept(":") else None
        self.expect("=")
        start = self.position
        make, span, count = self._value(env)
        functions: list[Function] = []
        for _ in range(count):
            self.expect("fn", "a nested function")
            functions.append((yield))
        value = make(functions)
        if type_ is None:
            try:
                type_ = infer_type(value)
            except TypeMismatch as error:
                self.position = start
                self.fail(error.message)
        return Binding(Var(name, type_, span), value, span)

    def _value(self, env: dict[str, Var]) -> tuple[Any, Span, int]:
        """How to make the value from its nested functions, its span, the number of functions."""
        keyword = self.accept(r"(?:if|while|call)\(")
        if keyword is None:
            value = self._plain_value(env)
            return lambda f: value, self._span(), 0
        args, split, _ = self._arguments(env)
        span = self._span()
        if keyword == "if(":
            return lambda f: If(args[0], f[0], f[1], tuple(args[1:])), span, 2
        if keyword == "call(":
            return lambda f: Call(f[0], tuple(args), NO_ATTRS), span, 1
        init, captured = tuple(args[:split]), tuple(args[split:])
        return lambda f: While(f[0], f[1], init, captured), span, 2

    def _plain_value(self, env: dict[str, Var]) -> Value:
        if self.accept(r"\("):
            return Tuple(tuple(self._arguments(env)[0]))
        if self._match(_NAME):
            atom = self._atom(env)
            return TupleGetItem(atom, int(self.expect(r"\.\d+", "a field, as in .0")[1:]))
        name = self.expect(r"[A-Za-z_][\w.]*", "an operator")
        if name not in self.ops:
            self.fail(f"there is no operator {name!r}")
        op = self.ops[name]
        self.expect(r"\(")
        args, _, attrs = self._arguments(env)
        try:
            return Call(op, tuple(args), op.attrs_type(**self._converted(op.attrs_type, attrs)))
        except TypeError as error:  # missing or unknown attribute
            self.fail(f"{name}: {error}")

    def _arguments(self, env: dict[str, Var]) -> tuple[list[Atom], int, dict[str, Any]]:
        """Atoms up to the closing parenthesis, how many came before `;`, and attributes."""
        args: list[Atom] = []
        split: int | None = None
        while not self.accept(r"\)"):
            if self._match(r"[A-Za-z_]\w*\s*="):
                return args, len(args), self.attributes(r"\)")
            args.append(self._atom(env))
            if self.accept(";"):
                split = len(args)
            else:
                self._separator(r"\)")
        return args, len(args) if split is None else split, {}

    def _converted(self, attrs_type: type[Attrs], values: dict[str, Any]) -> dict[str, Any]:
        """Attribute values with enumerations made from their text."""
        if attrs_type not in self.hints:
            self.hints[attrs_type] = typing.get_type_hints(attrs_type)
        for key, hint in self.hints[attrs_type].items():
            if key in values and isinstance(hint, type) and issubclass(hint, Enum):
                values[key] = hint(values[key])
        return values

    def _span(self) -> Span:
        match = re.compile(r"[ \t]*#([^\n]*)").match(self.text, self.position)
        if match is None:
            return NO_SPAN
        self.position = match.end()
        names = re.findall(rf"{_STRING}|[^\s,]+", match.group(1))
        return Span(tuple(json.loads(n) if n.startswith('"') else n for n in names))

    def _name(self) -> str:
        name = self.expect(_NAME, "a variable")[1:]
        return json.loads(name) if name.startswith('"') else name

    def _separator(self, close: str) -> None:
        if not self.accept(",") and not self._match(close):
            self.fail(f"expected ',' or {close[-1]!r}")

    def _atom(self, env: dict[str, Var]) -> Atom:
        if not self.accept(r"const\("):
            start = self.position
            name = self._name()
            if name not in env:
                self.position = start
                self.fail(f"%{name} is not defined before it here")
            return env[name]
        type_ = self.type()
        if not isinstance(type_, TensorType):
            self.fail("a constant must be a tensor")
        self.expect(",")
        if digest := self.accept(r"sha=[0-9a-f]+"):
            constant = self._load(digest[4:], type_)
        else:
            values = np.array(self.literal(), dtype=type_.dtype.numpy)
            if values.size != type_.size:
                self.fail(f"{values.size} values for a constant {type_}")
            constant = Constant(values.reshape(type_.static_shape))
        self.expect(r"\)")
        return constant

    def _load(self, digest: str, type_: TensorType) -> Constant:
        if digest not in self.loaded:
            if digest not in self.constants:
                self.fail(f"the constant {digest} is not in the table of constants")
            array = self.constants[digest]
            if (
                content_hash(array) != digest
                or TensorType(array.shape, DType.of(array.dtype)) != type_
            ):
                self.fail(f"the constant {digest} of the table is not what the text says")
            self.loaded[digest] = Constant(array)
        return self.loaded[digest]

    # --- types and literals ---------------------------------------------------------------------

    def type(self) -> Type:
        """A tensor type, or tuple types nested to any depth."""
        stack: list[list[Type]] = []
        while True:
            if self.accept(r"\("):
                stack.append([])
                if not self.accept(r"\)"):
                    continue
                result: Type = TupleType(tuple(stack.pop()))
            else:
                result = self._tensor_type()
            while stack:
                stack[-1].append(result)
                if self.accept(","):
                    break
                self.expect(r"\)")
                result = TupleType(tuple(stack.pop()))
            else:
                return result

    def _tensor_type(self) -> TensorType:
        text = self.expect(r"\w+\s*\[[^\[\]\n]*\]", "a type")
        known = self.types.get(text)  # a function has few types and names them often
        if known is not None:
            return known
        name, _, rest = text.partition("[")
        dtype = name.strip()
        if dtype not in _DTYPES:
            self.fail(f"there is no element type {dtype!r}")
        dims = re.findall(r"(?:[^,()]|\([^()]*\))+", rest[:-1])
        shape = tuple(self._dim(dim) for dim in dims if dim.strip())
        return self.types.setdefault(text, TensorType(shape, DType(dtype)))

    def _dim(self, text: str) -> Dim:
        text = text.strip()
        if text.isdecimal():
            return int(text)
        try:
            tree = ast.parse(text, mode="eval").body
        except SyntaxError:
            self.fail(f"{text!r} is not a dimension")
        order = [tree]
        for node in order:  # parents before children; evaluated backwards
            if isinstance(node, ast.BinOp):
                order += [node.left, node.right]
            elif isinstance(node, ast.Call):
                order += node.args
        values: dict[ast.expr, Expr | int] = {}
        for node in reversed(order):
            values[node] = self._dim_node(node, values)
        return as_dim(values[tree])

    def _dim_node(self, node: ast.expr, values: dict[ast.expr, Expr | int]) -> Expr | int:
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.Name(id=name):
                return self.dims.setdefault(name, DimVar(name))
            case ast.BinOp(op=op) if type(op) in _DIM_OPERATORS:
                return binary(_DIM_OPERATORS[type(op)], values[node.left], values[node.right])
            case ast.Call(func=ast.Name(id=name), args=[a, b]) if name in set(BinaryOp):
                return binary(BinaryOp(name), values[a], values[b])
        self.fail("this is not a dimension")

    def attributes(self, close: str) -> dict[str, Any]:
        """`name=literal` pairs up to `close`."""
        values: dict[str, Any] = {}
        while not self.accept(close):
            name = self.expect(r"[A-Za-z_]\w*", "an attribute")
            self.expect("=")
            values[name] = self.literal()
            self._separator(close)
        return values

    def literal(self) -> Any:
        """A scalar, or tuples and lists of them nested to any depth."""
        stack: list[tuple[str, list[Any]]] = []
        while True:
            opened = self.accept(r"[(\[]")
            if opened:
                stack.append((opened, []))
                if not self.accept(re.escape(_CLOSE[opened])):
                    continue
                value: Any = self._close(stack)
            else:
                value = self._scalar()
            while stack:
                opened, items = stack[-1]
                items.append(value)
                comma = self.accept(",")
                if self.accept(re.escape(_CLOSE[opened])):
                    value = self._close(stack)
                elif comma:
                    break
                else:
                    self.fail(f"expected ',' or {_CLOSE[opened]!r}")
            else:
                return value

    def _close(self, stack: list[tuple[str, list[Any]]]) -> Any:
        opened, items = stack.pop()
        return tuple(items) if opened == "(" else items

    def _scalar(self) -> Any:
        if word := self.accept(r"(?:True|False|None)\b"):
            return _WORDS[word]
        if text := self.accept(_STRING):
            return json.loads(text)
        if dim := self.accept(r"`[^`]*`"):
            return self._dim(dim[1:-1])
        number = self.expect(_NUMBER, "a value")
        if number.lstrip("+-").isdecimal():
            return int(number)
        value = float(number)
        return value if not math.isnan(value) else math.nan
