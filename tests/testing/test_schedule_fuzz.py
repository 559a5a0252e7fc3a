"""Random schedules of small computations, executed natively; and that failures are noticed."""

import inspect
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tinycomp.codegen.llvm import emit_kernel
from tinycomp.ir.expr import const
from tinycomp.te.interpreter import evaluate
from tinycomp.testing import fuzz_runner
from tinycomp.testing.computations import COMPUTATIONS
from tinycomp.testing.fuzz_runner import fuzz
from tinycomp.testing.guarded import GuardedMemory
from tinycomp.testing.schedule_fuzz import draw_case, random_schedule
from tinycomp.tir.lower import lower
from tinycomp.tir.nodes import Seq, Store

CASES, PARTS = 2000, 8


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(PARTS))
def test_random_schedules(part):
    count = CASES // PARTS
    report = fuzz(range(part * count, (part + 1) * count), most_failures=3)
    assert not report.failures, str(report)
    assert report.cases == count
    assert sum(report.accepted.values()) > sum(report.refused.values())


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(2))
def test_random_schedules_over_symbolic_sizes(part):
    """One code for each schedule, run with four sets of sizes."""
    report = fuzz(range(part * 50, (part + 1) * 50), most_failures=3, symbolic=True)
    assert not report.failures, str(report)
    assert report.cases == 50
    assert sum(report.accepted.values()) > sum(report.refused.values())


def test_cases_cover_computations_and_odd_sizes():
    cases = [draw_case(seed) for seed in range(CASES)]
    assert {c.computation for c in cases} == set(COMPUTATIONS)
    assert len(COMPUTATIONS) >= 30
    sizes = {size for c in cases for size in c.sizes.values()}
    assert {0, 1, 2, 7, 13, 16, 17} <= sizes


def test_a_seed_gives_one_schedule():
    for seed in range(20):
        first, second = (random_schedule(draw_case(seed)) for _ in range(2))
        assert first.schedule.hash() == second.schedule.hash()
        assert str(first.schedule.func) == str(second.schedule.func)


@pytest.mark.parametrize("name", ["matmul", "softmax", "conv1d", "cumulative_sum", "argmax"])
def test_computations_mean_what_numpy_computes(name):
    given = {"c": 3, "o": 2, "w": 11, "kernel": 3, "stride": 2, "dilation": 2, "padding": 2}
    names = inspect.signature(COMPUTATIONS[name]).parameters
    computation = COMPUTATIONS[name](*(given.get(n, 4) for n in names))
    arrays = computation.arrays(np.random.default_rng(5))
    results = evaluate(computation.outputs, dict(zip(computation.inputs, arrays, strict=True)))
    for result, expected in zip(results, _numpy(name, *arrays), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def _numpy(name, a, *others):
    if name == "matmul":
        return [a @ others[0]]
    if name == "softmax":
        e = np.exp(a - a.max(1, keepdims=True))
        return [e / e.sum(1, keepdims=True)]
    if name == "cumulative_sum":
        return [a.cumsum(0) * 2]
    if name == "argmax":
        return [a.max(1), a.argmax(1)]
    padded = np.pad(a, ((0, 0), (2, 2)))
    columns = [padded[:, x * 2 : x * 2 + 5 : 2] for x in range(6)]
    return [np.stack([np.tensordot(others[0], c, 2) for c in columns], 1)]


def test_memory_around_arrays_is_guarded():
    memory = GuardedMemory(2, 4096)
    a = memory.array(0, (5, 3), np.dtype("float32"), at_end=True)
    b = memory.array(1, (7,), np.dtype("int8"), at_end=False)
    assert np.isnan(a).all()
    a[...], b[...] = 1, 2
    assert memory.untouched(0)
    assert memory.untouched(1)
    memory._bytes[memory._used[1].stop] = 0
    assert memory.untouched(0)
    assert not memory.untouched(1)
    assert memory.array(0, (0, 3), np.dtype("float64"), at_end=True).shape == (0, 3)
    with pytest.raises(ValueError, match="do not fit"):
        memory.array(0, (5000,), np.dtype("int8"), at_end=True)


@pytest.mark.parametrize(("place", "at_end"), [(8, True), (-1, False)])
def test_going_past_the_guarded_end_stops_the_process(place, at_end):
    source = f"""
import ctypes, numpy
from tinycomp.testing.guarded import GuardedMemory
memory = GuardedMemory(1, 4096)
array = memory.array(0, (8,), numpy.dtype("int8"), at_end={at_end})
ctypes.memset(array.ctypes.data, 0, 8)
print("inside", flush=True)
ctypes.memset(array.ctypes.data + {place}, 0, 1)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout == "inside\n", done.stderr
    assert done.returncode < 0


def test_wrong_code_is_noticed(monkeypatch):
    case = next(c for c in map(draw_case, range(99)) if c.computation == "matmul")
    runner = fuzz_runner._Runner()
    assert [r.get("kind") for r in runner.run([(case, [])], 0)] == [None]

    def without_statements(func, target):
        return replace(lower(func, target), body=Seq(()))

    monkeypatch.setattr(fuzz_runner, "lower", without_statements)
    (found,) = runner.run([(case, [])], 0)
    assert found["kind"] == "mismatch"


def test_code_that_llvm_rejects_is_reported_with_its_seed(monkeypatch):
    cases = [(draw_case(seed), []) for seed in (1, 2, 3)]
    runner = fuzz_runner._Runner()

    def broken(func, target):
        kernel = emit_kernel(func, target)
        text = kernel.llvm_text.replace("ret void", "ret nothing")
        return replace(kernel, llvm_text=text) if func.name == "case2" else kernel

    monkeypatch.setattr(fuzz_runner, "emit_kernel", broken)
    results = list(runner.run(cases, 0))
    assert [r.get("kind") for r in results] == [None, "raised", None]
    assert "LLVM rejects" in results[1]["message"]


def test_writes_around_an_array_are_noticed(monkeypatch):
    case = replace(draw_case(0), computation="sum_rows", sizes={"n": 4, "m": 3})
    runner = fuzz_runner._Runner()

    def also_elsewhere(func, target):
        func = lower(func, target)
        stray = [Store(func.params[1], (const(i),), const(0, "float32")) for i in (-5, 9)]
        return replace(func, body=Seq((func.body, *stray)))

    monkeypatch.setattr(fuzz_runner, "lower", also_elsewhere)
    monkeypatch.setattr(runner, "arrays", _Unprotected(8, 4096))
    (found,) = runner.run([(case, [])], 0)
    assert found["kind"] == "guard"


class _Unprotected(GuardedMemory):
    """Arrays in the middle of their cells."""

    def array(self, cell, shape, dtype, *, at_end, alignment=0):
        super().array(cell, (), dtype, at_end=False)
        start = self._starts[cell] + 1024
        array = np.ndarray(shape, dtype, self._memory, start)
        self._used[cell] = slice(start, start + array.nbytes)
        return array


def test_a_dead_process_is_reported_with_its_seed(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    report = fuzz(range(2), most_failures=1)
    assert [f.kind for f in report.failures] == ["crash", "crash"]
    assert "seed 0: " in str(report)
