"""Recognising attention: what exporters write between two products.

    scores = q k^T, scaled, masked        (from softmax back to the first product)
    weights = softmax(scores)             (from softmax on to the second product)
    result = weights v

Everything between must have one reader, or it would have to be computed anyway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...diagnostics import Span
from ...dtype import DType
from ...types import TensorType
from ..nodes import Atom, Binding, Call, Constant, Var
from ..pattern import is_splat, op_name, tensor
from ..visitor import Uses

_HIDING = -1e30  # scores this low have no weight beside others, whatever else is added
_MAX_STEPS = 24  # between the products


@dataclass(frozen=True)
class Mask:
    """One of `where(mask, score, fill)` (boolean) and `score + mask`; negated where marked.

    `rank` is that of the scores where it is applied.
    """

    value: Atom
    rank: int
    negated: bool = False


@dataclass(frozen=True)
class Operand:
    """A tensor and the transposition after it; `scale` was multiplied to it."""

    atom: Atom
    axes: tuple[int, ...]
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """After the transposition."""
        shape = tensor(self.atom).static_shape
        return tuple(shape[a] for a in self.axes)


@dataclass(frozen=True)
class Scores:
    """How the argument of softmax comes from the first product."""

    product: Binding
    scale: float
    masks: tuple[Mask, ...]  # in their order
    fill: float
    lead: tuple[int, ...]  # the batch and the heads, where the masks are applied


@dataclass(frozen=True)
class Found:
    """One attention, whose result is that of the `second` product."""

    scores: Scores
    second: Binding
    zero_hidden: bool
    span: Span


@dataclass(frozen=True)
class _State:
    atom: Atom
    scale: float = 1.0
    masks: tuple[Mask, ...] = ()
    fill: float | None = None
    lead: tuple[int, ...] = ()
    scaled: bool = False


def match_attention(softmax: Binding, uses: Uses) -> Found | None:
    """The attention around a call of nn.softmax, if there is one."""
    call, type_ = softmax.value, softmax.var.type
    assert isinstance(call, Call)
    if not isinstance(type_, TensorType) or not type_.is_static or 0 in type_.static_shape:
        return None
    axis: int = call.attrs.axis  # type: ignore[attr-defined]
    if axis % type_.rank != type_.rank - 1 or not 2 <= type_.rank <= 4:
        return None
    scores = _find_scores(call.args[0], uses)
    if scores is None:
        return None
    after = _after_softmax(softmax, scores, uses)
    if after is None:
        return None
    second, zero_hidden = after
    span = scores.product.span | softmax.span | second.span
    return Found(scores, second, zero_hidden, span)


# -- before softmax ------------------------------------------------------------------------------


def _find_scores(atom: Atom, uses: Uses) -> Scores | None:
    """Back to the first product; where two operands of an addition may lead there, both are
    tried."""
    pending, steps = [_State(atom, lead=tensor(atom).static_shape[:-2])], 0
    while pending and steps < _MAX_STEPS:
        state, steps = pending.pop(), steps + 1
        binding = uses.producer(state.atom)
        if binding is None or not isinstance(binding.value, Call):
            continue
        if uses.count(binding.var) != 1:
            continue
        if op_name(binding.value) == "nn.matmul":
            fill = -math.inf if state.fill is None else state.fill
            return Scores(binding, state.scale, state.masks, fill, state.lead)
        pending += reversed(_before(state, binding.value, tensor(binding.var)))
    return None


def _before(state: _State, call: Call, type_: TensorType) -> list[_State]:
    """What the operand of a step in front of softmax may be."""
    name, args = op_name(call), call.args
    if name in ("multiply", "divide"):
        return _before_scale(state, call, type_)
    if name == "reshape":
        return _before_reshape(state, args[0], type_)
    if name == "cast" and tensor(args[0]).dtype.is_float:
        return [replace(state, atom=args[0])]
    if state.scaled:
        return []  # a mask under the scale
    if name in ("add", "subtract"):
        pairs = [(args[0], args[1])] + [(args[1], args[0])] * (name == "add")
        return [
            replace(state, atom=a, masks=(Mask(m, type_.rank, name == "subtract"), *state.masks))
            for a, m in pairs
            if tensor(a).shape == type_.shape
        ]
    return _before_where(state, args, type_) if name == "where" else []


def _before_scale(state: _State, call: Call, type_: TensorType) -> list[_State]:
    found = scaled_operand(call)
    if found is None or tensor(found[0]).shape != type_.shape:
        return []
    return [replace(state, atom=found[0], scale=state.scale * found[1], scaled=True)]


def _before_where(state: _State, args: tuple[Atom, ...], type_: TensorType) -> list[_State]:
    condition, a, b = args
    for score, other, negated in ((a, b, False), (b, a, True)):
        fill = splat_value(other)
        if fill is None or tensor(score).shape != type_.shape or isinstance(score, Constant):
            continue
        if state.fill in (None, fill):
            mask = Mask(condition, type_.rank, negated)
            return [replace(state, atom=score, masks=(mask, *state.masks), fill=fill)]
    return []


def _before_reshape(state: _State, operand: Atom, type_: TensorType) -> list[_State]:
    """Heads merged with the batch or with rows, but keys stay the last dimension."""
    before = tensor(operand)
    if not 2 <= before.rank <= 4 or before.shape[-1] != type_.shape[-1]:
        return []
    merges_rows = before.shape[-2] != type_.shape[-2]
    if merges_rows and (type_.rank != 4 or before.rank != 4):
        return []
    if merges_rows:
        return [replace(state, atom=operand, scaled=True)]  # no mask fits in front of it
    lead = before.static_shape[:-2]
    return [replace(state, atom=operand, lead=max(state.lead, lead, key=len))]


def scaled_operand(call: Call) -> tuple[Atom, float] | None:
    """x and c of `x * c` and `x / c`, c one number."""
    a, b = call.args
    name = op_name(call)
    value = splat_value(b)
    if name == "divide":
        return None if not value else (a, 1 / value)
    if value is not None and math.isfinite(value):
        return a, value
    value = splat_value(a)
    return None if value is None or not math.isfinite(value) else (b, value)


def splat_value(atom: Atom) -> float | None:
    """The number that all elements of a floating-point constant are."""
    if not isinstance(atom, Constant) or not atom.data.size:
        return None
    if not DType.of(atom.data.dtype).is_float:
        return None
    value = float(atom.data.reshape(-1)[0])
    return value if is_splat(atom, value) else None


# -- after softmax -------------------------------------------------------------------------------


def _after_softmax(softmax: Binding, scores: Scores, uses: Uses) -> tuple[Binding, bool] | None:
    """The second product, and whether weights of queries that see nothing are made 0."""
    var: Var = softmax.var
    zeroed: set[Atom] = set()
    for _ in range(_MAX_STEPS):
        users = list(dict.fromkeys(uses.users(var)))
        if var is uses.result or not users:
            return None
        if len(users) == 2:
            reader = _without_nan(var, users, uses)
            if reader is None:
                return None
            zeroed.add(var)
            var = reader.var
            continue
        (reader,) = users if len(users) == 1 else (None,)
        if reader is None or not isinstance(reader.value, Call):
            return None
        call, name = reader.value, op_name(reader.value)
        if name == "nn.matmul":
            if call.args[0] is not var or call.args[1] is var:
                return None
            hidden = _all_zeroed(scores, zeroed)
            return None if hidden is None else (reader, hidden)
        if name == "where" and call.args[0] is not var:
            condition, weight, zero = call.args
            if weight is not var or splat_value(zero) != 0 or len(uses.users(var)) != 1:
                return None
            zeroed.add(condition)
        elif name == "reshape":
            if tensor(reader.var).shape[-1] != tensor(var).shape[-1]:
                return None
        elif name != "cast" or not tensor(reader.var).dtype.is_float:
            return None
        var = reader.var
    return None


def _without_nan(var: Var, users: list[Binding], uses: Uses) -> Binding | None:
    """The reader of `var` in `where(isnan(var), 0, var)`."""
    test = next(
        (u for u in users if isinstance(u.value, Call) and op_name(u.value) == "isnan"), None
    )
    if test is None or uses.count(test.var) != 1:
        return None
    reader = next(u for u in users if u is not test)
    if not isinstance(reader.value, Call) or op_name(reader.value) != "where":
        return None
    condition, zero, weight = reader.value.args
    fits = condition is test.var and weight is var and splat_value(zero) == 0
    return reader if fits else None


def _all_zeroed(scores: Scores, zeroed: set[Atom]) -> bool | None:
    """Whether weights under every mask are zeroed; None if that cannot be expressed."""
    if not zeroed:
        return False
    if any(isinstance(z, Var) and tensor(z).dtype.is_float for z in zeroed):
        return True  # NaN replaced
    masks = {m.value for m in scores.masks if not m.negated}
    if scores.fill != -math.inf or any(m.negated for m in scores.masks):
        return None
    booleans = {m for m in masks if tensor(m).dtype is DType.BOOL}
    if not zeroed <= booleans:
        return None
    left = [m for m in booleans - zeroed if not _shows_some_key(m)]
    return None if left else True


def _shows_some_key(mask: Atom) -> bool:
    return isinstance(mask, Constant) and bool(mask.data.any(axis=-1).all())


# -- masks ---------------------------------------------------------------------------------------


def causal_offset(mask: Mask, fill: float, alone: bool) -> int | None:
    """c if a constant mask says that query i sees the keys j <= i + c, and every query sees one.

    Args:
        alone: whether no other mask may hide what this one shows; only then is a large negative
            `fill` as good as -inf.
    """
    value = mask.value
    if not isinstance(value, Constant) or value.data.ndim < 2:
        return None
    visible = np.asarray(value.data)
    if visible.dtype != np.bool_:
        if mask.negated or not DType.of(visible.dtype).is_float:
            return None
        visible = visible.astype(np.float32)
        hiding = visible[visible != 0]
        if hiding.size == 0 or not (hiding <= _HIDING).all():
            return None
        fill, visible = float(hiding.max()), visible == 0
    elif mask.negated:
        visible = ~visible
    if not (fill == -math.inf or (alone and fill <= _HIDING)):
        return None
    queries, keys = visible.shape[-2:]
    if visible.size != queries * keys:
        return None
    visible = visible.reshape(queries, keys)
    offset = int(visible[0].sum()) - 1
    expected = np.arange(keys) <= np.arange(queries)[:, None] + offset
    return offset if offset >= 0 and np.array_equal(visible, expected) else None


# -- operands ------------------------------------------------------------------------------------


def as_operand(atom: Atom, swapped: bool = False) -> Operand:
    """An operand of a product, to be read as [..., n, depth]."""
    rank = tensor(atom).rank
    axes = tuple(range(rank))
    if swapped:
        axes = (*axes[:-2], axes[-1], axes[-2])
    return Operand(atom, axes)


def stripped(operand: Operand, lead: tuple[int, ...], uses: Uses, scales: bool = False) -> Operand:
    """`operand` with the transpositions, scalings and merged heads in front of it taken off.

    Args:
        lead: batch and heads, as which a merged leading dimension is read.
        scales: whether scalings may be taken off.
    """
    for _ in range(_MAX_STEPS):
        binding = uses.producer(operand.atom)
        if binding is None or not isinstance(binding.value, Call):
            return operand
        call, name = binding.value, op_name(binding.value)
        if name == "transpose":
            inner: Any = call.attrs
            axes = tuple(inner.axes[a] for a in operand.axes)
            operand = replace(operand, atom=call.args[0], axes=axes)
        elif name == "reshape":
            before = _unmerged(operand, call.args[0], lead)
            if before is None:
                return operand
            operand = before
        elif name in ("multiply", "divide") and scales:
            found = scaled_operand(call)
            if found is None or tensor(found[0]).shape != tensor(binding.var).shape:
                return operand
            operand = replace(operand, atom=found[0], scale=operand.scale * found[1])
        else:
            return operand
    return operand


def merged_lead(operand: Operand, uses: Uses) -> tuple[int, int] | None:
    """Batch and heads, if a reshape in front of an operand of rank 3 merges them."""
    atom = operand.atom
    for _ in range(_MAX_STEPS):
        binding = uses.producer(atom)
        if binding is None or not isinstance(binding.value, Call) or not binding.args:
            return None
        (source, *_), type_ = binding.args, tensor(binding.var)
        if type_.rank != 3:
            return None
        before = tensor(source)
        if _is_call(binding, "reshape") and before.rank == 4:
            a, b, *rest = before.static_shape
            kept = (a * b, *rest) == type_.static_shape
            return (a, b) if kept else None
        if not (_is_call(binding, "transpose")):
            return None
        atom = source
    return None


def _unmerged(operand: Operand, source: Atom, lead: tuple[int, ...]) -> Operand | None:
    """In front of a reshape that merges the batch with the heads or takes them apart, or that
    merges heads with rows."""
    shape, before = tensor(operand.atom).static_shape, tensor(source).static_shape
    axes = operand.axes
    apart = len(shape) == 4 and shape[:2] == lead and axes[:2] == (0, 1)
    if apart and before == (math.prod(lead), *shape[2:]):
        return Operand(source, (0, *(a - 1 for a in axes[2:])), operand.scale)
    if len(before) != 4 or before[:2] != lead:
        return None
    if len(shape) == 3 and before[2:] == shape[1:] and axes[0] == 0:
        return Operand(source, (0, *(a + 1 for a in axes)), operand.scale)
    if len(shape) == 4 and axes == (0, 1, 2, 3) and before[3] == shape[3] and before[0] == shape[0]:
        return Operand(source, axes, operand.scale)
    return None


def unrepeated(operand: Operand, lead: tuple[int, ...], uses: Uses) -> Operand | None:
    """The keys or values whose heads were repeated for groups of query heads:
    `reshape(broadcast_to(reshape(x)))`, with the transposition kept."""
    if len(operand.axes) != 4 or operand.axes[:2] != (0, 1):
        return None
    merged = uses.producer(operand.atom)
    if merged is None or not _is_call(merged, "reshape"):
        return None
    spread = uses.producer(merged.args[0])
    if spread is None or not _is_call(spread, "broadcast_to"):
        return None
    source = spread.args[0]
    full, before = tensor(spread.var).static_shape, tensor(source).static_shape
    if len(full) != 5 or len(before) != 5 or full[:2] != before[:2] or full[3:] != before[3:]:
        return None
    rest = tensor(operand.atom).static_shape[2:]
    if before[2] != 1 or full[3:] != rest or (full[0], full[1] * full[2]) != lead:
        return None
    unit = uses.producer(source)
    inner = (*before[:2], *before[3:])
    if unit is None or not _is_call(unit, "reshape") or tensor(unit.args[0]).static_shape != inner:
        return None
    return replace(operand, atom=unit.args[0])


def _is_call(binding: Binding, name: str) -> bool:
    return isinstance(binding.value, Call) and op_name(binding.value) == name
