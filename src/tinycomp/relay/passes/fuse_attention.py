"""FuseAttention: products around softmax become nn.attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...dtype import DType
from ..builder import Builder
from ..nodes import Atom, Binding, Call, Function, Var, replace_args
from ..op import OpSet
from ..pass_infra import FunctionPass, PassContext
from ..pattern import op_name, tensor
from ..visitor import Uses, rebuilt, remove_dead_bindings
from .attention_match import (
    Found,
    Mask,
    Operand,
    as_operand,
    causal_offset,
    match_attention,
    merged_lead,
    stripped,
    unrepeated,
)

_IN_ORDER = (0, 1, 2, 3)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class FuseAttention(FunctionPass):
    """Attention as one operator, which need not write its scores to memory.

        %0 = transpose(%k, axes=(0, 2, 3, 1))           %0 = nn.attention(%q, %k, %v, %mask,
        %1 = nn.matmul(%q, %0)                                scale=0.125, k_axes=(0, 2, 1, 3))
        %2 = multiply(%1, const(0.125))          ->
        %3 = add(%2, %mask)
        %4 = nn.softmax(%3)
        %5 = nn.matmul(%4, %v)

    The scale may be on either operand or on the scores; masks may be added or chosen by `where`, in
    any number; heads may be merged with the batch, and keys be repeated for groups of heads.
    Transpositions of the operands and of the result become attributes. Values between the
    products that something else reads prevent it.

    A constant mask that is causal and hides by -inf, or by less than -1e30 where no other mask
    could hide the rest of a row, becomes `causal`. `where(isnan(w), 0, w)` on the weights becomes
    `zero_hidden`, which differs from it for inputs with NaN.

    Options: `max_depth` limits the size of a head.
    """

    max_depth: int = 256

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        calls = [b for b in function.bindings if isinstance(b.value, Call)]
        softmaxes = [b for b in calls if op_name(b.value) == "nn.softmax"]  # type: ignore[arg-type]
        uses = Uses(function)
        plans: dict[Var, _Plan] = {}
        for softmax in softmaxes:
            found = match_attention(softmax, uses)
            plan = _plan(found, uses, self.max_depth) if found is not None else None
            if plan is not None:
                plans[plan.root.var] = plan
        return _replace(function, plans, ctx.ops) if plans else function


@dataclass(frozen=True)
class _Plan:
    """The call of nn.attention that takes the place of `root`."""

    found: Found
    root: Binding
    operands: tuple[Operand, Operand, Operand]
    shapes: tuple[Shape, Shape, Shape]  # of the operands as [batch, heads, n, depth]
    out_axes: Shape


def _plan(found: Found, uses: Uses, max_depth: int) -> _Plan | None:
    first, second = found.scores.product.value, found.second.value
    assert isinstance(first, Call)
    assert isinstance(second, Call)
    q, k = as_operand(first.args[0]), as_operand(first.args[1], swapped=True)
    v = as_operand(second.args[1])
    if len({tensor(o.atom).dtype for o in (q, k, v)}) > 1:
        return None
    lead = _batch_and_heads(found, (q, k, v), uses)
    q = stripped(q, lead, uses, scales=True)
    k, v = stripped(k, lead, uses, scales=True), stripped(v, lead, uses)
    few = unrepeated(k, lead, uses), unrepeated(v, lead, uses)
    if few[0] is not None and few[1] is not None and few[0].shape[:3] == few[1].shape[:3]:
        k_lead = few[0].shape[:2]
        k, v = stripped(few[0], k_lead, uses, scales=True), stripped(few[1], k_lead, uses)
    k_shape, v_shape = _shape4(k, lead), _shape4(v, lead)
    if k_shape is None or v_shape is None or k_shape[:3] != v_shape[:3]:
        return None
    rows = math.prod(tensor(found.scores.product.var).static_shape[:-1])
    queries, rest = divmod(rows, lead[0] * lead[1])
    q_shape = (*lead, queries, q.shape[-1])
    if rest or math.prod(q.shape) != math.prod(q_shape) or q_shape[3] != k_shape[3]:
        return None
    if k_shape[0] != lead[0] or lead[1] % k_shape[1] or max(q_shape[3], v_shape[3]) > max_depth:
        return None
    root, out_axes = _root(found.second, (*lead, queries, v_shape[3]), uses)
    return _Plan(found, root, (q, k, v), (q_shape, k_shape, v_shape), out_axes)


def _batch_and_heads(found: Found, operands: Sequence[Operand], uses: Uses) -> tuple[int, int]:
    lead = found.scores.lead
    if len(lead) < 2:
        merged = (merged_lead(o, uses) for o in operands)
        lead = next((m for m in merged if m is not None), (1, 1, *lead)[-2:])
    return lead[0], lead[1]


def _shape4(operand: Operand, lead: Shape) -> Shape | None:
    """The shape of keys or values with batch and heads apart."""
    shape = operand.shape
    if len(shape) == 4:
        return shape
    return (*lead, *shape[-2:]) if math.prod(shape[:-2]) == math.prod(lead) else None


def _root(second: Binding, shape: Shape, uses: Uses) -> tuple[Binding, Shape]:
    """The last binding that is only the result in another order, and this order."""
    root, axes = second, _IN_ORDER
    for name in ("reshape", "transpose"):
        users = uses.users(root.var)
        if len(users) != 1 or uses.count(root.var) != 1 or not isinstance(users[0].value, Call):
            continue
        (reader,), value = users, users[0].value
        if op_name(value) != name:
            continue
        if name == "reshape" and tensor(reader.var).shape == shape:
            root = reader
        if name == "transpose" and tensor(root.var).shape == shape:
            attrs: Any = value.attrs
            root, axes = reader, tuple(attrs.axes)
    return root, axes


def _replace(function: Function, plans: dict[Var, _Plan], ops: OpSet) -> Function:
    builder, env = Builder(ops), dict[Atom, Atom]()
    for binding in function.bindings:
        plan = plans.get(binding.var)
        if plan is not None:
            builder.span = binding.span | plan.found.span
            env[binding.var] = _call(builder, plan, env)
            continue
        value = replace_args(binding.value, [env.get(a, a) for a in binding.args])
        same = value is binding.value
        builder.bindings.append(binding if same else replace(binding, value=value))
    result = env.get(function.result, function.result)
    return remove_dead_bindings(rebuilt(function, builder.bindings, result))


def _call(builder: Builder, plan: _Plan, env: dict[Atom, Atom]) -> Atom:
    found, scale = plan.found, plan.found.scores.scale
    atoms: list[Atom] = []
    axes: list[Shape] = []
    for operand, shape in zip(plan.operands, plan.shapes, strict=True):
        scale *= operand.scale
        atom, order = _as_rank4(builder, env.get(operand.atom, operand.atom), operand, shape)
        atoms.append(atom)
        axes.append(order)
    causal, masks = _split_causal(found)
    lead = plan.shapes[0][:2]
    masks = [_mask(builder, env.get(m.value, m.value), m, lead) for m in masks]
    result = builder.call(
        "nn.attention", *atoms, *masks, scale=scale, causal=causal, fill=found.scores.fill,
        zero_hidden=found.zero_hidden, q_axes=axes[0], k_axes=axes[1], v_axes=axes[2],
        out_axes=plan.out_axes,
    )  # fmt: skip
    shape = tensor(plan.root.var).shape
    if tensor(result).shape != shape:
        result = builder.call("reshape", result, newshape=shape)
    return result


def _as_rank4(builder: Builder, atom: Atom, operand: Operand, shape: Shape) -> tuple[Atom, Shape]:
    """`atom` and the transposition that makes it `shape`."""
    axes, source = operand.axes, tensor(atom).static_shape
    if operand.shape == shape:
        return atom, axes
    lead = len(axes) - 2
    if axes[:lead] != tuple(range(lead)) or operand.shape[-2:] != shape[-2:]:
        if axes != tuple(range(len(axes))):
            atom = builder.call("transpose", atom, axes=axes)
        return builder.call("reshape", atom, newshape=shape), _IN_ORDER
    atom = builder.call("reshape", atom, newshape=(*shape[:2], *source[lead:]))
    return atom, (0, 1, *(a + 2 - lead for a in axes[lead:]))


def _split_causal(found: Found) -> tuple[int | None, list[Mask]]:
    """The mask that is causal, and the others."""
    masks = list(found.scores.masks)
    for position, mask in enumerate(masks):
        causal = causal_offset(mask, found.scores.fill, len(masks) == 1)
        if causal is not None:
            return causal, masks[:position] + masks[position + 1 :]
    return None, masks


def _mask(builder: Builder, atom: Atom, mask: Mask, lead: Shape) -> Atom:
    """A mask that broadcasts to [batch, heads, n, m]."""
    shape = tensor(atom).shape
    if len(shape) == 3 and mask.rank == 3 and shape[0] != 1:
        atom = builder.call("reshape", atom, newshape=(*lead, *shape[1:]))
    if mask.negated:
        boolean = tensor(atom).dtype is DType.BOOL
        atom = builder.call("logical_not" if boolean else "negative", atom)
    return atom
