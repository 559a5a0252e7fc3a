"""Runs GPU loop IR on the CPU, and finds what a GPU would only do wrong sometimes.

All threads of many blocks advance together, statement by statement, as lanes of NumPy arrays. The
order is one that a GPU could take; that no other order gives another result is checked: between
two barriers no thread may read what another wrote, or write what another read or wrote. Blocks
may not share what one of them writes, except in the memory of a cluster: there barriers of the
cluster count, and no block may be reached that may not have begun or may have ended. What is
copied asynchronously arrives as late as it may, and until then nothing may read it.
Every access is checked against the bounds of its buffer,
and reads of intermediate buffers against what was written.

>>> import numpy as np
>>> from tinycomp import te
>>> from tinycomp.tir.lower_gpu import lower_gpu
>>> A = te.placeholder((64,), name="A")
>>> B = te.compute((64,), lambda i: A[63 - i] + 1.0, name="B")
>>> s = te.create_schedule(B.op)
>>> s[B].bind("i", "threadIdx.x")
>>> b = np.empty(64, "float32")
>>> run(lower_gpu(s.func), [np.arange(64, dtype="float32"), b])
>>> b[:3].tolist()
[64.0, 63.0, 62.0]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diagnostics import InputError, VerifyError
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
    as_int,
)
from ..ir.instruction import Reinterpret
from ..te.evaluate_expr import BINARY, INTRINSIC, cast
from .gpu_memory import LaunchShape, Memory, RaceError, Threads
from .gpu_warp import Warps
from .nodes import (
    Alloc,
    Async,
    Buffer,
    Evaluate,
    For,
    ForKind,
    If,
    PrimFunc,
    Scope,
    Seq,
    Stmt,
    Store,
)
from .passes.visit import Visit, drive
from .sizes import fit
from .specialize import specialize_sizes
from .tensor_intrinsics.warp import LOADS, MMA, PACKS
from .tile.nodes import TileProgram

WARP = 32
_LANES = 1 << 17  # threads that advance together; more run in several groups of blocks
_REDUCE = {
    BinaryOp.ADD: np.add, BinaryOp.MUL: np.multiply, BinaryOp.MIN: np.minimum,
    BinaryOp.MAX: np.maximum,
}  # fmt: skip


def run(
    func: PrimFunc,
    arrays: Sequence[np.ndarray],
    check_races: bool = True,
    sizes: Mapping[Var, int] | None = None,
) -> None:
    """Execute a function lowered by `lower_gpu`; output arrays are written in place.

    Args:
        arrays: one per parameter, of its exact shape and dtype.
        sizes: values of symbolic sizes that the shapes of the arrays do not tell.
        check_races: whether to look for races; costs about twice the time.

    Raises:
        InputError: the arrays do not fit the parameters.
        RaceError: threads depend on each other without a barrier between them.
        VerifyError: an access is out of bounds, reads what was never written, or a barrier or
            shuffle is not reached by all threads that it needs.
        ExecutionError: a checked index is out of range.
    """
    func = specialize_sizes(func, fit(func, arrays, sizes))
    _check_dense(func, arrays)
    body = func.body
    spaces: dict[Buffer, np.ndarray] = dict(zip(func.params, arrays, strict=True))
    while isinstance(body, Alloc) and body.buffer.scope is Scope.GLOBAL:
        shape = tuple(as_int(d) for d in body.buffer.shape)
        spaces[body.buffer] = np.zeros(shape, body.buffer.dtype.numpy)
        body = body.body
    with np.errstate(all="ignore"):
        for root in root_statements(func):
            _launch(func, root, spaces, check_races)


def run_launch(
    func: PrimFunc, index: int, spaces: dict[Buffer, np.ndarray], check_races: bool = True
) -> None:
    """Execute one launch of a function lowered by `lower_gpu`.

    Args:
        index: of the statement at the root.
        spaces: arrays of the parameters and of the buffers between launches that it touches.

    Raises:
        RaceError, VerifyError, ExecutionError: see `run`.
    """
    with np.errstate(all="ignore"):
        _launch(func, root_statements(func)[index], spaces, check_races)


def root_statements(func: PrimFunc) -> tuple[Stmt, ...]:
    """The statements at the root, each of which is one launch."""
    body = func.body
    while isinstance(body, Alloc) and body.buffer.scope is Scope.GLOBAL:
        body = body.body
    return body.stmts if isinstance(body, Seq) else (body,)


def _check_dense(func: PrimFunc, arrays: Sequence[np.ndarray]) -> None:
    for buffer, array in zip(func.params, arrays, strict=True):
        if not array.flags.c_contiguous:
            raise InputError(f"{buffer} does not fit an array {array.dtype}{list(array.shape)}")


def _launch(
    func: PrimFunc, root: Stmt, spaces: dict[Buffer, np.ndarray], check_races: bool
) -> None:
    if isinstance(root, TileProgram):
        from .tile.interpreter import run_tile_program  # it runs ordinary code by this module

        run_tile_program(func, root, spaces)
        return
    shape = LaunchShape.of(root)
    memory = Memory(func.name, spaces, check_races)
    count = math.prod(shape.grid)
    step = max(1, _LANES // (math.prod(shape.block) * shape.cluster))
    for first in range(0, count, step):
        threads = Threads(shape, first, min(count, first + step))
        memory.start(threads)
        drive(ThreadGroup(func, threads, memory).visit(root, None))
        memory.end()


@dataclass(frozen=True, slots=True)
class _Branch:
    """Instructions of a lazily evaluated choice: "then", "else" or "end"."""

    part: str
    node: Call


class ThreadGroup:
    """The threads of some blocks, running one launch; subclasses may watch or replace accesses."""

    def __init__(self, func: PrimFunc, threads: Threads, memory: Memory) -> None:
        self.func, self.threads, self.memory = func, threads, memory
        self.warps = Warps(threads, memory, func.name)
        self.vars: dict[Var, Any] = {}
        self.programs: dict[Any, list[Any]] = {}

    def visit(self, stmt: Stmt, mask: np.ndarray | None) -> Visit[None]:
        """Run a statement in the lanes of `mask` (None: in all)."""
        if isinstance(stmt, Seq):
            for child in stmt.stmts:
                yield self.visit(child, mask)
        elif isinstance(stmt, Store):
            self.store(stmt, mask)
        elif isinstance(stmt, For):
            yield self.loop(stmt, mask)
        elif isinstance(stmt, If):
            yield self.branch(stmt, mask)
        elif isinstance(stmt, Alloc):
            self.memory.allocate(stmt.buffer, mask)
            yield self.visit(stmt.body, mask)
        elif isinstance(stmt, Async):
            self.memory.is_async = True
            yield self.visit(stmt.body, mask)
            self.memory.is_async = False
        elif isinstance(stmt, Evaluate):
            self.evaluate_call(stmt.value, mask)
        else:
            raise VerifyError(f"the executor cannot run {type(stmt).__name__}")

    def loop(self, stmt: For, mask: np.ndarray | None) -> Visit[None]:
        low = self.evaluate((stmt.min,), mask)[0]
        if stmt.kind is ForKind.THREAD:
            self.vars[stmt.var] = self.threads.index(stmt.thread) + low
            yield self.visit(stmt.body, mask)
            return
        extent = self.evaluate((stmt.extent,), mask)[0]
        lanes = np.broadcast_to(extent, (self.threads.count,))
        wanted = lanes if mask is None else lanes[mask]
        for i in range(int(wanted.max(initial=0))):
            self.vars[stmt.var] = low + i
            if np.ndim(extent) == 0:
                yield self.visit(stmt.body, mask)
            else:
                inside = lanes > i
                yield self.visit(stmt.body, inside if mask is None else inside & mask)

    def branch(self, stmt: If, mask: np.ndarray | None) -> Visit[None]:
        condition = self.evaluate((stmt.condition,), mask)[0]
        if np.ndim(condition) == 0:
            if condition:
                yield self.visit(stmt.then, mask)
            elif stmt.otherwise is not None:
                yield self.visit(stmt.otherwise, mask)
            return
        then = condition if mask is None else condition & mask
        if then.any():
            yield self.visit(stmt.then, None if then.all() else then)
        if stmt.otherwise is not None:
            rest = ~condition if mask is None else ~condition & mask
            if rest.any():
                yield self.visit(stmt.otherwise, rest)

    def store(self, stmt: Store, mask: np.ndarray | None) -> None:
        parts = [*stmt.indices, stmt.value]
        parts += [] if stmt.predicate is None else [stmt.predicate]
        values = self.evaluate(tuple(parts), mask)
        rank = len(stmt.indices)
        lanes = max([stmt.value.lanes, *(i.lanes for i in stmt.indices)])
        predicate = values[rank + 1] if stmt.predicate is not None else None
        shape = (self.threads.count, lanes)
        active = self._active(mask, predicate, shape)
        indices = [np.broadcast_to(_column(i), shape) for i in values[:rank]]
        value = np.broadcast_to(_column(values[rank]), shape)
        self.write(stmt, indices, value, active)

    def write(self, stmt: Store, indices: list[np.ndarray], value: Any, active: np.ndarray) -> None:
        """Store [threads, lanes] values where `active`."""
        self.memory.store(stmt.buffer, indices, value, active)

    def read(self, node: Load, indices: list[np.ndarray], active: np.ndarray) -> np.ndarray:
        """The [threads, lanes] values of a load."""
        return self.memory.load(node.source, indices, active)  # type: ignore[arg-type]

    def _active(self, mask: Any, predicate: Any, shape: tuple[int, int]) -> np.ndarray:
        active = np.ones(shape, np.bool_) if mask is None else np.repeat(mask[:, None], shape[1], 1)
        return active if predicate is None else active & np.broadcast_to(_column(predicate), shape)

    def evaluate_call(self, value: Expr, mask: np.ndarray | None) -> None:
        name = value.name if isinstance(value, Call) else ""
        if name == "barrier":
            self.memory.barrier(mask)
        elif name == "cluster_arrive":
            self.memory.cluster_arrive(mask)
        elif name == "cluster_wait":
            self.memory.cluster_wait(mask)
        elif name == "async_commit":
            self.memory.copies.commit(mask)
        elif isinstance(value, Call) and name == "async_wait":
            self.memory.wait(as_int(value.args[0]), mask)
        elif isinstance(value, Call) and (name in MMA or name in LOADS or name in PACKS):
            places = [self.evaluate(arg.indices, mask) for arg in value.args]  # type: ignore[attr-defined]
            self.warps.run(value, places, mask)
        elif name != "prefetch":
            self.evaluate((value,), mask)

    # -- expressions ---------------------------------------------------------------------------

    def evaluate(self, roots: tuple[Expr, ...], mask: np.ndarray | None) -> list[Any]:
        """The values of expressions: scalars, one per thread, or [threads, vector lanes]."""
        program = self.programs.get(roots)
        if program is None:
            program = self.programs[roots] = _program(roots)
        values: dict[Any, Any] = {}
        masks: list[np.ndarray | None] = [mask]
        for item in program:
            if isinstance(item, _Branch):
                self._branch_value(item, values, masks)
            else:
                values[item] = self._value(item, values, masks[-1])
        return [values[r] for r in roots]

    def _branch_value(self, item: _Branch, values: dict[Any, Any], masks: list[Any]) -> None:
        condition, a, b = item.node.args
        lanes = np.broadcast_to(values[condition], (self.threads.count,))
        if item.part == "end":
            masks.pop()
            wide = item.node.lanes > 1
            chosen = _column(lanes) if wide else lanes
            sides = [_column(values[s]) if wide else values[s] for s in (a, b)]
            values[item.node] = np.where(chosen, *sides)
            return
        if item.part == "else":
            masks.pop()
            lanes = ~lanes
        masks.append(lanes if masks[-1] is None else lanes & masks[-1])

    def _value(self, node: Any, values: dict[Any, Any], mask: Any) -> Any:
        match node:
            case IntImm():
                return (
                    node.value if node.dtype is DType.INT64 else node.dtype.numpy.type(node.value)
                )
            case FloatImm():
                return node.dtype.numpy.type(node.value)
            case Var():
                if node not in self.vars:
                    raise VerifyError(f"{self.func.name}: variable {node.name} is not bound")
                return self.vars[node]
            case Load():
                return self._load(node, values, mask)
            case Binary():
                return BINARY[node.op](*self._aligned(node, (node.a, node.b), values))
            case Cast():
                return cast(values[node.value], node.to)
            case Reinterpret() if node.lanes == node.value.lanes:
                return np.asarray(values[node.value], node.value.dtype.numpy).view(node.to.numpy)
            case Select():
                parts = (node.condition, node.a, node.b)
                return np.where(*self._aligned(node, parts, values))
            case Broadcast():
                return _column(values[node.value])
            case Ramp():
                steps = np.arange(node.count)[None]
                return _column(values[node.base]) + _column(values[node.stride]) * steps
            case ReduceLanes():
                return _REDUCE[node.op].reduce(values[node.value], axis=-1)
            case Call():
                return self.call(node, values, mask)
        raise VerifyError(f"the executor cannot evaluate {node}")

    def _aligned(self, node: Expr, parts: Sequence[Expr], values: dict[Any, Any]) -> list[Any]:
        """The operands of a vector operation with one row per thread."""
        if node.lanes == 1:
            return [values[p] for p in parts]
        return [_column(values[p]) if p.lanes == 1 else values[p] for p in parts]

    def call(self, node: Call, values: dict[Any, Any], mask: Any) -> Any:
        args = self._aligned(node, node.args, values)
        if node.name == "shuffle_xor":
            return self.threads.shuffle(args[0], as_int(node.args[1]), mask, self.func.name)
        if node.name == "checked_index" and mask is not None:
            inside = mask[:, None] if node.lanes > 1 else mask
            args[0] = np.where(inside, args[0], 0)
        if node.name not in INTRINSIC:
            raise VerifyError(f"unknown intrinsic {node.name}")
        return INTRINSIC[node.name](*args)

    def _load(self, node: Load, values: dict[Any, Any], mask: Any) -> Any:
        lanes = max([node.lanes, 1 if node.predicate is None else node.predicate.lanes])
        shape = (self.threads.count, lanes)
        predicate = None if node.predicate is None else values[node.predicate]
        active = self._active(mask, predicate, shape)
        indices = [np.broadcast_to(_column(values[i]), shape) for i in node.indices]
        loaded = self.read(node, indices, active)
        return loaded[:, 0] if lanes == 1 else loaded


def _column(value: Any) -> Any:
    """One value per thread as a column, beside vectors of one row per thread."""
    return value[:, None] if np.ndim(value) == 1 else value


def _program(roots: tuple[Expr, ...]) -> list[Any]:
    """Expressions in order of evaluation, with marks where a choice begins and ends.

    What is computed inside one side of a choice is computed again outside: its mask is narrower.
    """
    program: list[Any] = []
    scopes: list[set[Any]] = [set()]
    stack: list[Any] = list(reversed(roots))
    while stack:
        item = stack.pop()
        if isinstance(item, _Branch):
            program.append(item)
            scopes.pop() if item.part != "then" else None
            if item.part != "end":
                scopes.append(set())
            else:
                scopes[-1].add(item.node)
        elif isinstance(item, tuple):
            program.append(item[0])
            scopes[-1].add(item[0])
        elif any(item in scope for scope in scopes):
            continue
        elif isinstance(item, Call) and item.name == "if_then_else" and item.args[0].lanes == 1:
            condition, a, b = item.args
            marks = [_Branch(part, item) for part in ("then", "else", "end")]
            stack += [marks[2], b, marks[1], a, marks[0], condition]
        else:
            stack.append((item,))
            stack.extend(reversed(item.children()))
    return program


__all__ = ["RaceError", "ThreadGroup", "run"]
