"""rolling_buffer: what a stage computed stays for the next iteration of a loop around it.

A stage that is computed inside a loop of its consumer, for windows that overlap, computes the
overlap again in each iteration. Here it keeps the window in a circular buffer, and each iteration
computes only what is new.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((18,), name="A")
>>> B = te.compute((18,), lambda i: A[i] * 2.0, name="B")
>>> C = te.compute((16,), lambda i: B[i] + B[i + 2], name="C")
>>> s = create_schedule(C, [A])
>>> outer, inner = s[C].split("i", factor=4)
>>> s[B].compute_at(s[C], outer)
>>> print(s.func.body)
for i.outer in range(4):
    for i in range(6):
        with block("B"): i = i.outer * 4 + i
            B[i] = A[i] * 2f32
    for i.inner in range(4):
        with block("C"): i = i.outer * 4 + i.inner
            C[i] = B[i] + B[i + 2]
>>> s[B].rolling_buffer()
>>> print(s.func)
def main(A: float32[18]) -> (C: float32[16]):
    alloc B: float32[6]
    for i.outer in range(4):
        for i in range(6):
            with block("B") where once(i.outer <= 0 or 2 <= i): i = i.outer * 4 + i
                B[i % 6] = A[i] * 2f32
        for i.inner in range(4):
            with block("C"): i = i.outer * 4 + i.inner
                C[i] = B[i % 6] + B[(i + 2) % 6]

Source: Halide's `store_at` and `fold_storage` (Ragan-Kelley et al., PLDI 2013); the name is TVM's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...diagnostics import ScheduleError
from ...ir.expr import Expr, IntImm, Load, Var, call, const, substitute, variables
from ...ir.node import rewrite
from ...te.simplify import Analyzer
from ...te.tensor import IterKind
from ..nodes import ONCE, Block, Buffer, For, ForKind, PrimFunc, Store
from ..tree import loops_above, replace_stmt
from .common import (
    kinds_in,
    only_writer,
    own_loops,
    require_first_mark,
    require_plain_store,
    result_buffers,
)
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class RollingBuffer(Step):
    """Without an axis, the outermost loop is taken along which windows overlap."""

    NAME = "rolling_buffer"
    axis: str = ""

    def apply(self, schedule: Schedule) -> None:
        axis = schedule.loop(self.stage, self.axis).var if self.axis else None
        schedule.func = rolling_buffer(schedule.func, self.stage, axis)


@dataclass(frozen=True)
class _Window:
    """How the part that a stage computes moves along one dimension of its buffer."""

    loop: For
    dimension: int
    step: int  # by how many elements, from one iteration to the next
    extent: int  # how many elements one iteration needs
    position: Expr  # of an element in the window: the stage's own loop


def rolling_buffer(func: PrimFunc, block_name: str, axis: Var | None = None) -> PrimFunc:
    """Fold the dimension of a stage's buffer that moves with a loop around it, and compute only
    what the iteration before has not.

    Raises:
        ScheduleError: the stage is an output or not inside a loop of its readers, or no part of
            what an iteration computes is left from the one before.
    """
    block = only_writer(func, block_name)
    results = result_buffers(block)
    if any(b in func.params for b in results):
        raise ScheduleError(
            f"{block_name!r} is an output; all of it is kept", hint="roll a stage that it reads"
        )
    require_first_mark(block)
    require_plain_store(block)
    own = own_loops(func, block)
    shared = [l for l in loops_above(func, block) if not any(l is o for o in own)]
    if not shared:
        raise ScheduleError(
            f"stage {block_name!r} is computed as a whole, so nothing of it is computed twice",
            hint=f's["{block_name}"].compute_at(consumer, axis) first',
        )
    window = _chosen(block, own, shared, axis)
    condition = (window.loop.var <= window.loop.min) | (
        window.position >= window.extent - window.step
    )
    mark = call(ONCE, condition)
    func = replace_stmt(func, block, replace(block, predicate=block.predicate & mark))
    return _folded(func, results, window)


def _chosen(block: Block, own: list[For], shared: list[For], axis: Var | None) -> _Window:
    reasons: list[str] = []
    for depth, loop in enumerate(shared):
        if axis is not None and loop.var is not axis:
            continue
        found = _window(block, own, shared, depth)
        if isinstance(found, _Window):
            return found
        reasons.append(f"{loop.var.name!r}: {found}")
    if not reasons:
        assert axis is not None
        reasons = [f"{axis.name!r}: it is the stage's own loop"]
    raise ScheduleError(
        f"{block.name!r} cannot roll along {'; '.join(reasons)}",
        hint="a serial loop of the consumer, in which the windows of two iterations overlap; "
        "roll right after compute_at, shape the stage's own loops afterwards",
    )


def _window(block: Block, own: list[For], shared: list[For], depth: int) -> _Window | str:
    """The window that moves with the loop `shared[depth]`, or why there is none."""
    loop = shared[depth]
    if isinstance(loop.extent, IntImm) and loop.extent.value < 2:
        return "it has one iteration"
    if loop.kind not in (ForKind.SERIAL, ForKind.UNROLLED):
        return f"the loop is {loop.kind}, its iterations do not wait for each other"
    if kinds_in(block, loop.var) - {IterKind.SPATIAL}:
        return "not only free dimensions of the stage move with it"
    axes = [v for v in block.iter_vars if v.kind is not IterKind.REDUCE]
    bound = dict(zip(block.iter_vars, block.bindings, strict=True))
    moving = [(d, bound[v]) for d, v in enumerate(axes) if loop.var in variables(bound[v])]
    if len(moving) != 1:
        return f"{len(moving)} dimensions of the buffer move with it, not one"
    dimension, binding = moving[0]
    analyzer = Analyzer()
    for other in (*shared, *own):
        analyzer.bind(other.var, other.min, other.extent)
    following: dict[Var, Expr] = {loop.var: loop.var + 1}
    step = analyzer.simplify(substitute(binding, following) - binding)
    if not isinstance(step, IntImm) or step.value < 1:
        return f"the window does not move forwards by a constant, but by {step}"
    inner = {l.var for l in shared[depth + 1 :]}
    if inner.intersection(variables(binding)):
        return "the window moves with a loop inside of it too"
    threads = {l.var for l in shared if l.thread.startswith("threadIdx")}
    if threads.intersection(variables(binding)):
        return "the window also moves with a thread, and threads would share the circular buffer"
    position = _position(binding, own, analyzer)
    if position is None:
        return "the window is not one of the stage's own loops (it was split or fused)"
    extent = next(l.extent for l in own if l.var is position)
    if not isinstance(extent, IntImm):
        return f"the window has the extent {extent}, which is not known"
    if extent.value <= step.value:
        return f"windows of {extent} that move by {step} do not overlap"
    return _Window(loop, dimension, step.value, extent.value, position)


def _position(binding: Expr, own: list[For], analyzer: Analyzer) -> Var | None:
    """The own loop that counts the elements of the window from 0, if it is one loop."""
    used = [l for l in own if l.var in variables(binding)]
    if len(used) != 1 or not isinstance(used[0].min, IntImm) or used[0].min.value != 0:
        return None
    var = used[0].var
    rest = analyzer.simplify(binding - var)
    return None if var in variables(rest) else var


def _folded(func: PrimFunc, buffers: list[Buffer], window: _Window) -> PrimFunc:
    """The buffers with the window's extent in its dimension, and all accesses modulo that."""
    size = const(window.extent)

    def fold_shape(buffer: Buffer) -> Buffer:
        shape = list(buffer.shape)
        shape[window.dimension] = size
        return replace(buffer, shape=tuple(shape))

    folded = {b: fold_shape(b) for b in buffers}

    def place(indices: tuple[Expr, ...]) -> tuple[Expr, ...]:
        d = window.dimension
        return (*indices[:d], indices[d] % size, *indices[d + 1 :])

    def step(node: Any) -> Any:
        if isinstance(node, Load) and node.source in folded:
            buffer: Any = folded[node.source]  # type: ignore[index]
            return Load(buffer, place(node.indices), node.predicate)
        if isinstance(node, Store) and node.buffer in folded:
            return replace(node, buffer=folded[node.buffer], indices=place(node.indices))
        return node

    allocs = tuple(folded.get(b, b) for b in func.allocs)
    return replace(func, body=rewrite(func.body, step), allocs=allocs)
