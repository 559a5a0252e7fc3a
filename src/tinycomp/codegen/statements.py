"""Loop IR statements to LLVM basic blocks.

Statements are emitted from an explicit worklist: an item is a statement, or a closure that closes
what an earlier statement opened. A parallel loop becomes a call of `tinycomp_parallel_for`; its
body is emitted later, as a function of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diagnostics import InternalError
from ..ir.expr import (
    TRUE,
    Binary,
    Broadcast,
    Call,
    Expr,
    IntImm,
    Load,
    Ramp,
    ReduceLanes,
    Var,
    as_int,
    variables,
)
from ..ir.node import fold, postorder, preorder
from ..te.evaluate_expr import BINARY
from ..tir.nodes import Alloc, Buffer, Evaluate, For, ForKind, If, PrimFunc, Seq, Stmt, Store
from . import memory
from .builder import ELEMENT, FunctionBuilder, ModuleBuilder, Value, literal
from .expressions import Bindings, ExprEmitter, access_of, is_register
from .runtime_abi import PARALLEL_FOR
from .workspace import Bytes, Workspace, on_stack


def only_lane(predicate: Expr | None) -> int | None:
    """The lane that a constant mask lets through, if it is one of several.

    >>> from tinycomp.ir.expr import Binary, BinaryOp, Broadcast, Ramp, const
    >>> lanes = Ramp(const(16), const(1), 8)
    >>> only_lane(Binary(BinaryOp.LT, lanes, Broadcast(const(17), 8)))
    0
    >>> only_lane(Binary(BinaryOp.LT, lanes, Broadcast(const(18), 8)))
    """
    if predicate is None or predicate.lanes == 1:
        return None
    mask = fold(predicate, _constant_lanes)
    if mask is None or np.count_nonzero(mask) != 1:
        return None
    return int(np.argmax(mask))


def _constant_lanes(node: Any, parts: list[Any]) -> Any:
    """The value of every lane; None where it is not constant."""
    if any(part is None for part in parts):
        return None
    match node:
        case IntImm():
            return np.asarray(node.value)
        case Ramp():
            return parts[0] + parts[1] * np.arange(node.count)
        case Broadcast():
            return np.broadcast_to(parts[0], node.count)
        case Binary():
            return BINARY[node.op](*parts)
        case _:
            return None


@dataclass(frozen=True, slots=True)
class OutlinedLoop:
    """A parallel loop whose body is still to be emitted as function `name`."""

    name: str
    loop: For
    vars: tuple[Var, ...]
    buffers: tuple[Buffer, ...]
    non_negative: frozenset[Var]


def captures(loop: For, sizes: tuple[Var, ...] = ()) -> tuple[tuple[Var, ...], tuple[Buffer, ...]]:
    """The variables and buffers that a loop uses but does not define; all sizes, as any shape may
    depend on them."""
    defined: set[Any] = {loop.var}
    used: dict[Any, None] = dict.fromkeys(sizes)
    for node in preorder(loop.body):
        if isinstance(node, For):
            defined.add(node.var)
        elif isinstance(node, Alloc):
            defined.add(node.buffer)
        elif isinstance(node, Store):
            used[node.buffer] = None
        elif isinstance(node, Load):
            used[node.source] = None
        if isinstance(node, Var):
            used[node] = None
    used.update(dict.fromkeys(variables(loop.min)))
    free = [item for item in used if item not in defined]
    return (
        tuple(item for item in free if isinstance(item, Var)),
        tuple(item for item in free if isinstance(item, Buffer)),
    )


class StatementEmitter:
    """Emits the statements of one native function."""

    def __init__(
        self,
        b: FunctionBuilder,
        bindings: Bindings,
        workspace: Workspace,
        sizes: tuple[Var, ...],
        is_outlined: bool,
    ) -> None:
        self.b, self.bindings, self.workspace = b, bindings, workspace
        self.sizes, self.is_outlined = sizes, is_outlined
        self.outlined: list[OutlinedLoop] = []
        self.expressions = ExprEmitter(b, bindings)

    def run(self, root: Stmt) -> None:
        work: list[Any] = [root]
        while work:
            item = work.pop()
            if not isinstance(item, Stmt):
                item()
            elif isinstance(item, Seq):
                work.extend(reversed(item.stmts))
            else:
                self._emit(item, work)
                self.expressions.forget()

    def _emit(self, stmt: Stmt, work: list[Any]) -> None:
        if isinstance(stmt, Store):
            self._store(stmt)
        elif isinstance(stmt, For):
            if stmt.kind is ForKind.PARALLEL and not self.is_outlined:
                self._parallel(stmt)
            elif stmt.kind in (ForKind.SERIAL, ForKind.UNROLLED, ForKind.PARALLEL):
                self._loop(stmt, work)
            else:
                raise InternalError(f"a {stmt.kind} loop over {stmt.var} was not lowered")
        elif isinstance(stmt, If):
            self._if(stmt, work)
        elif isinstance(stmt, Alloc):
            self.bindings.buffers[stmt.buffer] = self._allocate(stmt.buffer)
            work.append(stmt.body)
        elif isinstance(stmt, Evaluate):
            self._evaluate(stmt.value)
        else:
            raise InternalError(f"a {type(stmt).__name__} statement was not lowered")

    def _store(self, stmt: Store) -> None:
        evaluate = self.expressions.evaluate
        access = access_of(stmt.buffer, stmt.indices)
        index = evaluate(access.index)
        mask = None
        if stmt.predicate is not None and stmt.predicate is not TRUE:
            mask = evaluate(stmt.predicate)
        in_register = is_register(stmt.buffer, access)
        if in_register and not any(isinstance(n, ReduceLanes) for n in postorder(stmt.value)):
            self.expressions.blended = stmt.predicate
        value = evaluate(stmt.value)
        self.expressions.blended = None
        base, dtype = self.bindings.buffers[stmt.buffer], stmt.buffer.dtype
        if access.scattered:
            memory.scatter(self.b, base, dtype, index, self.b.splat(value, index.lanes), mask)
            return
        value = self.b.splat(value, access.lanes)
        if mask is not None and in_register:
            old = memory.load(self.b, base, dtype, index, access.lanes, None)
            value = self.b.select(self.b.splat(mask, access.lanes), value, old)
            memory.store(self.b, base, dtype, index, value, None)
            return
        lane = None if mask is None else only_lane(stmt.predicate)
        if lane is not None:
            # LLVM 22 makes a truncation and such a masked store one scalar store of the wide type
            index = evaluate(access.index + lane)
            memory.store(self.b, base, dtype, index, self.b.extract(value, lane), None)
            return
        memory.store(self.b, base, dtype, index, value, mask)

    def _loop(self, loop: For, work: list[Any]) -> None:
        """A counted loop; the body is entered only if the extent is positive."""
        b = self.b
        first = self.expressions.evaluate(loop.min)
        extent = self.expressions.evaluate(loop.extent)
        end = b.op("add", first, extent)
        if self.expressions.is_non_negative(loop.min):
            self.bindings.non_negative.add(loop.var)
        self._counted(loop, first, end, work)

    def _counted(self, loop: For, first: Value, end: Value, work: list[Any]) -> None:
        b = self.b
        name = b.fresh("loop")
        body, latch, done = f"{name}.body", f"{name}.latch", f"{name}.end"
        if (
            isinstance(loop.extent, IntImm)
            and loop.extent.value > 0
            and loop.kind is not ForKind.PARALLEL
        ):
            before = b.block
            b.br(body)
        else:
            before = b.block
            b.cond_br(b.compare("icmp slt", first, end), body, done)
        b.start(body)
        index, following = Value(f"%{name}.i", first.element), Value(f"%{name}.next", first.element)
        b.line(
            f"{index.text} = phi {first.element} [ {first.text}, %{before} ],"
            f" [ {following.text}, %{latch} ]"
        )
        self.bindings.vars[loop.var] = index

        def close() -> None:
            b.br(latch)
            b.start(latch)
            b.line(f"{following.text} = add nsw {index}, 1")
            b.cond_br(b.compare("icmp slt", following, end), body, done)
            b.start(done)

        work.extend((close, loop.body))

    def share_of_loop(self, loop: For, begin: Value, end: Value) -> None:
        """The iterations [begin, end) of a parallel loop, counted from 0."""
        first = self.expressions.evaluate(loop.min)
        if self.expressions.is_non_negative(loop.min):
            self.bindings.non_negative.add(loop.var)
        work: list[Any] = []
        self._counted(loop, self.b.op("add", first, begin), self.b.op("add", first, end), work)
        self.expressions.forget()
        close, body = work
        self.run(body)
        close()

    def _if(self, stmt: If, work: list[Any]) -> None:
        b = self.b
        condition = self.expressions.evaluate(stmt.condition)
        then, otherwise, done = b.fresh("then"), b.fresh("else"), b.fresh("endif")
        b.cond_br(condition, then, done if stmt.otherwise is None else otherwise)
        b.start(then)

        def close() -> None:
            b.br(done)
            b.start(done)

        def open_else() -> None:
            b.br(done)
            b.start(otherwise)

        if stmt.otherwise is None:
            work.extend((close, stmt.then))
        else:
            work.extend((close, stmt.otherwise, open_else, stmt.then))

    def _allocate(self, buffer: Buffer) -> Value:
        b = self.b
        if on_stack(buffer):
            count = max(1, math.prod(as_int(d) for d in buffer.shape))
            return b.alloca(f"[{count} x {memory.STORED[buffer.dtype]}]")
        place = self.workspace
        if buffer in place.shared:
            return b.gep(Value("%workspace", "ptr"), "i8", self.number(place.shared[buffer]))
        return b.gep(Value("%slot", "ptr"), "i8", self.number(place.private[buffer]))

    def number(self, value: Bytes) -> Value:
        """A number of bytes, which may follow from the sizes of the function."""
        return literal(value, "i64") if isinstance(value, int) else self.expressions.evaluate(value)

    def _evaluate(self, value: Expr) -> None:
        if isinstance(value, Call) and value.name == "prefetch":
            self._prefetch(*value.args)
        else:
            self.expressions.evaluate(value)

    def _prefetch(self, target: Expr, level: Expr | None = None) -> None:
        """Level 1 fetches into the first-level cache, 2 into the second."""
        if not isinstance(target, Load):
            raise InternalError(f"prefetch needs a load, got {target}")
        locality = 3 if level is None else 4 - as_int(level)
        access = access_of(target.source, target.indices)
        index = self.b.extract(self.expressions.evaluate(access.index), 0)
        base = self.bindings.buffers[target.source]
        pointer = self.b.gep(base, memory.STORED[target.dtype], index)
        self.b.module.declare("llvm.prefetch.p0", "void", ["ptr", "i32", "i32", "i32"])
        self.b.line(f"call void @llvm.prefetch.p0({pointer}, i32 0, i32 {locality}, i32 1)")

    def _parallel(self, loop: For) -> None:
        """Store what the body needs in an environment on the stack, and start the loop."""
        b = self.b
        name = f"{b.name}.parallel{len(self.outlined)}"
        free_vars, buffers = captures(loop, self.sizes)
        extent = self.expressions.evaluate(loop.extent)
        fields = [self.bindings.runtime, Value("%workspace", "ptr")]
        fields += [self.bindings.vars[v] for v in free_vars]
        fields += [self.bindings.buffers[buffer] for buffer in buffers]
        env = b.alloca(f"[{len(fields)} x i64]", align=8)
        for position, value in enumerate(fields):
            b.store(value, b.gep(env, "i64", literal(position, "i64")))
        arguments = f"{self.bindings.runtime}, ptr @{name}, {env}, {extent}"
        b.module.declare(PARALLEL_FOR, "void", ["ptr", "ptr", "ptr", "i64"])
        b.line(f"call void @{PARALLEL_FOR}({arguments})")
        known = frozenset(v for v in free_vars if v in self.bindings.non_negative)
        self.outlined.append(OutlinedLoop(name, loop, free_vars, buffers, known))


def emit_kernel_body(module: ModuleBuilder, func: PrimFunc, workspace: Workspace) -> bool:
    """Emit the kernel and its outlined loops; whether it can fail at run time."""
    names = [f"p{i}" for i in range(len(func.params))]
    params = [("ptr noalias", "rt")]
    params += zip((pointer_type(func, buffer) for buffer in func.params), names, strict=True)
    sizes = {size: f"n{i}" for i, size in enumerate(func.sizes)}
    params += [("i64", name) for name in sizes.values()]
    if not workspace.is_empty:
        params.append(("ptr noalias align 64", "workspace"))
    b = FunctionBuilder(module, func.name, params)
    if workspace.is_empty:
        b.line("%workspace = bitcast ptr null to ptr")
    addresses = (Value(f"%{name}", "ptr") for name in names)
    bindings = Bindings(
        Value("%rt", "ptr"),
        vars={size: Value(f"%{name}", "i64") for size, name in sizes.items()},
        buffers=dict(zip(func.params, addresses, strict=True)),
        non_negative=set(func.sizes),
    )
    emitter = StatementEmitter(b, bindings, workspace, func.sizes, is_outlined=False)
    emitter.run(func.body)
    b.ret()
    b.finish()
    failures = [_emit_outlined(module, func, loop, workspace) for loop in emitter.outlined]
    return bindings.can_fail or any(failures)


def pointer_type(func: PrimFunc, buffer: Buffer) -> str:
    """The type and attributes of a buffer's address as a parameter.

    A caller's array is only as aligned as its elements; planned memory is 64-byte aligned.
    """
    is_planned = func.attrs.get("aligned") or buffer not in func.params
    align = 64 if is_planned else buffer.dtype.itemsize
    return f"ptr align {align}" if func.attrs.get("inplace") else f"ptr noalias align {align}"


_SHARE = (("i64", "begin"), ("i64", "end"), ("i64", "thread"))


def _emit_outlined(
    module: ModuleBuilder, func: PrimFunc, outlined: OutlinedLoop, workspace: Workspace
) -> bool:
    """The body of a parallel loop as a function of what it captures, so that buffers are `noalias`
    parameters there too; whether it can fail."""
    types = [ELEMENT[v.dtype] for v in outlined.vars]
    types += [pointer_type(func, buffer) for buffer in outlined.buffers]
    captured = [(type_, f"c{i}_") for i, type_ in enumerate(types)]
    params = [("ptr noalias", "rt"), ("ptr", "workspace"), *captured]
    _emit_unpacking(module, outlined.name, [type_.split()[0] for type_, _ in params])

    b = FunctionBuilder(module, f"{outlined.name}.body", [*params, *_SHARE], linkage="internal")
    values = [Value(f"%{name}", type_.split()[0]) for type_, name in captured]
    count = len(outlined.vars)
    bindings = Bindings(
        Value("%rt", "ptr"),
        vars=dict(zip(outlined.vars, values[:count], strict=True)),
        buffers=dict(zip(outlined.buffers, values[count:], strict=True)),
        non_negative=set(outlined.non_negative),
    )
    emitter = StatementEmitter(b, bindings, workspace, func.sizes, is_outlined=True)
    if workspace.private:
        offset = b.op("mul", Value("%thread", "i64"), emitter.number(workspace.private_bytes))
        offset = b.op("add", offset, emitter.number(workspace.shared_bytes))
        pointer = b.gep(Value("%workspace", "ptr"), "i8", offset)
        b.line(f"%slot = bitcast {pointer} to ptr")
    emitter.share_of_loop(outlined.loop, Value("%begin", "i64"), Value("%end", "i64"))
    b.ret()
    b.finish()
    return bindings.can_fail


def _emit_unpacking(module: ModuleBuilder, name: str, types: list[str]) -> None:
    """The function that the thread pool calls: reads the environment, and calls the body."""
    b = FunctionBuilder(module, name, [("ptr", "env"), *_SHARE], linkage="internal")
    env = Value("%env", "ptr")
    fields = [b.load(type_, b.gep(env, "i64", literal(i, "i64"))) for i, type_ in enumerate(types)]
    share = [Value(f"%{name}", type_) for type_, name in _SHARE]
    b.line(f"call void @{name}.body({', '.join(map(str, fields + share))})")
    b.ret()
    b.finish()
