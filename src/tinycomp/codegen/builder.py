"""Writes LLVM IR as text: modules, functions, values.

>>> module = ModuleBuilder()
>>> f = FunctionBuilder(module, "twice", [("i64", "x")], result="i64")
>>> f.ret(f.op("add", Value("%x", "i64"), Value("%x", "i64")))
>>> f.finish()
>>> print(module.text())
define i64 @twice(i64 %x) #0 {
entry:
  %v1 = add i64 %x, %x
  ret i64 %v1
}
<BLANKLINE>
attributes #0 = { nounwind }
<BLANKLINE>
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..dtype import DType
from ..target import Target

ELEMENT = {
    DType.BOOL: "i1", DType.INT8: "i8", DType.INT16: "i16", DType.INT32: "i32", DType.INT64: "i64",
    DType.UINT8: "i8", DType.UINT16: "i16", DType.UINT32: "i32", DType.UINT64: "i64",
    DType.FLOAT16: "float", DType.BFLOAT16: "float", DType.FLOAT32: "float",
    DType.FLOAT64: "double",
}  # fmt: skip
"""LLVM type in which an element is computed; 16-bit floats are computed as float."""


@dataclass(frozen=True, slots=True)
class Value:
    """An operand: a register or constant, its element type, and how many lanes it has."""

    text: str
    element: str
    lanes: int = 1

    @property
    def type(self) -> str:
        return vector(self.element, self.lanes)

    def __str__(self) -> str:
        return f"{self.type} {self.text}"


def vector(element: str, lanes: int) -> str:
    """The LLVM type of `lanes` elements."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


def mangled(element: str, lanes: int) -> str:
    """The suffix of an overloaded intrinsic: v16f32, i64."""
    short = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16"}.get(element, element)
    return short if lanes == 1 else f"v{lanes}{short}"


def literal(value: float | int, element: str, lanes: int = 1) -> Value:
    """A constant in every lane."""
    if element in ("float", "double", "half", "bfloat"):
        text = _float_literal(float(value), element)
    elif element == "i1":
        text = "true" if value else "false"
    else:
        text = str(int(value))
    return Value(text if lanes == 1 else f"splat ({element} {text})", element, lanes)


def _float_literal(value: float, element: str) -> str:
    if element == "float" and math.isfinite(value):
        try:
            value = struct.unpack("f", struct.pack("f", value))[0]
        except OverflowError:
            value = math.copysign(math.inf, value)
    if math.isnan(value):
        return "0x7FF8000000000000"
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


@dataclass
class ModuleBuilder:
    """The functions and declarations of one module."""

    triple: str = ""
    has_fma: bool = True
    has_scalef: bool = False
    declarations: dict[str, str] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    helpers: set[str] = field(default_factory=set)
    metadata: list[str] = field(default_factory=list)
    function_attributes: str = "nounwind"
    target: Target | None = None

    def declare(
        self, name: str, result: str, arguments: Sequence[str], attributes: str = ""
    ) -> None:
        """Make a function of another module callable."""
        line = f"declare {result} @{name}({', '.join(arguments)}) {attributes}".rstrip()
        self.declarations.setdefault(name, line)

    def add_metadata(self, text: str) -> str:
        """A metadata node, as `!n`."""
        self.metadata.append(text)
        return f"!{len(self.metadata) - 1}"

    def text(self) -> str:
        parts = [f'target triple = "{self.triple}"\n'] if self.triple else []
        parts += self.functions
        if self.declarations:
            parts.append("\n".join(self.declarations.values()) + "\n")
        parts.append(f"attributes #0 = {{ {self.function_attributes} }}\n")
        if self.metadata:
            parts.append("\n".join(f"!{i} = {m}" for i, m in enumerate(self.metadata)) + "\n")
        return "\n".join(parts)


class FunctionBuilder:
    """Appends instructions to the current block of one function."""

    def __init__(
        self,
        module: ModuleBuilder,
        name: str,
        params: Sequence[tuple[str, str]],
        result: str = "void",
        linkage: str = "",
        attributes: str = "",
    ) -> None:
        self.module, self.name = module, name
        arguments = ", ".join(f"{type_} %{param}" for type_, param in params)
        head = " ".join(filter(None, ("define", linkage, result)))
        tail = " ".join(filter(None, (attributes, "#0")))
        self._header = f"{head} @{name}({arguments}) {tail} {{\nentry:"
        self._allocas: list[str] = []
        self._lines: list[str] = []
        self._count = 0
        self.block = "entry"

    def fresh(self, hint: str = "v") -> str:
        """A name not used before in this function."""
        self._count += 1
        return f"{hint}{self._count}"

    def line(self, text: str) -> None:
        """An instruction without a result."""
        self._lines.append(f"  {text}")

    def emit(self, text: str, element: str, lanes: int = 1) -> Value:
        """An instruction with a result of the given type."""
        name = "%" + self.fresh()
        self._lines.append(f"  {name} = {text}")
        return Value(name, element, lanes)

    def op(self, opcode: str, a: Value, b: Value) -> Value:
        """A two-operand instruction on operands of one type."""
        return self.emit(f"{opcode} {a}, {b.text}", a.element, a.lanes)

    def compare(self, predicate: str, a: Value, b: Value) -> Value:
        """`predicate` such as "icmp slt" or "fcmp olt"; the result is i1 per lane."""
        return self.emit(f"{predicate} {a}, {b.text}", "i1", a.lanes)

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        return self.emit(f"select {condition}, {a}, {b}", a.element, a.lanes)

    def convert(self, opcode: str, a: Value, element: str) -> Value:
        """A conversion instruction: trunc, sext, fptosi, bitcast..."""
        return self.emit(f"{opcode} {a} to {vector(element, a.lanes)}", element, a.lanes)

    def intrinsic(self, name: str, *args: Value, extra: str = "") -> Value:
        """An intrinsic overloaded on its first argument, `extra` being constant flags."""
        a = args[0]
        full = f"llvm.{name}.{mangled(a.element, a.lanes)}"
        types = [x.type for x in args] + ([extra.split()[0]] if extra else [])
        operands = [str(x) for x in args] + ([extra] if extra else [])
        self.module.declare(full, a.type, types)
        return self.emit(f"call {a.type} @{full}({', '.join(operands)})", a.element, a.lanes)

    def reduce(self, name: str, a: Value) -> Value:
        """A horizontal reduction such as "or" of a vector; a scalar is its own."""
        if a.lanes == 1:
            return a
        full = f"llvm.vector.reduce.{name}.{mangled(a.element, a.lanes)}"
        self.module.declare(full, a.element, [a.type])
        return self.emit(f"call {a.element} @{full}({a})", a.element)

    def call(self, name: str, result: str, args: Sequence[Value], lanes: int = 1) -> Value:
        """A call of a declared or defined function with a result."""
        operands = ", ".join(map(str, args))
        return self.emit(f"call {vector(result, lanes)} @{name}({operands})", result, lanes)

    def splat(self, a: Value, lanes: int) -> Value:
        """A scalar in every lane; a vector of that many lanes stays."""
        if a.lanes == lanes:
            return a
        if not a.text.startswith("%"):
            return Value(f"splat ({a})", a.element, lanes)
        type_ = vector(a.element, lanes)
        one = self.emit(f"insertelement {type_} poison, {a}, i64 0", a.element, lanes)
        return self.emit(
            f"shufflevector {one}, {type_} poison, <{lanes} x i32> zeroinitializer",
            a.element,
            lanes,
        )

    def extract(self, a: Value, lane: int) -> Value:
        if a.lanes == 1:
            return a
        return self.emit(f"extractelement {a}, i64 {lane}", a.element)

    def halves(self, a: Value) -> tuple[Value, Value]:
        """The lower and the upper lanes of a vector of even length."""
        count = a.lanes // 2
        if count == 1:
            return self.extract(a, 0), self.extract(a, 1)
        parts = []
        for start in (0, count):
            lanes = ", ".join(f"i32 {lane}" for lane in range(start, start + count))
            text = f"shufflevector {a}, {a.type} poison, <{count} x i32> <{lanes}>"
            parts.append(self.emit(text, a.element, count))
        return parts[0], parts[1]

    def join(self, parts: Sequence[Value]) -> Value:
        """A vector of scalars."""
        if len(parts) == 1:
            return parts[0]
        lanes = len(parts)
        result = Value("poison", parts[0].element, lanes)
        for lane, part in enumerate(parts):
            result = self.emit(f"insertelement {result}, {part}, i64 {lane}", part.element, lanes)
        return result

    def alloca(self, type_: str, align: int = 64) -> Value:
        """Stack memory, made once when the function is entered."""
        name = "%" + self.fresh("stack")
        self._allocas.append(f"  {name} = alloca {type_}, align {align}")
        return Value(name, "ptr")

    def gep(self, pointer: Value, element: str, index: Value) -> Value:
        text = f"getelementptr inbounds {element}, {pointer}, {index}"
        return self.emit(text, "ptr", index.lanes)

    def load(self, type_: str, pointer: Value, align: int = 8) -> Value:
        return self.emit(f"load {type_}, {pointer}, align {align}", type_)

    def store(self, value: Value, pointer: Value, align: int = 8) -> None:
        self.line(f"store {value}, {pointer}, align {align}")

    def start(self, block: str) -> None:
        """Continue in a new block."""
        self._lines.append(f"{block}:")
        self.block = block

    def br(self, target: str) -> None:
        self.line(f"br label %{target}")

    def cond_br(self, condition: Value, then: str, otherwise: str) -> None:
        self.line(f"br {condition}, label %{then}, label %{otherwise}")

    def phi(self, element: str, lanes: int, incoming: Sequence[tuple[Value, str]]) -> Value:
        pairs = ", ".join(f"[ {value.text}, %{block} ]" for value, block in incoming)
        return self.emit(f"phi {vector(element, lanes)} {pairs}", element, lanes)

    def ret(self, value: Value | None = None) -> None:
        self.line("ret void" if value is None else f"ret {value}")

    def finish(self) -> None:
        """Add the function to its module."""
        body = "\n".join(self._allocas + self._lines)
        self.module.functions.append(f"{self._header}\n{body}\n}}\n")
