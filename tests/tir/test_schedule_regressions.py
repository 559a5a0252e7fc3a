"""Schedules that random search found going wrong, each with the fewest steps that showed it."""

from dataclasses import replace

import numpy as np
import pytest

from tinycomp.codegen.llvm import assembly, emit_kernel
from tinycomp.diagnostics import ScheduleError
from tinycomp.target import Target
from tinycomp.te.interpreter import evaluate
from tinycomp.testing.computations import COMPUTATIONS
from tinycomp.tir.interpreter import run
from tinycomp.tir.lower import lower
from tinycomp.tir.schedule import Schedule, create_schedule
from tinycomp.tir.verify import verify

CASES = []


def case(computation, *sizes, bits=128):
    """Checks the schedule that the function makes of a computation."""

    def register(apply):
        parameters = (apply, computation, sizes, bits)
        CASES.append(pytest.param(*parameters, id=f"{computation}-{apply.__name__}"))
        return apply

    return register


@case("pad_constant", 7, 3)
def hint_about_lanes_on_a_vectorized_loop(s):
    s["C"].vectorize("j")
    s["C"].pragma("j", "reduce_lanes")


@case("upsample", 8, 11, bits=256)
def prefetch_of_what_a_loop_inside_reads(s):
    s["B"].split("y", factors=[7, None, 16])
    s["B"].prefetch("A", "y.2")
    s["B"].split("y.1", factors=[None, 8])
    s["B"].vectorize("y.1.1")


@case("argmax", 5, 3)
def vectors_of_two_versions_of_one_body_with_scratch(s):
    s["best.v0"].vectorize("i")
    s["best.v0"].split("k", factor=2)


@case("gather", 7, 1, 7, bits=512)
def region_that_starts_where_a_cached_index_says(s):
    s.cache_read("index", "local", ["C"])
    s["B"].compute_at("C", "j")
    s["index.local"].compute_at("C", "j")


@case("gather", 1, 7, 7)
def region_that_starts_where_an_index_past_the_guard_says(s):
    s["C"].split("i", nparts=3)
    s["B"].compute_at("C", "i.inner")


@case("permute", 7, 0, 3)
def partition_of_a_loop_around_an_empty_one(s):
    s["B"].compute_at("C", "j")
    s["C"].split("j", factor=5)
    with pytest.raises(ScheduleError, match="no iterations"):
        s["C"].partition("j.inner", 2)


@case("space_to_depth", 3, 2, 0)
def nothing_to_compute(s):
    s["C"].parallel("y")


@case("triangular_sum", 3, 0)
def init_apart_from_loops_that_only_guards_mention(s):
    s["B"].split("k", nparts=4)
    s["B"].split("k.outer", factor=8)
    s["B"].decompose_reduction("k.outer.outer")


@case("scalar", 11, bits=256)
def layout_without_dimensions(s):
    s["B"].transform_layout(lambda: ())


@case("recurrent", 4, 5)
def init_apart_inside_a_loop_in_sequence(s):
    s["mixed"].compute_at("update", "hidden.t")
    s["mixed"].decompose_reduction("t")


@case("sum_rows", 11, 32, bits=512)
def lanes_to_combine_around_a_vectorized_loop(s):
    s["B"].reorder("k", "i")
    s["B"].vectorize("i")
    s["B"].pragma("k", "reduce_lanes")


@case("max_all", 23, 0)
def reduction_of_nothing_in_the_loops_that_would_produce_it(s):
    s["B"].fuse("i", "j")
    with pytest.raises(ScheduleError, match="no iterations"):
        s["C"].reverse_compute_at("B", "i.j.fused")


@case("matmul_packed", 7, 11, 2)
def memory_shared_in_one_copy_of_a_partitioned_loop_alone(s):
    s.rfactor("C", "k")
    s["C.rf"].pad("i", 3)
    s["C"].reverse_compute_at("C.rf", "i")
    s["packed"].compute_at("C.rf", "i")


@case("matvec", 13, 2)
def prefetch_in_copies_of_a_loop(s):
    s["y"].prefetch("A", "k")
    s["y"].vectorize("i")


@pytest.mark.parametrize(("apply", "computation", "sizes", "bits"), CASES)
def test_schedule_computes_what_the_expressions_say(apply, computation, sizes, bits):
    made = COMPUTATIONS[computation](*sizes)
    schedule = create_schedule(made.outputs, made.inputs)
    apply(schedule)
    again = create_schedule(made.outputs, made.inputs)
    again.replay(Schedule.from_json(schedule.to_json()))
    compile(schedule.trace(), "trace", "exec")
    target = replace(Target.host(), vector_bits=bits)
    arrays = made.arrays(np.random.default_rng(0))
    expected = evaluate(made.outputs, dict(zip(made.inputs, arrays, strict=True)))
    for scheduled in (schedule.func, again.func):
        verify(scheduled)
        func = lower(scheduled, target)
        verify(func, lowered=True)
        assert assembly(emit_kernel(func, target).llvm_text, target, opt=0)
        results = [np.full(e.shape, 77, e.dtype) for e in expected]
        run(func, [*arrays, *results])
        for result, value in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-5)


def test_rows_that_data_chooses_are_not_prefetched():
    """The index of a later iteration may lie outside of what holds the indices."""
    made = COMPUTATIONS["embedding_sum"](7, 5, 8)
    s = create_schedule(made.outputs, made.inputs)
    s.rfactor("B", "k")
    s["B.rf"].prefetch("A", "k", offset=2)
    s["B.rf"].vectorize("j")
    assert "prefetch" in str(s.func)
    assert "prefetch" not in str(lower(s.func, Target.host()))
