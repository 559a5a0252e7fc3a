"""Random schedules with thread axes: what lowers for a GPU computes what NumPy does, without races.

The program of the threads runs on `gpu_executor`, which finds races, missing barriers and accesses
out of bounds.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tinycomp.diagnostics import ScheduleError
from tinycomp.runtime.compare import compare_arrays
from tinycomp.schedules.gpu.bind import bind_unbound
from tinycomp.te.interpreter import evaluate
from tinycomp.testing.schedule_fuzz import FOR_GPUS, draw_case, random_schedule
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.nodes import For
from tinycomp.tir.tree import statements

GROUPS, SEEDS = 6, 20


def threads_of(seed, symbolic=False):
    """Run one case; the number of different thread axes, or None where lowering refuses it."""
    case = draw_case(seed, symbolic)
    drawn = random_schedule(case, weights=FOR_GPUS)
    try:
        func = lower_gpu(bind_unbound(drawn.schedule.func))
    except ScheduleError:
        return None
    for sizes in case.runs():
        check_at(case, drawn, func, sizes)
    return len({s.thread for s in statements(func.body) if isinstance(s, For) and s.thread})


def check_at(case, drawn, func, sizes):
    computation = replace(case, sizes=sizes, symbolic=False).make()
    arrays = computation.arrays(np.random.default_rng(case.seed))
    expected = evaluate(computation.outputs, dict(zip(computation.inputs, arrays, strict=True)))
    results = [np.empty(np.shape(e), np.asarray(e).dtype) for e in expected]
    run(func, [*arrays, *results], sizes={v: sizes[v.name] for v in func.sizes})
    for result, want in zip(results, expected, strict=True):
        largest = float(np.max(np.abs(want), initial=1)) if want.dtype.kind == "f" else 1
        tolerance = 0.0 if computation.exact else 1e-4 * largest
        difference = compare_arrays("result", result, want).difference
        assert difference <= tolerance, f"{case} at {sizes}\n{drawn.schedule.trace()}"


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_schedules(group):
    found = Counter(threads_of(seed) for seed in range(group * SEEDS, (group + 1) * SEEDS))
    ran = sum(n for axes, n in found.items() if axes is not None)
    assert ran >= SEEDS // 3, found
    assert any(axes is not None and axes > 1 for axes in found), found


@pytest.mark.parametrize("group", range(2))
def test_random_schedules_over_symbolic_sizes(group):
    found = Counter(threads_of(seed, True) for seed in range(group * SEEDS, (group + 1) * SEEDS))
    assert sum(n for axes, n in found.items() if axes is not None) >= SEEDS // 5, found
