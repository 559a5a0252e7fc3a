"""Attention as a tile program: right in any order that a GPU may take, and nothing superfluous."""

from dataclasses import replace

import pytest
from tests.tir.tile.test_mutations import ORDERING, changed, occurrences

from tinycomp.dtype import DType
from tinycomp.schedules.gpu.attention.program import AttentionTile
from tinycomp.tir.nodes import Seq
from tinycomp.tir.tile import nodes as op
from tinycomp.tir.tile.interpreter import POLICIES, TileError

from .cases import Attention

TURNS = AttentionTile(2, 16, 2)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_policy(policy):
    Attention(2, 200, 50, 16, TURNS, blocks=3).check(policy)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("keys", [10, 17, 50])
def test_ring_depths(stages, keys):
    """Parities go wrong where the number of tiles meets the depth of the rings."""
    tile = AttentionTile(1, 16, stages)
    Attention(2, 64, keys, 16, tile, blocks=1).check(*POLICIES[keys % 2 : 4 : 2])


@pytest.mark.parametrize("causal", [-70, 0, 36])
@pytest.mark.parametrize("consumers", [1, 2])
def test_diagonals(causal, consumers):
    """Rows that see nothing are NaN, in the reference too."""
    Attention(1, 150, 110, 16, AttentionTile(consumers, 16, 2), causal=causal).check(POLICIES[1])


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize(("depth", "v_depth"), [(16, 16), (80, 48), (48, 144), (128, 64)])
def test_heads_of_any_size(depth, v_depth, staged):
    tile = AttentionTile(1, 48, 2, staged)
    Attention(1, 70, 100, depth, tile, v_depth=v_depth, dtype=DType.BFLOAT16).check(POLICIES[0])


def is_missed(case, program):
    for policy in POLICIES:
        try:
            if not case.is_right(policy, program):
                return True
        except TileError:
            return True
    return False


@pytest.mark.parametrize("kind", [*ORDERING, op.NamedArrive], ids=lambda k: k.__name__)
def test_left_out(kind):
    """Two tiles of queries for a block, so that all of shared memory is used again."""
    case = Attention(2, 128, 80, 16, TURNS, blocks=1)
    numbers = [i for i, s in enumerate(occurrences(case.program)) if isinstance(s, kind)]
    if kind is op.Wait:
        del numbers[1]  # of the first keys: they follow the wait for the values before them
    assert numbers
    for number in numbers:
        stmt = occurrences(case.program)[number]
        broken = changed(case.program, number, lambda _: Seq(()))
        assert is_missed(case, broken), f"nobody misses {number}: {stmt}"


def test_too_weak_waits():
    case = Attention(2, 128, 80, 16, TURNS, blocks=1)
    for number, stmt in enumerate(occurrences(case.program)):
        if isinstance(stmt, op.WgmmaWait | op.WaitStores):
            weak = changed(case.program, number, lambda s: replace(s, pending=s.pending + 1))
            assert is_missed(case, weak), stmt
