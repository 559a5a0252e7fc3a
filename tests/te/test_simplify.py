"""The simplifier: its normal forms, its rules proved on small values, and random expressions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinycomp.dtype import DType
from tinycomp.ir.expr import (
    FALSE,
    TRUE,
    BinaryOp,
    Call,
    Load,
    Select,
    Var,
    binary,
    call,
    cast,
    const,
    if_then_else,
    select,
    substitute,
)
from tinycomp.ir.node import postorder
from tinycomp.te.interpreter import evaluate_expr
from tinycomp.te.rules import all_rules
from tinycomp.te.simplify import Analyzer
from tinycomp.te.tensor import placeholder

X, Y, Z, N, J = (Var(name) for name in "xyznj")
VARIABLES = {X: range(4), Y: range(8), Z: range(-3, 5)}


def analyzer() -> Analyzer:
    result = Analyzer()
    for var, values in VARIABLES.items():
        result.bind(var, values.start, len(values))
    return result


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ((X * 8 + Y) // 8, X),
        ((X * 8 + Y) % 8, Y),
        ((X * 16 + Y) // 4, X * 4 + Y // 4),
        ((X * 16 + Y) % 4, Y % 4),
        ((X * 12 + Y // 4 * 4 + Y % 4) // 12, X),
        (N // 12 * 12 + N % 12 // 4 * 4 + N % 4, N),
        (N // 4 // 5, N // 20),
        (N % 20 // 4, N // 4 % 5),
        (N % 20 % 4, N % 4),
        ((Y + 8) // 8, const(1)),
        (X // 4 + X % 4, X),
        (binary(BinaryOp.MIN, X, const(5)), X),
        (binary(BinaryOp.MAX, Y + 3, X), Y + 3),
        (X * 4 + Y < 64, TRUE),
        (X - Y >= 4, FALSE),
        (select(X < 9, N, Y), N),
        (if_then_else(X < 0, N, Y), Y),
        ((N * 2).equal(3), FALSE),
        (binary(BinaryOp.TRUNCDIV, X * 8 + Y, const(8)), X),
        (~(N < X), X < N + 1),
        ((N + 1) * (N + 1) - N * N - N * 2, const(1)),
        (N // 0, const(0)),
    ],
    ids=str,
)
def test_normal_form(expr, expected):
    assert analyzer().simplify(expr) is expected


def test_comparisons_of_one_meaning_are_one_object():
    a = analyzer()
    forms = [N + X <= J, N + X < J + 1, ~(J < N + X), N * 2 + X * 2 <= J * 2 + 1, J - X >= N]
    assert len({a.simplify(f) for f in forms}) == 1


def test_symbolic_extent():
    a = analyzer()
    a.bind(N, 1, 1000)
    a.bind(J, 0, N)
    assert a.proves(J < N)
    assert a.proves(X * N + J < N * 4)
    assert a.simplify((X * N + J) // N) is X
    assert a.simplify((X * N + J) % N) is J
    assert a.bounds(J) == (0, 999)


def test_unknown_extent_still_proves_by_limit():
    a = Analyzer()
    a.bind(J, 0, N)
    assert a.proves(J < N)
    assert not a.proves(J < N - 1)


def test_rebinding_forgets():
    a = Analyzer()
    a.bind(X, 0, 4)
    assert a.proves(X < 4)
    a.bind(X, 0, 8)
    assert not a.proves(X < 8 - 4)


def test_with_bounds_is_a_copy():
    a = analyzer()
    tighter = a.with_bounds({Y: (0, 3), N: (None, 7)})
    assert tighter.proves(Y < 4)
    assert not a.proves(Y < 4)
    assert tighter.bounds(N) == (None, 7)


def test_loaded_integers_may_wrap():
    data = placeholder((4,), "int64", "data")
    a = analyzer()
    value = Load(data, (X,), None)
    kept = a.simplify((value * 8 + Y) // 8)
    assert any(isinstance(n, Load) for n in postorder(kept))
    assert kept is not value
    checked = call("checked_index", value, 16)
    assert a.bounds(checked * 2) == (0, 30)


def test_narrow_integers_use_their_range():
    data = placeholder((4,), "uint8", "data")
    wide = cast(Load(data, (X,), None), "int64")
    assert analyzer().bounds(wide + 1) == (1, 256)
    assert analyzer().proves(wide < 256)


def test_long_chains_do_not_recurse():
    expr = N
    for i in range(3000):
        expr = binary(BinaryOp.MAX, binary(BinaryOp.MIN, expr, X + i), Y - i) + 1
        expr = Call("likely", (expr,), DType.INT64)
    assert Analyzer().simplify(expr) is not None


# -- rules, exhaustively --------------------------------------------------------------------


def domain(var):
    if var.dtype is DType.BOOL:
        return [False, True]
    if var.dtype.is_float:
        return [np.float32(v) for v in (-np.inf, -1.5, -0.0, 0.0, 2.0, np.nan)]
    return [np.int64(v) for v in range(-4, 5)]


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.tobytes() == b.astype(a.dtype).tobytes() or (a != a and b != b)


@pytest.mark.parametrize("rule", all_rules(), ids=lambda r: str(r.pattern))
def test_rule_holds_for_all_small_values(rule):
    names = [n for n in postorder([rule.pattern]) if isinstance(n, Var)]
    used = {n for n in postorder([rule.replacement, rule.condition]) if isinstance(n, Var)}
    assert used <= set(names)
    applied = 0
    for values in itertools.product(*(domain(v) for v in names)):
        env = dict(zip(names, values, strict=True))
        with np.errstate(all="ignore"):
            holds, before, after = evaluate_expr(
                [rule.condition, rule.pattern, rule.replacement], env, {}, False
            )
        if holds:
            applied += 1
            assert same_bits(before, after), f"{env}: {before} became {after}"
    assert applied


# -- random expressions ---------------------------------------------------------------------

_INT = (BinaryOp.ADD, BinaryOp.SUB, BinaryOp.MUL, BinaryOp.MIN, BinaryOp.MAX)
_DIVIDE = (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD, BinaryOp.TRUNCDIV, BinaryOp.TRUNCMOD)
_COMPARE = (BinaryOp.LT, BinaryOp.LE, BinaryOp.EQ, BinaryOp.NE)
_leaf = st.sampled_from([*VARIABLES]) | st.integers(-6, 12).map(const)


def _grow(ints):
    divisor = st.integers(-3, 16).map(const) | ints
    conditions = st.builds(binary, st.sampled_from(_COMPARE), ints, ints)
    conditions |= st.builds(lambda p, q: ~p & q, conditions, conditions)
    conditions |= st.builds(lambda p, q: p | q, conditions, conditions)
    return (
        st.builds(binary, st.sampled_from(_INT), ints, ints)
        | st.builds(binary, st.sampled_from(_DIVIDE), ints, divisor)
        | st.builds(lambda x, k: x * k, ints, st.integers(-4, 16))
        | st.builds(select, conditions, ints, ints)
        | st.builds(lambda c: cast(c, "int64"), conditions)
    )


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.recursive(_leaf, _grow, max_leaves=12))
def test_simplify_keeps_values(expr):
    a = analyzer()
    result = a.simplify(expr)
    assert a.simplify(result) is result, f"{expr} -> {result} -> {a.simplify(result)}"
    low, high = a.bounds(expr)
    grids = np.meshgrid(*(np.array(r) for r in VARIABLES.values()), indexing="ij")
    env = dict(zip(VARIABLES, grids, strict=True))
    with np.errstate(all="ignore"):
        before, after = evaluate_expr([expr, result], env, {}, False)
    assert np.array_equal(
        np.broadcast_to(before, grids[0].shape), np.broadcast_to(after, grids[0].shape)
    ), f"{expr} -> {result}"
    assert low is None or np.min(before) >= low
    assert high is None or np.max(before) <= high


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.recursive(_leaf, _grow, max_leaves=8), st.recursive(_leaf, _grow, max_leaves=8))
def test_proofs_are_true(p, q):
    a = analyzer()
    grids = np.meshgrid(*(np.array(r) for r in VARIABLES.values()), indexing="ij")
    env = dict(zip(VARIABLES, grids, strict=True))
    for condition in (p < q, p <= q, p.equal(q), p.not_equal(q)):
        with np.errstate(all="ignore"):
            truth = evaluate_expr([condition, a.simplify(condition)], env, {}, False)
        assert np.array_equal(*(np.broadcast_to(t, grids[0].shape) for t in truth))


def test_substitution_then_simplify():
    a = analyzer()
    fused = Var("f")
    expr = substitute((fused // 8) * 100 + fused % 8, {fused: X * 8 + Y})
    assert a.simplify(expr) is a.simplify(X * 100 + Y)


def test_select_is_kept_when_undecided():
    expr = select(X < Y, X, Y)
    assert isinstance(analyzer().simplify(expr), Select)


def test_remainders_join():
    """An index that a reshape took apart and another put together."""
    a, p, y = Analyzer(), Var("p"), Var("y")
    a.bind(p, const(0), const(4608))
    a.bind(y, const(0), const(16))
    assert a.simplify(p // 9 * 9 + (p // 3 % 3) * 3 + p % 3) is p
    assert a.simplify((p // 9 + y * 512) * 9 + (p // 3 % 3) * 3 + p % 3) is a.simplify(y * 4608 + p)
    assert str(a.simplify((p // 3 % 5) * 6 + p % 3 * 2 + 7)) == "p % 15 * 2 + 7"
    assert str(a.simplify((p // 4 % 3) * 3 + p % 3)) == str((p // 4 % 3) * 3 + p % 3)


def test_quotient_and_remainder_of_one_number_meet_again():
    """However far each is reduced by common divisors on its own."""
    a, f, t, x = (Var(n) for n in "aftx")
    analyzer = Analyzer()
    for var, extent in ((a, 98), (f, 4), (t, 4), (x, 32)):
        analyzer.bind(var, const(0), const(extent))
    whole = a * 32 + (((f * 4 + t) * 32 + x) * 4) // 64
    assert analyzer.simplify(whole // 56 * 56 + whole % 56) is analyzer.simplify(whole)
    assert analyzer.simplify((a * 16 + f * 4 + t) // 28) is analyzer.simplify((a * 4 + f) // 7)
