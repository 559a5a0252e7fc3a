"""tensorize: a tile of loops becomes the statement of a tensor intrinsic.

>>> from tinycomp import te
>>> from tinycomp.te.intrin import decl_tensor_intrin
>>> from tinycomp.tir.schedule import create_schedule
>>> a, b = te.placeholder((4,), name="a"), te.placeholder((4,), name="b")
>>> c = te.compute((4,), lambda i: a[i] * b[i], name="c")
>>> def vector_multiply(ins, outs):
...     x, y = (operand.vload([0], 4) for operand in ins)
...     return outs[0].vstore(x * y, [0])
>>> intrin = decl_tensor_intrin(c, vector_multiply, name="vmul4")
>>> A, B = te.placeholder((3, 8), name="A"), te.placeholder((8,), name="B")
>>> C = te.compute((3, 8), lambda i, j: A[i, j] * B[j], name="C")
>>> s = create_schedule(C, [A, B])
>>> outer, inner = s[C].split("j", factor=4)
>>> print(s.func.body)
for i in range(3):
    for j.outer in range(2):
        for j.inner in range(4):
            with block("C"): i = i, j = j.outer * 4 + j.inner
                C[i, j] = A[i, j] * B[j]
>>> s[C].tensorize(inner, intrin)
>>> print(str(s.func.body).replace("j.outer", "jo"))
for i in range(3):
    for jo in range(2):
        with block("C"): i = i, jo = jo  # tensorized=vmul4
            C[i, ramp(jo * 4, 1, 4)] = A[i, ramp(jo * 4, 1, 4)] * B[ramp(jo * 4, 1, 4)]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...ir.expr import Binary, Call, Cast, Expr, IntImm, Load, Select, Var, substitute
from ...ir.node import postorder
from ...te.intrin import BufferView, TensorIntrin
from ...te.simplify import Analyzer
from ...te.tensor import IterKind, IterVar, Tensor
from ..from_te import compute_block
from ..nodes import Block, Buffer, For, PrimFunc, Stmt, Store
from ..tree import loops_above, replace_stmt, substitute_stmt
from .common import kinds_in, only_writer, own_loops
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class Tensorize(Step):
    """`intrin` is a name in `schedule.intrinsics`."""

    NAME = "tensorize"
    axis: str
    intrin: str

    def apply(self, schedule: Schedule) -> None:
        axis = schedule.loop(self.stage, self.axis).var
        if self.intrin not in schedule.intrinsics:
            raise ScheduleError(
                f"this schedule knows no intrinsic {self.intrin!r}",
                hint=f"put it into s.intrinsics[{self.intrin!r}] before replaying",
            )
        intrin = schedule.intrinsics[self.intrin]
        schedule.func = tensorize(schedule.func, self.stage, axis, intrin)


def tensorize(func: PrimFunc, block_name: str, axis: Var, intrin: TensorIntrin) -> PrimFunc:
    """Replace loop `axis` of a block, with all loops inside, by the statement of an intrinsic.

    The loops must compute just what the intrinsic's own expression does: as many spatial and
    reduction loops of the same extents in the same order (loops of one iteration do not count),
    the same expression, and operands that are dense along the same dimensions.

    Raises:
        ScheduleError: naming the first difference.
    """
    block = only_writer(func, block_name)
    loops = own_loops(func, block)
    position = next((i for i, l in enumerate(loops) if l.var is axis), None)
    if position is None:
        raise ScheduleError(
            f"other stages are computed inside loop {axis.name!r}",
            hint="tensorize a loop that holds this stage alone",
        )
    inner = loops[position:]
    tile = _Tile(block, inner, intrin)
    tile.match()
    new = _replacement(func, block, inner, tile)
    return replace_stmt(func, inner[0], new)


class _Tile:
    """The loops to replace, compared with an intrinsic."""

    def __init__(self, block: Block, inner: Sequence[For], intrin: TensorIntrin) -> None:
        self.block, self.inner, self.intrin = block, inner, intrin
        op = intrin.op
        self.inputs = op.inputs
        self.buffers: dict[Tensor, Buffer] = {
            t: Buffer(t.name, t.shape, t.dtype) for t in self.inputs
        }
        self.outputs = [
            Buffer(op.output(i).name, op.shape, op.output(i).dtype) for i in range(op.num_outputs)
        ]
        self.pattern = compute_block(op, self.outputs, self.buffers)
        self.analyzer = Analyzer()
        for loop in inner:
            self.analyzer.bind(loop.var, loop.min, loop.extent)
        self.views: dict[Buffer, tuple[Buffer, tuple[Expr, ...]]] = {}

    def fail(self, reason: str, hint: str = "") -> None:
        raise ScheduleError(
            f"the loops do not match intrinsic {self.intrin.name!r}: {reason}",
            hint=hint or f"it computes {self.pattern.body}",
        )

    def match(self) -> None:
        inside = {l.var for l in self.inner}
        if any(n in inside for n in postorder(self.block.predicate)):
            self.fail(
                "a partial tile is guarded", "split by factors that divide, or pad the axis first"
            )
        to_loops = self._axes()
        bound = {v.var: b for v, b in zip(self.block.iter_vars, self.block.bindings, strict=True)}
        pattern, actual = self.pattern.body, self.block.body
        if not isinstance(pattern, Store) or not isinstance(actual, Store):
            self.fail("only single assignments are compared")
        assert isinstance(pattern, Store)
        assert isinstance(actual, Store)
        self._access(
            pattern.buffer, pattern.indices, actual.buffer, actual.indices, to_loops, bound
        )
        self._expression(pattern.value, actual.value, to_loops, bound)

    def _axes(self) -> dict[Var, Expr]:
        """The loop that each axis of the intrinsic stands for."""
        values: dict[Var, Expr] = {}
        for kind in (IterKind.SPATIAL, IterKind.REDUCE):
            loops = [l for l in self.inner if kind in kinds_in(self.block, l.var)]
            axes = [v for v in self.pattern.iter_vars if v.kind is kind]
            loops = [l for l in loops if not _is_one(l.extent)]
            values.update({v.var: v.min for v in axes if _is_one(v.extent)})
            axes = [v for v in axes if not _is_one(v.extent)]
            if [l.extent for l in loops] != [v.extent for v in axes]:
                have = ", ".join(f"{l.var.name}: {l.extent}" for l in loops) or "none"
                want = ", ".join(f"{v.name}: {v.extent}" for v in axes) or "none"
                self.fail(
                    f"its {kind} axes are {want}, the loops {have}",
                    "split and reorder so that just these loops are inside",
                )
            for loop, axis in zip(loops, axes, strict=True):
                values[axis.var] = loop.var - loop.min + axis.min
        for loop in self.inner:
            if _is_one(loop.extent):
                self.analyzer.bind(loop.var, loop.min, loop.extent)
        return values

    def _expression(
        self, pattern: Expr, actual: Expr, to_loops: dict[Var, Expr], bound: dict[Var, Expr]
    ) -> None:
        stack = [(pattern, actual)]
        while stack:
            a, b = stack.pop()
            if isinstance(a, Load) and isinstance(b, Load):
                self._access(a.source, a.indices, b.source, b.indices, to_loops, bound)
                continue
            x = self.analyzer.simplify(substitute(a, to_loops))
            y = self.analyzer.simplify(substitute(b, bound))
            if x is y and not any(isinstance(n, Load) for n in postorder(a)):
                continue
            if not _same_head(a, b):
                self.fail(f"{b} is not {a}")
            stack += zip(a.children(), b.children(), strict=True)  # type: ignore[arg-type]

    def _access(
        self,
        small: Buffer,
        places: Sequence[Expr],
        buffer: Buffer,
        indices: Sequence[Expr],
        to_loops: dict[Var, Expr],
        bound: dict[Var, Expr],
    ) -> None:
        """Where the operand `small` lies in `buffer`; the same for each of its accesses."""
        skipped = len(indices) - len(places)
        if skipped < 0 or small.dtype is not buffer.dtype:
            self.fail(f"operand {small} cannot lie in {buffer}")
        inside = {l.var for l in self.inner}
        base: list[Expr] = []
        for d, index in enumerate(indices):
            start = substitute(index, bound)
            if d >= skipped:
                start = start - substitute(places[d - skipped], to_loops)
            start = self.analyzer.simplify(
                substitute(self.analyzer.simplify(start), self._single())
            )
            if any(n in inside for n in postorder(start)):
                self.fail(
                    f"{buffer.name}{list(indices)} does not run along operand "
                    f"{small.name}{list(places)}",
                    "reorder the loops, or copy the operand into this layout with cache_read",
                )
            base.append(start)
        if self.views.setdefault(small, (buffer, tuple(base))) != (buffer, tuple(base)):
            self.fail(f"operand {small.name!r} would be two parts of memory")

    def _single(self) -> dict[Var, Expr]:
        return {l.var: l.min for l in self.inner if _is_one(l.extent)}

    def call(self) -> tuple[Stmt | None, Stmt | None, Stmt | None]:
        """What the intrinsic emits here: body, reset, update."""
        ins = [self._view(self.buffers[t]) for t in self.inputs]
        outs = [self._view(b) for b in self.outputs]
        result = self.intrin.fcompute(ins, outs)
        if not isinstance(result, tuple):
            result = (result, None, None)
        if len(result) != 3 or not all(r is None or isinstance(r, Stmt) for r in result):
            self.fail("its function must return a statement or (body, reset, update)")
        return result

    def _view(self, small: Buffer) -> BufferView:
        buffer, base = self.views[small]
        return BufferView(buffer, base, small.shape, lambda b, i, v: Store(b, i, v))


def _is_one(extent: Expr) -> bool:
    return isinstance(extent, IntImm) and extent.value == 1


def _same_head(a: Expr, b: Expr) -> bool:
    if type(a) is not type(b) or a.dtype is not b.dtype:
        return False
    if isinstance(a, Binary) and isinstance(b, Binary):
        return a.op is b.op
    if isinstance(a, Call) and isinstance(b, Call):
        return a.name == b.name and len(a.args) == len(b.args)
    return isinstance(a, Cast | Select)


def _replacement(func: PrimFunc, block: Block, inner: Sequence[For], tile: _Tile) -> Stmt:
    """The block over the outer loops alone, whose body is what the intrinsic emits."""
    body, reset, update = tile.call()
    outer = [l for l in loops_above(func, block) if not any(l is i for i in inner)]
    outer = [l for l in outer if kinds_in(block, l.var)]
    reduced_outside = any(IterKind.REDUCE in kinds_in(block, l.var) for l in outer)
    init: Stmt | None = None
    if block.init is None and IterKind.REDUCE in {v.kind for v in block.iter_vars}:
        chosen = update
    elif block.init is None or (body is not None and not reduced_outside):
        chosen = body
    else:
        chosen, init = update, reset or _reset(block, inner)
    if chosen is None:
        tile.fail(
            "it has no statement that accumulates",
            "return (body, reset, update) from its function, or put all reduction loops inside",
        )
        raise AssertionError
    own = {l.var: Var(l.var.name) for l in outer}
    iter_vars = tuple(
        IterVar(own[l.var], l.min, l.extent, min(kinds_in(block, l.var))) for l in outer
    )
    return Block(
        block.name,
        iter_vars,
        tuple(l.var for l in outer),
        substitute_stmt(chosen, own),
        None if init is None else substitute_stmt(init, own),
        block.predicate,
        {**block.annotations, "tensorized": tile.intrin.name},
        block.span,
    )


def _reset(block: Block, inner: Sequence[For]) -> Stmt:
    """The block's own initialisation over the spatial loops inside."""
    assert block.init is not None
    bound = {v.var: b for v, b in zip(block.iter_vars, block.bindings, strict=True)}
    stmt = substitute_stmt(block.init, bound)
    loops = [l for l in inner if IterKind.SPATIAL in kinds_in(block, l.var)]
    fresh: dict[Var, Expr] = {l.var: Var(l.var.name) for l in loops}
    stmt = substitute_stmt(stmt, fresh)
    for loop in reversed(loops):
        stmt = replace(loop, var=fresh[loop.var], body=stmt)
    return stmt
