"""Reads that certainly leave their tensor, found before anything runs.

>>> from tinycomp import te
>>> A = te.placeholder((8,), name="A")
>>> B = te.compute((8,), lambda i: A[i + 1], name="B")
>>> check_reads([B])
Traceback (most recent call last):
    ...
tinycomp.diagnostics.VerifyError: B reads A[i + 1]: index 0 takes the values 1 to 8, the extent is 8
  hint: guard the read with te.if_then_else, or change the shape or the index
"""

from __future__ import annotations

from collections.abc import Sequence

from ..diagnostics import VerifyError
from ..ir.expr import TRUE, Call, Expr, IntImm, Load, substitute, variables
from .simplify import Analyzer
from .tensor import ComputeOp, Reduce, ScanOp, Tensor, topological


def check_reads(outputs: Sequence[Tensor]) -> None:
    """Refuse affine indices that leave a dimension of known extent where nothing guards the read.

    What depends on data, and what only happens under a condition, is not looked at.

    Raises:
        VerifyError: naming the stage, the read and the values of the index.
    """
    operations = topological(outputs)
    inside = {op for scan in operations if isinstance(scan, ScanOp) for op in scan.body}
    for op in operations:
        if isinstance(op, ComputeOp) and op not in inside:
            _check(op)


def _check(op: ComputeOp) -> None:
    axes = (*op.axis, *op.reduce_axis)
    if any(isinstance(a.extent, IntImm) and a.extent.value <= 0 for a in axes):
        return  # nothing is computed
    analyzer = Analyzer()
    for axis in axes:
        analyzer.bind(axis.var, axis.min, axis.extent)
    for load in _certain_loads(op):
        for d, (index, extent) in enumerate(zip(load.indices, load.source.shape, strict=True)):
            low, high = analyzer.bounds(index)
            if low is None or high is None or not isinstance(extent, IntImm):
                continue
            if (low < 0 or high >= extent.value) and _is_affine(index, analyzer):
                raise VerifyError(
                    f"{op.name} reads {load}: index {d} takes the values {low} to {high}, "
                    f"the extent is {extent}",
                    span=op.span,
                    hint="guard the read with te.if_then_else, or change the shape or the index",
                )


def _certain_loads(op: ComputeOp) -> list[Load]:
    """The reads that happen for every element."""
    loads: list[Load] = []
    seen: set[object] = set()
    stack: list[Expr] = [e for e in op.body if not isinstance(e, Reduce) or e.condition is TRUE]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, Load):
            loads.append(node)
        guard = isinstance(node, Call) and node.name == "if_then_else"
        stack.extend(node.args[:1] if guard else node.children())  # type: ignore[union-attr]
    return loads


def _is_affine(index: Expr, analyzer: Analyzer) -> bool:
    """Whether the index is a sum of multiples of axes, so that its bounds are attained."""
    return all(
        isinstance(analyzer.simplify(substitute(index, {v: v + 1}) - index), IntImm)
        for v in variables(index)
    )
