"""Fewer dimensions before scheduling: neighbours that every operator treats alike become one.

    relu(x[1, 56, 56, 64] + b[64])   -->   relu(x[3136, 64] + b[64])

Buffers are dense, so this only relabels indices; loops get longer and vectors fuller. A 1 x 1
convolution of stride 1 becomes a matrix product over all its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from ..relay.nodes import Atom, Binding, Call, Constant, Function, Value, Var
from ..relay.op import Op, OpPattern
from ..types import TensorType, Type

_SHAPED = ("reshape", "broadcast_to", "full", "tile")  # attributes hold a shape


def collapse_dims(function: Function) -> Function:
    """`function` over fewer dimensions, with the same elements in the same order.

    Functions with operators that distinguish dimensions come back as they are, except that the
    pixels of a pointwise convolution are merged.
    """
    out = function.ret_type
    if not isinstance(out, TensorType) or out.rank < 2:
        return function
    fixed = 0
    for binding in function.bindings:
        if isinstance(binding.value, Call) and is_pointwise(binding.value):
            fixed = 1  # the channel axis has its own meaning
        elif not is_elementwise(binding.value):
            return function
    apart = _weights(function)
    groups = groups_of(function, out, fixed, apart)
    if fixed:  # a convolution keeps rank 4: (1, 1, pixels, channels)
        if any(len(g) > 1 and out.rank - 1 in g for g in groups) or len(groups) > 2:
            return function
        groups = [[], [], *groups] if len(groups) == 2 else [[], [], [], *groups]
    if len(groups) == out.rank and all(groups):
        return function
    return rebuild(function, out.rank, groups, apart)


def collapse_reduced(function: Function) -> Function:
    """A chain of reductions and elementwise operators over fewer dimensions.

        softmax(x[8, 64, 128, 128], axis=1)   -->   softmax(x[8, 64, 16384], axis=1)

    Other functions come back as they are.
    """
    function = _with_kept_dims(function)
    out = function.ret_type
    if not isinstance(out, TensorType) or out.rank < 3 or not math.prod(out.static_shape):
        return function
    reductions = [b for b in function.bindings if not is_elementwise(b.value)]
    reduced = [_kept_axes(b.value, out.rank) for b in reductions]
    if not reductions or not all(reduced):
        return function
    shapes = [_padded(a.type, out.rank) for a in _operands(function, set())]
    full = [max(sizes) for sizes in zip(*shapes, strict=True)]
    masks = [tuple(1 if d in axes else n for d, n in enumerate(full)) for axes in reduced]
    groups = groups_of(function, out, 0, set(), masks)
    places = {d: number for number, group in enumerate(groups) for d in group}
    rows = function.attrs.get("rows", 0)
    rows = rows if math.prod(full[:rows]) > 1 else 0
    wide = [axes & {d for d in range(out.rank) if full[d] > 1} for axes in reduced]
    if len(groups) == out.rank or not all(wide) or (rows and places[rows - 1] == places[rows]):
        return function
    attributes = {}
    for binding, axes in zip(reductions, wide, strict=True):
        new = tuple(sorted({places[d] for d in axes}))
        attrs: Any = binding.value.attrs  # type: ignore[union-attr]
        attributes[binding] = replace(attrs, axis=new if isinstance(attrs.axis, tuple) else new[0])
    result = rebuild(function, out.rank, groups, set(), attributes=attributes)
    if "rows" not in function.attrs:
        return result
    return replace(result, attrs={**function.attrs, "rows": places[rows] if rows else 0})


def _with_kept_dims(function: Function) -> Function:
    """The function with dimensions of extent 1 where its last reduction drops them: in its result
    and in what is computed from it. The elements are the same."""
    if not function.attrs.get("stitched"):
        return function
    changed: dict[Atom, Var] = {}
    bindings: list[Binding] = []
    for binding in function.bindings:
        call = binding.value
        if not isinstance(call, Call) or not isinstance(call.op, Op):
            return function
        attrs: Any = call.attrs
        drops = not is_elementwise(call) and not getattr(attrs, "keepdims", True)
        inside = [a for a in call.args if a in changed]
        if drops and not inside and isinstance(attrs.axis, tuple):
            shape = _static(call.args[0])
            gone = {a % len(shape) for a in attrs.axis}
            shape = tuple(1 if d in gone else n for d, n in enumerate(shape))
            attrs = replace(attrs, keepdims=True)
        elif inside and is_elementwise(call):
            shape = _static(changed[inside[0]])
            if any(a not in changed and math.prod(_static(a)) > 1 for a in call.args):
                return function
        elif inside:
            return function
        else:
            bindings.append(binding)
            continue
        assert isinstance(binding.var.type, TensorType)
        var = Var(binding.var.name, TensorType(shape, binding.var.type.dtype), binding.var.span)
        changed[binding.var] = var
        args = tuple(changed.get(a, a) for a in call.args)
        bindings.append(Binding(var, Call(call.op, args, attrs), binding.span))
    result = changed.get(function.result, function.result)
    return Function(function.params, tuple(bindings), result, function.attrs)


def _static(atom: Atom) -> tuple[int, ...]:
    assert isinstance(atom.type, TensorType)
    return atom.type.static_shape


def _kept_axes(value: Value, rank: int) -> set[int]:
    """The axes of a reduction that keeps dimensions, in a function of this rank; none for other
    values."""
    if not isinstance(value, Call) or not isinstance(value.op, Op):
        return set()
    axis: Any = getattr(value.attrs, "axis", ())
    if value.op.name in ("nn.softmax", "nn.log_softmax"):
        return {axis % rank}
    kept = getattr(value.attrs, "keepdims", False) and isinstance(axis, tuple)
    return {a % rank for a in axis} if kept else set()


def is_elementwise(value: Value) -> bool:
    """Whether a value is a call that treats all dimensions alike."""
    return (
        isinstance(value, Call)
        and isinstance(value.op, Op)
        and value.op.pattern <= OpPattern.BROADCAST
        and value.op.name not in _SHAPED
    )


def is_pointwise(call: Call) -> bool:
    """Whether a call is a 1 x 1 convolution in NHWC that reads each pixel once, in order."""
    if not isinstance(call.op, Op) or call.op.name != "nn.conv2d":
        return False
    a = call.attrs
    return (
        a.kernel_layout == "packed"  # type: ignore[attr-defined]
        and tuple(a.kernel_size) == (1, 1)  # type: ignore[attr-defined]
        and tuple(a.strides) == (1, 1)  # type: ignore[attr-defined]
        and not any(a.padding)  # type: ignore[attr-defined]
    )


def _weights(function: Function) -> set[Atom]:
    return {
        b.value.args[1]
        for b in function.bindings
        if isinstance(b.value, Call) and is_pointwise(b.value)
    }


def _operands(function: Function, apart: Set[Atom]) -> list[Atom]:
    """The values that follow the output's dimensions: all but those `apart`."""
    atoms: dict[Atom, None] = dict.fromkeys(function.params)
    for binding in function.bindings:
        atoms.update(dict.fromkeys(binding.args))
        atoms[binding.var] = None
    return [a for a in atoms if a not in apart]


def _padded(type_: Type, rank: int) -> list[int]:
    assert isinstance(type_, TensorType)
    shape = type_.static_shape
    return [1] * (rank - len(shape)) + list(shape)


def groups_of(
    function: Function,
    out: TensorType,
    fixed: int,
    apart: Set[Atom],
    more: Sequence[Sequence[int]] = (),
) -> list[list[int]]:
    """Runs of dimensions that are all whole or all broadcast in every value, and in `more` shapes,
    but the last `fixed` ones; values `apart` do not matter."""
    rank = out.rank
    shapes = [_padded(a.type, rank) for a in _operands(function, apart)] + list(map(list, more))
    full = [max(s[d] for s in shapes) for d in range(rank - fixed)]
    groups: list[list[int]] = []
    for d in range(rank - fixed):
        if groups and all(_alike(s, full, groups[-1], d) for s in shapes):
            groups[-1].append(d)
        else:
            groups.append([d])
    return groups + [[d] for d in range(rank - fixed, rank)]


def _alike(shape: list[int], full: list[int], group: list[int], d: int) -> bool:
    """Whether a value treats dimension d as it treats the group before it."""
    if full[d] == 1 or all(full[g] == 1 for g in group):
        return True
    whole_before = all(shape[g] == full[g] for g in group)
    none_before = all(shape[g] == 1 for g in group)
    return (whole_before and shape[d] == full[d]) or (none_before and shape[d] == 1)


def rebuild(
    function: Function,
    rank: int,
    groups: Sequence[Sequence[int]],
    apart: Set[Atom],
    shapes: Mapping[Atom, tuple[int, ...]] | None = None,
    attributes: Mapping[Binding, Any] | None = None,
) -> Function:
    """The function with each value's dimensions merged by group.

    Args:
        apart: values that stay as they are, or get a shape of `shapes`.
        attributes: new attributes of calls.
    """
    followers = set(_operands(function, apart))
    values: dict[Atom, Atom] = {}

    def changed(atom: Atom) -> TensorType | None:
        assert isinstance(atom.type, TensorType)
        if atom in followers:
            shape = _padded(atom.type, rank)
            return TensorType(
                tuple(math.prod(shape[d] for d in g) for g in groups), atom.type.dtype
            )
        return TensorType(shapes[atom], atom.type.dtype) if shapes and atom in shapes else None

    def new(atom: Atom) -> Atom:
        if atom not in values:
            type_ = changed(atom)
            if type_ is None:
                values[atom] = atom
            elif isinstance(atom, Constant):
                values[atom] = Constant(atom.data.reshape(type_.static_shape), atom.span)
            else:
                values[atom] = Var(atom.name, type_, atom.span)
        return values[atom]

    params = tuple(new(p) for p in function.params)
    bindings = []
    for b in function.bindings:
        assert isinstance(b.value, Call)
        attrs = (attributes or {}).get(b, b.value.attrs)
        call = Call(b.value.op, tuple(new(a) for a in b.args), attrs)
        bindings.append(Binding(new(b.var), call, b.span))  # type: ignore[arg-type]
    return Function(params, tuple(bindings), new(function.result), function.attrs)  # type: ignore[arg-type]
