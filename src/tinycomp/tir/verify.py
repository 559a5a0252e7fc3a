"""Checks that loop IR is well formed. Run between passes in tests and in debug builds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..diagnostics import VerifyError
from ..dtype import DType
from ..ir.expr import Binary, BinaryOp, Broadcast, Call, Expr, Load, Ramp, Select, Var
from ..ir.instruction import InstructionCall
from ..ir.node import postorder
from .nodes import (
    Alloc,
    Async,
    Block,
    Buffer,
    Collective,
    Evaluate,
    For,
    If,
    PrimFunc,
    Seq,
    Stmt,
    Store,
)


def verify(func: PrimFunc, lowered: bool = False) -> None:
    """Raise VerifyError unless `func` is well formed.

    Every variable is bound exactly once on the path to its use, by a loop, a block or as a
    size of the function; every buffer is a parameter, one of `allocs`, or allocated around its
    use; indices are integers, one per dimension; stores keep the buffer's dtype and lanes agree;
    with `lowered`, no block is left.
    """
    _Verifier(func, lowered).run()


class _Verifier:
    def __init__(self, func: PrimFunc, lowered: bool) -> None:
        self.func, self.lowered = func, lowered
        self.variables: set[Var] = set()
        self.buffers: set[Buffer] = {*func.params, *func.allocs}
        self.checked: set[Any] = set()  # expressions whose own form is known to be right

    def fail(self, message: str, stmt: Stmt | None = None) -> None:
        excerpt = "" if stmt is None else "\n".join(str(stmt).splitlines()[:17])
        raise VerifyError(f"{self.func.name}: {message}", span=self.func.span, excerpt=excerpt)

    def run(self) -> None:
        names = [b for b in self.func.params if not isinstance(b, Buffer)]
        if names:
            self.fail(f"parameters {names} are not buffers")
        self.variables |= set(self.func.sizes)
        for buffer in (*self.func.params, *self.func.allocs):
            self.expressions(buffer.shape, None)
        # A statement is visited; a tuple undoes a binding when its scope is left.
        stack: list[Any] = [self.func.body]
        while stack:
            item = stack.pop()
            if isinstance(item, Stmt):
                stack.extend(reversed(self.statement(item)))
            else:
                bound, keys = item
                bound.difference_update(keys)

    def bind(self, bound: set[Any], keys: Sequence[Any], stmt: Stmt) -> tuple[set[Any], Any]:
        for key in keys:
            if key in bound:
                self.fail(f"{key.name} is bound twice", stmt)
            bound.add(key)
        return bound, tuple(keys)

    def statement(self, stmt: Stmt) -> list[Any]:
        """Check one statement; what to visit next."""
        match stmt:
            case Seq():
                return list(stmt.stmts)
            case For():
                self.expressions((stmt.min, stmt.extent), stmt)
                return [stmt.body, self.bind(self.variables, [stmt.var], stmt)]
            case If():
                self.expressions((stmt.condition,), stmt)
                if stmt.condition.dtype is not DType.BOOL or stmt.condition.lanes != 1:
                    self.fail("the condition of an If is a scalar bool", stmt)
                return [stmt.then] + ([] if stmt.otherwise is None else [stmt.otherwise])
            case Alloc():
                self.expressions(stmt.buffer.shape, stmt)
                return [stmt.body, self.bind(self.buffers, [stmt.buffer], stmt)]
            case Evaluate():
                self.expressions((stmt.value,), stmt)
                return []
            case Async():
                return [stmt.body]
            case Collective():
                self.expressions(stmt.operands, stmt)
                return [stmt.body]
            case Block():
                return self.block(stmt)
            case Store():
                self.store(stmt)
                return []
        self.fail(f"{type(stmt).__name__} is not a statement of the loop IR")
        return []

    def block(self, stmt: Block) -> list[Any]:
        if self.lowered:
            self.fail(f"block {stmt.name} is left after lowering", stmt)
        if len(stmt.bindings) != len(stmt.iter_vars):
            self.fail(f"block {stmt.name} has {len(stmt.bindings)} bindings", stmt)
        self.expressions((*stmt.bindings, stmt.predicate), stmt)
        undo = self.bind(self.variables, [axis.var for axis in stmt.iter_vars], stmt)
        return [*([] if stmt.init is None else [stmt.init]), stmt.body, undo]

    def store(self, stmt: Store) -> None:
        parts = [*stmt.indices, stmt.value]
        parts += [] if stmt.predicate is None else [stmt.predicate]
        self.expressions(parts, stmt)
        self.access(stmt.buffer, stmt.indices, stmt.predicate, stmt)
        if stmt.value.dtype is not stmt.buffer.dtype:
            self.fail(f"a {stmt.value.dtype} is stored to {stmt.buffer}", stmt)
        lanes = max((i.lanes for i in stmt.indices), default=1)
        if stmt.value.lanes not in (1, lanes):
            self.fail(f"{stmt.value.lanes} lanes are stored to {lanes} elements", stmt)

    def access(
        self, buffer: Any, indices: Sequence[Expr], predicate: Expr | None, stmt: Stmt | None
    ) -> None:
        if buffer not in self.buffers:
            self.fail(f"{buffer} is neither a parameter nor allocated around its use", stmt)
        if len(indices) != len(buffer.shape):
            self.fail(f"{buffer} is accessed with {len(indices)} indices", stmt)
        if any(not i.dtype.is_int for i in indices):
            self.fail(f"the indices of {buffer.name} are not all integers", stmt)
        if predicate is not None and predicate.dtype is not DType.BOOL:
            self.fail(f"the predicate of an access to {buffer.name} is not a bool", stmt)
        self.lanes([*indices, *([] if predicate is None else [predicate])], stmt)

    def lanes(self, parts: Sequence[Any], stmt: Stmt | None) -> None:
        counts = {p.lanes for p in parts} - {1}
        if len(counts) > 1:
            self.fail(f"lane counts {sorted(counts)} are mixed", stmt)

    def expressions(self, roots: Sequence[Expr], stmt: Stmt | None) -> None:
        for node in postorder(roots):
            if isinstance(node, Var):
                if node not in self.variables:
                    self.fail(f"variable {node.name} is used but not bound", stmt)
            elif isinstance(node, Load):
                self.access(node.source, node.indices, node.predicate, stmt)
            elif node not in self.checked:
                self.operands(node, stmt)
                self.checked.add(node)

    def operands(self, node: Any, stmt: Stmt | None) -> None:
        """dtypes and lanes of one operator's operands."""
        match node:
            case Binary():
                if node.a.dtype is not node.b.dtype or node.a.lanes != node.b.lanes:
                    self.fail(f"operands of {node.op} differ in dtype or lanes: {node}", stmt)
                if node.op in (BinaryOp.AND, BinaryOp.OR) and node.a.dtype is not DType.BOOL:
                    self.fail(f"operands of {node.op} are not bools: {node}", stmt)
            case Select():
                if node.a.dtype is not node.b.dtype or node.condition.dtype is not DType.BOOL:
                    self.fail(f"select of mismatched dtypes: {node}", stmt)
                self.lanes(node.children(), stmt)
            case Call():
                self.lanes(node.args, stmt)
            case InstructionCall():
                wanted = [(t.dtype, t.lanes) for t in node.instruction.operands]
                if wanted != [(a.dtype, a.lanes) for a in node.args]:
                    self.fail(f"operands that {node.instruction.name} does not take: {node}", stmt)
            case Ramp():
                if node.base.lanes != 1 or node.stride.lanes != 1 or not node.dtype.is_int:
                    self.fail(f"a ramp needs a scalar integer base and stride: {node}", stmt)
            case Broadcast():
                if node.value.lanes != 1:
                    self.fail(f"a broadcast of a vector: {node}", stmt)
