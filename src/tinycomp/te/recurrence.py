"""What a scan repeats at each time, and that it only looks back."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.expr import Call, Expr, Load
from ..ir.node import postorder
from .simplify import Analyzer
from .tensor import ComputeOp, Operation, PlaceholderOp, Tensor, topological


def scan_body(
    name: str, init: Sequence[Tensor], update: Sequence[Tensor], state: Sequence[Tensor]
) -> tuple[ComputeOp, ...]:
    """The operations that depend on a state, in order of computation; see `te.scan`.

    Raises:
        TypeError: the scan is not well formed.
    """
    if not len(init) == len(update) == len(state) or not state:
        raise TypeError(
            f"scan {name}: init, update and state must be as many, "
            f"got {len(init)}, {len(update)} and {len(state)}"
        )
    for first, step, own in zip(init, update, state, strict=True):
        _check_types(name, first, step, own)
        if step.shape[0] is not state[0].shape[0] or first.shape[0] is not init[0].shape[0]:
            raise TypeError(f"scan {name}: all states must have one number of times")
    reads_state: set[Operation] = {s.op for s in state}
    body: list[ComputeOp] = []
    for op in topological(update):
        if not any(t.op in reads_state for t in op.inputs):
            continue
        if not isinstance(op, ComputeOp):
            raise TypeError(f"scan {name}: {op.name} depends on the state but is no compute")
        reads_state.add(op)
        _check_times(name, op, reads_state, state, init[0].shape[0])
        body.append(op)
    constant = [u.name for u in update if u.op not in body]
    if constant:
        raise TypeError(f"scan {name}: the update {constant[0]} reads no state")
    return tuple(body)


def _check_types(name: str, init: Tensor, update: Tensor, state: Tensor) -> None:
    if not isinstance(state.op, PlaceholderOp):
        raise TypeError(f"scan {name}: the state {state.name} must be a placeholder")
    if not init.dtype is update.dtype is state.dtype:
        raise TypeError(
            f"scan {name}: init, update and state have dtypes {init.dtype}, {update.dtype} and "
            f"{state.dtype}"
        )
    if update.shape != state.shape or init.shape[1:] != state.shape[1:] or not state.shape:
        raise TypeError(
            f"scan {name}: state {state}, update {update} and (but for axis 0) init {init} must "
            "have one shape"
        )


def _check_times(
    name: str, op: ComputeOp, inside: set[Operation], state: Sequence[Tensor], start: Expr
) -> None:
    """Axis 0 of `op` is time; it reads states earlier and other stages at that time."""
    if not op.axis or op.axis[0].extent is not state[0].shape[0]:
        raise TypeError(
            f"scan {name}: axis 0 of {op.name} must be time, of extent {state[0].shape[0]}"
        )
    time = op.axis[0].var
    analyzer = Analyzer()
    for axis in (*op.axis[1:], *op.reduce_axis):
        analyzer.bind(axis.var, axis.min, axis.extent)
    analyzer.bind(time, start, op.axis[0].extent - start)
    guarded = _guarded(op)
    for load in postorder(op.body):
        if not isinstance(load, Load) or load.source.op not in inside:
            continue
        index = load.indices[0]
        if load.source not in state and index is not time:
            raise TypeError(
                f"scan {name}: {op.name} reads {load}, but a stage inside the scan can only be "
                f"read at the time {time}; make it a state to look back"
            )
        if load.source in state and not analyzer.proves(index < time):
            raise TypeError(
                f"scan {name}: {op.name} reads {load}, not proven to be before {time}; "
                f"read the state at {time} - 1 or earlier"
            )
        if load.source in state and load not in guarded and not analyzer.proves(index >= 0):
            raise TypeError(
                f"scan {name}: {op.name} reads {load}, which lies before the first row at {time} = "
                f"{start}; give init more rows, or guard the read with te.if_then_else"
            )


def _guarded(op: ComputeOp) -> set[object]:
    """What is evaluated only under a condition."""
    sides = [
        side
        for node in postorder(op.body)
        if isinstance(node, Call) and node.name == "if_then_else"
        for side in node.args[1:]
    ]
    return set(postorder(sides))
