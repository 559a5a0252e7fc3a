"""Runs loop IR in Python, before and after lowering: the meaning that schedules must preserve.

A function is translated to Python source, one assignment per expression node, and executed. Loops
of every kind run serially; vectors are NumPy arrays of lanes. Every access is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..diagnostics import VerifyError
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
    is_const,
)
from ..ir.instruction import InstructionCall, Reinterpret, reinterpret_array
from ..te.evaluate_expr import BINARY, INTRINSIC, cast
from .nodes import (
    Alloc,
    Block,
    Buffer,
    Collective,
    Evaluate,
    For,
    If,
    IterKind,
    PrimFunc,
    Seq,
    Stmt,
    Store,
)
from .sizes import fit

_INLINE = {
    BinaryOp.ADD: "+", BinaryOp.SUB: "-", BinaryOp.MUL: "*", BinaryOp.DIV: "/",
    BinaryOp.EQ: "==", BinaryOp.NE: "!=", BinaryOp.LT: "<", BinaryOp.LE: "<=",
    BinaryOp.AND: "&", BinaryOp.OR: "|", BinaryOp.BIT_AND: "&", BinaryOp.BIT_OR: "|",
    BinaryOp.BIT_XOR: "^",
}  # fmt: skip
_LOOPS_PER_FUNCTION = 15  # Python allows 20 nested blocks in one function

_REDUCE = {
    BinaryOp.ADD: np.add,
    BinaryOp.MUL: np.multiply,
    BinaryOp.MIN: np.minimum,
    BinaryOp.MAX: np.maximum,
}


def run(
    func: PrimFunc,
    arrays: Sequence[np.ndarray],
    check_initialized: bool = True,
    sizes: Mapping[Var, int] | None = None,
) -> None:
    """Execute `func`; output arrays are written in place.

    Args:
        func: lowered, or still with blocks.
        arrays: one per parameter, of its exact shape and dtype.
        sizes: values of symbolic sizes that the shapes of the arrays do not tell.
        check_initialized: reading an element of an intermediate buffer that was never written is
            an error.

    Raises:
        InputError: the arrays do not fit the parameters.
        VerifyError: an access is out of bounds or reads what was never written, or a variable is
            not bound.
        ExecutionError: a checked index is out of range.
    """
    program = _Compiler(check_initialized)
    main = program.compile(func)
    values = fit(func, arrays, sizes)
    missing = [v.name for v in program.free if v not in values]
    if missing:
        raise VerifyError(f"{func.name}: variables {missing} are not bound by any loop")
    with np.errstate(all="ignore"):
        main(*arrays, *(values[v] for v in program.free))


def _out_of_bounds(buffer: Buffer, indices: tuple[Any, ...]) -> None:
    shown = ", ".join(map(str, indices))
    raise VerifyError(f"{buffer.name}[{shown}] is out of bounds of {buffer}")


def _not_written(buffer: Buffer, indices: tuple[Any, ...]) -> None:
    shown = ", ".join(map(str, indices))
    raise VerifyError(f"{buffer.name}[{shown}] is read but was never written")


def _lanes(
    buffer: Buffer, array: np.ndarray, indices: tuple[Any, ...], mask: Any
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Indices per lane, those of inactive lanes made 0, and the mask; checks active lanes."""
    *index, active = np.broadcast_arrays(*indices, True if mask is None else mask)
    for i, n in zip(index, array.shape, strict=True):
        wrong = active & ((i < 0) | (i >= n))
        if wrong.any():
            _out_of_bounds(buffer, tuple(i[wrong][0] for i in index))
    return tuple(np.where(active, i, 0) for i in index), active


def _load_lanes(
    buffer: Buffer, array: np.ndarray, written: np.ndarray | None, indices: Any, mask: Any
) -> np.ndarray:
    index, active = _lanes(buffer, array, indices, mask)
    if written is not None and not (written[index] | ~active).all():
        lane = int(np.argmax(active & ~written[index]))
        _not_written(buffer, tuple(i[lane] for i in index))
    if not active.any():
        return np.zeros(active.shape, array.dtype)
    return np.where(active, array[index], np.zeros((), array.dtype))


def _store_lanes(
    buffer: Buffer,
    array: np.ndarray,
    written: np.ndarray | None,
    indices: Any,
    mask: Any,
    value: Any,
) -> None:
    index, active = _lanes(buffer, array, indices, mask)
    index = tuple(i[active] for i in index)
    array[index] = np.broadcast_to(value, active.shape)[active]
    if written is not None:
        written[index] = True


def _scratch(buffer: Buffer, shape: tuple[int, ...]) -> np.ndarray:
    """Fresh memory, filled so that a read before a write shows."""
    fill = float("nan") if buffer.dtype.is_float else buffer.dtype.max_value
    return np.full(shape, fill, buffer.dtype.numpy)


class _Compiler:
    """Translates one function. Work is kept on an explicit stack of tasks, last first."""

    def __init__(self, check_initialized: bool) -> None:
        self.check = check_initialized
        self.lines: list[str] = []
        self.globals: dict[str, Any] = {
            "np": np, "cast": cast, "out_of_bounds": _out_of_bounds, "not_written": _not_written,
            "load_lanes": _load_lanes, "store_lanes": _store_lanes, "scratch": _scratch,
        }  # fmt: skip
        self.tasks: list[Callable[[], None]] = []
        self.scopes: list[dict[Any, str]] = [{}]  # expression or buffer -> Python name
        self.vectors: set[Expr] = set()
        self.loaded: set[Expr] = set()  # expressions whose value a store may change
        self.tracked: set[Buffer] = set()  # buffers with a mask of written elements
        self.free: list[Var] = []  # variables that no loop binds: symbolic dimensions
        self.depth = 0  # of loops
        self.count = 0

    def compile(self, func: PrimFunc) -> Callable[..., None]:
        params = [self.define(b, b.name) for b in func.params]
        self.do(
            *(lambda b=buffer: self.allocate(b) for buffer in func.allocs),
            lambda: self.statement(func.body),
        )
        while self.tasks:
            self.tasks.pop()()
        names = [self.scopes[0][v] for v in self.free]
        header = f"def main({', '.join(params + names)}):"
        source = "\n".join([header, *self.lines, " return"])
        exec(compile(source, f"<{func.name}>", "exec"), self.globals)
        return self.globals["main"]

    # -- output ------------------------------------------------------------------------------

    def do(self, *tasks: Callable[[], None]) -> None:
        """Run these tasks next, in order."""
        self.tasks.extend(reversed(tasks))

    def emit(self, line: str) -> None:
        self.lines.append(" " * len(self.scopes) + line)

    def fresh(self, hint: str) -> str:
        self.count += 1
        return f"{re.sub(r'[^A-Za-z0-9]', '_', hint)}_{self.count}"

    def define(self, key: Any, hint: str) -> str:
        name = self.fresh(hint)
        self.scopes[-1][key] = name
        return name

    def find(self, key: Any) -> str | None:
        return next((s[key] for s in reversed(self.scopes) if key in s), None)

    def open(self, line: str) -> None:
        self.emit(line)
        self.scopes.append({})

    def close(self) -> None:
        self.emit("pass")
        self.scopes.pop()

    def name(self, key: Any) -> str:
        if isinstance(key, IntImm) and key.dtype in (DType.INT64, DType.BOOL):
            return str(key.value) if key.dtype is DType.INT64 else str(bool(key.value))
        found = self.find(key)
        if found is None and isinstance(key, Var):
            self.free.append(key)
            found = self.scopes[0][key] = self.fresh(key.name)
        if found is None and isinstance(key, Buffer):
            raise VerifyError(f"buffer {key} is neither a parameter nor allocated here")
        assert found is not None
        return found

    def forget_loads(self) -> None:
        """What was loaded before this point is loaded again after it."""
        for scope in self.scopes:
            for key in self.loaded.intersection(scope):
                del scope[key]

    def constant(self, value: Any, hint: str) -> str:
        name = self.fresh(hint)
        self.globals[name] = value
        return name

    # -- statements --------------------------------------------------------------------------

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case Seq():
                self.do(*(lambda s=s: self.statement(s) for s in stmt.stmts))
            case For():
                self.do(
                    lambda: self.value(stmt.min),
                    lambda: self.value(stmt.extent),
                    lambda: self.loop(stmt),
                )
            case If():
                self.do(lambda: self.value(stmt.condition), lambda: self.branch(stmt))
            case Block():
                self.do(lambda: self.block(stmt))
            case Store():
                parts = [*stmt.indices, stmt.value]
                parts += [] if stmt.predicate is None else [stmt.predicate]
                self.do(
                    *(lambda e=e: self.value(e) for e in parts),
                    lambda: self.store(stmt),
                    self.forget_loads,
                )
            case Alloc():
                self.do(lambda: self.allocate(stmt.buffer), lambda: self.statement(stmt.body))
            case Collective():
                self.do(lambda: self.statement(stmt.body))
            case Evaluate():
                known = not isinstance(stmt.value, Call) or stmt.value.name in INTRINSIC
                if known:  # prefetches, barriers and the like have no effect here
                    self.do(lambda: self.value(stmt.value))
            case _:
                raise VerifyError(f"the interpreter cannot run {type(stmt).__name__}")

    def loop(self, stmt: For) -> None:
        low, extent = self.name(stmt.min), self.name(stmt.extent)
        self.forget_loads()
        self.depth += 1
        outlined = self.depth % _LOOPS_PER_FUNCTION == 0
        function = self.fresh("body")
        if outlined:
            self.open(f"def {function}():")
        variable = self.fresh(stmt.var.name)
        self.open(f"for {variable} in range({low}, {low} + {extent}):")
        self.scopes[-1][stmt.var] = variable

        def end() -> None:
            self.close()
            self.depth -= 1
            if outlined:
                self.close()
                self.emit(f"{function}()")

        self.do(lambda: self.statement(stmt.body), end)

    def branch(self, stmt: If) -> None:
        condition = self.name(stmt.condition)
        tasks: list[Callable[[], None]] = [
            lambda: self.open(f"if {condition}:"),
            lambda: self.statement(stmt.then),
            self.close,
        ]
        otherwise = stmt.otherwise
        if otherwise is not None:
            tasks += [lambda: self.open("else:"), lambda: self.statement(otherwise), self.close]
        self.do(*tasks)

    def block(self, stmt: Block) -> None:
        """Bind the iteration variables; guarded by the predicate; init first where it is due."""
        reduces = [v for v in stmt.iter_vars if v.kind is IterKind.REDUCE]

        def bind() -> None:
            for axis, value in zip(stmt.iter_vars, stmt.bindings, strict=True):
                text = self.name(value)
                self.emit(f"{self.define(axis.var, axis.name)} = {text}")

        def initialize() -> None:
            init = stmt.init
            if init is None:
                return
            first = " and ".join(f"{self.name(v.var)} == {self.name(v.min)}" for v in reduces)
            self.do(
                lambda: self.open(f"if {first or 'True'}:"),
                lambda: self.statement(init),
                self.close,
            )

        self.do(
            lambda: self.value(stmt.predicate),
            lambda: self.open(f"if {self.name(stmt.predicate)}:"),
            *(lambda e=e: self.value(e) for e in stmt.bindings),
            bind,
            *(lambda v=v: self.value(v.min) for v in reduces),
            initialize,
            lambda: self.statement(stmt.body),
            self.close,
        )

    def allocate(self, buffer: Buffer) -> None:
        def emit() -> None:
            shape = f"({''.join(self.name(d) + ', ' for d in buffer.shape)})"
            info = self.constant(buffer, "buffer")
            array = self.define(buffer, buffer.name)
            self.emit(f"{array} = scratch({info}, {shape})")
            if self.check:
                self.tracked.add(buffer)
                self.emit(f"w_{array} = np.zeros({shape}, np.bool_)")

        self.do(*(lambda d=d: self.value(d) for d in buffer.shape), emit)

    def store(self, stmt: Store) -> None:
        array = self.name(stmt.buffer)
        index = self.access(stmt.buffer, stmt.indices)
        value = self.name(stmt.value)
        mask = "None" if stmt.predicate is None else self.name(stmt.predicate)
        written = f"w_{array}" if stmt.buffer in self.tracked else "None"
        if self.vectors.intersection((*stmt.indices, stmt.value)):
            info = self.constant(stmt.buffer, "buffer")
            self.emit(f"store_lanes({info}, {array}, {written}, {index}, {mask}, {value})")
            return
        if stmt.predicate is not None:
            self.open(f"if {mask}:")
        self.bounds_check(stmt.buffer, stmt.indices, array, index)
        self.emit(f"{array}[{index}] = {value}")
        if stmt.buffer in self.tracked:
            self.emit(f"{written}[{index}] = True")
        if stmt.predicate is not None:
            self.close()

    def access(self, buffer: Buffer, indices: tuple[Expr, ...]) -> str:
        if len(indices) != len(buffer.shape):
            raise VerifyError(f"{buffer} is accessed with {len(indices)} indices")
        return f"({''.join(self.name(i) + ', ' for i in indices)})"

    def bounds_check(
        self, buffer: Buffer, indices: tuple[Expr, ...], array: str, index: str
    ) -> None:
        terms = [
            f"0 <= {self.name(i)} < {n.value if isinstance(n, IntImm) else f'{array}.shape[{d}]'}"
            for d, (i, n) in enumerate(zip(indices, buffer.shape, strict=True))
        ]
        if terms:
            info = self.constant(buffer, "buffer")
            self.emit(f"if not ({' and '.join(terms)}): out_of_bounds({info}, {index})")

    # -- expressions -------------------------------------------------------------------------

    def value(self, expr: Expr) -> None:
        """Emit what computes `expr`, after which `name(expr)` is its Python name."""
        if isinstance(expr, Var) or self.find(expr) is not None:
            return
        if isinstance(expr, Call) and expr.name == "if_then_else":
            self.do(lambda: self.value(expr.args[0]), lambda: self.lazy(expr))
            return
        children = expr.children()
        self.do(*(lambda c=c: self.value(c) for c in children), lambda: self.assign(expr))  # type: ignore[misc]

    def lazy(self, expr: Call) -> None:
        """if_then_else of a scalar condition evaluates one side."""
        condition, a, b = expr.args
        if condition in self.vectors:
            self.do(lambda: self.value(a), lambda: self.value(b), lambda: self.assign(expr))
            return
        result = self.fresh("t")

        def take(side: Expr) -> None:
            self.emit(f"{result} = {self.name(side)}")
            if side in self.vectors:
                self.vectors.add(expr)
            self.close()

        def finish() -> None:
            if self.loaded.intersection(expr.args):
                self.loaded.add(expr)
            self.scopes[-1][expr] = result

        self.do(
            lambda: self.open(f"if {self.name(condition)}:"),
            lambda: self.value(a),
            lambda: take(a),
            lambda: self.open("else:"),
            lambda: self.value(b),
            lambda: take(b),
            finish,
        )

    def assign(self, expr: Expr) -> None:
        if isinstance(expr, IntImm) and expr.dtype in (DType.INT64, DType.BOOL):
            return
        if isinstance(expr, ReduceLanes | InstructionCall | Reinterpret):
            is_vector = expr.lanes > 1
        else:
            is_vector = isinstance(expr, Ramp | Broadcast) or bool(
                self.vectors.intersection(expr.children())  # type: ignore[arg-type]
            )
        if is_vector:
            self.vectors.add(expr)
        if isinstance(expr, Load) or self.loaded.intersection(expr.children()):  # type: ignore[arg-type]
            self.loaded.add(expr)
        text = self.text(expr)
        self.emit(f"{self.define(expr, 't')} = {text}")

    def text(self, expr: Expr) -> str:
        names = [self.name(c) for c in expr.children()]
        match expr:
            case IntImm() | FloatImm():
                return self.constant(expr.dtype.numpy.type(expr.value), "c")
            case Binary():
                return self.binary(expr, *names)
            case Cast():
                return f"cast({names[0]}, {self.constant(expr.to, 'dtype')})"
            case Select() if expr in self.vectors:
                return f"np.where({', '.join(names)})"
            case Select():
                return f"{names[1]} if {names[0]} else {names[2]}"
            case Call():
                if expr.name not in INTRINSIC:
                    raise VerifyError(f"unknown intrinsic {expr.name}")
                self.globals[f"f_{expr.name}"] = INTRINSIC[expr.name]
                return f"f_{expr.name}({', '.join(names)})"
            case Load():
                return self.load(expr)
            case InstructionCall():
                return f"{self.constant(expr.instruction.meaning, 'f')}({', '.join(names)})"
            case Reinterpret():
                dtype = self.constant(expr.to, "dtype")
                return f"{self.constant(reinterpret_array, 'f')}({names[0]}, {dtype})"
            case Ramp():
                return f"{names[0]} + {names[1]} * np.arange({expr.count})"
            case ReduceLanes():
                return f"{self.constant(_REDUCE[expr.op], 'f')}.reduce({names[0]})"
            case Broadcast():
                return f"np.full({expr.count}, {names[0]}, {self.constant(expr.dtype.numpy, 'd')})"
        raise VerifyError(f"the interpreter cannot evaluate {expr}")

    def binary(self, expr: Binary, a: str, b: str) -> str:
        if expr.op in _INLINE:
            return f"{a} {_INLINE[expr.op]} {b}"
        if isinstance(expr.b, IntImm) and not is_const(expr.b, 0):
            if expr.op is BinaryOp.FLOORDIV:
                return f"{a} // {b}"
            if expr.op is BinaryOp.FLOORMOD:
                return f"{a} % {b}"
        scalar = expr not in self.vectors
        if scalar and expr.op in (BinaryOp.MIN, BinaryOp.MAX) and expr.a.dtype.is_int:
            return f"{expr.op}({a}, {b})"
        self.globals[f"f_{expr.op}"] = BINARY[expr.op]
        return f"f_{expr.op}({a}, {b})"

    def load(self, expr: Load) -> str:
        buffer = expr.source
        array = self.name(buffer)
        index = self.access(buffer, expr.indices)
        written = f"w_{array}" if buffer in self.tracked else "None"
        if self.vectors.intersection(expr.indices) or expr.predicate is not None:
            mask = "None" if expr.predicate is None else self.name(expr.predicate)
            info = self.constant(buffer, "buffer")
            shape = "" if self.vectors.intersection(expr.children()) else "[()]"  # type: ignore[arg-type]
            return f"load_lanes({info}, {array}, {written}, {index}, {mask}){shape}"
        self.bounds_check(buffer, expr.indices, array, index)
        if buffer in self.tracked:
            info = self.constant(buffer, "buffer")
            self.emit(f"if not {written}[{index}]: not_written({info}, {index})")
        return f"{array}[{index}]"
