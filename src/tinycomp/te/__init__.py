"""Tensor expressions: `from tinycomp import te`.

The names are TVM's. `sum`, `min`, `max`, `all` and `any` here are reductions; `minimum` and
`maximum` take two values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..ir import instruction
from ..ir.expr import Expr, Var, call
from ..ir.instruction import broadcast, reinterpret, sum_lanes
from . import math
from .check_reads import check_reads
from .gradient import gradient
from .intrin import BufferView, TensorIntrin, decl_tensor_intrin
from .math import *  # noqa: F403
from .reducers import all, any, comm_reducer, max, min, prod, sum
from .tensor import (
    AXIS_SEPARATOR,
    ComputeOp,
    ExternOp,
    IterKind,
    IterVar,
    Operation,
    PlaceholderOp,
    Reduce,
    ScanOp,
    Tensor,
    compute,
    extern,
    inputs_of,
    placeholder,
    reduce_axis,
    scan,
    size_var,
    tag_scope,
    thread_axis,
    topological,
    var,
)

if TYPE_CHECKING:
    from ..tir.schedule import Schedule


def create_schedule(
    outputs: Operation | Tensor | Sequence[Operation | Tensor], name: str = "main"
) -> Schedule:
    """A schedule of naive loops for all that `outputs` need.

    Args:
        outputs: tensors or their operations, one or several.

    Raises:
        VerifyError: a stage certainly reads outside a tensor.

    >>> from tinycomp import te
    >>> A = te.placeholder((8,), name="A")
    >>> B = te.compute((8,), lambda i: A[i] + 1.0, name="B")
    >>> te.create_schedule(B.op).stages
    ['B']
    """
    from ..tir.schedule import create_schedule as create  # a layer above: scheduling rewrites tir

    several: Sequence[Any] = outputs if isinstance(outputs, list | tuple) else [outputs]
    tensors: list[Tensor] = []
    for item in several:
        if isinstance(item, Tensor):
            tensors.append(item)
        else:
            tensors.extend(item.output(i) for i in range(item.num_outputs))
    tensors = list(dict.fromkeys(tensors))
    check_reads(tensors)
    return create(tensors, name=name)


__all__ = [
    "AXIS_SEPARATOR", "BufferView", "ComputeOp", "Expr", "ExternOp", "IterKind", "IterVar",
    "PlaceholderOp", "Reduce", "ScanOp", "Tensor", "TensorIntrin", "Var", "all", "any",
    "broadcast", "call", "comm_reducer", "compute", "create_schedule", "decl_tensor_intrin",
    "extern", "gradient", "inputs_of", "instruction", "max", "min", "placeholder", "prod",
    "reduce_axis", "reinterpret", "scan", "size_var", "sum", "sum_lanes", "tag_scope",
    "thread_axis", "topological", "var",
]  # fmt: skip
__all__ += math.__all__
