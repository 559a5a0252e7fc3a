"""Algebraic simplification, as a table of rules.

Every rule keeps results bit for bit, with one exception: `power(x, 0.5)` becomes `sqrt(x)`, which
differs for -inf and -0.0, and `power(x, 3)` may differ in the last place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...dtype import DType
from ..nodes import Atom, Constant, Function
from ..pass_infra import FunctionPass, PassContext
from ..pattern import (
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
class SimplifyExpr(FunctionPass):
    """Applies `RULES` until none applies.

    %0 = transpose(%x, axes=(1, 0))
    %1 = transpose(%0, axes=(1, 0))
    %2 = multiply(%1, const(1.0))     ->     %x
    """

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        return rewrite(RULES, function, ctx.ops)


_x, _y, _c = wildcard(), wildcard(), is_constant()


def _same_type(replacement: Atom, root: Atom) -> Atom | None:
    """`replacement`, unless broadcasting gave the root another shape."""
    return replacement if replacement.type == root.type else None


# --- shapes -------------------------------------------------------------------------------------

_transpose = is_op("transpose")(_x)
_transpose2 = is_op("transpose")(_transpose)
_reshape = is_op("reshape")(_x)
_reshape2 = is_op("reshape")(_reshape)
_broadcast2 = is_op("broadcast_to")(is_op("broadcast_to")(_x))
_view = is_op("reshape", "broadcast_to", "cast", "copy", "nn.pad", "tile")(_x)
_concatenate = is_op("concatenate")(_x)
_slice = is_op("strided_slice")(_x)
_slice2 = is_op("strided_slice")(_slice)


def _compose_transposes(graph: Graph, m: Match) -> Atom:
    inner, outer = graph.attrs(m[_transpose]).axes, graph.attrs(m[_transpose2]).axes
    return graph.builder.call("transpose", m[_x], axes=tuple(inner[a] for a in outer))


def _drop_transpose(graph: Graph, m: Match) -> Atom | None:
    """A transpose that moves only axes of extent 1 changes no memory: it is a view."""
    axes, type_ = graph.attrs(m[_transpose]).axes, tensor(m[_x])
    if list(axes) == sorted(axes):
        return m[_x]
    moved = [a for a in axes if type_.shape[a] != 1]
    if moved != sorted(moved):
        return None
    return graph.builder.call("reshape", m[_x], newshape=tensor(m[_transpose]).shape)


def _merge_reshapes(graph: Graph, m: Match) -> Atom:
    return graph.builder.call("reshape", m[_x], attrs=graph.attrs(m[_reshape2]))


def _merge_broadcasts(graph: Graph, m: Match) -> Atom:
    return graph.builder.call("broadcast_to", m[_x], attrs=graph.attrs(m[_broadcast2]))


def _drop_identity(graph: Graph, m: Match) -> Atom | None:
    """These do nothing if the type stays the same."""
    return _same_type(m[_x], m[_view])


def _drop_full_slice(graph: Graph, m: Match) -> Atom | None:
    strides = graph.attrs(m[_slice]).strides
    return _same_type(m[_x], m[_slice]) if all(s == 1 for s in strides) else None


def _merge_slices(graph: Graph, m: Match) -> Atom | None:
    inner, outer = graph.attrs(m[_slice]), graph.attrs(m[_slice2])
    type_ = tensor(m[_slice2])
    if not type_.is_static or any(s < 1 for s in (*inner.strides, *outer.strides)):
        return None
    if any(b < 0 for b in (*inner.begin, *outer.begin)):
        return None
    begin = tuple(
        b + c * s for b, s, c in zip(inner.begin, inner.strides, outer.begin, strict=True)
    )
    strides = tuple(s * t for s, t in zip(inner.strides, outer.strides, strict=True))
    end = tuple(
        b + max(0, (n - 1) * s + 1)
        for b, s, n in zip(begin, strides, type_.static_shape, strict=True)
    )
    return graph.builder.call("strided_slice", m[_x], begin=begin, end=end, strides=strides)


# --- casts --------------------------------------------------------------------------------------

_cast = is_op("cast")(_x)
_cast2 = is_op("cast")(_cast)
_MANTISSA = {DType.FLOAT16: 11, DType.BFLOAT16: 8, DType.FLOAT32: 24, DType.FLOAT64: 53}
_MAX_EXPONENT = {DType.FLOAT16: 15, DType.BFLOAT16: 127, DType.FLOAT32: 127, DType.FLOAT64: 1023}


def is_lossless(source: DType, target: DType) -> bool:
    """Whether every value of `source` is a value of `target`.

    >>> is_lossless(DType.FLOAT16, DType.FLOAT32), is_lossless(DType.INT32, DType.FLOAT32)
    (True, False)
    """
    if source is target or source is DType.BOOL:
        return True
    if target is DType.BOOL or (source.is_float and not target.is_float):
        return False
    if source.is_float:
        return (
            _MANTISSA[source] <= _MANTISSA[target]
            and _MAX_EXPONENT[source] <= _MAX_EXPONENT[target]
        )
    if target.is_float:
        bits = source.bits - (not source.is_unsigned)
        return bits <= _MANTISSA[target] and bits <= _MAX_EXPONENT[target]
    return target.min_value <= source.min_value and source.max_value <= target.max_value


def _merge_casts(graph: Graph, m: Match) -> Atom | None:
    first, middle, last = (tensor(a).dtype for a in (m[_x], m[_cast], m[_cast2]))
    if not is_lossless(first, middle):
        return None
    # integers wrap when cast to integers, but floats that do not fit an integer are undefined
    if (
        middle.is_float
        and not last.is_float
        and not first.is_float
        and not is_lossless(first, last)
    ):
        return None
    return graph.builder.call("cast", m[_x], dtype=last)


# --- arithmetic ---------------------------------------------------------------------------------


def _neutral(name: str, op: str, value: float) -> Rule:
    """`op(x, value)` is x."""
    pattern = is_op(op)(_x, is_constant(value))
    return Rule(name, pattern, lambda graph, m: _same_type(m[_x], m[pattern]))


def _involution(op: str) -> Rule:
    """`op(op(x))` is x."""
    return Rule(f"{op} of {op}", is_op(op)(is_op(op)(_x)), lambda graph, m: m[_x])


_HALVES = (DType.FLOAT16, DType.BFLOAT16)
_IDEMPOTENT = ("nn.relu", "abs", "floor", "ceil", "round", "trunc", "sign")


def _idempotent(op: str) -> Rule:
    """`op(op(x))` is op(x)."""
    inner = is_op(op)(_x)
    return Rule(f"{op} twice", is_op(op)(inner), lambda graph, m: m[inner])


_zero_add = is_op("add")(_x, is_constant(0))
_negative = is_op("negative")(_y)
_plus_negative = is_op("add")(_x, _negative)
_minus_negative = is_op("subtract")(_x, _negative)
_abs_negative = is_op("abs")(_negative)
_times_minus_one = is_op("multiply")(_x, is_constant(-1))
_power = is_op("power")(_x, _c)
_divide = is_op("divide")(_x, _c)
_where = is_op("where")(_c, _x, _y)
_where_same = is_op("where")(_y, _x, _x)


def _drop_zero(graph: Graph, m: Match) -> Atom | None:
    """x + 0 of integers; for floats only x + -0.0 keeps the sign of a zero."""
    return None if tensor(m[_x]).dtype.is_float else _same_type(m[_x], m[_zero_add])


def _negate(graph: Graph, m: Match) -> Atom | None:
    if m[_x].type != m[_times_minus_one].type:
        return None
    return graph.builder.call("negative", m[_x])


def _expand_power(graph: Graph, m: Match) -> Atom | None:
    x, exponent = m[_x], m[_c]
    assert isinstance(exponent, Constant)
    if x.type != m[_power].type:
        return None
    if is_splat(exponent, 1):
        return x
    if is_splat(exponent, 2):
        return graph.builder.call("multiply", x, x)
    if is_splat(exponent, 3) and tensor(x).dtype not in _HALVES:
        return graph.builder.call("multiply", graph.builder.call("multiply", x, x), x)
    if is_splat(exponent, 0.5) and tensor(x).dtype.is_float:
        return graph.builder.call("sqrt", x)
    return None


def _divide_by_power_of_two(graph: Graph, m: Match) -> Atom | None:
    """Exact, since the reciprocal of a power of two is a power of two."""
    divisor = m[_c]
    assert isinstance(divisor, Constant)
    if not tensor(divisor).dtype.is_float or not divisor.data.size:
        return None
    if tensor(divisor).dtype in _HALVES:
        return None  # their small powers of two are subnormal
    mantissa, exponent = np.frexp(divisor.data)
    if not (np.abs(mantissa) == 0.5).all() or not (np.abs(exponent) < 120).all():
        return None
    reciprocal = (1 / divisor.data).astype(divisor.data.dtype)
    return graph.builder.call("multiply", m[_x], Constant(reciprocal, divisor.span))


def _choose(graph: Graph, m: Match) -> Atom | None:
    condition = m[_c]
    assert isinstance(condition, Constant)
    if is_splat(condition, True):
        return _same_type(m[_x], m[_where])
    return _same_type(m[_y], m[_where]) if is_splat(condition, False) else None


# --- bounds -------------------------------------------------------------------------------------

_bounded = is_op("clip", "nn.relu")(_x)
_bounded2 = is_op("clip", "nn.relu")(_bounded)


def _bounds(graph: Graph, atom: Atom) -> tuple[float, float]:
    call = graph.call(atom)
    low = getattr(call.attrs, "a_min", 0)
    high = getattr(call.attrs, "a_max", None)
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def _merge_bounds(graph: Graph, m: Match) -> Atom | None:
    """clip(clip(x, a, b), c, d): the interval [a, b] is clipped like the values in it."""
    (a, b), (c, d) = _bounds(graph, m[_bounded]), _bounds(graph, m[_bounded2])
    if not (a <= b and c <= d):
        return None  # empty or NaN bounds: the order of comparisons matters
    low, high = min(max(a, c), d), min(max(b, c), d)
    if (low, high) == (0, math.inf):
        return graph.builder.call("nn.relu", m[_x])
    a_min = None if low == -math.inf else low
    a_max = None if high == math.inf else high
    return graph.builder.call("clip", m[_x], a_min=a_min, a_max=a_max)


_clip = is_op("clip")(_x)


def _drop_clip(graph: Graph, m: Match) -> Atom | None:
    return m[_x] if _bounds(graph, m[_clip]) == (-math.inf, math.inf) else None


RULES: tuple[Rule, ...] = (
    Rule("compose transposes", _transpose2, _compose_transposes),
    Rule("transpose is a view", _transpose, _drop_transpose),
    Rule("merge reshapes", _reshape2, _merge_reshapes),
    Rule("merge broadcasts", _broadcast2, _merge_broadcasts),
    Rule("identity", _view, _drop_identity),
    Rule("concatenate of one", _concatenate, lambda graph, m: m[_x]),
    Rule("full slice", _slice, _drop_full_slice),
    Rule("merge slices", _slice2, _merge_slices),
    Rule("merge casts", _cast2, _merge_casts),
    _neutral("x + -0.0", "add", -0.0),
    Rule("x + 0", _zero_add, _drop_zero),
    _neutral("x - 0", "subtract", 0.0),
    _neutral("x * 1", "multiply", 1),
    _neutral("x / 1", "divide", 1),
    Rule("x * -1", _times_minus_one, _negate),
    _involution("negative"),
    _involution("logical_not"),
    _involution("bitwise_not"),
    *map(_idempotent, _IDEMPOTENT),
    Rule("x + -y", _plus_negative, lambda g, m: g.builder.call("subtract", m[_x], m[_y])),
    Rule("x - -y", _minus_negative, lambda g, m: g.builder.call("add", m[_x], m[_y])),
    Rule("abs of negative", _abs_negative, lambda g, m: g.builder.call("abs", m[_y])),
    Rule("small powers", _power, _expand_power),
    Rule("divide by a power of two", _divide, _divide_by_power_of_two),
    Rule("where of a constant", _where, _choose),
    Rule("where of equals", _where_same, lambda graph, m: _same_type(m[_x], m[_where_same])),
    Rule("merge bounds", _bounded2, _merge_bounds),
    Rule("open clip", _clip, _drop_clip),
)
