"""argmax and argmin on a GPU: reductions of pairs of an index and a value. Among equal values the
combiner chooses by the index, so the order does not matter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ....ir.expr import Expr, Load, as_int, substitute, variables
from ....ir.node import postorder
from ....ops import default_ops
from ....te.tensor import ComputeOp, Reduce, Tensor
from ....tir.from_te import load_buffers
from ....tir.lower_gpu import ACCESS
from ....tir.nodes import Buffer, Store
from ....types import TensorType
from ...common import extents
from .tuple_reduction import Elements, ReductionShape, Results, Values, reduce_tuples, unravel


def expand_arg_reduction(
    name: str, attrs: Any, args: Sequence[Tensor], out: TensorType
) -> list[Tensor] | None:
    """The operator `name` as hand-written loops; None where nothing is reduced."""
    compute = default_ops()[name].compute
    assert compute is not None
    (result,) = compute(attrs, args, out)
    op = result.op
    assert isinstance(op, ComputeOp)
    reduce = op.body[0]
    assert isinstance(reduce, Reduce)
    shape = _shape_of(op, reduce)
    if not shape.count or not shape.length:
        return None
    return reduce_tuples(
        reduce.combiner,
        [source.dtype for source in reduce.sources],
        shape,
        args,
        lambda ins: _elements(op, reduce, dict(zip(args, ins, strict=True))),
        (out.static_shape, out.dtype),
        lambda outs: _index_into(outs[0], op),
        name,
    )


def _shape_of(op: ComputeOp, reduce: Reduce) -> ReductionShape:
    """How the elements of a reduction lie in memory."""
    lengths = [as_int(a.extent) for a in op.reduce_axis]
    kept = {a.var for a in op.axis if as_int(a.extent) > 1}
    loads = [n for n in postorder(list(reduce.sources)) if isinstance(n, Load) and n.indices]
    along = all(not kept & set(variables(load.indices[-1])) for load in loads)
    lanes = min((ACCESS.lanes(load.dtype) for load in loads), default=1) if along else 1
    while lengths and lengths[-1] % lanes:
        lanes //= 2
    return ReductionShape(math.prod(extents(op)), math.prod(lengths), along, lanes)


def _elements(op: ComputeOp, reduce: Reduce, buffers: dict[Tensor, Buffer]) -> Elements:
    """The values of element k of a result."""
    sources = [load_buffers(source, buffers) for source in reduce.sources]
    lengths = [as_int(a.extent) for a in op.reduce_axis]

    def element(row: Expr, k: Expr) -> Values:
        places = zip(op.axis, unravel(row, extents(op)), strict=True)
        reduced = zip(op.reduce_axis, unravel(k, lengths), strict=True)
        at = {axis.var: index for axis, index in (*places, *reduced)}
        return [substitute(source, at) for source in sources]

    return element


def _index_into(out: Buffer, op: ComputeOp) -> Results:
    """Stores the first value of a result, the index."""
    return lambda row, values: Store(out, tuple(unravel(row, extents(op))), values[0])
