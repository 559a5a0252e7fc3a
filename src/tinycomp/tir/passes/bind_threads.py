"""From loops over threads to the program of one thread.

A scheduled kernel has, inside its loops over blocks, several nests of loops over threads, one
after the other; each may be read as a parallel loop that ends before the next begins. Here they
become one nest around everything, in which thread number t runs its iteration of each:

    for b in blockIdx.x:                      for b in blockIdx.x:
      for t in threadIdx.x: S[t] = A[b, t]      for t in threadIdx.x:
      for t in threadIdx.x: B[b, t] = S[7-t]      S[t] = A[b, t]
                                                  B[b, t] = S[7 - t]

`insert_barriers` then separates what depends on each other. What is outside of every loop over a
thread axis runs once: by thread 0 if it writes memory that threads share, else by all of them,
each for itself. (The inverse is the fission of MCUDA, Stratton et al., LCPC 2008.)

The axis cluster.x, the blocks of a cluster, is a thread axis like the others, except that each of
its iterations has shared memory of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...diagnostics import ScheduleError
from ...dtype import DType
from ...ir.expr import (
    TRUE,
    Binary,
    BinaryOp,
    Call,
    Expr,
    IntImm,
    Load,
    Var,
    all_of,
    as_int,
    call,
    const,
    variables,
)
from ..nodes import (
    ONCE,
    ONCE_PER_CLUSTER,
    Buffer,
    Collective,
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
from ..primitives.annotate import CLUSTER, REDUCE_THREADS
from ..tree import statements
from .visit import Visit, drive, make_if, rebuild_stmt, seq, substituter

WARP = 32
LANE = "threadIdx.x"  # the lanes of a warp, where warps work together


@dataclass
class _Axes:
    """The variables of the thread axes of one launch, and how far each goes."""

    vars: dict[str, Var] = field(default_factory=dict)
    extents: dict[str, int] = field(default_factory=dict)


def bind_threads(func: PrimFunc) -> PrimFunc:
    """Give every launch one nest of grid and block loops around all its statements.

    Raises:
        ScheduleError: a block axis is bound inside a serial loop, or an extent is not known.
    """
    roots = func.body.stmts if isinstance(func.body, Seq) else (func.body,)
    allocs = list(func.allocs)
    body = [_launch(func, root, allocs) for root in _serial_together(roots)]
    result = body[0] if len(body) == 1 and not isinstance(body[0], Seq) else Seq(tuple(body))
    return replace(func, body=result, allocs=tuple(allocs))


def _serial_together(roots: Sequence[Stmt]) -> list[Stmt]:
    """The launches: neighbours that a single thread runs are one."""
    launches: list[Stmt] = []
    before_is_serial = False
    for root in roots:
        serial = not any(isinstance(s, For) and s.thread for s in statements(root))
        if serial and before_is_serial:
            root = seq([launches.pop(), root])
        launches.append(root)
        before_is_serial = serial
    return launches


def _launch(func: PrimFunc, root: Stmt, allocs: list[Buffer]) -> Stmt:
    grid: list[For] = []
    while isinstance(root, For) and root.thread.startswith("blockIdx"):
        if isinstance(root.extent, IntImm) and root.extent.value == 1:
            root = substituter({root.var: root.min})(root.body)
        else:
            grid.append(root)
            root = root.body
    axes = _axes(func, root)
    stmt = drive(_Program(func, axes, allocs).visit(root, frozenset()))
    if isinstance(stmt, Seq) and not grid and not axes.vars:  # keep what one thread runs together
        grid = [For(Var("blockIdx.x"), const(0), const(1), stmt, ForKind.THREAD, "blockIdx.x")]
    for tag in sorted(axes.vars, key=lambda tag: (tag == CLUSTER, tag)):  # clusters outermost
        extent = const(axes.extents[tag])
        stmt = For(axes.vars[tag], const(0), extent, stmt, ForKind.THREAD, tag)
    for loop in reversed(grid):
        stmt = replace(loop, body=stmt)
    return stmt


def _axes(func: PrimFunc, root: Stmt) -> _Axes:
    axes = _Axes()
    for stmt in statements(root):
        if isinstance(stmt, Collective):
            axes.extents[LANE] = max(axes.extents.get(LANE, 1), WARP)
            axes.vars.setdefault(LANE, Var(LANE))
        if not isinstance(stmt, For) or stmt.kind is not ForKind.THREAD:
            continue
        if stmt.thread.startswith("blockIdx"):
            raise ScheduleError(
                f"{func.name}: loop {stmt.var.name!r} is bound to {stmt.thread}, but other loops "
                "or statements are around it",
                hint="reorder the loops over blocks outermost; around the time of a scan, "
                "env_threads moves them there",
                span=func.span,
            )
        if stmt.thread.startswith("vthread"):
            continue
        if not isinstance(stmt.extent, IntImm):
            raise ScheduleError(
                f"{func.name}: the loop {stmt.var.name!r}, bound to {stmt.thread}, has the extent "
                f"{stmt.extent}, which is not known",
                hint="split the loop by a constant and bind the inner part, or build(..., "
                "specialize=True)",
                span=func.span,
            )
        known = axes.extents.get(stmt.thread, 1)
        axes.extents[stmt.thread] = max(known, stmt.extent.value)
        axes.vars.setdefault(stmt.thread, Var(stmt.thread))
    if axes.extents.get(LANE) != WARP and any(isinstance(s, Collective) for s in statements(root)):
        raise ScheduleError(
            f"{func.name}: warps work together, so {LANE} is their {WARP} lanes, but it has "
            f"extent {axes.extents[LANE]}",
            hint=f"bind loops of {WARP} iterations to {LANE}, and more threads to threadIdx.y",
            span=func.span,
        )
    return axes


class _Program:
    """Rewrites the body of one launch."""

    def __init__(self, func: PrimFunc, axes: _Axes, allocs: list[Buffer]) -> None:
        self.func, self.axes, self.allocs = func, axes, allocs
        self.values: dict[Var, Expr] = {}
        self.substitute = substituter(self.values)

    def visit(self, stmt: Stmt, bound: frozenset[str]) -> Visit[Stmt]:
        if isinstance(stmt, For):
            return (yield self.loop(stmt, bound))
        if isinstance(stmt, Store | Evaluate):
            return self.once(self.substitute(stmt), bound)
        if isinstance(stmt, Collective):
            return self.collective(stmt, bound)
        children = []
        for child in stmt.children():
            if isinstance(child, Stmt):
                children.append((yield self.visit(child, bound)))
            else:
                children.append(self.substitute(child))
        return rebuild_stmt(stmt, children)

    def loop(self, stmt: For, bound: frozenset[str]) -> Visit[Stmt]:
        if stmt.annotations.get(REDUCE_THREADS):
            return (yield self.reduce(stmt, bound))
        if stmt.kind is not ForKind.THREAD or stmt.thread.startswith("vthread"):
            low, extent = self.substitute(stmt.min), self.substitute(stmt.extent)
            body = yield self.visit(stmt.body, bound)
            return replace(stmt, min=low, extent=extent, body=body)
        var, extent = self.axes.vars[stmt.thread], self.axes.extents[stmt.thread]
        self.values[stmt.var] = var + stmt.min if extent > 1 else stmt.min
        self.substitute = substituter(self.values)
        body = yield self.visit(stmt.body, bound | {stmt.thread})
        assert isinstance(stmt.extent, IntImm)
        if stmt.extent.value < extent:
            return make_if(var < stmt.extent, body)
        return body

    def collective(self, stmt: Collective, bound: frozenset[str]) -> Stmt:
        """A statement of whole warps: its lanes are the threads along threadIdx.x."""
        if LANE in bound:
            raise ScheduleError(
                f"{self.func.name}: {stmt.op.name} is inside a loop over {LANE}, but all lanes of "
                "a warp execute it together",
                hint="bind the loops around it to other thread axes",
            )
        zeros = [
            var.equal(0)
            for tag, var in self.axes.vars.items()
            if tag not in bound and tag != LANE and self.axes.extents[tag] > 1
        ]
        result: Stmt = self.substitute(stmt)
        shared = any(
            isinstance(s, Store) and s.buffer.scope is not Scope.WARP for s in statements(stmt)
        )
        return make_if(all_of(zeros), result) if shared else result

    def once(self, stmt: Stmt, bound: frozenset[str]) -> Stmt:
        """A statement outside of some thread axes, run by one thread if others would see it.

        Whether they would is known when buffers have been placed; until then the condition is
        marked `once`.
        """
        if not isinstance(stmt, Store):
            return stmt
        if stmt.buffer.scope is Scope.SHARED:  # threads that compute the same element
            used = {v for index in stmt.indices for v in variables(index)}
            bound = frozenset(tag for tag in bound if self.axes.vars[tag] in used)
        return self.by_one(stmt, [tag for tag in self.axes.vars if tag not in bound])

    def by_one(self, stmt: Stmt, tags: Sequence[str]) -> Stmt:
        """A store by the first of all threads along these axes."""
        wide = [tag for tag in tags if self.axes.extents[tag] > 1]
        zeros = [self.axes.vars[tag].equal(0) for tag in wide if tag != CLUSTER]
        if zeros:
            stmt = If(Call(ONCE, (all_of(zeros),), DType.BOOL), stmt)
        if CLUSTER in wide:
            first = self.axes.vars[CLUSTER].equal(0)
            stmt = If(Call(ONCE_PER_CLUSTER, (first,), DType.BOOL), stmt)
        return stmt

    # -- reductions across threads -------------------------------------------------------------

    def reduce(self, loop: For, bound: frozenset[str]) -> Visit[Stmt]:
        """`for k in T: r = r op partial[k]`, where thread k holds partial[k].

        Each warp combines its values by exchanging registers; the results of the warps go
        through shared memory, and every thread combines these. Where a loop over cluster.x is
        around, the blocks then do the same through each other's shared memory. A result in
        registers is then in all threads; memory is written by the first. What stands before the
        combination is done by each thread.
        """
        axes, body = self._reduced_axes(loop)
        tags = list(axes.values())
        before, guard, store, operand, op = self._combination(axes, body)
        self.values.update({var: self.axes.vars[tag] for var, tag in axes.items()})
        self.substitute = substituter(self.values)
        steps: list[Stmt] = []
        for stmt in before:
            steps.append((yield self.visit(stmt, bound | set(tags))))
        value = self._own("value", (), store.buffer)
        operand, guard = self.substitute(operand), self.substitute(guard)
        if guard is not TRUE:  # all lanes of a warp exchange registers, also those without work
            operand = call("if_then_else", guard, operand, const(0, operand.dtype))
        steps.append(Store(value, (), operand))
        if LANE in tags:
            steps += self._across_threads(value, op)
        if CLUSTER in tags:
            steps += self._across_blocks(value, op, LANE in tags)
        result = self.substitute(store)
        assert isinstance(result, Store)
        previous = Load(result.buffer, result.indices, None)
        last = replace(result, value=Binary(op, previous, Load(value, (), None)))
        return seq([*steps, make_if(guard, self.by_one(last, tags))])

    def _reduced_axes(self, loop: For) -> tuple[dict[Var, str], Stmt]:
        """The variables of a loop that combines and of one inside, with their thread axes; and
        the body."""
        tags: dict[Var, str] = {}
        stmt: Stmt = loop
        while isinstance(stmt, For) and stmt.annotations.get(REDUCE_THREADS):
            tag = CLUSTER if stmt.thread == CLUSTER else LANE
            extent = as_int(stmt.extent)
            apart = tag == LANE and extent % WARP and extent & (extent - 1)
            if extent != self.axes.extents.get(tag) or apart:
                raise ScheduleError(
                    f"{self.func.name}: the reduction over {stmt.var.name!r} across {extent} "
                    f"threads needs {tag} to be as long"
                    + (f", and a power of two or a multiple of {WARP}" if tag == LANE else ""),
                    hint=f"split the reduction axis by the extent of {tag}",
                )
            tags[stmt.var] = tag
            stmt = stmt.body
        return tags, stmt

    def _across_threads(self, value: Buffer, op: BinaryOp) -> list[Stmt]:
        """Combine the values of all threads along threadIdx.x; each has the result."""
        extent, mine = self.axes.extents[LANE], Load(value, (), None)
        steps: list[Stmt] = []
        distance = min(extent, WARP) // 2
        while distance:
            other = Call("shuffle_xor", (mine, const(distance)), value.dtype)
            steps.append(Store(value, (), Binary(op, mine, other)))
            distance //= 2
        return steps + (self._across_warps(value, op, extent // WARP) if extent > WARP else [])

    def _across_warps(self, value: Buffer, op: BinaryOp, count: int) -> list[Stmt]:
        """Combine the values of `count` warps, each of which has one in all its lanes."""
        lane, mine = self.axes.vars[LANE], Load(value, (), None)
        others = [t for t in sorted(self.axes.vars) if t != LANE]
        place = tuple(self.axes.vars[t] for t in others)
        shape = (*(self.axes.extents[t] for t in others), count)
        warps = self._own("warps", shape, value, Scope.SHARED)
        first = make_if((lane % WARP).equal(0), Store(warps, (*place, lane // WARP), mine))
        return [first, *_combined(value, op, warps, place, count)]

    def _across_blocks(self, value: Buffer, op: BinaryOp, same: bool) -> list[Stmt]:
        """Combine the values of the blocks of a cluster.

        Block k writes its value to place k of every block, so that after one barrier each reads
        its own shared memory only. If the threads along threadIdx.x have the `same` value, thread
        d writes it to block d; otherwise each thread writes its own to all blocks.
        """
        rank, count = self.axes.vars[CLUSTER], self.axes.extents[CLUSTER]
        apart = [t for t in sorted(self.axes.vars) if t != CLUSTER and not (same and t == LANE)]
        place = tuple(self.axes.vars[t] for t in apart)
        shape = (count, *(self.axes.extents[t] for t in apart), count)
        blocks = self._own("blocks", shape, value, Scope.CLUSTER)
        block = Var("block")
        width = self.axes.extents[LANE] if same else 1
        first = block * width + self.axes.vars[LANE] if same else block
        push: Stmt = Store(blocks, (first, *place, rank), Load(value, (), None))
        if count % width:
            push = make_if(first < count, push)
        push = For(block, const(0), const(-(-count // width)), push, ForKind.UNROLLED)
        return [push, *_combined(value, op, blocks, (rank, *place), count)]

    def _combination(
        self, axes: Mapping[Var, str], body: Stmt
    ) -> tuple[Sequence[Stmt], Expr, Store, Expr, BinaryOp]:
        """What stands before the combination, its guard, and r, partial[k] and op of it."""
        *before, store = body.stmts if isinstance(body, Seq) else (body,)
        guard: Expr = TRUE
        if isinstance(store, If) and not set(axes) & set(variables(store.condition)):
            guard, store = store.condition, store.then
        if isinstance(store, Store) and isinstance(store.value, Binary):
            previous = Load(store.buffer, store.indices, None)
            value = store.value
            if value.a is previous:
                return before, guard, store, value.b, value.op
            if value.b is previous:
                return before, guard, store, value.a, value.op
        raise ScheduleError(
            f"{self.func.name}: the loop over {next(iter(axes)).name!r} does not combine one value "
            "per thread into one",
            excerpt="\n".join(str(body).splitlines()[:17]),
        )

    def _own(
        self, name: str, shape: tuple[int, ...], like: Buffer, scope: Scope = Scope.LOCAL
    ) -> Buffer:
        extents = tuple(const(n) for n in shape)
        buffer = Buffer(f"{like.name}.{name}", extents, like.dtype, scope)
        self.allocs.append(buffer)
        return buffer


def _combined(
    value: Buffer, op: BinaryOp, parts: Buffer, place: tuple[Expr, ...], count: int
) -> list[Stmt]:
    """`value` from `parts[place, 0]` to `parts[place, count - 1]`."""
    start = Store(value, (), Load(parts, (*place, const(0)), None))
    part = Var("part")
    both = Binary(op, Load(value, (), None), Load(parts, (*place, part + 1), None))
    rest = For(part, const(0), const(count - 1), Store(value, (), both), ForKind.UNROLLED)
    return [start, rest]
