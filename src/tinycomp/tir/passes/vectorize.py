"""Vectorized loops to vector expressions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...diagnostics import InternalError, ScheduleError
from ...dtype import DType
from ...ir.expr import (
    TRUE,
    Binary,
    BinaryOp,
    Broadcast,
    Call,
    Expr,
    IntImm,
    Load,
    Ramp,
    ReduceLanes,
    Select,
    Var,
    binary,
    call,
    const,
    is_const,
    select,
    variables,
)
from ...ir.fold import refold
from ...ir.node import fold, postorder
from ...target import Target
from ...te.simplify import Analyzer
from ..nodes import (
    Alloc,
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
from ..tree import statements, written_buffers
from .guards import is_comparison, linear_terms
from .visit import (
    Visit,
    conjuncts,
    drive,
    make_if,
    rebuild_stmt,
    rebuilt,
    seq,
    substituter,
    uses,
)

_REDUCIBLE = (BinaryOp.ADD, BinaryOp.MUL, BinaryOp.MIN, BinaryOp.MAX)
MAX_UNROLLED = 4  # vectors of one loop that are written out; more become a loop over vectors


class _NotVectorizable(Exception):
    """The loop runs serially instead."""


def vectorize(func: PrimFunc, target: Target) -> PrimFunc:
    """Replace VECTORIZED loops by vector statements, native-width vectors first.

    The loop variable becomes `ramp(min, 1, lanes)`; conditions that depend on it become
    predicates of the loads and stores they guard. A loop of 50 floats for 16-lane vectors gives
    three vectors of 16 lanes and one of 2. What cannot be a vector (a reduction into one
    element, a loop nested in lanes of different length) becomes a serial loop.

    Raises:
        ScheduleError: the length of a vectorized loop is symbolic.
        InternalError: the lanes store different values to one element.
    """

    def visit(stmt: Stmt) -> Visit[Stmt]:
        result = yield rebuilt(stmt, visit)
        if isinstance(result, For) and "reduce_lanes" in result.annotations:
            reduced = _reduce_lanes(result, target)
            if reduced is not result:
                return reduced
        if isinstance(result, For) and result.kind is ForKind.VECTORIZED:
            _require_known(func, result)
            return _vector_loop(result, target)
        return result

    body = drive(visit(func.body))
    return func if body is func.body else replace(func, body=body)


def _require_known(func: PrimFunc, loop: For) -> None:
    if any(v in func.sizes for v in variables(loop.extent)):
        raise ScheduleError(
            f"{func.name}: the vectorized loop {loop.var.name!r} has the extent {loop.extent}, "
            "which is not known",
            hint="split it by a constant and vectorize the inner loop, or build(..., "
            "specialize=True)",
            span=func.span,
        )


def _vector_loop(loop: For, target: Target) -> Stmt:
    serial = replace(loop, kind=ForKind.SERIAL)
    if not isinstance(loop.extent, IntImm) or _has_vectors(loop.body):
        return serial
    extent, native = loop.extent.value, _native_lanes(loop.body, target)
    whole, rest = divmod(extent, native)
    first = _condition_of_first(loop)
    common = first is not None
    try:
        parts: list[Stmt] = []
        if whole <= MAX_UNROLLED:
            starts = [loop.min + native * i for i in range(whole)]
            parts += [_lanes(loop, start, native, common) for start in starts]
        else:
            chunk = Var(loop.var.name, loop.var.dtype)
            body = _lanes(loop, loop.min + chunk * native, native, common)
            parts.append(For(chunk, const(0), const(whole), body))
        if rest:
            parts.append(_lanes(loop, loop.min + native * whole, rest, common))
    except _NotVectorizable:
        return serial
    return seq(parts) if first is None else make_if(first, seq(parts))


def _condition_of_first(loop: For) -> Expr | None:
    """The guard of all the body in the first iteration, if it fails in all where it fails there,
    and elements are read that are the same in all iterations: these need no guard then."""
    guard = loop.body
    if not isinstance(guard, If) or guard.otherwise is not None:
        return None
    loads = [n for n in postorder(guard.then) if isinstance(n, Load) and n.indices]
    if all(uses_any(n.indices, loop.var) for n in loads):
        return None
    if not all(_falls(c, loop.var) for c in conjuncts(guard.condition)):
        return None
    return substituter({loop.var: loop.min})(guard.condition)


def _falls(condition: Expr, var: Var) -> bool:
    """Whether the condition, once it fails, fails for all larger values of the variable."""
    if not uses(condition, [var]):
        return True
    if not is_comparison(condition):
        return False
    assert isinstance(condition, Binary)
    terms, _ = linear_terms(Analyzer().simplify(condition.b - condition.a))
    return all(k < 0 if t is var else not uses(t, [var]) for t, k in terms.items())


def _reduce_lanes(loop: For, target: Target) -> Stmt:
    """A loop that combines contiguous values into one element, as vectors and a tree of lanes.

        for k in range(32): s[0] = s[0] + p[k]
            -->  s[0] = s[0] + reduce_lanes(p[0:16] + p[16:32])

    Loops of another form, and lengths that are not whole vectors, stay as they are. The order of
    the additions changes, so only loops that say so (`pragma "reduce_lanes"`) come here.
    """
    store = loop.body
    if not isinstance(store, Store) or store.predicate is not None or _has_vectors(store):
        return loop
    value = store.value
    if not isinstance(value, Binary) or value.op not in _REDUCIBLE:
        return loop
    previous = Load(store.buffer, store.indices, None)
    other = value.b if value.a is previous else value.a if value.b is previous else None
    if other is None or _reads(other, store.buffer) or uses_any(store.indices, loop.var):
        return loop
    native = _native_lanes(store, target)
    if not isinstance(loop.extent, IntImm) or native & (native - 1):
        return loop
    count, rest = divmod(loop.extent.value, native)
    if rest or not 1 <= count <= MAX_UNROLLED:
        return loop
    parts = [_Lanes(loop.var, loop.min + native * i, native).expr(other) for i in range(count)]
    while len(parts) > 1:
        pairs = [binary(value.op, a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    return replace(store, value=binary(value.op, previous, ReduceLanes(value.op, parts[0])))


def uses_any(exprs: tuple[Expr, ...], var: Var) -> bool:
    return any(n is var for n in postorder(exprs))


def _has_vectors(body: Stmt) -> bool:
    return any(isinstance(n, Expr) and n.lanes > 1 for n in postorder(body))


def _native_lanes(body: Stmt, target: Target) -> int:
    """Lanes of a vector register for the widest element that the loop moves; what is computed in
    float16 and bfloat16 is float32 on the way. On a GPU only accesses are vectors, not values."""
    moved = [s.buffer.dtype for s in statements(body) if isinstance(s, Store)]
    moved += [n.dtype for n in postorder(body) if isinstance(n, Load)]
    if target.kind == "cuda":
        moved = _in_memory(body) or moved
    stored = target.kind == "cuda" or all(
        _is_copy(s) for s in statements(body) if isinstance(s, Store)
    )
    computed = {} if stored else {DType.FLOAT16: DType.FLOAT32, DType.BFLOAT16: DType.FLOAT32}
    return min((target.lanes(computed.get(d, d)) for d in moved), default=1)


def _in_memory(body: Stmt) -> list[DType]:
    """What the loop moves between a thread and memory outside of its registers."""
    buffers: list[Any] = [s.buffer for s in statements(body) if isinstance(s, Store)]
    buffers += [n.source for n in postorder(body) if isinstance(n, Load)]
    return [b.dtype for b in buffers if b.scope is not Scope.LOCAL]


def _is_copy(store: Store) -> bool:
    """Whether elements are moved as they are, or left out where a guard fails."""
    value = store.value
    while isinstance(value, Call) and value.name == "if_then_else" and is_const(value.args[2]):
        value = value.args[1]
    return isinstance(value, Load)


def _lanes(loop: For, start: Expr, lanes: int, common: bool) -> Stmt:
    """`lanes` iterations of the loop from `start` as vector statements; `common`: what all
    iterations read may be read."""
    if lanes == 1:
        return substituter({loop.var: start})(loop.body)
    return _Lanes(loop.var, start, lanes, common).run(loop.body)


def _broadcast(value: Expr, lanes: int) -> Expr:
    return value if value.lanes == lanes else Broadcast(value, lanes)


class _Lanes:
    """Rewrites one loop body to vectors of `lanes` iterations."""

    def __init__(self, var: Var, start: Expr, lanes: int, common: bool = False) -> None:
        self.lanes, self.common = lanes, common
        self.outer: Expr | None = None  # the mask of the guard of all the body
        self.ramp = Ramp(start, const(1, start.dtype), lanes)
        self.var = var
        self.memo: dict[Any, Any] = {}
        self.widened: dict[Buffer, Buffer] = {}  # buffers inside the loop get a lane dimension

    def run(self, body: Stmt) -> Stmt:
        return drive(self.stmt(body, None))

    # -- expressions -------------------------------------------------------------------------

    def expr(self, value: Expr, mask: Expr | None = None) -> Expr:
        """The vector (or scalar, where the lanes agree) that `value` is in these iterations."""
        result = fold(value, self._step, self.memo)
        if mask is None:
            return result
        return self._masked(result, mask, self.common and mask is self.outer)

    def _step(self, node: Any, parts: list[Any]) -> Any:
        if node is self.var:
            return self.ramp
        if isinstance(node, Load) and node.source in self.widened:
            lane = Ramp(const(0), const(1), self.lanes)
            return Load(self.widened[node.source], (*parts[: len(node.indices)], lane), None)
        if all(a is b for a, b in zip(node.children(), parts, strict=True)):
            return node
        vector = any(p.lanes > 1 for p in parts)
        if isinstance(node, Call) and node.name == "if_then_else" and vector:
            return self._if_then_else(*parts)
        if isinstance(node, Select | Call) and vector:
            parts = [_broadcast(p, self.lanes) for p in parts]
        if isinstance(node, Load) and node.predicate is not None and vector:
            parts[-1] = _broadcast(parts[-1], self.lanes)
        return refold(node, parts)

    def _if_then_else(self, condition: Expr, a: Expr, b: Expr) -> Expr:
        a, b = _broadcast(a, self.lanes), _broadcast(b, self.lanes)
        if condition.lanes == 1:
            return Call("if_then_else", (condition, a, b), a.dtype)
        return select(condition, self._masked(a, condition), self._masked(b, ~condition))

    def _masked(self, value: Expr, mask: Expr, common: bool = False) -> Expr:
        """`value` where lanes without `mask` read nothing and report nothing; except, if `common`,
        what all lanes read."""

        def step(node: Any, parts: list[Any]) -> Any:
            if isinstance(node, Load) and node.indices:  # without: one element, always there
                indices = [*parts[: len(node.indices)]]
                if all(i.lanes == 1 for i in indices):
                    if common and node.predicate is None:
                        return node.with_children(indices)
                    # not even one lane may be allowed to read
                    indices[0] = _broadcast(indices[0], self.lanes)
                old = node.predicate
                both = mask if old is None else binary(BinaryOp.AND, parts[-1], mask)
                return Load(node.source, tuple(indices), both)
            if isinstance(node, Call) and node.name == "checked_index":
                index = _broadcast(parts[0], self.lanes)
                safe = select(mask, index, _broadcast(const(0, index.dtype), self.lanes))
                return call("checked_index", safe, _broadcast(parts[1], self.lanes))
            if isinstance(node, Select | Call) and any(p.lanes > 1 for p in parts):
                if isinstance(node, Call) and node.name == "if_then_else":
                    return self._if_then_else(*parts)
                parts = [_broadcast(p, self.lanes) for p in parts]
            if isinstance(node, Broadcast) and parts[0].lanes > 1:
                return parts[0]  # a load of one element is one of each lane now
            return refold(node, parts)

        return fold(value, step)

    # -- statements --------------------------------------------------------------------------

    def stmt(self, stmt: Stmt, mask: Expr | None) -> Visit[Stmt]:
        match stmt:
            case Seq():
                parts = []
                for part in stmt.stmts:
                    parts.append((yield self.stmt(part, mask)))
                return seq(parts)
            case Store():
                return self._store(stmt, mask)
            case If():
                return (yield self._if(stmt, mask))
            case For():
                low, extent = self.expr(stmt.min), self.expr(stmt.extent)
                if low.lanes > 1 or extent.lanes > 1 or (mask is not None and _loads(low, extent)):
                    raise _NotVectorizable
                body = yield self.stmt(stmt.body, mask)
                return rebuild_stmt(stmt, [low, extent, body])
            case Alloc():
                if stmt.buffer not in self.widened:  # copies of a loop may share their buffers
                    shape = (*stmt.buffer.shape, const(self.lanes))
                    self.widened[stmt.buffer] = replace(stmt.buffer, shape=shape)
                body = yield self.stmt(stmt.body, mask)
                return Alloc(self.widened[stmt.buffer], body)
            case Evaluate() if mask is None and not uses(stmt.value, [self.var]):
                return stmt
        raise _NotVectorizable

    def _if(self, stmt: If, mask: Expr | None) -> Visit[Stmt]:
        condition = self.expr(stmt.condition, mask)
        if any(_reads(stmt.condition, b) for b in written_buffers(stmt)):
            raise _NotVectorizable  # statements after the first would see another condition
        if condition.lanes == 1:
            then = yield self.stmt(stmt.then, mask)
            otherwise = None
            if stmt.otherwise is not None:
                otherwise = yield self.stmt(stmt.otherwise, mask)
            return make_if(condition, then, otherwise)
        if mask is None:
            self.outer = condition
        parts = [(yield self.stmt(stmt.then, _both(mask, condition)))]
        if stmt.otherwise is not None:
            parts.append((yield self.stmt(stmt.otherwise, _both(mask, ~condition))))
        return seq(parts)

    def _store(self, store: Store, mask: Expr | None) -> Stmt:
        if store.predicate is not None:
            mask = _both(mask, _broadcast(self.expr(store.predicate, mask), self.lanes))
        indices = tuple(self.expr(i, mask) for i in store.indices)
        value = self.expr(store.value, mask)
        buffer = self.widened.get(store.buffer)
        if buffer is not None:
            indices = (*indices, Ramp(const(0), const(1), self.lanes))
        if all(i.lanes == 1 for i in indices):
            same = value.lanes == 1 and not _reads(store.value, store.buffer)
            if same and mask is None:
                return replace(store, indices=indices, value=value)
            if same or _reads(store.value, store.buffer):
                raise _NotVectorizable
            raise InternalError(
                f"the lanes of vectorized loop {self.var.name} store different values to one "
                f"element of {store.buffer.name}: {store}"
            )
        value = _broadcast(value, self.lanes)
        return Store(buffer or store.buffer, indices, value, mask, store.span)


def _both(mask: Expr | None, condition: Expr) -> Expr:
    return condition if mask is None or mask is TRUE else binary(BinaryOp.AND, mask, condition)


def _loads(*exprs: Expr) -> bool:
    return any(isinstance(n, Load) for n in postorder(exprs))


def _reads(value: Expr, buffer: Buffer) -> bool:
    return any(isinstance(n, Load) and n.source is buffer for n in postorder(value))
