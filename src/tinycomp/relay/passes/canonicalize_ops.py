"""One form for what can be written in several ways, so that other passes look for one form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..nodes import Atom, Constant, Function
from ..pass_infra import FunctionPass, PassContext
from ..pattern import (
    COMMUTATIVE,
    Graph,
    Match,
    Rule,
    is_constant,
    is_op,
    is_splat,
    rewrite,
    tensor,
    wildcard,
)


@dataclass(frozen=True)
class CanonicalizeOps(FunctionPass):
    """Constants to the right of commutative operators, subtraction of a constant as addition,
    comparisons with a constant number as `clip` and `nn.relu`, softmax along the last axis, and
    a single constant index as a slice.

        %0 = maximum(const(0.0), %x)     ->     %0 = nn.relu(%x)
        %1 = subtract(%0, const(2.0))           %1 = add(%0, const(-2.0))
    """

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        return rewrite(RULES, function, ctx.ops)


_x, _c = wildcard(), is_constant()
_commutative = is_op(*COMMUTATIVE)
_subtract = is_op("subtract")(_x, _c)
_bound = is_op("maximum", "minimum")(_x, _c)
_softmax = is_op("nn.softmax", "nn.log_softmax")(_x)
_take = is_op("take")(_x, _c)


def _constant_right(graph: Graph, m: Match) -> Atom | None:
    call = graph.call(m[_commutative])
    left, right = call.args
    if not isinstance(left, Constant) or isinstance(right, Constant):
        return None
    assert not isinstance(call.op, Function)
    return graph.builder.call(call.op, right, left, attrs=call.attrs)


def _add_negated(graph: Graph, m: Match) -> Atom | None:
    constant = m[_c]
    assert isinstance(constant, Constant)
    if not tensor(constant).dtype.is_float or isinstance(m[_x], Constant):
        return None
    negated = Constant((-constant.data).astype(constant.data.dtype), constant.span)
    return graph.builder.call("add", m[_x], negated)


def _clip(graph: Graph, m: Match) -> Atom | None:
    constant, call = m[_c], graph.call(m[_bound])
    assert isinstance(constant, Constant)
    if m[_x].type != m[_bound].type or not constant.data.size or isinstance(m[_x], Constant):
        return None
    value = constant.data.flat[0].item()
    if math.isnan(value) or not (constant.data == value).all():
        return None
    is_maximum = repr(call.op) == "maximum"
    if is_maximum and is_splat(constant, 0):
        return graph.builder.call("nn.relu", m[_x])
    bounds = {"a_min": value} if is_maximum else {"a_max": value}
    return graph.builder.call("clip", m[_x], **bounds)


def _softmax_last(graph: Graph, m: Match) -> Atom | None:
    """Rows of a softmax are contiguous; the transposes mostly cancel with those of a layout."""
    call = graph.call(m[_softmax])
    rank = tensor(m[_x]).rank
    axis = call.attrs.axis % rank  # type: ignore[attr-defined]
    if axis == rank - 1:
        return None
    order = (*(d for d in range(rank) if d != axis), axis)
    back = tuple(order.index(d) for d in range(rank))
    assert not isinstance(call.op, Function)
    moved = graph.builder.call("transpose", m[_x], axes=order)
    result = graph.builder.call(call.op, moved, axis=rank - 1)
    return graph.builder.call("transpose", result, axes=back)


def _slice_one(graph: Graph, m: Match) -> Atom | None:
    x, constant, call = tensor(m[_x]), m[_c], graph.call(m[_take])
    assert isinstance(constant, Constant)
    if constant.data.size != 1 or not x.is_static:
        return None
    shape, axis = x.static_shape, call.attrs.axis % x.rank  # type: ignore[attr-defined]
    index = int(constant.data.reshape(()))
    index += shape[axis] if index < 0 else 0
    if not 0 <= index < shape[axis]:
        return None  # an error when it runs
    begin, end = [0] * x.rank, list(shape)
    begin[axis], end[axis] = index, index + 1
    part = graph.builder.call(
        "strided_slice", m[_x], begin=tuple(begin), end=tuple(end), strides=(1,) * x.rank
    )
    return graph.builder.call("reshape", part, newshape=tensor(m[_take]).shape)


RULES: tuple[Rule, ...] = (
    Rule("constant to the right", _commutative, _constant_right),
    Rule("subtract a constant", _subtract, _add_negated),
    Rule("bound by a constant", _bound, _clip),
    Rule("softmax along the last axis", _softmax, _softmax_last),
    Rule("one constant index", _take, _slice_one),
)
