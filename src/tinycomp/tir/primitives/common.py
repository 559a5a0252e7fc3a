"""What several primitives share: names, places, guards, and the conditions under which they act."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from ...diagnostics import ScheduleError
from ...ir.expr import Binary, BinaryOp, Call, Expr, Load, Var, call, variables
from ...ir.node import postorder, rewrite
from ...te.tensor import IterKind
from ..nodes import ONCE, Alloc, Block, Buffer, For, PrimFunc, Seq, Stmt, Store
from ..tree import (
    block_of,
    blocks_in,
    loop_of,
    loops_above,
    path_to,
    read_buffers,
    statements,
    statements_outside,
    stores_in,
    written_buffers,
)

EXCERPT_LINES = 17


def excerpt(func: PrimFunc, stage: str, axis: str = "") -> str:
    """The loops around a stage (or a loop of it) as at most 17 lines of text."""
    path = path_to(func.body, lambda s: isinstance(s, Block) and s.name == stage)
    if path is None:
        root: Stmt = func.body
    else:
        root = path[1] if isinstance(path[0], Seq) and len(path) > 1 else path[0]
    lines = str(root).splitlines()
    if len(lines) <= EXCERPT_LINES:
        return "\n".join(lines)
    marks = (f"for {axis} in ", f'with block("{stage}")')
    found = [i for mark in marks for i, line in enumerate(lines) if line.strip().startswith(mark)]
    centre = found[0] if found else 0
    first = max(0, min(centre - EXCERPT_LINES // 2, len(lines) - EXCERPT_LINES))
    return "\n".join(lines[first : first + EXCERPT_LINES])


def unique(base: str, taken: Collection[str]) -> str:
    """`base`, with a number if that name is taken."""
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    return name


def fresh_buffer_name(func: PrimFunc, base: str) -> str:
    """A name that no buffer and no block has."""
    taken = {b.name for b in (*func.params, *func.allocs)}
    return unique(base, taken | {b.name for b in blocks_in(func.body)})


def names_around(func: PrimFunc, stmt: Stmt, but: Iterable[For] = ()) -> set[str]:
    """The names of the loops above and inside a statement, without the loops `but`."""
    loops = loops_above(func, stmt) + loops_in(stmt)
    skipped = list(but)
    return {loop.var.name for loop in loops if not any(loop is s for s in skipped)}


def loops_in(stmt: Stmt) -> list[For]:
    """The loops in a statement, itself included."""
    return [s for s in statements(stmt) if isinstance(s, For)]


def root_of(func: PrimFunc, stmt: Stmt) -> Stmt:
    """The statement at the root of the function that holds `stmt`."""
    path = path_to(func.body, lambda s: s is stmt)
    assert path is not None
    return path[1] if isinstance(path[0], Seq) and len(path) > 1 else path[0]


def own_nest(func: PrimFunc, block: Block) -> Stmt:
    """The largest nest of loops that holds only this block."""
    path = path_to(func.body, lambda s: s is block)
    assert path is not None
    top: Stmt = block
    for stmt in reversed(path[:-1]):
        if not isinstance(stmt, For):
            break
        top = stmt
    return top


def own_loops(func: PrimFunc, block: Block) -> list[For]:
    """The loops of `own_nest`, outermost first."""
    loops: list[For] = []
    stmt = own_nest(func, block)
    while isinstance(stmt, For):
        loops.append(stmt)
        stmt = stmt.body
    return loops


def guard_blocks(body: Stmt, condition: Expr) -> Stmt:
    """Every block in `body` runs only where `condition` holds."""
    guard = call("likely", condition)

    def step(node: Stmt) -> Stmt:
        return replace(node, predicate=node.predicate & guard) if isinstance(node, Block) else node

    return rewrite(body, step)


def split_guards(predicate: Expr, wanted: Collection[Var]) -> tuple[list[Expr], list[Expr]]:
    """The conjuncts that mention one of the variables, and the others."""
    mentioned: list[Expr] = []
    others: list[Expr] = []
    stack = [predicate]
    while stack:
        node = stack.pop()
        if isinstance(node, Binary) and node.op is BinaryOp.AND:
            stack += [node.b, node.a]
        elif any(v in wanted for v in variables(node)):
            mentioned.append(node)
        else:
            others.append(node)
    return mentioned, others


def kept_across(func: PrimFunc, loop: For) -> list[Block]:
    """The blocks that find elements in their buffers which an earlier iteration of the loop
    computed (rolling_buffer, set_store_predicate)."""
    kept: list[Block] = []
    for block in blocks_in(loop):
        is_meant = any(loop.var in variables(m) for m in kept_marks(block))
        if is_meant and not any(loop is l for l in own_loops(func, block)):
            kept.append(block)
    return kept


def kept_marks(block: Block) -> list[Call]:
    """The marks of conditions under which a block finds its elements computed."""
    nodes = postorder(block.predicate)
    return [n for n in nodes if isinstance(n, Call) and n.name == ONCE]


def require_first_mark(block: Block) -> None:
    """ScheduleError if a block keeps elements already: what rolls is there for one iteration."""
    if kept_marks(block):
        raise ScheduleError(
            f"stage {block.name!r} keeps what it computed already",
            hint="use one of rolling_buffer and set_store_predicate, once",
        )


def require_inputs_stay(func: PrimFunc, block: Block) -> None:
    """ScheduleError if a block reads a circular buffer, so that no other place could do so."""
    read = read_buffers(block)
    for writer in blocks_in(func.body):
        if kept_marks(writer) and any(b in read for b in result_buffers(writer)):
            raise ScheduleError(
                f"stage {block.name!r} reads what {writer.name!r} keeps for the iterations of the "
                "loops around both",
                hint="do this before rolling_buffer and set_store_predicate",
            )


def require_nothing_kept(func: PrimFunc, loop: For) -> None:
    """ScheduleError if iterations of the loop find there what earlier ones computed."""
    for block in kept_across(func, loop):
        raise ScheduleError(
            f"stage {block.name!r} keeps what it computed from one iteration of "
            f"{loop.var.name!r} to the next",
            hint="leave this loop serial and where it is, or do this before rolling_buffer and "
            "set_store_predicate",
        )


def axis_kinds(func: PrimFunc, axis: Var) -> set[IterKind]:
    """The kinds of the block axes that a loop takes part in."""
    kinds: set[IterKind] = set()
    for block in blocks_in(loop_of(func, axis)):
        kinds |= kinds_in(block, axis)
    return kinds


def kinds_in(block: Block, axis: Var) -> set[IterKind]:
    """The kinds of a block's axes that a loop takes part in."""
    return {
        iter_var.kind
        for iter_var, binding in zip(block.iter_vars, block.bindings, strict=True)
        if axis in variables(binding)
    }


def reduces(block: Block) -> bool:
    return any(v.kind is IterKind.REDUCE for v in block.iter_vars)


def require_spatial(func: PrimFunc, axis: Var) -> None:
    """ScheduleError if iterations of the loop cannot run at once."""
    name = axis.name
    kinds = axis_kinds(func, axis)
    if IterKind.ORDERED in kinds:
        raise ScheduleError(
            f"axis {name!r} is the time of a scan: each iteration needs the one before",
            hint="the other axes of the stages inside can run at once",
        )
    if IterKind.REDUCE in kinds:
        raise ScheduleError(
            f"axis {name!r} is a reduction axis; its iterations update one accumulator and cannot "
            "run at once",
            hint=f"s.rfactor(tensor, {name!r}) turns it into an axis of partial results first",
        )
    loop = loop_of(func, axis)
    for block in blocks_in(loop):
        if kinds_in(block, axis):
            continue
        shared = [b for b in written_buffers(block) if accessed_outside(func, loop, b)]
        if shared:
            raise ScheduleError(
                f"all iterations of {name!r} write the same elements of {shared[0].name!r}, which "
                "is read outside the loop",
                hint="choose a loop that the stage's own axes are bound to",
            )


def accessed_outside(func: PrimFunc, stmt: Stmt, buffer: Buffer) -> bool:
    """Whether a buffer is a parameter, or used outside of a statement."""
    if buffer in func.params:
        return True
    for other in statements_outside(func.body, [stmt]):
        if isinstance(other, Store) and other.buffer is buffer:
            return True
        own = [c for c in other.children() if not isinstance(c, Stmt)]
        if any(isinstance(n, Load) and n.source is buffer for n in postorder(own)):
            return True
    return False


def chain(func: PrimFunc, axes: Iterable[Var]) -> list[For]:
    """The perfectly nested loops from the outermost to the innermost of `axes`, all included.

    Raises:
        ScheduleError: they are not nested directly in each other.
    """
    wanted = list(axes)
    for start in [loop_of(func, a) for a in wanted]:
        nest: list[For] = []
        stmt: Stmt = start
        while isinstance(stmt, For):
            nest.append(stmt)
            if all(any(l.var is a for l in nest) for a in wanted):
                return nest
            stmt = stmt.body
    names = ", ".join(repr(a.name) for a in wanted)
    raise ScheduleError(
        f"the loops {names} are not nested directly in each other",
        hint="another statement sits between them (a compute_at inside?); do this before that",
    )


def only_writer(func: PrimFunc, block_name: str) -> Block:
    """The block of a stage that no other block shares its buffers with.

    Raises:
        ScheduleError: the stage was taken apart (decompose_reduction, partition).
    """
    block = block_of(func, block_name)
    mine = written_buffers(block)
    for other in blocks_in(func.body):
        if other is not block and any(b in mine for b in written_buffers(other)):
            raise ScheduleError(
                f"stage {block_name!r} was taken apart: {other.name!r} writes the same buffer",
                hint="do this before decompose_reduction or partition",
            )
    return block


def stores_at_axes(block: Block) -> bool:
    """Whether every store of the block is at its axes (without reduced ones), in order."""
    axes = tuple(v.var for v in block.iter_vars if v.kind is not IterKind.REDUCE)
    return all(
        s.buffer not in result_buffers(block)
        or (len(s.indices) == len(axes) and all(i is a for i, a in zip(s.indices, axes)))  # noqa: B905
        for s in stores_in(block.body)
    )


def require_plain_store(block: Block) -> None:
    """ScheduleError unless every store of the block is at its axes, in order."""
    if not stores_at_axes(block):
        raise ScheduleError(
            f"stage {block.name!r} does not store at its own axes: its layout was transformed, its "
            "buffer rolls, or it was tensorized",
            hint="do this before transform_layout, rolling_buffer or tensorize",
        )


def written_extents(func: PrimFunc, buffer: Buffer) -> tuple[Expr, ...] | None:
    """How much of a buffer, from its start, is written; None where that is not known.

    That may be less than its shape, which grows with tiles that reach past the end.
    """
    writers = [b for b in blocks_in(func.body) if buffer in result_buffers(b)]
    if not writers or buffer in func.params:
        return buffer.shape
    found = {
        tuple(v.min + v.extent for v in w.iter_vars if v.kind is not IterKind.REDUCE)
        for w in writers
    }
    if len(found) != 1 or not all(stores_at_axes(w) for w in writers):
        return None
    return found.pop()


def _is_scratch(block: Block, buffer: Buffer) -> bool:
    return any(isinstance(s, Alloc) and s.buffer is buffer for s in statements(block.body))


def result_buffers(block: Block) -> list[Buffer]:
    """The buffers a block writes, without scratch that it allocates itself."""
    return [b for b in written_buffers(block) if not _is_scratch(block, b)]


def require_inputs_at(func: PrimFunc, block: Block, target: For | None) -> None:
    """ScheduleError unless what the block reads is complete at another place.

    A producer that is computed inside a loop around the block holds only what iterations of that
    loop need; so the block must stay inside it. `target` is the loop to move to, None the root.
    """
    around = loops_above(func, block)
    above = [] if target is None else [*loops_above(func, target), target]
    mine = written_buffers(block)
    for source in read_buffers(block):
        if source in mine:
            continue
        for writer in blocks_in(func.body):
            if source not in written_buffers(writer):
                continue
            shared = [l for l in loops_above(func, writer) if any(l is a for a in around)]
            if shared and not any(shared[-1] is a for a in above):
                raise ScheduleError(
                    f"stage {block.name!r} reads {source.name!r}, which is computed inside its "
                    f"loop {shared[-1].var.name!r}",
                    hint=f's["{writer.name}"].compute_root() first; place it again afterwards',
                )
