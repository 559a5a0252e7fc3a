"""set_store_predicate: stages that loops around them only repeat."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.tir import gpu_executor
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.primitives.store_predicate import SetStorePredicate


@pytest.fixture
def repeated(computation):
    """C[i, j] = B[j] + A[j, i] with B[j], a sum over A[j, :]."""
    a, k = te.placeholder((6, 4), name="A"), te.reduce_axis((0, 4), name="k")
    b = te.compute((6,), lambda j: te.sum(a[j, k], axis=k), name="B")
    c = te.compute((4, 6), lambda i, j: b[j] + a[j, i], name="C")
    return computation([a], c)


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_iterations_compute(repeated, count):
    s = repeated.schedule()
    s["B"].compute_at("C", "i")
    s["B"].set_store_predicate(s["C"].axis("i") < count)
    assert f"once(i < {count})" in str(s.func)
    repeated.check(s)


def test_of_a_tile(repeated):
    """The buffer lives as long as the loops of the condition, and holds all tiles inside."""
    s = repeated.schedule()
    s["C"].split("j", factor=4)
    s["B"].compute_at("C", "j.outer")
    s["B"].set_store_predicate(s["C"].axis("i").equal(0))
    s["C"].split("i", factor=3)
    s["C"].unroll("i.inner")
    s["B"].decompose_reduction("k")
    repeated.check(s)


def test_the_trace_is_python(repeated):
    s = repeated.schedule()
    s["B"].compute_at("C", "i")
    s["B"].set_store_predicate(s["C"].axis("i").equal(0))
    assert s.trace().endswith('s["B"].set_store_predicate(["i", 0, "=="])')
    names = {}
    exec(s.trace(), names)
    again = repeated.schedule()
    names["apply"](again)
    assert str(again.func) == str(s.func)
    assert again.steps[-1] == SetStorePredicate("B", ("i", 0, "=="))


@pytest.mark.parametrize("scope", ["shared", "local", "global"])
@pytest.mark.parametrize("predicated", [False, True])
def test_one_thread_stores_for_all(repeated, scope, predicated):
    s = repeated.schedule()
    s["C"].bind("i", "threadIdx.x")
    s["B"].compute_at("C", "i")
    s.set_scope("B", scope)
    if predicated:
        s["B"].set_store_predicate(te.thread_axis("threadIdx.x").var.equal(0))
    func = lower_gpu(s.func)
    result = np.zeros((4, 6), "float32")
    gpu_executor.run(func, [*repeated.arrays, result])
    np.testing.assert_array_equal(result, repeated.expected[0])
    is_guarded = "if threadIdx.x == 0" in str(func)
    assert is_guarded == (scope == "shared")  # registers are each thread's own
    assert ("barrier()" in str(func)) == (scope == "shared")
    repeated.check(s)


def test_refusals(repeated, refuses):
    s = repeated.schedule()
    s["B"].compute_at("C", "i")
    i, j = s["B"].axes[:2]
    stage = s["B"]
    refuses(s, "decides which elements", lambda: stage.set_store_predicate(j.equal(0)))
    refuses(s, "does not hold in the first iteration", lambda: stage.set_store_predicate(i > 0))
    refuses(s, "is not a condition on loops", lambda: stage.set_store_predicate(i + 1))
    refuses(s, "is not a condition on loops", lambda: stage.set_store_predicate(True))
    refuses(s, "'z' is no axis here", lambda: stage.set_store_predicate(["z", 0, "=="]))
    refuses(s, "decides which elements", lambda: s["C"].set_store_predicate(i.equal(0)))
    s["C"].parallel("i")
    words = ["loop 'i' is parallel", "do not see"]
    refuses(s, words, lambda: stage.set_store_predicate(i.equal(0)))


def test_a_condition_holds_its_loop(repeated, refuses):
    s = repeated.schedule()
    s["B"].compute_at("C", "i")
    s["B"].set_store_predicate(s["C"].axis("i").equal(0))
    keeps = "keeps what it computed from one iteration of 'i' to the next"
    refuses(s, keeps, lambda: s["C"].parallel("i"))
    refuses(s, keeps, lambda: s["C"].bind("i", "blockIdx.x"))
    refuses(s, keeps, lambda: s["C"].partition("i", 2))
    refuses(s, "keeps what it computed already", lambda: s["B"].rolling_buffer())
    s["C"].bind("i", "threadIdx.x")  # threads of a block wait for each other
    repeated.check(s)


def test_moving_the_stage_takes_the_condition_off(repeated):
    s = repeated.schedule()
    s["B"].compute_at("C", "i")
    s["B"].set_store_predicate(s["C"].axis("i").equal(0))
    s["B"].compute_root()
    assert "once" not in str(s.func)
    repeated.check(s)
