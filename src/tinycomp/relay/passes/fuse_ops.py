"""FuseOps: groups of operators become calls of primitive functions, one kernel each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...diagnostics import NO_SPAN, InternalError, Span
from ..nodes import Atom, Binding, Call, Constant, Function, Var, replace_args
from ..op import NO_ATTRS, Op
from ..pass_infra import FunctionPass, PassContext
from ..structural_key import structural_key
from ..views import is_whole_view, view_offset
from .fusion_groups import Partitioner

MAX_NAME = 96
_GPU_ROW_BYTES = 512 * 1024  # the registers of some blocks


@dataclass(frozen=True)
class FuseOps(FunctionPass):
    """Wraps every operator, alone or with others, in a primitive function.

    A group's function carries `attrs`: `primitive` 1, `name` ("fused_nn_conv2d_add_nn_relu"),
    `key` (equal keys are one kernel, see `structural_key`), and for a stitched group `stitched`
    True and `rows`, the number of its leading row dimensions. Constants of one element are part of
    the body; larger ones are arguments. A reshape at the border of a group, or alone, and
    a slice of rows that a group reads, stay outside: they cost nothing there, and kernels that read
    other rows are one kernel.

    Options: `max_ops` and `max_args` limit one group; `max_row_bytes` limits the row buffers of a
    stitched one on a CPU, and 0 turns stitching off. `fuse` False wraps each operator alone.
    """

    max_ops: int = 64
    max_args: int = 32
    max_row_bytes: int = 64 * 1024
    fuse: bool = True

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        if function.is_primitive:
            return function
        max_ops = self.max_ops if self.fuse else 1
        gpu = ctx.target is not None and ctx.target.kind == "cuda"
        row_bytes = _GPU_ROW_BYTES if gpu and self.max_row_bytes else self.max_row_bytes
        groups = Partitioner(function, max_ops, self.max_args, row_bytes, gpu).run()
        bindings: list[Binding] = []
        for group in groups:
            members = [function.bindings[m] for m in group.members]
            bindings += _outline(members, group.rows)
        if len(bindings) == len(function.bindings) and all(
            a is b for a, b in zip(bindings, function.bindings, strict=True)
        ):
            return function
        return replace(function, bindings=tuple(bindings))


def _outline(members: list[Binding], rows: int | None) -> list[Binding]:
    """The bindings for one group: views before it, the call of its function, views after it.

    A piece of what the group computes is no view after it: then only the piece is computed.
    """
    value = members[0].value
    if not isinstance(value, Call) or isinstance(value.op, Function):
        assert len(members) == 1
        return members
    members = list(members)
    after: list[Binding] = []
    while members and is_whole_view(members[-1]):
        after.insert(0, members.pop())
    before: list[Binding] = []
    inside = {m.var for m in members}
    for member in tuple(members):
        if view_offset(member) is not None and not any(a in inside for a in member.args):
            before.append(member)
            members.remove(member)
            inside.remove(member.var)
    kernel = [_call_of(members, rows)] if members else []
    return before + kernel + after


def _call_of(members: list[Binding], rows: int | None) -> Binding:
    output = members[-1].var
    function, args = make_primitive(members, rows)
    return Binding(output, Call(function, args, NO_ATTRS), spans_of(members))


def make_primitive(
    members: Sequence[Binding], rows: int | None = None
) -> tuple[Function, tuple[Atom, ...]]:
    """A primitive function for bindings whose last one is the only output, and its arguments.

    Raises:
        InternalError: a member that is not a call of an operator.
    """
    params: list[Var] = []
    args: list[Atom] = []
    local: dict[Atom, Atom] = {}
    body: list[Binding] = []
    for index, member in enumerate(members):
        if not isinstance(member.value, Call) or not isinstance(member.value.op, Op):
            raise InternalError(f"only operators can be fused, not {type(member.value).__name__}")
        for atom in member.args:
            if atom not in local:
                if isinstance(atom, Constant) and atom.data.size == 1:
                    local[atom] = atom
                    continue
                local[atom] = Var(f"p{len(params)}", atom.type, atom.span)
                params.append(local[atom])  # type: ignore[arg-type]
                args.append(atom)
        var = Var(f"t{index}", member.var.type, member.var.span)
        value = replace_args(member.value, [local[a] for a in member.args])
        body.append(Binding(var, value, member.span))
        local[member.var] = var
    function = Function(tuple(params), tuple(body), body[-1].var)
    attrs: dict[str, object] = {
        "primitive": 1,
        "name": group_name(body),
        "key": structural_key(function),
    }
    if rows is not None:
        attrs |= {"stitched": True, "rows": rows}
    return replace(function, attrs=attrs), tuple(args)


def group_name(members: Sequence[Binding]) -> str:
    """A kernel's name from its operators, of letters, digits and underscores."""
    ops = [m.value.op.name for m in members if isinstance(m.value, Call)]  # type: ignore[union-attr]
    name = "fused_" + "_".join(op.replace(".", "_") for op in ops)
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME].rstrip('_')}_{len(ops)}_ops"


def label_of(function: Function) -> str:
    """The operators of a primitive function for people: "nn.conv2d+add+nn.relu"."""
    ops = [b.value.op for b in function.bindings if isinstance(b.value, Call)]
    return "+".join(op.name for op in ops if isinstance(op, Op))


def spans_of(members: Sequence[Binding]) -> Span:
    """The union of the members' spans."""
    span = NO_SPAN
    for member in members:
        span |= member.span
    return span
