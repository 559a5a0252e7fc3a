"""Products on small tiles, for the interpreter."""

import pytest

from tinycomp.schedules.gpu.hopper.operands import HopperTile

from .products import Product


@pytest.fixture
def product():
    return Product


@pytest.fixture
def small():
    """64 x 64 tiles, one consumer."""

    def tile(
        depth=2, rows=64, columns=64, consumers=1, cluster=1, staged=True, group=8, alternate=False
    ):
        return HopperTile(rows, columns, depth, consumers, cluster, group, staged, alternate)

    return tile
