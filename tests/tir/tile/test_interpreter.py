"""Tile programs give NumPy's results in any order that a GPU may take."""

from dataclasses import replace

import pytest

from tinycomp.dtype import DType
from tinycomp.tir.tile.interpreter import POLICIES
from tinycomp.tir.tile.layout import Major

STEP = 64  # elements of k in one stage


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
def test_ring_depths_and_steps(product, small, depth):
    """Parities go wrong where the number of steps meets the depth of the ring."""
    for steps in sorted({0, 1, depth - 1, depth, depth + 1, 2 * depth + 1}):
        policies = POLICIES[steps % 2 : 4 : 2]
        product(128, 64, steps * STEP, small(depth), blocks=1).check(*policies)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_policy(product, small, policy):
    tile = small(3, rows=128, consumers=2, cluster=2)
    product(200, 136, 200, tile, bias=True, out=DType.BFLOAT16).check(policy)


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(64, 64, 64), (65, 64, 64), (64, 72, 64), (64, 64, 72), (1, 8, 8), (130, 200, 136)],
)
@pytest.mark.parametrize("staged", [True, False])
def test_edges(product, small, m, n, k, staged):
    product(m, n, k, small(2, staged=staged), bias=True).check(*POLICIES[:2])


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 9])
def test_persistent_blocks(product, small, blocks):
    """Fewer, as many, and more blocks than tiles; four tiles here."""
    product(128, 128, 128, small(2), blocks=blocks).check(*POLICIES[1:3])


@pytest.mark.parametrize("rows", [64, 128, 192, 320])
def test_clusters_with_odd_tile_counts(product, small, rows):
    product(rows, 128, 192, small(2, cluster=2), blocks=4).check(*POLICIES[::3])


@pytest.mark.parametrize("group", [1, 2, 3])
def test_groups_of_rows(product, small, group):
    product(320, 128, 64, small(2, group=group), blocks=3).check()


@pytest.mark.parametrize("columns", [64, 128, 192, 256])
def test_widths(product, small, columns):
    """Odd numbers of stored boxes use a slot twice in a row across tiles."""
    product(128, columns + 8, 72, small(2, columns=columns), blocks=1).check(*POLICIES[:2])


@pytest.mark.parametrize(
    ("dtype", "out", "major"),
    [
        (DType.BFLOAT16, DType.BFLOAT16, Major.K),
        (DType.FLOAT16, DType.FLOAT16, Major.MN),
        (DType.FLOAT16, DType.FLOAT32, Major.K),
        (DType.FLOAT32, DType.FLOAT32, Major.K),  # read as tf32
    ],
)
@pytest.mark.parametrize("cluster", [1, 2])
def test_types_and_majors(product, small, dtype, out, major, cluster):
    case = product(
        136, 72, 104, small(2, cluster=cluster), dtype=dtype, out=out, b_major=major, batch=2
    )
    case.check(*POLICIES[2:4])


def test_two_tiles_per_consumer(product, small):
    product(256, 64, 200, small(3, rows=256, consumers=2), bias=True).check(*POLICIES[:2])


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5])
def test_consumers_in_turn(product, small, depth, steps):
    tile = small(depth, consumers=2, alternate=True)
    for blocks in (1, 2):
        product(320, 64, steps * STEP, tile, blocks=blocks).check(*POLICIES[steps % 3 :: 4])


def test_consumers_in_turn_in_clusters(product, small):
    tile = small(2, rows=128, consumers=2, cluster=2, alternate=True)
    product(390, 64, 200, tile, blocks=2, bias=True).check(*POLICIES[::3])


@pytest.mark.parametrize("policy", POLICIES[::2], ids=str)
@pytest.mark.parametrize("gatherers", [1, 2])
def test_gathered_operands(product, small, policy, gatherers):
    tile = replace(small(2, rows=128, consumers=2, columns=128), gatherers=gatherers)
    product(200, 136, 200, tile, blocks=2, gathered=True).check(policy)


@pytest.mark.parametrize("n", [64, 49, 98])
def test_odd_columns_are_stored_one_by_one(product, small, n):
    product(64, n, 64, small(2, staged=False), gathered=True, batch=2).check(*POLICIES[:2])


def test_text(product, small):
    text = str(product(128, 128, 128, small(2, cluster=2)).func)
    assert "role producer: one thread" in text
    assert "acc[0] += wgmma_m64n64k16(a_tile[read]" in text
    assert "wgmma_wait(pending=1)" in text
