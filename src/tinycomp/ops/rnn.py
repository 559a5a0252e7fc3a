"""ONNX RNN, GRU and LSTM, unrolled over a sequence length known while compiling.

The inputs of all steps are multiplied by the weights at once, in one product of [T * B, I] by
[I, gates * H]; only the recurrent product is done step by step. A step reads rows that are there
already, so all steps run the same few kernels; the directions do not depend on each other.

A layer may be unrolled over more steps than its sequence has (`Unrolling`). It is then one of
sequences that end before: the same graph for all lengths, with the length in two constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ..dtype import DType
from ..relay.nodes import Atom, Call, Constant
from ..relay.op import Op
from ..types import TensorType
from .activation import Emit, apply_activation
from .onnx_node import OnnxImport, OnnxNode
from .window import accumulation_dtype


@dataclass(frozen=True)
class Unrolling:
    """Over how many steps recurrent layers are unrolled.

    Attributes:
        steps: by the name of a node, at least the length of its sequence; of others, that length.
        lengths: filled while importing: the length of every node's sequence.
    """

    steps: Mapping[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cell:
    """One direction of a recurrent layer. Gates are side by side along the last axis."""

    node: OnnxNode
    emit: Emit
    hidden: int
    recurrence: Sequence[Atom]  # [H, gates * H]; or in two parts, [H, 2 * H] and [H, H] of a GRU
    recurrent_bias: Atom | None  # [gates * H]; only where it cannot be joined to the input's
    peepholes: Sequence[Atom]  # LSTM: input, output, forget, each [H]
    activations: Sequence[tuple[str, tuple[float, ...]]]

    def activate(self, index: int, x: Atom) -> Atom:
        kind, parameters = self.activations[index]
        limit = self.node.attr("clip")
        if limit:
            x = self.emit("clip", x, a_min=-float(limit), a_max=float(limit))
        return apply_activation(self.node, kind, x, parameters)

    def gate(self, x: Atom, index: int) -> Atom:
        """Columns `index * H` to `(index + 1) * H` of a matrix."""
        return _columns(self.emit, x, index * self.hidden, (index + 1) * self.hidden)

    def product(self, h: Atom, part: int = 0) -> Atom:
        return self.emit("nn.matmul", h, self.recurrence[part])


Step = Callable[[_Cell, Atom, list[Atom]], list[Atom]]  # (cell, x row, state) -> state


def _columns(emit: Emit, x: Atom, begin: int, end: int) -> Atom:
    assert isinstance(x.type, TensorType)
    rows = x.type.static_shape[0]
    return emit("strided_slice", x, begin=(0, begin), end=(rows, end), strides=(1, 1))


def _index(emit: Emit, x: Atom, axis: int, position: int) -> Atom:
    """`x[..., position, ...]` without that axis."""
    assert isinstance(x.type, TensorType)
    shape = x.type.static_shape
    begin, end = [0] * len(shape), list(shape)
    begin[axis], end[axis] = position, position + 1
    part = emit("strided_slice", x, begin=tuple(begin), end=tuple(end), strides=(1,) * len(shape))
    return emit("reshape", part, newshape=shape[:axis] + shape[axis + 1 :])


def _rnn_step(cell: _Cell, x: Atom, state: list[Atom]) -> list[Atom]:
    """h = f(x W + h R + b)"""
    return [cell.activate(0, cell.emit("add", x, cell.product(state[0])))]


def _lstm_step(cell: _Cell, x: Atom, state: list[Atom]) -> list[Atom]:
    """Gates input, output, forget, cell; the peepholes see the cell state."""
    emit, (h, c) = cell.emit, state
    total = emit("add", x, cell.product(h))
    gate_i, gate_o, gate_f, gate_c = (cell.gate(total, k) for k in range(4))
    if cell.peepholes:
        gate_i = emit("add", gate_i, emit("multiply", c, cell.peepholes[0]))
        gate_f = emit("add", gate_f, emit("multiply", c, cell.peepholes[2]))
    i, f, g = cell.activate(0, gate_i), cell.activate(0, gate_f), cell.activate(1, gate_c)
    if cell.node.attr("input_forget", 0):
        f = emit("subtract", cell.node.builder.const(1.0, c.type.dtype), i)  # type: ignore[union-attr]
    c = emit("add", emit("multiply", f, c), emit("multiply", i, g))
    if cell.peepholes:
        gate_o = emit("add", gate_o, emit("multiply", c, cell.peepholes[1]))
    o = cell.activate(0, gate_o)
    kind, parameters = cell.activations[2]
    return [emit("multiply", o, apply_activation(cell.node, kind, c, parameters)), c]


def _gru_step(cell: _Cell, x: Atom, state: list[Atom]) -> list[Atom]:
    """Gates update z, reset r, hidden h; h = (1 - z) * new + z * h"""
    emit, (h,) = cell.emit, state
    if cell.node.attr("linear_before_reset", 0):
        recurrent = cell.product(h)
        if cell.recurrent_bias is not None:
            recurrent = emit("add", recurrent, cell.recurrent_bias)
        pre_z, pre_r = (emit("add", cell.gate(x, k), cell.gate(recurrent, k)) for k in range(2))
        z, r = cell.activate(0, pre_z), cell.activate(0, pre_r)
        candidate = emit("multiply", r, cell.gate(recurrent, 2))
    else:
        both = cell.product(h)
        pre_z, pre_r = (emit("add", cell.gate(x, k), cell.gate(both, k)) for k in range(2))
        z, r = cell.activate(0, pre_z), cell.activate(0, pre_r)
        candidate = cell.product(emit("multiply", r, h), 1)
    new = cell.activate(1, emit("add", cell.gate(x, 2), candidate))
    difference = emit("subtract", h, new)
    return [emit("add", new, emit("multiply", z, difference))]


@dataclass(frozen=True)
class _Kind:
    gates: int
    states: int
    activations: tuple[str, ...]
    step: Step
    inputs_of_states: tuple[int, ...]


_KINDS = {
    "RNN": _Kind(1, 1, ("Tanh",), _rnn_step, (5,)),
    "GRU": _Kind(3, 1, ("Sigmoid", "Tanh"), _gru_step, (5,)),
    "LSTM": _Kind(4, 2, ("Sigmoid", "Tanh", "Tanh"), _lstm_step, (5, 6)),
}

_ACTIVATION_DEFAULTS = {  # (alpha, beta) where a node gives none; None: takes none
    "leakyrelu": (0.01, None),
    "thresholdedrelu": (1.0, None),
    "elu": (1.0, None),
    "hardsigmoid": (0.2, 0.5),
    "scaledtanh": (1.0, 1.0),
    "affine": (1.0, 0.0),
}


def _activations(node: OnnxNode, kind: _Kind) -> list[tuple[str, tuple[float, ...]]]:
    """The activation and its parameters for every direction and role.

    The node's alphas and betas list a value only for those activations that take one.
    """
    directions = 2 if node.attr("direction", "forward") == "bidirectional" else 1
    names = list(node.attr("activations") or kind.activations * directions)
    alphas = list(node.attr("activation_alpha") or ())
    betas = list(node.attr("activation_beta") or ())
    result: list[tuple[str, tuple[float, ...]]] = []
    for name in names:
        alpha, beta = _ACTIVATION_DEFAULTS.get(name.lower(), (None, None))
        parameters: list[float] = []
        if alpha is not None:
            parameters.append(float(alphas.pop(0)) if alphas else alpha)
        if beta is not None:
            parameters.append(float(betas.pop(0)) if betas else beta)
        result.append((name, tuple(parameters)))
    return result


def _check(node: OnnxNode) -> None:
    for index, rank in ((0, 3), (1, 3), (2, 3), (3, 2), (4, 1), (5, 3), (6, 3), (7, 2)):
        if node.has(index) or index < 3:
            node.rank(index, rank)
    if accumulation_dtype(node.type(0).dtype) is not node.type(0).dtype:
        raise node.unsupported(f"elements of {node.type(0).dtype}")
    if not node.type(0).is_static:
        raise node.unsupported(
            f"the symbolic input {node.type(0)}", "fix the sequence length and batch size"
        )


@dataclass(frozen=True)
class _Lengths:
    """Sequences of a batch that may be shorter than T.

    Attributes:
        lengths: int [B].
        running: bool [T, B, H], whether the sequence has this step.
    """

    emit: Emit
    lengths: Atom
    running: Atom

    @staticmethod
    def of(node: OnnxNode, steps: int, batch: int, hidden: int) -> _Lengths | None:
        """None if all sequences are known to be whole."""
        if not node.has(4):
            return None
        lengths, emit = node.input(4), Emit(node)
        if isinstance(lengths, Constant) and np.all(lengths.data == steps):
            return None
        row = emit("reshape", emit("cast", lengths, dtype=DType.INT64), newshape=(1, batch, 1))
        running = emit("less", node.builder.const(np.arange(steps).reshape(-1, 1, 1)), row)
        running = emit("broadcast_to", running, shape=(steps, batch, hidden))
        return _Lengths(emit, lengths, running)

    def reversed(self, x: Atom) -> Atom:
        """[T, B, ...] with the steps of each sequence in reverse."""
        return self.emit("reverse_sequence", x, self.lengths, seq_axis=0, batch_axis=1)

    def step(self, t: int, new: list[Atom], old: list[Atom]) -> tuple[Atom, list[Atom]]:
        """(output, states) after step t: a sequence that has ended gives 0 and keeps its state."""
        where, running = self.emit.where, _index(self.emit, self.running, 0, t)
        states = [where(running, a, b, a) for a, b in zip(new, old, strict=True)]
        return where(running, new[0], 0.0, new[0]), states


def _cell(node: OnnxNode, kind: _Kind, direction: int, hidden: int) -> tuple[_Cell, Atom | None]:
    """The cell of one direction, and the bias to add to the inputs' product."""
    emit, width = Emit(node), kind.gates * hidden
    recurrence = [emit("transpose", _index(emit, node.input(2), 0, direction), axes=(1, 0))]
    if node.op_type == "GRU" and not node.attr("linear_before_reset", 0):
        (whole,), cut = recurrence, 2 * hidden
        recurrence = [_columns(emit, whole, 0, cut), _columns(emit, whole, cut, width)]
    bias, recurrent_bias = None, None
    if node.has(3):
        both = emit("reshape", _index(emit, node.input(3), 0, direction), newshape=(2, width))
        bias, recurrent_bias = _index(emit, both, 0, 0), _index(emit, both, 0, 1)
        if not (node.op_type == "GRU" and node.attr("linear_before_reset", 0)):
            bias, recurrent_bias = emit("add", bias, recurrent_bias), None
    peepholes: list[Atom] = []
    if node.op_type == "LSTM" and node.has(7):
        rows = emit("reshape", _index(emit, node.input(7), 0, direction), newshape=(3, hidden))
        peepholes = [_index(emit, rows, 0, k) for k in range(3)]
    roles = len(kind.activations)
    activations = _activations(node, kind)[direction * roles : (direction + 1) * roles]
    return _Cell(node, emit, hidden, recurrence, recurrent_bias, peepholes, activations), bias


def _initial(node: OnnxNode, index: int, direction: int, batch: int, hidden: int) -> Atom:
    emit = Emit(node)
    if node.has(index):
        return _index(emit, node.input(index), 1 if node.attr("layout", 0) else 0, direction)
    return node.builder.const(np.zeros((batch, hidden), node.type(0).dtype.numpy))


def _run_direction(
    node: OnnxNode, kind: _Kind, x: Atom, direction: int, reverse: bool
) -> tuple[Atom, list[Atom]]:
    """(h of every step in time order [T, B, H], final states [B, H]) for x [T, B, I]."""
    assert isinstance(x.type, TensorType)
    steps, batch, width = x.type.static_shape
    hidden = node.type(2).static_shape[2]
    cell, bias = _cell(node, kind, direction, hidden)
    emit, lengths = cell.emit, _Lengths.of(node, steps, batch, hidden)
    weight = emit("transpose", _index(emit, node.input(1), 0, direction), axes=(1, 0))
    rows = emit("reshape", x, newshape=(steps * batch, width))
    products = emit("nn.matmul", rows, weight)
    products = products if bias is None else emit("add", products, bias)
    products = emit("reshape", products, newshape=(steps, batch, kind.gates * hidden))
    if lengths and reverse:
        products = lengths.reversed(products)
    state = [_initial(node, i, direction, batch, hidden) for i in kind.inputs_of_states]
    outputs: dict[int, Atom] = {}
    for t in reversed(range(steps)) if reverse and not lengths else range(steps):
        new = kind.step(cell, _index(emit, products, 0, t), state)
        outputs[t], state = lengths.step(t, new, state) if lengths else (new[0], new)
    y = _stack(emit, [outputs[t] for t in range(steps)], 0)
    return lengths.reversed(y) if lengths and reverse else y, state


def _stack(emit: Emit, parts: Sequence[Atom], axis: int) -> Atom:
    """Arrays of one shape side by side along a new axis."""
    rows = []
    for part in parts:
        assert isinstance(part.type, TensorType)
        shape = part.type.shape
        rows.append(emit("reshape", part, newshape=(*shape[:axis], 1, *shape[axis:])))
    return rows[0] if len(rows) == 1 else emit("concatenate", *rows, axis=axis)


def _longer(node: OnnxNode, x: Atom, steps: int) -> tuple[OnnxNode, Atom]:
    """The node for x [T, B, I] with more rows, which its sequences do not have."""
    assert isinstance(x.type, TensorType)
    length, batch, _ = x.type.static_shape
    rows = np.minimum(np.arange(steps), length - 1)
    x = Emit(node)("take", x, node.builder.const(rows), axis=0)
    if node.has(4):
        return node, x
    # not folded, so that the length is in one constant and not in what follows from it
    known = node.builder.const(np.full(batch, length, np.int32))
    op = node.builder.ops["reshape"]
    call = Call(op, (known,), op.attrs_type(newshape=(batch,)))  # type: ignore[call-arg]
    lengths = node.builder.bind(call, known.type)
    inputs = (*node.inputs[:4], *(None,) * (4 - len(node.inputs)), lengths, *node.inputs[5:])
    return replace(node, inputs=inputs), x


_DIRECTIONS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}


def _import_recurrent(node: OnnxNode, unrolling: Unrolling | None = None) -> list[Atom]:
    kind, emit = _KINDS[node.op_type], Emit(node)
    _check(node)
    x, batch_first = node.input(0), node.attr("layout", 0)
    x = emit("transpose", x, axes=(1, 0, 2)) if batch_first else x
    reverses = _DIRECTIONS[node.choice("direction", "forward", _DIRECTIONS)]
    unrolling = unrolling or Unrolling()
    assert isinstance(x.type, TensorType)
    length = unrolling.lengths[node.name] = x.type.static_shape[0]
    if node.name in unrolling.steps:
        node, x = _longer(node, x, unrolling.steps[node.name])
    runs = [_run_direction(node, kind, x, d, reverse) for d, reverse in enumerate(reverses)]
    y = _stack(emit, [run[0] for run in runs], 1)  # [T, D, B, H]
    if node.name in unrolling.steps:
        assert isinstance(y.type, TensorType)
        end = (length, *y.type.static_shape[1:])
        y = emit("strided_slice", y, begin=(0,) * 4, end=end, strides=(1,) * 4)
    if batch_first:
        y = emit("transpose", y, axes=(2, 0, 1, 3))
    states = [
        _stack(emit, [run[1][k] for run in runs], 1 if batch_first else 0)
        for k in range(kind.states)
    ]
    return [y, *states][: node.num_outputs]


OPS: tuple[Op, ...] = ()
ONNX: dict[str, OnnxImport] = dict.fromkeys(_KINDS, _import_recurrent)


def recurrent_importers(unrolling: Unrolling) -> dict[str, OnnxImport]:
    """The importers of recurrent layers, unrolled as said."""
    return dict.fromkeys(_KINDS, partial(_import_recurrent, unrolling=unrolling))
