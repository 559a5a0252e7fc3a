"""TMA's walk over windows (im2col mode), under every policy of the interpreter."""

from dataclasses import replace

import numpy as np
import pytest

from tinycomp.diagnostics import ScheduleError
from tinycomp.tir.tile.interpreter import POLICIES, TileError, run_tile_program
from tinycomp.tir.tile.nodes import Im2col
from tinycomp.tir.tile.verify import verify_tile_program

from .test_mutations import changed, occurrences
from .windows import WINDOWS, windows_product


@pytest.mark.parametrize("case", WINDOWS, ids=lambda c: "x".join(map(str, c)))
def test_windows(case):
    func, arrays, wanted = windows_product(*case)
    for policy in POLICIES[::4]:
        arrays[-1][...] = np.nan
        run_tile_program(func, func.body, dict(zip(func.params, arrays, strict=True)), policy)
        np.testing.assert_array_equal(arrays[-1], wanted)


@pytest.mark.parametrize("field", ["lower", "upper", "strides"])
def test_a_wrong_walk_shows(field):
    """A corner or stride that is off by one gives other numbers, or windows that do not exist."""
    func, arrays, wanted = windows_product(*WINDOWS[0])
    program = func.body
    map = program.maps[0]
    across, down = getattr(map.im2col, field)
    walk = replace(map.im2col, **{field: (across + 1, down)})
    load = next(i for i, s in enumerate(occurrences(program)) if getattr(s, "map", None) is map)
    broken = changed(program, load, lambda s: replace(s, map=replace(map, im2col=walk)))
    try:
        run_tile_program(func, broken, dict(zip(func.params, arrays, strict=True)))
    except TileError:
        return
    assert not np.array_equal(arrays[-1], wanted)


def test_what_a_map_can_say():
    func, *_ = windows_product(*WINDOWS[0])
    program = func.body
    for walk in (Im2col((-129, 0), (0, 0), (1, 1)), Im2col((0, 0), (0, 0), (9, 1))):
        maps = (replace(program.maps[0], im2col=walk), *program.maps[1:])
        with pytest.raises(ScheduleError):
            verify_tile_program(replace(program, maps=maps))
