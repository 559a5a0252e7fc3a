"""The first elements of each line in sorted order on a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .... import te
from ....dtype import DType
from ....ir.expr import Expr, Load, as_int
from ....ops.shape import unravel
from ....te.tensor import Tensor
from ....tir.nodes import Buffer, Seq, Stmt, Store
from ....types import TupleType
from ...loops import around_axis
from ...sort_records import Fields, Records
from .sorting import sort_lines


def expand_topk(attrs: Any, args: Sequence[Tensor], out: TupleType) -> list[Tensor] | None:
    """topk as hand-written loops; None for an empty result."""
    (x,) = args
    values, indices = (t.static_shape for t in out.fields)  # type: ignore[union-attr]
    if not math.prod(values):
        return None
    shape, axis = tuple(as_int(d) for d in x.shape), attrs.axis % x.ndim
    outside = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    source, target = around_axis(shape, axis), around_axis(values, axis)
    records = Records(x.dtype, attrs.largest)

    def make(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        def element(line: Expr, p: Expr) -> Expr:
            o, i = unravel(line, outside)
            return Load(ins[0], source(o, p, i), None)

        def read(line: Expr, p: Expr) -> Fields:
            return records.record(element(line, p), p)

        def write(line: Expr, p: Expr, record: Fields) -> Stmt:
            o, i = unravel(line, outside)
            place = records.place(record)
            value = Store(outs[0], target(o, p, i), element(line, place))
            return Seq((value, Store(outs[1], target(o, p, i), place)))

        return sort_lines(records, math.prod(outside), shape[axis], attrs.k, read, write)

    return te.extern([values, indices], [x], make, "topk", [x.dtype, DType.INT64])
