"""Mistakes in calls: each is reported by the call that made it, with the reason and a remedy."""

import pytest

from tinycomp import te
from tinycomp.diagnostics import ScheduleError


@pytest.fixture
def chain(computation):
    """D = 2 (A + 1) W, in stages B, C and D."""
    a, w = te.placeholder((6, 8), name="A"), te.placeholder((8, 4), name="W")
    k = te.reduce_axis((0, 8), name="k")
    b = te.compute((6, 8), lambda i, j: a[i, j] + 1.0, name="B")
    c = te.compute((6, 4), lambda i, j: te.sum(b[i, k] * w[k, j], axis=k), name="C")
    return computation([a, w], te.compute((6, 4), lambda i, j: c[i, j] * 2.0, name="D"))


STEPS = [  # words of the message, the call
    ("3 is not an axis", lambda s: s["C"].split(3, factor=2)),
    ("None is not an axis", lambda s: s["C"].vectorize(None)),
    ("['i'] is not an axis", lambda s: s["C"].unroll(["i"])),
    ("at least 1, got '4'", lambda s: s["C"].split("i", factor="4")),
    ("at least 1, got 2.5", lambda s: s["C"].split("i", factor=2.5)),
    ("['j', 'i'] is not an axis", lambda s: s["C"].reorder(["j", "i"])),
    ("None is not an axis", lambda s: s["C"].compute_at("D", None)),
    ("1.0 is not an axis", lambda s: s["C"].parallel(1.0)),
    ("'None' is not a thread axis", lambda s: s["C"].bind("i", None)),
    ("3 is no hint", lambda s: s["C"].pragma("i", 3)),
    ("'' is no hint", lambda s: s["C"].pragma("i", "")),
    ("is no value of a hint", lambda s: s["C"].pragma("i", "unroll", None)),
    ("is for reduction loops", lambda s: s["C"].pragma("i", "reduce_threads")),
    ("None is not an axis", lambda s: s.rfactor("C", None)),
    ("got 1.5", lambda s: s["C"].pad("i", 1.5)),
    ("the point 2.0", lambda s: s["C"].partition("i", 2.0)),
    ("is not a function of the 2 indices", lambda s: s["C"].transform_layout(lambda i: (i,))),
    ("is not a function of the 2 indices", lambda s: s["C"].transform_layout(3)),
    ("'x' is not an index expression", lambda s: s["C"].transform_layout(lambda i, j: (i, "x"))),
    ("0.5", lambda s: s["C"].transform_layout(lambda i, j: (i, 0.5))),
    ("do not say a stride", lambda s: s["C"].storage_align("i", 8, "1")),
    ("'3' is not a thread axis", lambda s: s["C"].env_threads(3)),
    ("None is not an index", lambda s: s["C"].set_store_predicate(None)),
    ("1.5 is not an index", lambda s: s["C"].set_store_predicate(1.5)),
    ("'=>' is no axis here", lambda s: s["C"].set_store_predicate(["i", 0, "=>"])),
    ("'q' is no axis here", lambda s: s["C"].set_store_predicate(te.var("q") < 1)),
    ("3 is not an axis", lambda s: s["C"].rolling_buffer(3)),
    ("got '1'", lambda s: s["C"].prefetch("W", "k", "1")),
]


@pytest.mark.parametrize(("words", "call"), STEPS)
def test_of_primitives(chain, refuses, words, call):
    s = chain.schedule()
    refuses(s, words, lambda: call(s))


OTHERS = [
    ("s['Q']: there is no such stage", lambda s: s["Q"]),
    ("'A' is an input", lambda s: s["A"]),
    ("this int is not a tensor", lambda s: s[3]),
    ("this NoneType is not a tensor", lambda s: s.cache_read("A", "local", None)),
    ("this list is not a tensor", lambda s: s[["B"]]),
    ("None is not a tensor", lambda s: s["C"].prefetch(None, "k")),
    ("'D' is not a tensor", lambda s: s.create_group("D", "B")),
    ("None is not a tensor", lambda s: s.create_group(None, None)),
    ("3 is not an axis", lambda s: s["C"].axis(3)),
    ("not JSON", lambda s: s.from_json(3)),
    ("takes steps", lambda s: s.replay([1])),
]


@pytest.mark.parametrize(("words", "call"), OTHERS)
def test_of_other_calls(chain, words, call):
    s = chain.schedule()
    with pytest.raises(ScheduleError) as caught:
        call(s)
    assert words in str(caught.value)
    assert caught.value.hint
    assert not s.steps
