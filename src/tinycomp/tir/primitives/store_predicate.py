"""set_store_predicate: a stage that is repeated by loops around it is computed in some only.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((8,), name="A")
>>> B = te.compute((8,), lambda j: A[j] * 2.0, name="B")
>>> C = te.compute((4, 8), lambda i, j: B[j] + te.cast(i, "float32"), name="C")
>>> s = create_schedule(C, [A])
>>> s[B].compute_at(s[C], "i")
>>> print(s.func.body)
for i in range(4):
    for j in range(8):
        with block("B"): j = j
            B[j] = A[j] * 2f32
    for j in range(8):
        with block("C"): i = i, j = j
            C[i, j] = B[j] + float32(i)
>>> s[B].set_store_predicate(s[C].axis("i").equal(0))
>>> print(s.func.body)
for i in range(4):
    for j in range(8):
        with block("B") where once(i == 0): j = j
            B[j] = A[j] * 2f32
    for j in range(8):
        with block("C"): i = i, j = j
            C[i, j] = B[j] + float32(i)

With `i` bound to threadIdx.x, one thread stores what all of the block read after a barrier. Where
threads combine their values (`bind` of a reduction axis) the first one stores the result anyway;
the condition that TVM needs there is accepted and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...diagnostics import ScheduleError
from ...dtype import DType
from ...ir.expr import Expr, IntImm, call, substitute, variables
from ...te.simplify import Analyzer
from ..nodes import ONCE, Block, For, ForKind, PrimFunc
from ..tree import loops_above, replace_stmt
from .affine import Tokens, from_tokens
from .annotate import REDUCE_THREADS
from .common import kinds_in, only_writer, require_first_mark
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class SetStorePredicate(Step):
    """`predicate` is a condition on loops around the stage, in postfix order."""

    NAME = "set_store_predicate"
    predicate: Tokens

    def apply(self, schedule: Schedule) -> None:
        loops = {l.var.name: l.var for l in schedule.loops(self.stage)}
        threads = {l.thread: l.var for l in schedule.loops(self.stage) if l.thread}
        condition = from_tokens(self.predicate, {**threads, **loops})
        schedule.func = set_store_predicate(schedule.func, self.stage, condition)


def set_store_predicate(func: PrimFunc, block_name: str, condition: Expr) -> PrimFunc:
    """Compute a stage only in iterations of the loops around it in which `condition` holds.

    The loops of the condition must repeat the stage without changing what it computes, one after
    the other (or as threads of one block), and the condition must hold in the first iteration.

    Raises:
        ScheduleError: one of this does not hold, so that elements would be missing.
    """
    block = only_writer(func, block_name)
    require_first_mark(block)
    loops = [l for l in loops_above(func, block) if l.var in variables(condition)]
    if condition.dtype is not DType.BOOL or not loops:
        raise ScheduleError(
            f"{condition} is not a condition on loops around {block_name!r}",
            hint="compare an axis: axis.equal(0), axis < 1",
        )
    combined = [l for l in loops if l.annotations.get(REDUCE_THREADS)]
    for loop in loops:
        if loop not in combined:
            _check_loop(block, loop, condition)
    analyzer = Analyzer(func.sizes)
    for loop in loops_above(func, block):
        analyzer.bind(loop.var, loop.min, loop.extent)
    first = analyzer.simplify(substitute(condition, {l.var: l.min for l in loops}))
    if not isinstance(first, IntImm) or not first.value:
        raise ScheduleError(
            f"{condition} does not hold in the first iteration, in which {block_name!r} would be "
            "read before it is computed",
            hint=f"a condition that holds at {', '.join(f'{l.var.name} = {l.min}' for l in loops)}",
        )
    if combined == loops:
        return func  # threads that combine their values let the first of them store the result
    mark = call(ONCE, condition)
    return replace_stmt(func, block, replace(block, predicate=block.predicate & mark))


def _check_loop(block: Block, loop: For, condition: Expr) -> None:
    name = loop.var.name
    if kinds_in(block, loop.var):
        raise ScheduleError(
            f"axis {name!r} decides which elements {block.name!r} computes; where {condition} "
            "fails they would be missing",
            hint="use axes that only repeat the computation, such as a thread axis around it",
        )
    is_thread = loop.thread.startswith("threadIdx")
    if loop.kind not in (ForKind.SERIAL, ForKind.UNROLLED) and not is_thread:
        raise ScheduleError(
            f"loop {name!r} is {loop.thread or loop.kind}: its iterations do not see what one of "
            "them stores",
            hint="use a serial loop or one bound to threadIdx",
        )
