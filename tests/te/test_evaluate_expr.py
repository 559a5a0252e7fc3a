"""Scalar operators: the corner cases that NumPy leaves open or defines otherwise."""

import math

import numpy as np
import pytest

from tinycomp.dtype import DType
from tinycomp.ir.expr import INTRINSICS, BinaryOp
from tinycomp.te.evaluate_expr import BINARY, INTRINSIC, cast

INT = np.array([-7, -1, 0, 5, np.iinfo(np.int32).min], np.int32)


def test_every_operator_is_defined():
    assert set(BINARY) == set(BinaryOp)
    assert set(INTRINSIC) == set(INTRINSICS)


@pytest.mark.parametrize("op", [o for o in BinaryOp if "div" in o or "mod" in o])
def test_integer_division_by_zero_is_zero(op):
    if op is BinaryOp.DIV:
        return
    with np.errstate(all="ignore"):
        result = BINARY[op](INT, np.zeros_like(INT))
    assert (result == 0).all()
    assert BINARY[op](7, 0) == 0


@pytest.mark.parametrize("a", range(-7, 8))
@pytest.mark.parametrize("b", [-3, -1, 2, 5])
def test_integer_division(a, b):
    for x, y in ((a, b), (np.int64(a), np.int64(b))):
        assert BINARY[BinaryOp.FLOORDIV](x, y) == math.floor(a / b)
        assert BINARY[BinaryOp.TRUNCDIV](x, y) == int(a / b)
        assert BINARY[BinaryOp.TRUNCMOD](x, y) == math.fmod(a, b)
        assert BINARY[BinaryOp.FLOORMOD](x, y) == a % b


def test_shifts_by_the_width_or_more():
    a = np.array([1, -8, 3], np.int32)
    assert BINARY[BinaryOp.SHL](a, np.int32(32)).tolist() == [0, 0, 0]
    assert BINARY[BinaryOp.SHR](a, np.array([1, 1, 40], np.int32)).tolist() == [0, -4, 0]


def test_casts_of_floats_outside_the_range():
    x = np.array([np.nan, np.inf, -np.inf, 3e9, -1.9, 300.7], np.float32)
    low = np.iinfo(np.int32).min
    assert cast(x, DType.INT32).tolist() == [low, low, low, low, -1, 300]
    assert cast(x, DType.UINT8).tolist() == [0, 0, 0, 0, 255, 44]
    assert cast(x, DType.INT64)[3] == 3_000_000_000
    assert cast(x, DType.BOOL).all()
    assert cast(np.float64(2.0**63), DType.UINT64) == 2**63


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_intrinsics_keep_the_dtype(dtype):
    x = np.array([0.25, 0.75], DType(dtype).numpy)
    names = "exp log sqrt rsqrt erf sigmoid tanh floor round pow atan2 fma"
    for name in names.split():
        args = {"pow": (x, x), "atan2": (x, x), "fma": (x, x, x)}.get(name, (x,))
        assert INTRINSIC[name](*args).dtype == x.dtype


def test_rounding_and_erf():
    x = np.array([0.5, 1.5, -2.5, 0.49999997], np.float32)
    assert INTRINSIC["round"](x).tolist() == [0, 2, -2, 0]
    assert INTRINSIC["erf"](np.float64(0.3)) == math.erf(0.3)
    assert np.isnan(BINARY[BinaryOp.MAX](np.float32(np.nan), np.float32(1)))


def test_integer_power():
    x, y = np.array([2, -1, 3, 1], np.int64), np.array([10, -3, -1, -5], np.int64)
    assert INTRINSIC["pow"](x, y).tolist() == [1024, -1, 0, 1]
