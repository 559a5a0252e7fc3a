"""Scalar expressions: interning, folding, dtypes, text, and traversal of deep expressions."""

import copy
import gc

import pytest

from tinycomp.dtype import DType
from tinycomp.ir.expr import (
    FALSE,
    TRUE,
    Binary,
    BinaryOp,
    Broadcast,
    FloatImm,
    Interned,
    IntImm,
    Ramp,
    Select,
    Var,
    all_of,
    as_int,
    binary,
    call,
    cast,
    const,
    if_then_else,
    is_const,
    select,
    substitute,
    variables,
)

X, Y = Var("x"), Var("y")
F = Var("f", DType.FLOAT32)
P = Var("p", DType.BOOL)


def test_equal_expressions_are_one_object():
    assert (X * 8 + Y) is (X * 8 + Y)
    assert X + Y is not Y + X
    assert Var("x") is not X
    assert const(0.0, "float32") is not const(-0.0, "float32")
    assert const(float("nan"), "float32") is const(float("nan"), "float32")


def test_interned_nodes_are_freed():
    gc.collect()
    before = len(Interned._pool)
    for i in range(100):
        X * (1000 + i) + i
    gc.collect()
    assert len(Interned._pool) <= before + 2


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (X + 0, X),
        (0 + X, X),
        (X * 1, X),
        (X * 0, const(0)),
        (X // 1, X),
        (X % 1, const(0)),
        (X - X, const(0)),
        (X + 2 + 3, X + 5),
        (2 + X, X + 2),
        (const(7) // 2, const(3)),
        (const(-7) // 2, const(-4)),
        (const(7) // 0, const(0)),
        (binary(BinaryOp.TRUNCDIV, const(-7), const(2)), const(-3)),
        (binary(BinaryOp.TRUNCMOD, const(-7), const(2)), const(-1)),
        (const(100, "int8") + const(100, "int8"), const(-56, "int8")),
        (const(2) < 3, TRUE),
        (X <= X, TRUE),
        (P & TRUE, P),
        (P & FALSE, FALSE),
        (P | TRUE, TRUE),
        (F * 1.0, F),
        (select(TRUE, X, Y), X),
        (if_then_else(FALSE, X, Y), Y),
        (cast(const(300), "uint8"), const(44, "uint8")),
        (cast(const(1.9, "float32"), "int32"), const(1, "int32")),
        (cast(X, "int64"), X),
        (all_of([]), TRUE),
    ],
    ids=str,
)
def test_folding(expr, expected):
    assert expr is expected


def test_floats_are_not_folded_inexactly():
    assert isinstance(F + 0.0, Binary)
    assert isinstance(F * 0.0, Binary)
    assert isinstance(F - F, Binary)


def test_vectors_stay_ramps():
    lanes = Ramp(X, const(1), 8)
    assert lanes * 4 + Y is Ramp(X * 4 + Y, const(4), 8)
    assert (lanes < 5).lanes == 8
    assert Broadcast(X, 8) + Broadcast(Y, 8) is Broadcast(X + Y, 8)


def test_dtypes():
    assert (X < Y).dtype is DType.BOOL
    assert (F + 1).dtype is DType.FLOAT32
    assert call("isnan", F).dtype is DType.BOOL
    assert if_then_else(P, F, 0.0).dtype is DType.FLOAT32
    assert isinstance(const(1, "float32"), FloatImm)
    with pytest.raises(TypeError, match="cast one of them"):
        X + F
    with pytest.raises(TypeError, match="not known while compiling"):
        bool(X < Y)
    with pytest.raises(TypeError, match="known integer"):
        as_int(X)
    assert as_int(const(4)) == 4
    assert is_const(const(4), 4)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        ((X + Y) * 2, "(x + y) * 2"),
        (X - (Y - 1), "x - (y - 1)"),
        (X // 4 % 2, "x // 4 % 2"),
        ((X < Y) & P | (Y < X), "x < y and p or y < x"),
        (binary(BinaryOp.MIN, X, Y), "min(x, y)"),
        (cast(X, "float32") * 0.5, "float32(x) * 0.5f32"),
        (const(3, "int8"), "int8(3)"),
        (Ramp(X, const(1), 4), "ramp(x, 1, 4)"),
        (Select(P, X, Y), "select(p, x, y)"),
    ],
    ids=str,
)
def test_text(expr, text):
    assert str(expr) == text


def test_substitute_folds():
    assert substitute(X * 8 + Y, {X: const(2), Y: const(3)}) is const(19)
    expr = X * 8
    assert substitute(expr, {Y: X}) is expr
    assert variables(X * Y + X) == [X, Y]


def test_deep_expressions():
    expr = X
    for i in range(20000):
        expr = binary(BinaryOp.MAX, expr, Y + i)
    assert expr.dtype is DType.INT64
    assert substitute(expr, {X: Y}) is not expr
    assert len(variables(expr)) == 2


def test_nodes_are_immutable():
    with pytest.raises(AttributeError):
        (X + Y).a = Y
    assert isinstance(copy.copy(IntImm(3, DType.INT64)), IntImm)
