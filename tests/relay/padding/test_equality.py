"""Proofs of equality by cases: what is proven is true for every index."""

import math
import random

import pytest

from tinycomp import te
from tinycomp.dtype import DType
from tinycomp.ir.expr import FloatImm, IntImm, Var, const, if_then_else, select, substitute
from tinycomp.relay.padding.equality import equal, keeps, settle
from tinycomp.te.simplify import Analyzer
from tinycomp.te.tensor import compute, placeholder, reduce_axis

i = Var("i")


def random_choice(choice, depth):
    if depth == 0:
        return choice.choice([i, const(0), i + 1])
    test = choice.choice([i < choice.randint(0, 9), i >= choice.randint(0, 9)])
    return if_then_else(test, *(random_choice(choice, depth - 1) for _ in range(2)))


def value(expr, at):
    result = Analyzer().simplify(substitute(expr, {i: const(at)}))
    assert isinstance(result, IntImm)
    return result.value


def test_what_is_proven_is_true():
    choice, proven = random.Random(0), 0
    for _ in range(300):
        a, b = random_choice(choice, 2), random_choice(choice, 2)
        analyzer = Analyzer()
        analyzer.bind(i, 0, 8)
        same = all(value(a, k) == value(b, k) for k in range(8))
        if equal(a, b, analyzer):
            proven += 1
            assert same
    assert proven > 5


def test_the_border_of_a_convolution():
    """Reads of padding are the mask's zeros, whichever of the two guards stops them."""
    x, unknown = placeholder((8,), name="x"), placeholder((), name="unknown")
    j, analyzer = Var("j"), Analyzer()
    analyzer.bind(i, 0, 5)
    analyzer.bind(j, 0, 3)
    at = i + j - 1
    small = if_then_else((at >= 0) & (at < 5), x(at), 0.0)
    masked = if_then_else((at >= 0) & (at < 8), if_then_else(at < 5, x(at), 0.0), 0.0)
    loose = if_then_else((at >= 0) & (at < 8), if_then_else(at < 5, x(at), unknown()), 0.0)
    assert equal(small, masked, analyzer)
    assert not equal(small, loose, analyzer)


def arg_reduction(last):
    def combine(a, b):
        better = a[1] > b[1]
        first = a[0] > b[0] if last else a[0] < b[0]
        keep = better | (a[1].equal(b[1]) & first)
        return select(keep, a[0], b[0]), select(keep, a[1], b[1])

    reducer = te.comm_reducer(combine, lambda *_: (const(0), const(-math.inf, "float32")))
    x, k = placeholder((8,)), reduce_axis((0, 8))
    return compute((), lambda: reducer((k.var, x(k)), axis=k))[0].op.body[0].combiner


@pytest.mark.parametrize("last", [False, True])
def test_the_position_of_the_largest_is_kept(last):
    """Unless the last of equals is asked for: -inf behind -inf is such."""
    j, analyzer = Var("j"), Analyzer()
    analyzer.bind(j, 5, 3)
    added = [j, const(-math.inf, "float32")]
    assert keeps(arg_reduction(last), [(0, 4), (None, None)], added, analyzer) is not last


def test_softmax_of_what_is_filled():
    """exp(-inf - peak) / total is 0 where peak and total are stages of the operator."""
    x = placeholder((4,))
    peak = compute((4,), lambda j: x(j) + 1.0)
    low = FloatImm(-math.inf, DType.FLOAT32)
    exp = te.call("exp", low - peak(i))
    assert settle(exp / peak(i)) is const(0.0, "float32")
    assert settle(te.call("exp", low - x(i))) is not const(0.0, "float32")
