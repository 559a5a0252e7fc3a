"""Scalar and short-vector expressions to CUDA C++ text.

A vector is written lane by lane; only its loads and stores are wide. An expression used more than
once gets a variable; `if_then_else` over loads becomes an `if` statement, so the side not taken
is not evaluated. Indices are held as `int` wherever their range is known to fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...diagnostics import InternalError, TinycompError
from ...dtype import DType
from ...ir.expr import (
    Binary,
    BinaryOp,
    Broadcast,
    Call,
    Cast,
    Expr,
    FloatImm,
    IntImm,
    Load,
    Ramp,
    ReduceLanes,
    Select,
    Var,
)
from ...ir.fold import refold
from ...ir.instruction import InstructionCall, Reinterpret
from ...ir.node import Node, fold, postorder
from ...te.simplify import Analyzer
from ...tir.nodes import Buffer, Scope
from ...tir.passes.share_memory import shape_in_block
from ..expressions import Access, access_of
from .intrinsics import call_text
from .operators import binary_text, cast_text, reinterpret_text
from .types import STORED, VALUE, bare, floating, integer

_INT32 = range(-(2**31), 2**31)
_MAX_TEXT = 100  # characters of an expression before it gets a variable
_MAX_BYTES = 16  # of one memory access


@dataclass
class Writer:
    """Lines of code with indentation, and what they use."""

    lines: list[str] = field(default_factory=list)
    depth: int = 1
    helpers: set[str] = field(default_factory=set)
    count: int = 0

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def open(self, text: str) -> None:
        self.line(text)
        self.depth += 1

    def close(self, text: str = "}") -> None:
        self.depth -= 1
        self.line(text)

    def fresh(self, hint: str = "t") -> str:
        self.count += 1
        return f"{hint}{self.count}"

    def use(self, helper: str) -> str:
        self.helpers.add(helper)
        return helper


@dataclass
class Names:
    """What variables and buffers are called in the kernel being written.

    Attributes:
        packed: arrays in registers with two 16-bit elements in each, which are accessed in pairs.
        rank: the number of the block in its cluster.
        narrow: hold indices as int although symbolic sizes might make them larger.
        fits: whether all indices seen so far are known to fit an int.
    """

    vars: dict[Var, str] = field(default_factory=dict)
    buffers: dict[Buffer, str] = field(default_factory=dict)
    packed: set[Buffer] = field(default_factory=set)
    analyzer: Analyzer = field(default_factory=Analyzer)
    can_fail: bool = False
    rank: Var | None = None
    narrow: bool = False
    fits: bool = True


class ExprEmitter:
    """Writes expressions into one kernel."""

    def __init__(self, out: Writer, names: Names) -> None:
        self.out, self.names = out, names
        self._values: dict[Node, list[str]] = {}
        self._trail: list[Node] = []
        self._uses: Mapping[Node, int] = {}
        self._costly: dict[Node, bool] = {}
        self._exact: dict[Node, bool] = {}
        self._narrow: dict[Node, bool] = {}

    def begin(self, roots: list[Expr]) -> None:
        """Start a statement made of these expressions."""
        self.forget()
        uses: Counter[Node] = Counter(roots)
        for node in postorder(roots):
            uses.update(node.children())
        self._uses = uses

    def lanes(self, root: Expr) -> list[str]:
        """The text of each lane of `root`, its temporaries written before. Iterative."""
        work: list[Any] = [root]
        while work:
            item = work.pop()
            if not isinstance(item, Expr):
                item()
            elif item not in self._values:
                self._visit(item, work)
        return self._values[root]

    def scalar(self, root: Expr) -> str:
        return bare(self.lanes(root)[0])

    def forget(self, mark: int = 0) -> None:
        """Drop what was computed since `mark`: its scope has ended."""
        for node in self._trail[mark:]:
            del self._values[node]
        del self._trail[mark:]

    def is_narrow(self, expr: Expr) -> bool:
        """Whether an int64 expression is held as int."""
        return fold(expr, self._narrow_step, self._narrow)

    def bind(self, var: Var, name: str, low: Expr, extent: Expr) -> str:
        """Give a loop variable a name; returns the type to declare it with."""
        self.names.vars[var] = name
        self.names.analyzer.bind(var, low, extent)
        self._narrow.pop(var, None)
        return "int" if self.is_narrow(var) else VALUE[var.dtype]

    def type_of(self, expr: Expr) -> str:
        return "int" if self.is_narrow(expr) else VALUE[expr.dtype]

    # -- nodes -------------------------------------------------------------------------------

    def _narrow_step(self, node: Any, parts: list[bool]) -> bool:
        if node.dtype is not DType.INT64:
            return False
        if isinstance(node, IntImm):
            return node.value in _INT32
        if isinstance(node, Cast):
            source = node.value.dtype
            return source.bits < 32 or source is DType.INT32 if not source.is_float else False
        if isinstance(node, Binary):
            if not all(parts) or node.op in (BinaryOp.SHL, BinaryOp.SHR):
                return False
        elif isinstance(node, Select):
            return all(parts[1:])
        elif isinstance(node, Ramp | Broadcast):
            if not all(parts):
                return False
        elif isinstance(node, Call) and node.name == "if_then_else":
            return all(parts[1:])
        elif not isinstance(node, Var):
            return False
        low, high = self.names.analyzer.bounds(node)
        fits = low is not None and high is not None and low in _INT32 and high in _INT32
        self.names.fits = self.names.fits and fits
        return fits or self.names.narrow

    def _set(self, node: Expr, values: list[str]) -> None:
        """Remember the lanes; those used again or long get variables."""
        repeated = self._uses.get(node, 1) > 1
        if any((repeated and not _is_short(v)) or len(v) > _MAX_TEXT for v in values):
            named = []
            for value in values:
                name = self.out.fresh()
                self.out.line(f"const {self.type_of(node)} {name} = {bare(value)};")
                named.append(name)
            values = named
        self._remember(node, values)

    def _remember(self, node: Expr, values: list[str]) -> None:
        self._values[node] = values
        self._trail.append(node)

    def _lane(self, expr: Expr, lane: int) -> str:
        values = self._values[expr]
        return values[lane if len(values) > 1 else 0]

    def _visit(self, node: Expr, work: list[Any]) -> None:
        if isinstance(node, IntImm):
            text = integer(node.value, node.dtype, self.is_narrow(node))
            self._remember(node, [text])
        elif isinstance(node, FloatImm):
            self._remember(node, [floating(node.value, node.dtype)])
        elif isinstance(node, Var):
            self._remember(node, [self.names.vars[node]])
        elif isinstance(node, Call) and node.name == "if_then_else" and self._needs_branch(node):
            work.append(lambda: self._open_branch(node, work))
            work.append(node.args[0])
        else:
            operands, emit = self._plan(node)
            work.append(lambda: self._set(node, emit()))
            work.extend(reversed(operands))

    def _plan(self, node: Expr) -> tuple[tuple[Expr, ...], Callable[[], list[str]]]:
        """The operands to write first, and what then gives the lanes of the node."""
        lanes = range(node.lanes)
        if isinstance(node, Load):
            return self._plan_load(node)
        if isinstance(node, Binary):
            return (node.a, node.b), lambda: [self._binary(node, lane) for lane in lanes]
        if isinstance(node, Cast):
            return (node.value,), lambda: [
                cast_text(self.out, self._lane(node.value, i), node.value.dtype, node.to)
                for i in lanes
            ]
        if isinstance(node, Select):
            return self._plan_choice(node, (node.condition, node.a, node.b))
        if isinstance(node, Broadcast):
            return (node.value,), lambda: self._values[node.value] * node.count
        if isinstance(node, Ramp):
            steps = [node.base + node.stride * i for i in lanes]
            return tuple(steps), lambda: [self._values[s][0] for s in steps]
        if isinstance(node, ReduceLanes):
            return (node.value,), lambda: self._reduce_lanes(node)
        if isinstance(node, Call) and node.name == "if_then_else":
            return self._plan_choice(node, node.args)
        if isinstance(node, Call):
            return node.args, lambda: [self._call(node, lane) for lane in lanes]
        if isinstance(node, Reinterpret) and node.lanes == node.value.lanes:
            return (node.value,), lambda: [
                reinterpret_text(self._lane(node.value, i), node.value.dtype, node.to)
                for i in lanes
            ]
        if isinstance(node, InstructionCall | Reinterpret):
            what = node.instruction.name if isinstance(node, InstructionCall) else "reinterpret"
            raise TinycompError(
                f"{what} is an instruction of CPUs: {node}",
                hint="tensorize with another intrinsic for a GPU",
            )
        raise InternalError(f"{type(node).__name__} cannot be written in CUDA C++: {node}")

    def _plan_choice(
        self, node: Expr, parts: tuple[Expr, ...]
    ) -> tuple[tuple[Expr, ...], Callable[[], list[str]]]:
        return parts, lambda: [
            f"({' '.join((self._lane(parts[0], i), '?', self._lane(parts[1], i)))}"
            f" : {self._lane(parts[2], i)})"
            for i in range(node.lanes)
        ]

    def _binary(self, node: Binary, lane: int) -> str:
        a, b = self._lane(node.a, lane), self._lane(node.b, lane)
        operand, result = self.type_of(node.a), self.type_of(node)
        if node.dtype is DType.INT64 and result == "long long" and operand == "int":
            a = f"(long long){a}"
        if node.a.dtype is DType.INT64:
            narrow = self.is_narrow(node.a) and self.is_narrow(node.b)
            operand = "int" if narrow and result != "long long" else "long long"
        low, _ = (
            self.names.analyzer.bounds(node.a)
            if node.a.dtype.is_int and node.a.lanes == 1
            else (None, None)
        )
        non_negative = low is not None and low >= 0
        is_index = not self._reads(node)
        return binary_text(self.out, node, a, b, operand, non_negative, is_index)

    def _reads(self, node: Binary) -> bool:
        return self._is_costly(node)

    def _call(self, node: Call, lane: int) -> str:
        args = [self._lane(a, lane) for a in node.args]
        if node.name == "checked_index":
            self.names.can_fail = True
            self.out.use("checked_index")
            text = f"checked_index({bare(args[0])}, {bare(args[1])}, error, error_code)"
            return text if node.dtype is DType.INT64 else f"({VALUE[node.dtype]}){text}"
        dtype = node.args[0].dtype if node.args else node.dtype
        return call_text(self.out, node.name, dtype, args, node)

    def _reduce_lanes(self, node: ReduceLanes) -> list[str]:
        values = self._values[node.value]
        pair = Binary(node.op, Var("a", node.dtype), Var("b", node.dtype))
        type_ = VALUE[node.dtype]
        while len(values) > 1:
            half = len(values) // 2
            values = [
                binary_text(self.out, pair, x, y, type_, False, False)
                for x, y in zip(values[:half], values[half:], strict=True)
            ]
        return values

    # -- memory ------------------------------------------------------------------------------

    def _plan_load(self, node: Load) -> tuple[tuple[Expr, ...], Callable[[], list[str]]]:
        buffer: Any = node.source
        access = self.place(buffer, node.indices)
        if buffer in self.names.packed:
            return self._plan_unpack(buffer, access)
        index = access.index
        lanes = max(node.lanes, 1 if node.predicate is None else node.predicate.lanes)
        owner = self.owner(buffer, node.indices)
        operands = (index, *owner, *([] if node.predicate is None else [node.predicate]))

        def emit() -> list[str]:
            name = self.memory(buffer, owner)
            wide = node.predicate is None and self.is_wide(buffer, access.lanes, index)
            if wide and not access.scattered:
                return self._wide_load(name, buffer, access.lanes, self._values[index][0])
            out = []
            for lane in range(lanes):
                at = self.element(index, access, lane)
                value = self._decode(f"{name}[{at}]", buffer.dtype)
                if node.predicate is not None:
                    zero = _zero(buffer.dtype)
                    value = f"({self._lane(node.predicate, lane)} ? {value} : {zero})"
                out.append(value)
            return out if node.predicate is not None or access.lanes > 1 else out[:1]

        return operands, emit

    def _plan_unpack(
        self, buffer: Buffer, access: Access
    ) -> tuple[tuple[Expr, ...], Callable[[], list[str]]]:
        pair = self.pair(buffer, access)

        def emit() -> list[str]:
            word = f"{self.names.buffers[buffer]}[{bare(self._values[pair][0])}]"
            halves = f"(unsigned short){word}", f"(unsigned short)({word} >> 16)"
            return [self._decode(half, buffer.dtype) for half in halves]

        return (pair,), emit

    def pair(self, buffer: Buffer, access: Access) -> Expr:
        """The number of the register with two neighbours of a packed array."""
        aligned = self.names.analyzer.proves((access.index % 2).equal(0))
        if access.lanes != 2 or access.scattered or not aligned:
            raise InternalError(f"{buffer.name} is held in pairs, and accessed otherwise")
        return self.names.analyzer.simplify(access.index // 2)

    def place(self, buffer: Buffer, indices: tuple[Expr, ...]) -> Access:
        """Where elements lie, in normal form. Lanes that are neighbours in memory are found also
        where they go from one row of the buffer to the next."""
        shape = shape_in_block(buffer)
        part = replace(buffer, shape=shape), indices[len(buffer.shape) - len(shape) :]
        access, simplify = access_of(*part), self.names.analyzer.simplify
        if access.scattered:
            lanes = [simplify(_lane_of(access.index, i)) for i in range(access.lanes)]
            if all(lane is simplify(lanes[0] + i) for i, lane in enumerate(lanes)):
                return Access(lanes[0], access.lanes, False)
        return replace(access, index=simplify(access.index))

    def owner(self, buffer: Buffer, indices: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """The block of the cluster that has an element, if that may be another than this."""
        remote = buffer.scope is Scope.CLUSTER and indices[0] is not self.names.rank
        return indices[:1] if remote else ()

    def memory(self, buffer: Buffer, owner: tuple[Expr, ...]) -> str:
        """The text of a buffer's address, in this block or in its `owner`."""
        name = self.names.buffers[buffer]
        if not owner:
            return name
        return f"{self.out.use('cluster_map')}({name}, {self.scalar(owner[0])})"

    def element(self, index: Expr, access: Access, lane: int) -> str:
        """The text of a lane's element number."""
        if access.scattered:
            return bare(self._lane(index, lane))
        base = bare(self._values[index][0])
        if not lane or access.lanes == 1:
            return base
        return str(int(base) + lane) if base.isdigit() else f"{base} + {lane}"

    def is_wide(self, buffer: Buffer, lanes: int, index: Expr) -> bool:
        """Whether `lanes` elements from `index` are one aligned memory access."""
        nbytes = lanes * buffer.dtype.itemsize
        if lanes < 2 or nbytes & (nbytes - 1) or nbytes > _MAX_BYTES or buffer.scope is Scope.LOCAL:
            return False
        return self.names.analyzer.proves((index % lanes).equal(0))

    def _wide_load(self, name: str, buffer: Buffer, lanes: int, at: str) -> list[str]:
        type_, value = (
            f"{self.out.use('Vec')}<{STORED[buffer.dtype]}, {lanes}>",
            self.out.fresh("v"),
        )
        self.out.line(f"const {type_} {value} = *(const {type_}*)({name} + {at});")
        return [self._decode(f"{value}.v[{i}]", buffer.dtype) for i in range(lanes)]

    def _decode(self, text: str, dtype: DType) -> str:
        if dtype is DType.FLOAT16:
            return f"{self.out.use('half_to_float')}({text})"
        if dtype is DType.BFLOAT16:
            return f"{self.out.use('bfloat16_to_float')}({text})"
        return text

    def encode(self, text: str, dtype: DType, exact: bool = False) -> str:
        """A value as its stored bits; what was loaded just now keeps them, what was rounded is
        rounded once, and what is `exact` not at all."""
        name = {DType.FLOAT16: "half", DType.BFLOAT16: "bfloat16"}.get(dtype)
        if name is None:
            return bare(text)
        if loaded := _argument(text, f"{name}_to_float"):
            return loaded
        if exact and dtype is DType.BFLOAT16:
            return f"{self.out.use('bfloat16_bits')}({bare(text)})"
        text = _argument(text, f"round_{name}") or text
        return f"{self.out.use(f'float_to_{name}')}({bare(text)})"

    def encode_pair(self, values: list[str], dtype: DType) -> str:
        """Two values as the bits of one register."""
        name = {DType.FLOAT16: "half", DType.BFLOAT16: "bfloat16"}[dtype]
        exact = []
        for value in values:
            bits = self.encode(value, dtype)
            exact.append(_argument(bits, f"float_to_{name}") or f"{name}_to_float({bits})")
        return f"{self.out.use(f'pack_{name}')}({', '.join(exact)})"

    # -- branches ----------------------------------------------------------------------------

    def _needs_branch(self, node: Call) -> bool:
        return node.args[0].lanes == 1 and any(self._is_costly(side) for side in node.args[1:])

    def _open_branch(self, node: Call, work: list[Any]) -> None:
        """`T x; if (condition) { x = a; } else { x = b; }`"""
        condition, *sides = node.args
        names = [self.out.fresh() for _ in range(node.lanes)]
        self.out.line(f"{self.type_of(node)} {', '.join(names)};")
        self.out.open(f"if ({bare(self._values[condition][0])}) {{")
        mark = len(self._trail)

        def close_side(side: Expr) -> None:
            for lane, name in enumerate(names):
                self.out.line(f"{name} = {bare(self._lane(side, lane))};")
            self.forget(mark)

        def open_else() -> None:
            close_side(sides[0])
            self.out.close("} else {")
            self.out.depth += 1

        def finish() -> None:
            close_side(sides[1])
            self.out.close()
            self._remember(node, names)

        work.extend((finish, sides[1], open_else, sides[0]))

    def is_exact(self, expr: Expr) -> bool:
        """Whether a 16-bit value needs no rounding, held as float: no arithmetic made it."""
        return fold(expr, _exact_step, self._exact)

    def _is_costly(self, expr: Expr) -> bool:
        return fold(expr, _costly_step, self._costly)


def _lane_of(index: Expr, lane: int) -> Expr:
    """One lane of a vector of integers."""

    def step(node: Any, parts: list[Any]) -> Any:
        if isinstance(node, Ramp):
            return parts[0] + parts[1] * lane
        return parts[0] if isinstance(node, Broadcast) else refold(node, parts)

    return fold(index, step)


_CHEAP = frozenset(
    ["if_then_else", "neg", "not", "bit_not", "abs", "likely", "fma", "isnan", "isinf", "isfinite"]
)


def _costly_step(node: Node, children: list[bool]) -> bool:
    own = isinstance(node, Load) or (isinstance(node, Call) and node.name not in _CHEAP)
    return own or any(children)


def _exact_step(node: Node, children: list[bool]) -> bool:
    if isinstance(node, Load | FloatImm):
        return True
    if isinstance(node, Select) or (isinstance(node, Call) and node.name == "if_then_else"):
        return children[1] and children[2]
    if isinstance(node, Binary):
        return node.op in (BinaryOp.MIN, BinaryOp.MAX) and all(children)
    return isinstance(node, Broadcast) and all(children)


def _zero(dtype: DType) -> str:
    return floating(0.0, dtype) if dtype.is_float else integer(0, dtype)


def _argument(text: str, function: str) -> str:
    """What a call hands to a function of one argument; empty if the text is no such call."""
    inner = text.removeprefix(function)
    return bare(inner) if inner != text and bare(inner) != inner else ""


def _is_short(text: str) -> bool:
    return text.replace("_", "").replace(".", "").isalnum()
