"""Warpgroups that give each other turns by named barriers."""

from dataclasses import replace

import pytest

from tinycomp.ir.expr import Var, const
from tinycomp.tir.nodes import For, If, PrimFunc, Seq
from tinycomp.tir.tile import nodes as op
from tinycomp.tir.tile.interpreter import POLICIES, Policy, TileError, run_tile_program


def turns(begin=True, end=True):
    """Two warpgroups, the first of which begins; each has two turns."""
    wg, i = Var("warpgroup"), Var("i")
    mine, other = wg + 1, const(2) - wg
    start = If(wg.equal(1), op.NamedArrive(const(1), 2)) if begin else Seq(())
    loop = For(i, const(0), const(2), Seq((op.NamedBarrier(mine, 2), op.NamedArrive(other, 2))))
    last = If(wg.equal(0), op.NamedBarrier(const(1), 2)) if end else Seq(())
    role = op.Role("consumer", 0, 2, wg, Var("thread"), Seq((start, loop, last)))
    program = op.TileProgram(
        "turns", 1, 1, Var("block"), Var("rank"), (), (), (), Seq(()), (role,), Seq(())
    )
    return PrimFunc("turns", (), 0, program), program


@pytest.mark.parametrize("policy", POLICIES[:4], ids=str)
def test_turns(policy):
    func, program = turns()
    run_tile_program(func, program, {}, policy)
    assert "named_arrive(2 - warpgroup, 2 warpgroups)" in str(func)


def test_a_turn_that_nobody_gives_is_a_deadlock():
    with pytest.raises(TileError, match="deadlock"):
        run_tile_program(*turns(begin=False), {})


def test_arriving_twice_is_reported():
    func, program = turns()
    arrive = op.NamedArrive(const(3), 2)
    role = replace(program.roles[0], body=Seq((arrive, arrive)))
    with pytest.raises(TileError, match="again before the others have"):
        run_tile_program(func, replace(program, roles=(role,)), {}, Policy(agents="first"))


def test_arrivals_that_nobody_waits_for_are_reported():
    with pytest.raises(TileError, match="barrier 1, where nobody waits"):
        run_tile_program(*turns(end=False), {})
