"""transform_layout: the elements of an intermediate buffer change places.

>>> from tinycomp import te
>>> from tinycomp.tir.schedule import create_schedule
>>> A = te.placeholder((4, 6), name="A")
>>> B = te.compute((4, 6), lambda i, j: A[i, j] * 2.0, name="B")
>>> C = te.compute((4, 6), lambda i, j: B[i, j] + 1.0, name="C")
>>> s = create_schedule(C, [A])
>>> print(s.func.body)
for i in range(4):
    for j in range(6):
        with block("B"): i = i, j = j
            B[i, j] = A[i, j] * 2f32
for i in range(4):
    for j in range(6):
        with block("C"): i = i, j = j
            C[i, j] = B[i, j] + 1f32
>>> s[B].transform_layout(lambda i, j: (j // 4, i, j % 4))
>>> print(s.func.body)
for i in range(4):
    for j in range(6):
        with block("B"): i = i, j = j
            B[j // 4, i, j % 4] = A[i, j] * 2f32
for i in range(4):
    for j in range(6):
        with block("C"): i = i, j = j
            C[i, j] = B[j // 4, i, j % 4] + 1f32
>>> s.buffer("B")
B: float32[2, 4, 4] global
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...diagnostics import ScheduleError
from ...ir.expr import Binary, BinaryOp, Expr, IntImm, Load, Var, const, substitute
from ...ir.fold import refold
from ...ir.node import Node, fold
from ...te.simplify import Analyzer
from ...te.tensor import AXIS_SEPARATOR
from ..nodes import Buffer, PrimFunc, Store
from .affine import Tokens, from_tokens, infix, to_tokens
from .step import Step

if TYPE_CHECKING:
    from ..schedule import Schedule

_MOST_ELEMENTS = 1 << 22  # whose new places are compared one by one


@dataclass(frozen=True)
class TransformLayout(Step):
    """`stage` is the name of the buffer; `index_map` holds one expression per new dimension, of
    i0, i1, ... in postfix order."""

    NAME = "transform_layout"
    index_map: tuple[Tokens, ...]

    def apply(self, schedule: Schedule) -> None:
        buffer = schedule.buffer(self.stage)
        variables = [Var(f"i{d}") for d in range(len(buffer.shape))]
        named = {v.name: v for v in variables}
        indices = [from_tokens(t, named) for t in self.index_map]
        schedule.func = transform_layout(schedule.func, buffer, variables, indices)

    def call(self) -> str:
        count = 1 + max(
            (int(str(t)[1:]) for tokens in self.index_map for t in tokens if _is_axis(t)),
            default=-1,
        )
        names = ", ".join([*(f"i{d}" for d in range(count)), "*_"])
        places = ", ".join(infix(t) for t in self.index_map)
        comma = "," if len(self.index_map) == 1 else ""
        return f's["{self.stage}"].transform_layout(lambda {names}: ({places}{comma}))'


def _is_axis(token: str | int) -> bool:
    return isinstance(token, str) and token[:1] == "i" and token[1:].isdigit()


def tokens_of_map(index_map: Callable[..., Any], rank: int) -> tuple[Tokens, ...]:
    """A Python function from old to new indices, as the field of the step.

    `te.AXIS_SEPARATOR` may stand between indices, as in TVM, where it splits the buffer in
    physical dimensions; buffers are flat memory here, so it changes nothing.
    """
    try:
        inspect.signature(index_map).bind(*range(rank))
    except TypeError as error:
        raise ScheduleError(
            f"{index_map!r} is not a function of the {rank} indices of the buffer: {error}",
            hint="such as lambda i, j: (j, i)",
        ) from None
    result = index_map(*(Var(f"i{d}") for d in range(rank)))
    places = result if isinstance(result, tuple | list) else (result,)
    return tuple(to_tokens(e) for e in places if e is not AXIS_SEPARATOR)


def transform_layout(
    func: PrimFunc, buffer: Buffer, variables: Sequence[Var], indices: Sequence[Expr]
) -> PrimFunc:
    """Store the element at `variables` at `indices` instead, in a buffer as large as that needs.

    Raises:
        ScheduleError: the buffer is a parameter, or two elements would share a place.
    """
    if buffer in func.params:
        raise ScheduleError(
            f"{buffer.name!r} is a parameter of {func.name!r}: its layout is the caller's",
            hint="cache_read or cache_write makes a copy whose layout is free",
        )
    if not all(isinstance(d, IntImm) for d in buffer.shape):
        raise ScheduleError(
            f"the shape of {buffer.name!r} is symbolic", hint="give the dimensions as numbers"
        )
    analyzer = Analyzer(func.sizes)
    for var, extent in zip(variables, buffer.shape, strict=True):
        analyzer.bind(var, 0, extent)
    shape: list[Expr] = []
    for index in indices:
        low, high = analyzer.bounds(index)
        if low is None or high is None or low < 0:
            raise ScheduleError(
                f"index {index} takes values from {low} to {high}",
                hint="indices start at 0 and have an end",
            )
        shape.append(const(high + 1))
    _require_one_to_one(buffer, variables, indices, shape)
    moved = replace(buffer, shape=tuple(shape), aligned=None)

    def places(old: Sequence[Expr]) -> tuple[Expr, ...]:
        values = dict(zip(variables, old, strict=True))
        return tuple(substitute(i, values) for i in indices)

    def step(node: Node, children: list) -> Node:
        node = refold(node, children)
        if isinstance(node, Load) and node.source is buffer:
            return Load(moved, places(node.indices), node.predicate)
        if isinstance(node, Store) and node.buffer is buffer:
            return replace(node, buffer=moved, indices=places(node.indices))
        return node

    allocs = tuple(moved if b is buffer else b for b in func.allocs)
    return replace(func, body=fold(func.body, step), allocs=allocs)


def _require_one_to_one(
    buffer: Buffer, variables: Sequence[Var], indices: Sequence[Expr], shape: Sequence[Expr]
) -> None:
    sizes = [d.value for d in buffer.shape if isinstance(d, IntImm)]
    new = [d.value for d in shape if isinstance(d, IntImm)]
    if int(np.prod(sizes)) > _MOST_ELEMENTS:
        raise ScheduleError(
            f"{buffer.name!r} has more than {_MOST_ELEMENTS} elements, too many to compare their "
            "places",
            hint="transform a smaller buffer: a tile from cache_read",
        )
    grids = dict(zip(variables, np.indices(sizes), strict=True))
    total = np.zeros(sizes, np.int64)
    for index, size in zip(indices, new, strict=True):
        total = total * size + _evaluate(index, grids)
    if np.unique(total).size != total.size:
        raise ScheduleError(
            f"two elements of {buffer.name!r} would share a place",
            hint="the map must keep every index recoverable, as (j // 4, i, j % 4) does",
        )


_NUMPY = {
    BinaryOp.ADD: np.add, BinaryOp.SUB: np.subtract, BinaryOp.MUL: np.multiply,
    BinaryOp.FLOORDIV: np.floor_divide, BinaryOp.FLOORMOD: np.mod,
}  # fmt: skip


def _evaluate(index: Expr, grids: dict[Var, np.ndarray]) -> Any:
    def step(node: Expr, parts: list[Any]) -> Any:
        if isinstance(node, Var):
            return grids[node]
        if isinstance(node, IntImm):
            return node.value
        if isinstance(node, Binary) and node.op in _NUMPY:
            return _NUMPY[node.op](*parts)
        raise ScheduleError(f"{node} is not an index", hint="use + - * // %")

    return fold(index, step)
