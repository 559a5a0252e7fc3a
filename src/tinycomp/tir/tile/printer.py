"""Tile programs as text: what they declare, then each role with its operations."""

from __future__ import annotations

from typing import Any

from ...ir.expr import is_const
from ..nodes import Stmt
from . import nodes as op


def program_parts(program: op.TileProgram, depth: int) -> list[tuple[Any, int]]:
    """Lines and statements of a program with their indentation, for `tir.printer`."""
    shape = f"{program.grid} blocks of {program.threads} threads, clusters of {program.cluster}"
    parts: list[tuple[Any, int]] = [(f'tile program "{program.name}": {shape}', depth)]
    for map in program.maps:
        box = " x ".join(str(b) for b in reversed(map.box))
        text = f"map {map.name} of {map.buffer.name}: boxes of {box}, swizzle {map.swizzle.span}"
        parts.append((text, depth + 1))
    for tile in program.tiles:
        size = f"{tile.stages} x {tile.nbytes} bytes of {tile.dtype}"
        parts.append((f"shared {tile.name}: {size}", depth + 1))
    for barrier in program.barriers:
        parts.append(
            (f"barrier {barrier.name}[{barrier.stages}], {barrier.count} arrivals", depth + 1)
        )
    parts.append((program.setup, depth + 1))
    for role in program.roles:
        parts.append((role, depth + 1))
    if not _is_empty(program.finish):
        parts.append((program.finish, depth + 1))
    return parts


def op_parts(stmt: Stmt, depth: int) -> list[tuple[Any, int]] | None:
    """Lines and statements of a role or operation; None for other statements."""
    if isinstance(stmt, op.TileProgram):
        return program_parts(stmt, depth)
    if isinstance(stmt, op.Role):
        notes = f", {stmt.registers} registers" if stmt.registers else ""
        who = "one thread" if stmt.single else f"{stmt.warpgroups} warpgroups"
        return [(f"role {stmt.name}: {who}{notes}", depth), (stmt.body, depth + 1)]
    if isinstance(stmt, op.Ahead):
        return [("ahead of the wait for the launch before:", depth), (stmt.body, depth + 1)]
    if isinstance(stmt, op.ThreadCode):
        return [("each thread:", depth), (stmt.body, depth + 1)]
    return [(_text(stmt), depth)] if isinstance(stmt, op.TileOp) else None


def _text(stmt: op.TileOp) -> str:
    match stmt:
        case op.Let():
            return f"{stmt.var.name} = {stmt.value}"
        case op.LetStage():
            return f"{stmt.var.name} = stage of {stmt.cursor.name}"
        case op.Wait():
            when = ", of the round before" if stmt.before else ""
            return f"wait({_at(stmt.barrier, stmt.cursor)}{when})"
        case op.Arrive():
            where = ", in all blocks of the cluster" if stmt.everywhere else ""
            return f"arrive({_at(stmt.barrier, stmt.cursor)}{where})"
        case op.ExpectBytes():
            return f"arrive({_at(stmt.barrier, stmt.cursor)}, expecting {stmt.nbytes} bytes)"
        case op.Advance():
            by = "" if is_const(stmt.by, 1) else f", {stmt.by}"
            return f"advance({stmt.cursor.name}{by})"
        case op.TmaLoad():
            where = f"{stmt.tile.name}[{stmt.cursor.name}] + {stmt.offset}"
            many = ", to all blocks of the cluster" if stmt.multicast else ""
            done = _at(stmt.barrier, stmt.cursor)
            return f"tma_load({_box(stmt)} -> {where}, counted on {done}{many})"
        case op.TmaPrefetch():
            return f"tma_prefetch({_box(stmt)})"
        case op.TmaStore():
            return f"tma_store({stmt.tile.name} + {stmt.offset} -> {_box(stmt)})"
        case op.WaitStores() | op.WgmmaWait():
            return f"{_name(stmt)}(pending={stmt.pending})"
        case op.NamedBarrier() | op.NamedArrive():
            return f"{_name(stmt)}({stmt.name}, {stmt.warpgroups} warpgroups)"
        case op.Wgmma():
            return _wgmma(stmt)
    return f"{_name(stmt)}()"


def _wgmma(stmt: op.Wgmma) -> str:
    shape, sign = stmt.acc.shape, "+=" if stmt.accumulate else "="
    a, b = _operand(stmt.a), _operand(stmt.b)
    return f"{stmt.acc.buffer.name}[{stmt.tile}] {sign} wgmma_m64n{shape.n}k{shape.k}({a}, {b})"


def _operand(operand: op.Operand | op.Fragment) -> str:
    if isinstance(operand, op.Fragment):
        return f"{operand.buffer.name}[{operand.first}]"
    place = f"{operand.tile.name}[{operand.cursor.name}] + {operand.offset}"
    return f"{place} ({operand.descriptor.major}-major)"


def _at(barrier: op.Barrier, cursor: op.Cursor) -> str:
    return f"{barrier.name}[{cursor.name}]"


def _box(stmt: op.TmaLoad | op.TmaPrefetch | op.TmaStore) -> str:
    place = f"{stmt.map.name}[{', '.join(str(c) for c in reversed(stmt.coordinates))}]"
    tap = stmt.tap if isinstance(stmt, op.TmaLoad) else ()
    return place + (f" at tap [{', '.join(str(t) for t in reversed(tap))}]" if tap else "")


def _name(stmt: Stmt) -> str:
    """CamelCase to words.

    >>> _name(op.WgmmaCommit())
    'wgmma_commit'
    """
    name = type(stmt).__name__
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


def _is_empty(stmt: Stmt) -> bool:
    return not stmt.children()
