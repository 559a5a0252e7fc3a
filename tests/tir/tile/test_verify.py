"""Programs over the limits of the machine are refused with the reason."""

from dataclasses import replace

import pytest

from tinycomp.diagnostics import ScheduleError
from tinycomp.dtype import DType
from tinycomp.tir.tile.verify import shared_layout, verify_tile_program


@pytest.mark.parametrize(
    ("tile", "reason"),
    [
        ({"rows": 128, "columns": 256, "depth": 5}, "shared memory"),
        ({"rows": 128, "columns": 256}, "256 registers of accumulators"),
        ({"rows": 192, "columns": 256, "consumers": 3, "staged": False}, "starts with 128"),
        ({"cluster": 16}, "clusters of 16 blocks"),
    ],
)
def test_limits(product, small, tile, reason):
    with pytest.raises(ScheduleError, match=reason):
        verify_tile_program(product(64, 64, 64, small(**tile), blocks=16).program)


def test_strides_of_tensor_maps(product, small):
    with pytest.raises(ScheduleError, match="multiples of 16"):
        verify_tile_program(product(64, 64, 65, small()).program)


def test_shared_memory(product, small):
    program = product(64, 64, 64, small(3), out=DType.BFLOAT16).program
    layout = shared_layout(program)
    assert all(offset % 1024 == 0 for offset in layout.tiles.values())
    assert layout.nbytes == 3 * 2 * 8192 + 2 * 8192 + 2 * 3 * 8


def test_registers_of_roles(product, small):
    program = product(128, 64, 64, small(rows=128, consumers=2)).program
    producer, consumer = program.roles
    verify_tile_program(program)
    greedy = replace(program, roles=(producer, replace(consumer, registers=240)))
    with pytest.raises(ScheduleError, match="at most 65536"):
        verify_tile_program(greedy)
