"""Tensor expressions to the naive loop nest: one nest of serial loops and one Block per compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..diagnostics import NO_SPAN, InternalError, ScheduleError, Span
from ..ir.expr import TRUE, Expr, Load, Var, const, if_then_else, substitute, variables
from ..ir.node import Node, rewrite
from ..te.simplify import Analyzer
from ..te.tensor import (
    ComputeOp,
    ExternOp,
    IterKind,
    IterVar,
    Operation,
    PlaceholderOp,
    Reduce,
    ScanOp,
    Tensor,
    topological,
)
from .nodes import Alloc, Block, Buffer, For, PrimFunc, Scope, Seq, Stmt, Store
from .primitives.common import guard_blocks
from .sizes import find_sizes


def create_func(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], name: str = "main"
) -> tuple[PrimFunc, dict[Tensor, Buffer]]:
    """The loop nests that compute `outputs` from `inputs`, and the buffer of each tensor.

    Loops use the variables of the tensors' axes, so `s[C].op.axis[0]` names its loop.
    """
    buffers: dict[Tensor, Buffer] = {}
    names: dict[str, int] = {}

    def declare(tensor: Tensor) -> Buffer:
        base = tensor.name
        names[base] = names.get(base, -1) + 1
        unique = base if names[base] == 0 else f"{base}_{names[base]}"
        buffers[tensor] = Buffer(unique, tensor.shape, tensor.dtype)
        return buffers[tensor]

    for tensor in inputs:
        declare(tensor)
    nests: list[Stmt] = []
    scratch: list[Buffer] = []
    span = NO_SPAN
    operations = topological(outputs)
    scans = [op for op in operations if isinstance(op, ScanOp)]
    inside = {o for scan in scans for o in (*scan.body, *(s.op for s in scan.state))}
    _check_inside_scans(operations, scans, outputs)
    for op in operations:
        if op in inside:
            continue
        if isinstance(op, PlaceholderOp):
            if op.output(0) not in buffers:
                raise InternalError(f"{name}: placeholder {op.name} is not among the inputs")
            continue
        if isinstance(op, ScanOp):
            for step in op.body:
                for i in range(step.num_outputs):
                    declare(step.output(i))
        targets = [declare(op.output(i)) for i in range(op.num_outputs)]
        work = [_nest(op, targets, buffers)]
        while work:  # an extern may be several nests, with scratch memory around
            nest = work.pop()
            if isinstance(nest, Alloc):
                scratch.append(nest.buffer)
                work.append(nest.body)
            elif isinstance(nest, Seq):
                work.extend(reversed(nest.stmts))
            else:
                nests.append(nest)
        span |= getattr(op, "span", NO_SPAN)
    params = tuple(buffers[t] for t in (*inputs, *outputs))
    intermediate = (b for b in dict.fromkeys(buffers.values()) if b not in params)
    allocs = (*intermediate, *scratch)
    body = nests[0] if len(nests) == 1 else Seq(tuple(nests))
    func = PrimFunc(name, params, len(outputs), body, allocs, {}, span)
    return replace(func, sizes=find_sizes(func)), buffers


def _nest(
    op: ComputeOp | ExternOp | ScanOp, targets: list[Buffer], buffers: dict[Tensor, Buffer]
) -> Stmt:
    if isinstance(op, ExternOp):
        return op.make([buffers[t] for t in op.inputs], targets)
    if isinstance(op, ScanOp):
        return _scan_nest(op, targets, buffers)
    return _loops(compute_block(op, targets, buffers), (*op.axis, *op.reduce_axis))


def _check_inside_scans(
    operations: Sequence[Operation], scans: Sequence[ScanOp], outputs: Sequence[Tensor]
) -> None:
    """What a scan computes at each time is not kept, so only the scan can read it."""
    owner = {op: scan for scan in scans for op in (*scan.body, *(s.op for s in scan.state))}
    reads = [(op, t) for op in operations if not isinstance(op, ScanOp) for t in op.inputs]
    reads += [(scan, t) for scan in scans for t in scan.inputs]
    for op, tensor in [*reads, *((None, t) for t in outputs)]:
        scan = owner.get(tensor.op)
        if scan is not None and op is not scan and (op is None or owner.get(op) is not scan):
            reader = "it is an output" if op is None else f"{op.name} reads it"
            raise ScheduleError(
                f"{tensor.name!r} exists only inside the scan {scan.name!r}, but {reader}",
                hint=f"use the result of te.scan, {scan.name}",
            )


def _scan_nest(op: ScanOp, targets: list[Buffer], buffers: dict[Tensor, Buffer]) -> Stmt:
    """The first rows, then one loop over time around all stages of the body.

    for i: S[0, i] = init[0, i]                # block "S.init"; guarded where T may be 0
    for t in range(1, T):                      # ordered
        for i: update[t, i] = f(S[t - 1, ...])
        for i: S[t, i] = update[t, i]          # block "S"
    """
    first: list[Stmt] = []
    steps: list[Stmt] = []
    for state, target in zip(op.state, targets, strict=True):
        buffers[state] = target
    for init, target in zip(op.init, targets, strict=True):
        source = buffers[init]
        nest = _copy(source, target, f"{target.name}.init", source.shape, None)
        times = target.shape[0]
        if not Analyzer(variables(times)).proves(source.shape[0] <= times):
            assert isinstance(nest, For)
            nest = guard_blocks(nest, nest.var < times)
        first.append(nest)
    for step in op.body:
        own = [buffers[step.output(i)] for i in range(step.num_outputs)]
        block = compute_block(step, own, buffers)
        time = block.iter_vars[0]
        ordered = replace(time, min=op.axis.min, extent=op.axis.extent, kind=IterKind.ORDERED)
        block = replace(
            block,
            iter_vars=(ordered, *block.iter_vars[1:]),
            bindings=(op.axis.var, *block.bindings[1:]),
        )
        steps.append(_loops(block, (*step.axis[1:], *step.reduce_axis)))
    for update, target in zip(op.update, targets, strict=True):
        steps.append(_copy(buffers[update], target, target.name, target.shape, op.axis))
    loop = For(op.axis.var, op.axis.min, op.axis.extent, _seq(steps))
    return Seq((*first, loop))


def _copy(
    source: Buffer, target: Buffer, name: str, shape: Sequence[Expr], time: IterVar | None
) -> Stmt:
    """`target[...] = source[...]` over `shape`, or over one row of it at the given time."""
    loops = [IterVar(Var(f"{name}.i{d}"), const(0), n) for d, n in enumerate(shape)]
    own = [replace(axis, var=Var(f"i{d}")) for d, axis in enumerate(loops)]
    if time is not None:
        own[0] = replace(time, var=Var("t"))
        loops[0] = time
    indices = tuple(axis.var for axis in own)
    store = Store(target, indices, Load(source, indices, None))
    block = Block(name, tuple(own), tuple(axis.var for axis in loops), store)
    return _loops(block, loops if time is None else loops[1:])


def _loops(block: Block, axes: Sequence[IterVar]) -> Stmt:
    stmt: Stmt = block
    for axis in reversed(axes):
        stmt = For(axis.var, axis.min, axis.extent, stmt)
    return stmt


def compute_block(op: ComputeOp, targets: list[Buffer], buffers: dict[Tensor, Buffer]) -> Block:
    """The Block of a compute: its axes as iteration variables, bound to the loops of that name."""
    axes = (*op.axis, *op.reduce_axis)
    own = {a.var: Var(a.var.name, a.var.dtype) for a in axes}
    iter_vars = tuple(IterVar(own[a.var], a.min, a.extent, a.kind) for a in axes)
    indices = tuple(own[a.var] for a in op.axis)

    def body_of(expr: Expr) -> Expr:
        return substitute(load_buffers(expr, buffers), own)  # type: ignore[arg-type]

    first = op.body[0]
    if not isinstance(first, Reduce):
        stores = [
            Store(b, indices, body_of(e), None, op.span)
            for b, e in zip(targets, op.body, strict=True)
        ]
        return _block(op, targets[0].name, iter_vars, axes, _seq(stores), None)
    combiner = first.combiner
    old = {v: Load(b, indices, None) for v, b in zip(combiner.lhs, targets, strict=True)}
    new = {v: body_of(s) for v, s in zip(combiner.rhs, first.sources, strict=True)}
    values: list[Expr] = []
    for k, result in enumerate(combiner.results):
        value = substitute(result, {**old, **new})
        if first.condition is not TRUE:
            value = if_then_else(body_of(first.condition), value, old[combiner.lhs[k]])
        values.append(value)
    update = assign_together(targets, indices, values, op.span)
    init = [Store(b, indices, e) for b, e in zip(targets, combiner.identity, strict=True)]
    block = _block(op, targets[0].name, iter_vars, axes, update, _seq(init))
    return replace(block, combiner=combiner)


def _block(
    op: ComputeOp,
    name: str,
    iter_vars: tuple[IterVar, ...],
    axes: Sequence[IterVar],
    body: Stmt,
    init: Stmt | None,
) -> Block:
    """Blocks are named after their (first) buffer, which is unique in the function."""
    bindings = tuple(a.var for a in axes)
    annotations = {**({"tag": op.tag} if op.tag else {}), **op.attrs}
    return Block(name, iter_vars, bindings, body, init, TRUE, annotations, op.span)


def assign_together(
    targets: Sequence[Buffer], indices: tuple[Expr, ...], values: Sequence[Expr], span: Span
) -> Stmt:
    """All targets take their new values at once: where a value reads an accumulator that an
    earlier store would overwrite, the values go through scratch scalars first."""
    stores = [Store(b, indices, v, None, span) for b, v in zip(targets, values, strict=True)]
    if len(targets) == 1:
        return stores[0]
    scratch = [Buffer(f"{b.name}.new", (const(1),), b.dtype, Scope.LOCAL) for b in targets]
    zero = (const(0),)
    first: list[Stmt] = [Store(t, zero, v) for t, v in zip(scratch, values, strict=True)]
    then = [replace(s, value=Load(t, zero, None)) for s, t in zip(stores, scratch, strict=True)]
    body: Stmt = Seq((*first, *then))
    for buffer in scratch:
        body = Alloc(buffer, body)
    return body


def load_buffers(expr: Expr, buffers: dict[Tensor, Buffer]) -> Expr:
    """`expr` with loads of tensors turned into loads of their buffers."""

    def step(node: Node) -> Node:
        if isinstance(node, Load) and isinstance(node.source, Tensor):
            return Load(buffers[node.source], node.indices, node.predicate)
        return node

    return rewrite(expr, step)


def _seq(stmts: Sequence[Stmt]) -> Stmt:
    return stmts[0] if len(stmts) == 1 else Seq(tuple(stmts))
