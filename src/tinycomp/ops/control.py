"""ONNX importers of If, Loop and Scan.

What is decided while importing leaves no control flow behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ..diagnostics import TypeMismatch, UnsupportedModel
from ..relay.builder import Builder
from ..relay.nodes import Atom, Constant, Function, Var
from ..types import TensorType, TupleType, Type
from .layout import reshape, slice_axis
from .onnx_node import OnnxImport, OnnxNode

# Loops of known length up to this many imported nodes are written out.
UNROLL_LIMIT = 20_000


class Subgraph(Protocol):
    """A graph attribute, as the front end gives it."""

    num_nodes: int
    num_outputs: int

    def __call__(self, *inputs: Atom) -> list[Atom]: ...
    def close(
        self,
        types: Sequence[Type],
        finish: Callable[[Builder, list[Atom], list[Atom]], list[Atom]] | None = None,
    ) -> tuple[Function, tuple[Atom, ...]]: ...


def _scalar(node: OnnxNode, x: Atom) -> Atom:
    return reshape(node, x, ())


def _import_if(node: OnnxNode) -> list[Atom]:
    branches: list[Subgraph] = [node.attr("then_branch"), node.attr("else_branch")]
    condition = node.input(0)
    if isinstance(condition, Constant):
        return branches[0 if condition.data.item() else 1]()
    closed = [branch.close([]) for branch in branches]
    operands = tuple(dict.fromkeys(value for _, captured in closed for value in captured))
    then, otherwise = (_with_params(f, captured, operands) for f, captured in closed)
    try:
        result = node.builder.if_(_scalar(node, condition), then, otherwise, operands)
    except TypeMismatch as error:
        raise UnsupportedModel(
            error.message, span=node.span, hint="both branches must give the same shapes"
        ) from None
    return _fields(node, result)


def _with_params(
    function: Function, captured: Sequence[Atom], operands: Sequence[Atom]
) -> Function:
    """`function`, whose parameters are `captured`, as a function of all `operands`."""
    param = dict(zip(captured, function.params, strict=True))
    params = tuple(param.get(o) or Var(f"unused{i}", o.type) for i, o in enumerate(operands))
    return Function(params, function.bindings, function.result, function.attrs)


def _fields(node: OnnxNode, result: Atom) -> list[Atom]:
    if not isinstance(result.type, TupleType):
        return [result]
    return [node.builder.get(result, i) for i in range(len(result.type.fields))]


def _import_loop(node: OnnxNode) -> list[Atom]:
    body: Subgraph = node.attr("body")
    trips = int(node.scalar(0)) if isinstance(node.inputs[0], Constant) else None
    go = node.input(1) if node.has(1) else node.builder.const(np.asarray(True))
    state = [node.input(i) for i in range(2, len(node.inputs))]
    if isinstance(go, Constant) and not go.data.item():
        trips = 0
    if isinstance(go, Constant) and trips is not None and trips * body.num_nodes <= UNROLL_LIMIT:
        results = _unroll(node, body, trips, state)
        if results is not None:
            return results
    if body.num_outputs - 1 > len(state):
        raise node.unsupported("collecting results of a loop whose length depends on data")
    return _while(node, body, go, state)


def _unroll(node: OnnxNode, body: Subgraph, trips: int, state: list[Atom]) -> list[Atom] | None:
    """The loop written out; None (and nothing emitted) if an iteration's condition is data."""
    b = node.builder
    mark, carried = len(b.bindings), len(state)
    collected: list[list[Atom]] = [[] for _ in range(body.num_outputs - 1 - carried)]
    for i in range(trips):
        go, *outputs = body(b.const(np.asarray(i, np.int64)), b.const(np.asarray(True)), *state)
        state = outputs[:carried]
        for column, value in zip(collected, outputs[carried:], strict=True):
            column.append(value)
        if not isinstance(go, Constant):
            if i == trips - 1:
                break
            del b.bindings[mark:]
            return None
        if not go.data.item():
            break
    return [*state, *(_stack(node, column) for column in collected)]


def _stack(node: OnnxNode, values: list[Atom], axis: int = 0) -> Atom:
    """The values along a new axis."""
    if not values:
        raise node.unsupported("collecting results of a loop that never runs")
    at = axis % (len(_shape(values[0])) + 1)
    rows = [reshape(node, v, (*_shape(v)[:at], 1, *_shape(v)[at:])) for v in values]
    return rows[0] if len(rows) == 1 else node.builder.call("concatenate", *rows, axis=at)


def _shape(value: Atom) -> tuple[Any, ...]:
    assert isinstance(value.type, TensorType)
    return value.type.shape


def _while(node: OnnxNode, body: Subgraph, go: Atom, state: list[Atom]) -> list[Atom]:
    """The loop as While over (iteration number, condition, state...)."""
    b = node.builder
    init = [b.const(np.asarray(0, np.int64)), _scalar(node, go), *state]
    types = [value.type for value in init]

    def finish(inner: Builder, inputs: list[Atom], outputs: list[Atom]) -> list[Atom]:
        following = inner.call("add", inputs[0], inner.const(np.asarray(1, np.int64)))
        condition = outputs[0]
        if _shape(condition) != ():
            condition = inner.call("reshape", condition, newshape=())
        return [following, condition, *outputs[1:]]

    step, captured = body.close(types, finish)
    trips = _scalar(node, node.input(0)) if node.has(0) else None
    operands = captured
    if isinstance(trips, Var) and trips not in captured:
        operands = (*captured, trips)
    states = step.params[: len(types)]
    step = _with_params(step, (*states, *captured), (*states, *operands))
    test = _loop_test(b, types, operands, trips)
    try:
        result = b.while_(test, step, init, operands)
    except TypeMismatch as error:
        raise UnsupportedModel(
            error.message, span=node.span, hint="a loop's state must keep its shapes"
        ) from None
    return [b.get(result, i) for i in range(2, len(types))]


def _loop_test(
    outer: Builder, types: Sequence[Type], operands: Sequence[Atom], trips: Atom | None
) -> Function:
    """`condition and i < trips`, as a function of the state and the operands."""
    b = Builder(outer.ops)
    i, condition, *_ = [b.param(f"s{n}", t) for n, t in enumerate(types)]
    inside = {o: b.param(f"c{n}", o.type) for n, o in enumerate(operands)}
    if trips is None:
        return b.finish(condition)
    below = b.call("less", i, inside.get(trips, trips))
    return b.finish(b.call("logical_and", condition, below))


def _import_scan(node: OnnxNode) -> list[Atom]:
    """Scan over a known length, written out."""
    body: Subgraph = node.attr("body")
    scanned = node.attr("num_scan_inputs")
    node.expect(0 < scanned <= len(node.inputs), f"num_scan_inputs is {scanned}")
    carried = len(node.inputs) - scanned
    state = [node.input(i) for i in range(carried)]
    sources = [node.input(i) for i in range(carried, len(node.inputs))]
    ranks = [len(_shape(x)) for x in sources]
    node.expect(all(ranks), "a scanned input is a scalar")
    axes = [a % r for a, r in zip(node.attr("scan_input_axes", (0,) * scanned), ranks, strict=True)]
    backwards = node.attr("scan_input_directions", (0,) * scanned)
    length = _shape(sources[0])[axes[0]]
    if length * body.num_nodes > UNROLL_LIMIT:
        raise node.unsupported(f"a scan over {length} steps of {body.num_nodes} nodes")
    collected: list[list[Atom]] = [[] for _ in range(body.num_outputs - carried)]
    for t in range(length):
        rows = [
            _row(node, x, axis, length - 1 - t if back else t)
            for x, axis, back in zip(sources, axes, backwards, strict=True)
        ]
        outputs = body(*state, *rows)
        state = outputs[:carried]
        for column, value in zip(collected, outputs[carried:], strict=True):
            column.append(value)
    axes = node.attr("scan_output_axes", (0,) * len(collected))
    flips = node.attr("scan_output_directions", (0,) * len(collected))
    stacks = zip(collected, axes, flips, strict=True)
    return [*state, *(_stack(node, c[::-1] if flip else c, axis) for c, axis, flip in stacks)]


def _row(node: OnnxNode, x: Atom, axis: int, index: int) -> Atom:
    shape = _shape(x)
    row = slice_axis(node, x, axis, index, index + 1)
    return reshape(node, row, (*shape[:axis], *shape[axis + 1 :]))


ONNX: dict[str, OnnxImport] = {"If": _import_if, "Loop": _import_loop, "Scan": _import_scan}
