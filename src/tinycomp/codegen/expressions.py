"""Scalar and short-vector expressions to LLVM instructions.

`ExprEmitter.evaluate` walks an expression with an explicit worklist, because `if_then_else` opens
basic blocks halfway. Values are remembered by node, so shared subexpressions are emitted once;
what was computed inside a branch is forgotten when the branch ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..diagnostics import InternalError
from ..dtype import DType
from ..ir.expr import (
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
    cast,
    const,
    is_const,
)
from ..ir.instruction import InstructionCall, Reinterpret, require_features
from ..ir.node import Node, fold
from . import arithmetic, intrinsics, memory
from .builder import ELEMENT, FunctionBuilder, Value, literal, vector
from .runtime_abi import ERROR
from .workspace import num_elements, on_stack

_DIVISIONS = (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD, BinaryOp.TRUNCDIV, BinaryOp.TRUNCMOD)


@dataclass(slots=True)
class Bindings:
    """What names mean in the function being emitted."""

    runtime: Value  # pointer to the runtime state
    vars: dict[Var, Value] = field(default_factory=dict)
    buffers: dict[Any, Value] = field(default_factory=dict)  # tir.Buffer -> address
    non_negative: set[Var] = field(default_factory=set)
    can_fail: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """How a load or store reaches memory: consecutive elements from `index`, or one index per
    lane (`scattered`). `lanes` is 1 where one element serves all lanes."""

    index: Expr
    lanes: int
    scattered: bool


def access_of(buffer: Any, indices: tuple[Expr, ...]) -> Access:
    """The row-major position of an element, and how its lanes are spread."""
    linear: Expr = const(0)
    for index, extent in zip(indices, buffer.shape, strict=True):
        linear = linear * extent + _as_int64(index)
    if isinstance(linear, Broadcast):
        return Access(linear.value, 1, False)
    if isinstance(linear, Ramp) and is_const(linear.stride, 0):
        return Access(linear.base, 1, False)
    if isinstance(linear, Ramp) and is_const(linear.stride, 1):
        return Access(linear.base, linear.lanes, False)
    return Access(linear, linear.lanes, linear.lanes > 1)


def is_register(buffer: Any, access: Access) -> bool:
    """Whether all lanes of a vector access are at a constant place of a buffer on the stack: unless
    it is masked, LLVM keeps what is there in a register."""
    start = access.index
    if access.lanes == 1 or access.scattered or not isinstance(start, IntImm):
        return False
    return on_stack(buffer) and 0 <= start.value <= num_elements(buffer) - access.lanes


def _as_int64(index: Expr) -> Expr:
    if index.dtype is DType.INT64:
        return index
    if isinstance(index, Ramp):
        return Ramp(cast(index.base, DType.INT64), cast(index.stride, DType.INT64), index.count)
    return cast(index, DType.INT64)


class ExprEmitter:
    """Emits expressions into one function."""

    def __init__(self, b: FunctionBuilder, bindings: Bindings) -> None:
        self.b, self.bindings = b, bindings
        self._values: dict[Node, Value] = {}
        self._trail: list[Node] = []  # keys of _values in order, to forget a branch's values
        self._mask: Value | None = None  # lanes that are wanted, inside a vector if_then_else
        self.blended: Expr | None = None  # where this is false, lanes of the value do not matter
        self._accesses: dict[Node, Access] = {}
        self._costly: dict[Node, bool] = {}
        self._non_negative: dict[Node, bool] = {}

    def evaluate(self, root: Expr) -> Value:
        """Emit `root` at the current position. Iterative."""
        work: list[Any] = [root]
        while work:
            item = work.pop()
            if not isinstance(item, Expr):
                item()
            elif item not in self._values:
                self._visit(item, work)
        return self._values[root]

    def forget(self, mark: int = 0) -> None:
        """Drop the values computed since `mark`; memory may change, or a block has ended."""
        for node in self._trail[mark:]:
            del self._values[node]
        del self._trail[mark:]

    def _set(self, node: Expr, value: Value) -> None:
        self._values[node] = value
        self._trail.append(node)

    def _value(self, expr: Expr, lanes: int) -> Value:
        return self.b.splat(self._values[expr], lanes)

    def _visit(self, node: Expr, work: list[Any]) -> None:
        if isinstance(node, IntImm | FloatImm):
            self._set(node, literal(node.value, ELEMENT[node.dtype]))
        elif isinstance(node, Var):
            self._set(node, self.bindings.vars[node])
        elif isinstance(node, Call) and node.name == "if_then_else":
            self._visit_conditional(node, work)
        else:
            operands, emit = self._plan(node)
            work.append(lambda: self._set(node, emit()))
            work.extend(reversed(operands))

    def _plan(self, node: Expr) -> tuple[tuple[Expr, ...], Callable[[], Value]]:
        """The operands to evaluate first, and what then emits the node."""
        lanes = node.lanes
        if isinstance(node, Load):
            return self._plan_load(node)
        if isinstance(node, Binary):
            return self._plan_binary(node)
        if isinstance(node, Cast):
            source, target = node.value.dtype, node.to
            return (node.value,), lambda: arithmetic.cast(
                self.b, self._values[node.value], source, target
            )
        if isinstance(node, Select):
            return (node.condition, node.a, node.b), lambda: self.b.select(
                self._values[node.condition], self._value(node.a, lanes), self._value(node.b, lanes)
            )
        if isinstance(node, Broadcast):
            return (node.value,), lambda: self._value(node.value, lanes)
        if isinstance(node, Ramp):
            return (node.base, node.stride), lambda: self._emit_ramp(node)
        if isinstance(node, ReduceLanes):
            return (node.value,), lambda: self._emit_reduce_lanes(node)
        if isinstance(node, Call):
            return node.args, lambda: self._emit_call(node)
        if isinstance(node, InstructionCall):
            return node.args, lambda: self._emit_instruction(node)
        if isinstance(node, Reinterpret):
            return (node.value,), lambda: self._emit_reinterpret(node)
        raise InternalError(f"{type(node).__name__} cannot be compiled: {node}")

    def _emit_reduce_lanes(self, node: ReduceLanes) -> Value:
        value = self._values[node.value]
        while value.lanes > 1:
            low, high = self.b.halves(value)
            value = arithmetic.binary(self.b, node.op, node.dtype, low, high)
        return value

    def _plan_load(self, node: Load) -> tuple[tuple[Expr, ...], Callable[[], Value]]:
        access = self._accesses.get(node)
        if access is None:
            access = self._accesses[node] = access_of(node.source, node.indices)
        operands = (access.index,) if node.predicate is None else (access.index, node.predicate)

        def emit() -> Value:
            base = self.bindings.buffers[node.source]
            index, dtype = self._values[access.index], node.dtype
            mask = self._load_mask(node.predicate, access.lanes)
            if mask is not None and is_register(node.source, access):
                value = memory.load(self.b, base, dtype, index, access.lanes, None)
                if node.predicate is not self.blended:
                    zero = literal(0, value.element, value.lanes)
                    value = self.b.select(self.b.splat(mask, value.lanes), value, zero)
            elif access.scattered:
                value = memory.gather(self.b, base, dtype, index, mask)
            else:
                value = memory.load(self.b, base, dtype, index, access.lanes, mask)
            return self._predicated(value, node)

        return operands, emit

    def _load_mask(self, predicate: Expr | None, lanes: int) -> Value | None:
        """The lanes to read: where the predicate and every enclosing vector condition hold."""
        masks = [self._mask] if self._mask is not None else []
        if predicate is not None:
            masks.append(self._values[predicate])
        if lanes == 1:
            masks = [self.b.reduce("or", mask) for mask in masks]
        if len(masks) == 2:
            return self.b.op("and", *(self.b.splat(mask, lanes) for mask in masks))
        return masks[0] if masks else None

    def _predicated(self, value: Value, node: Load) -> Value:
        """The loaded element in every lane; lanes whose own predicate is false become 0."""
        lanes = max(node.lanes, node.predicate.lanes if node.predicate is not None else 1)
        if lanes == value.lanes:
            return value
        value = self.b.splat(value, lanes)
        if node.predicate is None or node.predicate.lanes == 1:
            return value
        return self.b.select(self._values[node.predicate], value, literal(0, value.element, lanes))

    def _plan_binary(self, node: Binary) -> tuple[tuple[Expr, ...], Callable[[], Value]]:
        lanes, dtype = node.lanes, node.a.dtype
        if dtype.is_float and self.b.module.has_fma:
            for product, addend in ((node.a, node.b), (node.b, node.a)):
                if (
                    node.op in (BinaryOp.ADD, BinaryOp.SUB)
                    and isinstance(product, Binary)
                    and product.op is BinaryOp.MUL
                    and product not in self._values
                ):
                    return self._plan_fma(node, product, addend)
        divisor = node.b.value if isinstance(node.b, Broadcast) else node.b
        if node.op in _DIVISIONS and isinstance(divisor, IntImm):
            return (node.a,), lambda: arithmetic.divide_by_constant(
                self.b, node.op, dtype, self._values[node.a], divisor.value,
                self.is_non_negative(node.a),
            )  # fmt: skip
        emit = arithmetic.divide if dtype.is_int and node.op in _DIVISIONS else arithmetic.binary
        return (node.a, node.b), lambda: emit(
            self.b, node.op, dtype, self._value(node.a, lanes), self._value(node.b, lanes)
        )

    def _plan_fma(
        self, node: Binary, product: Binary, addend: Expr
    ) -> tuple[tuple[Expr, ...], Callable[[], Value]]:
        """x * y + z, x * y - z, z - x * y with one rounding."""
        lanes = node.lanes

        def emit() -> Value:
            x, y, z = (self._value(e, lanes) for e in (product.a, product.b, addend))
            if node.op is BinaryOp.SUB and product is node.a:
                z = self._negate(z)
            elif node.op is BinaryOp.SUB:
                x = self._negate(x)
            return self.b.intrinsic("fma", x, y, z)

        return (product.a, product.b, addend), emit

    def _negate(self, x: Value) -> Value:
        return self.b.emit(f"fneg {x}", x.element, x.lanes)

    def _emit_ramp(self, node: Ramp) -> Value:
        lanes, element = node.lanes, ELEMENT[node.dtype]
        steps = ", ".join(f"{element} {i}" for i in range(lanes))
        offsets = Value(f"<{steps}>", element, lanes)
        scaled = self.b.op("mul", offsets, self._value(node.stride, lanes))
        return self.b.op("add", self._value(node.base, lanes), scaled)

    def _emit_call(self, node: Call) -> Value:
        args = [self._value(a, node.lanes) for a in node.args]
        if node.name == "checked_index":
            return self._checked_index(args[0], args[1])
        return intrinsics.emit(self.b, node.name, node.args[0].dtype, args)

    def _emit_instruction(self, node: InstructionCall) -> Value:
        instruction, target = node.instruction, self.b.module.target
        if target is not None:
            require_features(instruction, target.has_feature, str(target))
        args = [self._values[a] for a in node.args]
        result = ELEMENT[node.dtype]
        self.b.module.declare(
            instruction.llvm_name, vector(result, node.lanes), [a.type for a in args]
        )
        return self.b.call(instruction.llvm_name, result, args, node.lanes)

    def _emit_reinterpret(self, node: Reinterpret) -> Value:
        type_ = vector(ELEMENT[node.to], node.lanes)
        text = f"bitcast {self._values[node.value]} to {type_}"
        return self.b.emit(text, ELEMENT[node.to], node.lanes)

    def _checked_index(self, index: Value, extent: Value) -> Value:
        """`index`, wrapped once if negative; still outside: flag an error and use 0."""
        b = self.b
        self.bindings.can_fail = True
        zero = literal(0, index.element, index.lanes)
        wrapped = b.select(b.compare("icmp slt", index, zero), b.op("add", index, extent), index)
        inside = b.compare("icmp ult", wrapped, extent)
        outside = b.op("xor", inside, literal(1, "i1", index.lanes))
        if self._mask is not None:
            mask = b.reduce("or", self._mask) if index.lanes == 1 else self._mask
            outside = b.op("and", outside, b.splat(mask, index.lanes))
        bad, done = b.fresh("outside"), b.fresh("checked")
        b.cond_br(b.reduce("or", outside), bad, done)
        b.start(bad)
        flag = b.gep(self.bindings.runtime, "i8", literal(ERROR, "i64"))
        b.line(f"store atomic i64 1, ptr {flag.text} monotonic, align 8")
        b.br(done)
        b.start(done)
        return b.select(inside, wrapped, zero)

    def _visit_conditional(self, node: Call, work: list[Any]) -> None:
        condition, *sides = node.args
        if not any(self._is_costly(side) for side in sides):
            work.append(lambda: self._select_sides(node))
            work.extend((sides[1], sides[0], condition))
        elif condition.lanes == 1:
            work.append(lambda: self._open_branch(node, work))
            work.append(condition)
        else:
            work.append(lambda: self._open_mask(node, work))
            work.append(condition)

    def _select_sides(self, node: Call) -> None:
        condition, a, b = node.args
        self._set(node, self.b.select(
            self._values[condition], self._value(a, node.lanes), self._value(b, node.lanes)
        ))  # fmt: skip

    def _open_branch(self, node: Call, work: list[Any]) -> None:
        """A scalar condition: evaluate one side, in its own block."""
        b = self.b
        condition, *sides = node.args
        then, otherwise, done = b.fresh("then"), b.fresh("else"), b.fresh("endif")
        mark = len(self._trail)
        incoming: list[tuple[Value, str]] = []

        def close_side(side: Expr) -> None:
            incoming.append((self._value(side, node.lanes), b.block))
            b.br(done)
            self.forget(mark)

        def open_else() -> None:
            close_side(sides[0])
            b.start(otherwise)

        def finish() -> None:
            close_side(sides[1])
            b.start(done)
            self._set(node, b.phi(ELEMENT[node.dtype], node.lanes, incoming))

        b.cond_br(self._values[condition], then, otherwise)
        b.start(then)
        work.extend((finish, sides[1], open_else, sides[0]))

    def _open_mask(self, node: Call, work: list[Any]) -> None:
        """A vector condition: evaluate both sides, reading only the lanes that each needs."""
        b = self.b
        condition, *sides = node.args
        outer, wanted = self._mask, self._values[condition]
        mark = len(self._trail)
        results: list[Value] = []

        def narrow(mask: Value) -> Value:
            return mask if outer is None else b.op("and", mask, b.splat(outer, mask.lanes))

        def close_side(side: Expr) -> None:
            results.append(self._value(side, node.lanes))
            self.forget(mark)

        def open_else() -> None:
            close_side(sides[0])
            self._mask = narrow(b.op("xor", wanted, literal(1, "i1", wanted.lanes)))

        def finish() -> None:
            close_side(sides[1])
            self._mask = outer
            self._set(node, b.select(wanted, *results))

        self._mask = narrow(wanted)
        work.extend((finish, sides[1], open_else, sides[0]))

    def _is_costly(self, expr: Expr) -> bool:
        """Whether evaluating needlessly is wrong or slow: loads, checks, elementary functions."""
        return fold(expr, _costly_step, self._costly)

    def is_non_negative(self, expr: Expr) -> bool:
        """Whether an index is not negative, by its form."""
        return fold(expr, self._non_negative_step, self._non_negative)

    def _non_negative_step(self, node: Expr, children: list[bool]) -> bool:
        if isinstance(node, IntImm):
            return node.value >= 0
        if isinstance(node, Var):
            return node in self.bindings.non_negative
        if isinstance(node, Binary):
            if node.op is BinaryOp.FLOORMOD:
                return children[0] and is_const(node.b)
            return node.op in _KEEP_SIGN and all(children)
        return isinstance(node, Ramp | Broadcast) and all(children)


_KEEP_SIGN = (
    BinaryOp.ADD, BinaryOp.MUL, BinaryOp.FLOORDIV, BinaryOp.TRUNCDIV, BinaryOp.MIN, BinaryOp.MAX
)  # fmt: skip


def _costly_step(node: Node, children: list[bool]) -> bool:
    return (
        isinstance(node, Load)
        or (isinstance(node, Call) and node.name not in _CHEAP)
        or any(children)
    )


_CHEAP = frozenset(
    ["if_then_else", "neg", "not", "bit_not", "abs", "sqrt", "floor", "ceil", "trunc", "round"]
    + ["nearbyint", "sign", "fma", "isnan", "isinf", "isfinite", "likely"]
)
