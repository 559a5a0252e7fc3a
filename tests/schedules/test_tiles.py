"""The models that choose register tiles."""

import dataclasses

import pytest

from tinycomp.schedules.matmul import choose_matmul_tile, tile_cost
from tinycomp.schedules.window import choose_conv_tile
from tinycomp.target import Target

AVX512 = dataclasses.replace(Target.host(), vector_bits=512, vector_registers=32)
AVX2 = dataclasses.replace(Target.host(), vector_bits=256, vector_registers=16)


@pytest.mark.parametrize("target", [AVX512, AVX2])
@pytest.mark.parametrize("m", [1, 2, 3, 7, 12, 49, 128, 1000])
@pytest.mark.parametrize("n", [1, 10, 64, 100, 768, 4096])
def test_matmul_tile_fits_registers(m, n, target):
    tile = choose_matmul_tile(m, n, target)
    lanes = target.vector_bits // 32
    vectors = tile.nr // lanes
    assert tile.nr % lanes == 0
    assert 1 <= tile.mr <= m
    assert tile.mr * vectors + vectors + 1 < target.vector_registers


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (13, 13), (56, 56), (1, 3136)])
def test_conv_tile_fits_output_and_registers(height, width):
    tile = choose_conv_tile(height, width, 64, AVX512)
    assert tile.th <= height
    assert tile.tw <= width
    assert tile.th * tile.tw * tile.nr // 16 + tile.nr // 16 + 1 < 32


def test_large_products_keep_both_units_busy():
    """The chosen tile's estimate is within 10 % of two multiply-adds per cycle."""
    tile = choose_matmul_tile(1024, 1024, AVX512)
    ideal = 1024 * 1024 / 16 / 2
    assert tile_cost(1024, 1024, tile.mr, tile.nr, 16) < 1.1 * ideal


def test_edges_cost_what_they_compute():
    assert tile_cost(13, 64, 13, 32, 16) < tile_cost(14, 64, 13, 32, 16)
