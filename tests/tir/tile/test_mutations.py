"""Whatever orders a program, left out once, is missed: the interpreter is no rubber stamp."""

from dataclasses import replace

import numpy as np
import pytest

from tinycomp.dtype import DType
from tinycomp.ir.expr import const
from tinycomp.schedules.gpu.hopper.operands import HopperTile
from tinycomp.tir.nodes import Seq, Stmt
from tinycomp.tir.passes.visit import rebuild_stmt
from tinycomp.tir.tile import nodes as op
from tinycomp.tir.tile.interpreter import POLICIES, TileError
from tinycomp.tir.tile.layout import Swizzle

ORDERING = (
    op.Wait, op.Arrive, op.ExpectBytes, op.WaitStores, op.CommitStores, op.FenceProxy,
    op.NamedBarrier, op.WgmmaFence, op.WgmmaCommit, op.WgmmaWait, op.InitBarriers,
    op.FenceBarrierInit, op.ClusterSync, op.Advance,
)  # fmt: skip


def changed(root, number, change):
    """`root` with its statement `number` in text order replaced by `change` of it."""
    count = -1

    def visit(stmt):
        nonlocal count
        count += 1
        if count == number:
            return change(stmt)
        children = [visit(c) if isinstance(c, Stmt) else c for c in stmt.children()]
        return rebuild_stmt(stmt, children)

    return visit(root)


def occurrences(root):
    stack, found = [root], []
    while stack:
        stmt = stack.pop()
        found.append(stmt)
        stack.extend(c for c in reversed(stmt.children()) if isinstance(c, Stmt))
    return found


def is_missed(case, program):
    for policy in POLICIES:
        try:
            result = case.run(policy, program)
        except TileError:
            return True
        if not np.array_equal(result, case.expected):
            return True
    return False


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("kind", ORDERING, ids=lambda k: k.__name__)
def test_left_out(product, small, kind, cluster):
    """Two tiles for each block, so that rings and slots are used again."""
    case = product(256, 64, 192, small(2, cluster=cluster), blocks=2)
    case.check()
    program = case.program
    numbers = [i for i, s in enumerate(occurrences(program)) if isinstance(s, kind)]
    assert numbers
    for number in numbers:
        broken = changed(program, number, lambda _: Seq(()))
        stmt = occurrences(program)[number]
        assert is_missed(case, broken), f"nobody misses {stmt}"


@pytest.mark.parametrize("kind", [op.Wait, op.Arrive, op.Advance], ids=lambda k: k.__name__)
def test_left_out_of_turns(product, small, kind):
    case = product(384, 64, 192, small(2, consumers=2, alternate=True), blocks=2)
    case.check()
    for number, stmt in enumerate(occurrences(case.program)):
        if isinstance(stmt, kind):
            assert is_missed(case, changed(case.program, number, lambda _: Seq(()))), stmt


@pytest.mark.parametrize(
    "kind", [op.Wait, op.Arrive, op.FenceProxy, op.NamedBarrier], ids=lambda k: k.__name__
)
def test_left_out_of_gathering(product, small, kind):
    case = product(128, 64, 192, small(2), blocks=1, gathered=True)
    case.check()
    for number, stmt in enumerate(occurrences(case.program)):
        if isinstance(stmt, kind):
            assert is_missed(case, changed(case.program, number, lambda _: Seq(()))), stmt


@pytest.mark.parametrize(
    "kind", [op.Wait, op.Arrive, op.NamedBarrier, op.ClusterSync], ids=lambda k: k.__name__
)
def test_left_out_of_sums_in_a_cluster(product, kind):
    """The ring is as elsewhere; its last stages are released for nobody here."""
    case = product(64, 64, 640, HopperTile(64, 64, 2, 1, split=2), blocks=2)
    case.check(*POLICIES)
    empty = case.program.barriers[1]
    for number, stmt in enumerate(occurrences(case.program)):
        if isinstance(stmt, kind) and getattr(stmt, "barrier", None) is not empty:
            assert is_missed(case, changed(case.program, number, lambda _: Seq(()))), stmt


def test_too_weak_waits(product, small):
    case = product(128, 64, 256, small(2), blocks=1)
    case.check()
    for number, stmt in enumerate(occurrences(case.program)):
        if isinstance(stmt, op.WgmmaWait | op.WaitStores):
            weak = changed(case.program, number, lambda s: replace(s, pending=s.pending + 1))
            assert is_missed(case, weak), stmt


def test_wrong_layouts(product, small):
    """Bits of swizzles and descriptors show as numbers."""
    case = product(64, 128, 128, small(2, columns=128), blocks=1)
    program = case.program
    a, b, out = program.maps
    for wrong in (Swizzle(0), Swizzle(64)):
        broken = replace(program, maps=(replace(a, swizzle=wrong), b, out))
        loads = [i for i, s in enumerate(occurrences(program)) if isinstance(s, op.TmaLoad)]
        broken = changed(
            program, loads[0], lambda s, w=wrong: replace(s, map=replace(a, swizzle=w))
        )
        assert is_missed(case, broken)

    def relaid(stmt, **fields):
        layout = replace(stmt.b.descriptor, **fields)
        return replace(stmt, b=replace(stmt.b, descriptor=layout))

    first = next(i for i, s in enumerate(occurrences(program)) if isinstance(s, op.Wgmma))
    for fields in ({"leading": 4096}, {"stride": 2048}, {"swizzle": Swizzle(64)}):
        assert is_missed(case, changed(program, first, lambda s, f=fields: relaid(s, **f)))


def test_bytes_must_add_up(product, small):
    case = product(64, 64, 64, small(2), blocks=1)
    number = next(
        i for i, s in enumerate(occurrences(case.program)) if isinstance(s, op.ExpectBytes)
    )
    for difference in (-1024, 1024):
        broken = changed(
            case.program, number, lambda s, d=difference: replace(s, nbytes=s.nbytes + d)
        )
        with pytest.raises(TileError, match=r"bytes|deadlock"):
            case.run(POLICIES[2], broken)


def test_wrong_counts(product, small):
    case = product(64, 64, 256, small(2), blocks=1)
    full, empty = case.program.barriers

    def recount(wrong):
        def visit(stmt):
            if isinstance(stmt, op.Wait | op.Arrive) and stmt.barrier is empty:
                stmt = replace(stmt, barrier=wrong)
            children = [visit(c) if isinstance(c, Stmt) else c for c in stmt.children()]
            return rebuild_stmt(stmt, children)

        return replace(visit(case.program), barriers=(full, wrong))

    assert is_missed(case, recount(op.Barrier("empty", 2, 2)))


def test_messages(product, small):
    case = product(64, 64, 256, small(2), blocks=1, out=DType.FLOAT32)
    waits = [
        i
        for i, s in enumerate(occurrences(case.program))
        if isinstance(s, op.Wait) and s.barrier.name == "full"
    ]
    broken = case.program
    for number in waits:
        broken = changed(broken, number, lambda s: op.Let(op.Var("x"), const(0), 1))
    with pytest.raises(TileError, match="race: wgmma of consumer 0 of block 0 reads stage 0"):
        case.run(POLICIES[2], broken)
