"""Writing at computed places on a CPU: a copy of the data, then one update after the other.

In this order the last update of an element is what remains, and sums are added up as NumPy's
`ufunc.at` does. What the updates do to different places off the indexed axes is independent: that
is what threads share, so that results do not depend on their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import te
from ..dtype import DType
from ..ir.expr import Binary, BinaryOp, Expr, Load, as_int, call, const
from ..ops.shape import unravel
from ..te.tensor import Tensor
from ..tir.nodes import Buffer, For, ForKind, Scope, Seq, Stmt, Store
from ..types import TensorType
from .common import PARALLEL_CYCLES
from .loops import Place, allocated, loop, vector

_COMBINE = {
    "add": BinaryOp.ADD, "mul": BinaryOp.MUL, "min": BinaryOp.MIN, "max": BinaryOp.MAX,
}  # fmt: skip
_COPIED = 1024  # elements that are copied together
_COLUMNS = 256  # of an update, that one thread writes
_CYCLES = 4  # of one element


@dataclass(frozen=True)
class Updates:
    """What a scatter does: in each of `lines`, updates 0 to `count` in order, each of `rows` x
    `columns` elements.

    Attributes:
        extents: of the axes of the data that the indices are for.
        by_element: whether the elements of an update have indices of their own.
        index: `(line, k, row, column, axis) -> place in the indices`.
        source: `(line, k, row, column) -> place in the updates`.
        target: `(line, indices, row, column) -> place in the data`.
    """

    lines: int
    count: int
    rows: int
    columns: int
    extents: tuple[int, ...]
    by_element: bool
    index: Callable[..., tuple[Expr, ...]]
    source: Place
    target: Callable[..., tuple[Expr, ...]]

    @property
    def size(self) -> int:
        return self.lines * self.count * self.rows * self.columns


def elements_of(attrs: Any, args: Sequence[Tensor]) -> Updates:
    """scatter_elements: an index for every element, along one axis."""
    x, indices, _ = args
    axis = attrs.axis % x.ndim
    shape = tuple(as_int(d) for d in indices.shape)
    before, after = shape[:axis], shape[axis + 1 :]

    def source(line: Expr, k: Expr, row: Expr, column: Expr) -> tuple[Expr, ...]:
        return (*unravel(line, before), k, *_tail(after, row, column))

    return Updates(
        math.prod(before), shape[axis], math.prod(after[:-1]), (after or (1,))[-1],
        (as_int(x.shape[axis]),), True,
        lambda line, k, row, column, _: source(line, k, row, column), source,
        lambda line, at, row, column: source(line, at[0], row, column),
    )  # fmt: skip


def slices_of(attrs: Any, args: Sequence[Tensor]) -> Updates:
    """scatter_nd: indices of whole slices."""
    x, indices, _ = args
    outer = tuple(as_int(d) for d in indices.shape[:-1])
    depth = as_int(indices.shape[-1])
    tail = tuple(as_int(d) for d in x.shape[depth:])
    return Updates(
        1, math.prod(outer), math.prod(tail[:-1]), (tail or (1,))[-1],
        tuple(as_int(d) for d in x.shape[:depth]), False,
        lambda _line, k, _row, _column, axis: (*unravel(k, outer), axis),
        lambda _, k, row, column: (*unravel(k, outer), *_tail(tail, row, column)),
        lambda _, at, row, column: (*at, *_tail(tail, row, column)),
    )  # fmt: skip


def _tail(shape: tuple[int, ...], row: Expr, column: Expr) -> tuple[Expr, ...]:
    return (*unravel(row, shape[:-1]), column) if shape else ()


def combined(reduction: str, old: Expr, new: Expr) -> Expr:
    """An element after an update."""
    return new if reduction == "none" else Binary(_COMBINE[reduction], old, new)


def checked(indices: Buffer, place: tuple[Expr, ...], extent: int) -> Expr:
    """An index of an axis of the data, checked at run time."""
    return call("checked_index", Load(indices, place, None).astype(DType.INT64), const(extent))


def expand_scatter(
    describe: Callable[..., Updates], attrs: Any, args: Sequence[Tensor], out: TensorType
) -> list[Tensor] | None:
    """scatter_elements or scatter_nd as hand-written loops; None for an empty result."""
    updates = describe(attrs, args)

    def update(copied: Stmt, ins: list[Buffer], result: Buffer) -> Stmt:
        return _Scatter(updates, attrs.reduction, ins[1], ins[2], result).after(copied)

    return scatter_loops(updates, args, out, _copy, update)


def scatter_loops(
    updates: Updates,
    args: Sequence[Tensor],
    out: TensorType,
    copy: Callable[[Buffer, Buffer], Stmt],
    update: Callable[[Stmt, list[Buffer], Buffer], Stmt],
) -> list[Tensor] | None:
    """A scatter as loops: `copy(data, result)`, and `update(copied, inputs, result)` around that if
    there are updates. None for an empty result."""
    if not out.size:
        return None

    def make(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        copied = copy(ins[0], outs[0])
        return update(copied, ins, outs[0]) if updates.size else copied

    return [te.extern(out.static_shape, args, make, "scatter", out.dtype)]


def _copy(x: Buffer, out: Buffer) -> Stmt:
    """All elements, in pieces of the last axis."""
    shape = tuple(as_int(d) for d in x.shape) or (1,)
    rows, columns = math.prod(shape[:-1]), shape[-1]
    width = min(columns, _COPIED)

    def piece(count: int, width: int, first: int) -> Stmt:
        def one(number: Expr) -> Stmt:
            row, block = unravel(number, (rows, count))

            def element(u: Expr) -> Stmt:
                at = (*unravel(row, shape[:-1]), first + block * width + u)[
                    len(shape) - len(x.shape) :
                ]
                return Store(out, at, Load(x, at, None))

            return vector("u", width, element)

        return loop("piece", rows * count, one, _kind(rows * count, width))

    pieces = [piece(columns // width, width, 0)]
    if columns % width:
        pieces.append(piece(1, columns % width, columns // width * width))
    return Seq(tuple(pieces))


def _kind(count: int, each: int) -> ForKind:
    worth = count > 1 and count * each * _CYCLES >= PARALLEL_CYCLES
    return ForKind.PARALLEL if worth else ForKind.SERIAL


@dataclass
class _Scatter:
    """Builds the loops over the updates."""

    updates: Updates
    reduction: str
    indices: Buffer
    values: Buffer
    out: Buffer

    def after(self, copy: Stmt) -> Stmt:
        depth = len(self.updates.extents)
        self.at = Buffer("at", (const(max(depth, 1)),), DType.INT64, Scope.LOCAL)
        columns = self.updates.columns
        width = min(columns, _COLUMNS)
        pieces = [self._columns(columns // width, width, 0)]
        if columns % width:
            pieces.append(self._columns(1, columns % width, columns // width * width))
        return allocated([self.at], Seq((copy, *pieces)))

    def _columns(self, count: int, width: int, first: int) -> For:
        """All updates, of `count` times `width` columns."""
        own = self.updates
        pieces = (own.lines, own.rows, count)

        def piece(number: Expr) -> Stmt:
            line, row, block = unravel(number, pieces)

            def update(k: Expr) -> Stmt:
                def column(u: Expr) -> Expr:
                    return first + block * width + u

                def element(u: Expr) -> Stmt:
                    return self._element(line, k, row, column(u))

                if own.by_element:
                    return loop("u", width, lambda u: Seq((
                        self._find(line, k, row, column(u)), element(u)
                    )))  # fmt: skip
                return Seq((self._find(line, k, row, const(0)), vector("u", width, element)))

            return loop("k", own.count, update)

        return loop("piece", math.prod(pieces), piece, _kind(math.prod(pieces), own.count * width))

    def _find(self, line: Expr, k: Expr, row: Expr, column: Expr) -> Stmt:
        """`at` of an update."""
        own = self.updates
        return Seq(tuple(
            Store(self.at, (const(d),), checked(
                self.indices, own.index(line, k, row, column, const(d)), extent
            ))
            for d, extent in enumerate(own.extents)
        ))  # fmt: skip

    def _element(self, line: Expr, k: Expr, row: Expr, column: Expr) -> Stmt:
        own = self.updates
        at = [Load(self.at, (const(d),), None) for d in range(len(own.extents))]
        place = own.target(line, at, row, column)
        new = Load(self.values, own.source(line, k, row, column), None)
        return Store(self.out, place, combined(self.reduction, Load(self.out, place, None), new))
