"""Every operator and dtype against NumPy or exact Python integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.codegen.helpers import Kernel, buffer, elementwise, load, loop, store

from tinycomp.dtype import DType
from tinycomp.ir.expr import (
    INTRINSICS,
    Binary,
    BinaryOp,
    Broadcast,
    Call,
    Cast,
    Ramp,
    Select,
    Var,
    const,
    if_then_else,
    select,
)
from tinycomp.ir.fold import _INT_RULES, wrap
from tinycomp.tir.nodes import PrimFunc

INTEGERS = [d for d in DType if d.is_int]
FLOATS = [d for d in DType if d.is_float]
COUNT = 256


def integer_samples(dtype: DType, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low, high = int(dtype.min_value), int(dtype.max_value)
    edges = [0, 1, 2, 7, high, high - 1, low, low + 1, dtype.bits, dtype.bits - 1]
    edges = [wrap(e, dtype) for e in [*edges, -1, -7]]
    grid = [e for e in edges for _ in edges] if seed % 2 else edges * len(edges)
    small = rng.integers(max(low, -20), 20, COUNT).tolist()
    return np.array((grid + small)[:COUNT], dtype.numpy)


def exact(op: BinaryOp, a: int, b: int, dtype: DType) -> int:
    if op in (BinaryOp.SHL, BinaryOp.SHR):
        if not 0 <= b < dtype.bits:
            return 0
        return wrap(a << b, dtype) if op is BinaryOp.SHL else a >> b
    if op is BinaryOp.TRUNCMOD:
        return 0 if b == 0 else (abs(a) % abs(b)) * (1 if a >= 0 else -1)
    return wrap(int(_INT_RULES[op](a, b)), DType.BOOL if op.is_comparison else dtype)


@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_operators(dtype: DType, lanes: int) -> None:
    a, b = integer_samples(dtype, 1), integer_samples(dtype, 2)
    for op in BinaryOp:
        if op in (BinaryOp.DIV, BinaryOp.AND, BinaryOp.OR):
            continue
        out = DType.BOOL if op.is_comparison else dtype
        got = elementwise(lambda x, y, op=op: Binary(op, x, y), [a, b], out, COUNT, lanes)
        want = [exact(op, x, y, dtype) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert got.astype(object).tolist() == want, op


@pytest.mark.parametrize("divisor", [1, 3, 8, -1, -3, -8, 0])
@pytest.mark.parametrize(
    "op", [BinaryOp.FLOORDIV, BinaryOp.FLOORMOD, BinaryOp.TRUNCDIV, BinaryOp.TRUNCMOD]
)
def test_constant_divisors(op: BinaryOp, divisor: int) -> None:
    a = integer_samples(DType.INT32, 1)
    got = elementwise(lambda x: Binary(op, x, const(divisor, "int32")), [a], "int32", COUNT)
    assert got.tolist() == [exact(op, x, divisor, DType.INT32) for x in a.tolist()]


def float_samples(dtype: DType, seed: int) -> np.ndarray:
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 0.5, 2.5, -2.5, 3.0]
    grid = [s for s in special for _ in special] if seed % 2 else special * len(special)
    values = np.random.default_rng(seed).normal(0, 5, COUNT)
    return np.concatenate([grid, values])[:COUNT].astype(dtype.numpy)


FLOAT_RULES = {
    BinaryOp.ADD: np.add, BinaryOp.SUB: np.subtract, BinaryOp.MUL: np.multiply,
    BinaryOp.DIV: np.divide, BinaryOp.MIN: np.minimum, BinaryOp.MAX: np.maximum,
    BinaryOp.TRUNCMOD: np.fmod, BinaryOp.FLOORDIV: lambda a, b: np.floor(a / b),
    BinaryOp.TRUNCDIV: lambda a, b: np.trunc(a / b),
    BinaryOp.EQ: np.equal, BinaryOp.NE: np.not_equal, BinaryOp.LT: np.less,
    BinaryOp.LE: np.less_equal,
}  # fmt: skip


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("dtype", FLOATS)
@np.errstate(all="ignore")
def test_float_operators(dtype: DType, lanes: int) -> None:
    a, b = float_samples(dtype, 1), float_samples(dtype, 2)
    wide = np.float64 if dtype is DType.FLOAT64 else np.float32
    for op, rule in FLOAT_RULES.items():
        out = DType.BOOL if op.is_comparison else dtype
        got = elementwise(lambda x, y, op=op: Binary(op, x, y), [a, b], out, COUNT, lanes)
        want = rule(a.astype(wide), b.astype(wide)).astype(out.numpy)
        np.testing.assert_array_equal(got.astype("f8"), want.astype("f8"), err_msg=op)


@pytest.mark.parametrize("bound", [0.0, 6.0])
def test_relu_keeps_nan(bound: float) -> None:
    a = float_samples(DType.FLOAT32, 1)
    limit = const(bound, "float32")
    for op, rule in ((BinaryOp.MAX, np.maximum), (BinaryOp.MIN, np.minimum)):
        for order in (lambda x, o=op: Binary(o, x, limit), lambda x, o=op: Binary(o, limit, x)):
            got = elementwise(order, [a], "float32", COUNT)
            np.testing.assert_array_equal(got, rule(a, np.float32(bound)))


def test_16_bit_rounding() -> None:
    """Every float16, and float32 values around the middle of two 16-bit values."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 4096, dtype=np.uint32)
    bits[:2048] = bits[:2048] & 0xFFFF0000 | 0x8000
    x = bits.view(np.float32)
    with np.errstate(all="ignore"):
        for dtype in (DType.FLOAT16, DType.BFLOAT16):
            got = elementwise(lambda v, d=dtype: Cast(d, v), [x], dtype, 4096, 16)
            want = x.astype(dtype.numpy)
            np.testing.assert_array_equal(got.astype("f4"), want.astype("f4"))


@pytest.mark.parametrize("source", list(DType))
@np.errstate(all="ignore")
def test_casts(source: DType) -> None:
    if source.is_float:
        a = float_samples(source, 1)
        a = np.where(np.isfinite(a.astype("f4")), a, np.zeros(1, source.numpy)).astype(source.numpy)
    elif source is DType.BOOL:
        a = np.arange(COUNT) % 3 == 0
    else:
        a = integer_samples(source, 1)
    for target in DType:
        got = elementwise(lambda x, t=target: Cast(t, x), [a], target, COUNT, 4)
        if source.is_float and target.is_int:
            want = np.array([wrap(int(v), target) for v in a.astype("f8").tolist()], target.numpy)
        else:
            want = a.astype(target.numpy)
        np.testing.assert_array_equal(got, want, err_msg=target)


def test_float_to_integer_out_of_range() -> None:
    x = np.array([math.nan, math.inf, -math.inf, 3e9, -3e9, 1e20, 300.7, -1.9], "float32")
    low32, low64 = -(2**31), -(2**63)
    expected = {
        "int32": [low32, low32, low32, low32, low32, low32, 300, -1],
        "int64": [low64, low64, low64, 3000000000, -3000000000, low64, 300, -1],
        "int8": [0, 0, 0, 0, 0, 0, 44, -1],
        "uint8": [0, 0, 0, 0, 0, 0, 44, 255],
    }
    for dtype, want in expected.items():
        assert elementwise(lambda v, d=dtype: Cast(DType(d), v), [x], dtype, 8).tolist() == want


UNARY = {
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil,
    "trunc": np.trunc, "round": np.round, "nearbyint": np.rint, "sign": np.sign,
    "isnan": np.isnan, "isinf": np.isinf, "isfinite": np.isfinite, "likely": lambda x: x,
}  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@np.errstate(all="ignore")
def test_float_intrinsics(dtype: DType) -> None:
    a = float_samples(dtype, 1)
    wide = np.float64 if dtype is DType.FLOAT64 else np.float32
    for name, rule in UNARY.items():
        if name == "likely":
            continue
        out = DType.BOOL if INTRINSICS[name] == "bool" else dtype
        got = elementwise(lambda x, n=name, o=out: Call(n, (x,), o), [a], out, COUNT, 8)
        want = rule(a.astype(wide)).astype(out.numpy)
        np.testing.assert_array_equal(got.astype("f8"), want.astype("f8"), err_msg=name)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_intrinsics(dtype: DType) -> None:
    a = integer_samples(dtype, 1)
    rules = {
        "neg": lambda x: -x, "abs": abs, "sign": lambda x: (x > 0) - (x < 0),
        "bit_not": lambda x: ~x, "round": lambda x: x,
        "popcount": lambda x: (x & ((1 << dtype.bits) - 1)).bit_count(),
    }  # fmt: skip
    for name, rule in rules.items():
        got = elementwise(lambda x, n=name: Call(n, (x,), dtype), [a], dtype, COUNT, 4)
        assert got.tolist() == [wrap(rule(v), dtype) for v in a.tolist()], name


def test_integer_power() -> None:
    base = np.array([2, -3, 0, 0, 1, -1, -1, 5, 7, 10], "int64")
    exponent = np.array([10, 3, 0, 4, -5, -3, -4, -1, 30, 18], "int64")
    got = elementwise(
        lambda x, y: Call("pow", (x, y), DType.INT64), [base, exponent], "int64", 10, 2
    )
    want = [1024, -27, 1, 0, 1, -1, 1, 0, wrap(7**30, DType.INT64), 10**18]
    assert got.tolist() == want


def test_fma_is_used_and_rounds_once() -> None:
    a, b, c = (float_samples(DType.FLOAT32, 10 + i)[121:249].copy() for i in range(3))
    wide = a.astype("f8") * b.astype("f8")
    for function, want in (
        (lambda x, y, z: x * y + z, wide + c),
        (lambda x, y, z: x * y - z, wide - c),
        (lambda x, y, z: z - x * y, c - wide),
    ):
        got = elementwise(function, [a, b, c], "float32", 128, 16)
        np.testing.assert_allclose(got, want.astype("f4"), rtol=2e-7)


def test_bool_operators() -> None:
    a, b = np.arange(8) % 2 == 0, np.arange(8) % 3 == 0
    assert (elementwise(lambda x, y: (x & y) | ~x, [a, b], "bool", 8) == ((a & b) | ~a)).all()
    assert (elementwise(lambda x, y: x ^ y, [a, b], "bool", 8, 4) == (a ^ b)).all()
    got = elementwise(lambda x, y: Select(x, const(1.0, "float32"), const(2.0, "float32")),
                      [a, b], "float32", 8)  # fmt: skip
    assert (got == np.where(a, 1, 2)).all()


def test_if_then_else_guards_loads() -> None:
    """The load is far out of bounds where the condition is false."""
    source, out = buffer("a", (4,)), buffer("o", (12,))
    i = Var("i")
    inside = (const(4) <= i) & (i < 8)
    far = select(inside, i - 4, const(1 << 50))
    value = if_then_else(inside, load(source, far), const(-1.0, "float32"))
    kernel = Kernel(PrimFunc("f", (source, out), 1, loop(i, 12, store(out, (i,), value))))
    a, got = np.arange(4, dtype="f"), np.zeros(12, "f")
    kernel(a, got)
    assert got.tolist() == [-1] * 4 + [0, 1, 2, 3] + [-1] * 4


def test_vector_if_then_else_masks_loads() -> None:
    source, out = buffer("a", (4,)), buffer("o", (8,))
    lane = Ramp(const(0), const(1), 8)
    inside = lane < 4
    for index in (lane, Ramp(const(0), const(1 << 40), 8)):
        sides = load(source, index), const(5.0, "float32")
        condition = inside if index is lane else lane < 1
        value = if_then_else(condition, sides[0], Broadcast(sides[1], 8))
        kernel = Kernel(PrimFunc("f", (source, out), 1, store(out, (lane,), value)))
        got = np.zeros(8, "f")
        kernel(np.arange(4, dtype="f"), got)
        assert got.tolist() == ([0, 1, 2, 3] + [5] * 4 if index is lane else [0] + [5] * 7)


def test_deep_if_then_else() -> None:
    out, source, i = buffer("o", (2000,), "int64"), buffer("a", (1000,), "int64"), Var("i")
    value = const(-1)
    for n in range(1000):
        value = if_then_else(i.equal(n), load(source, n), value)
    kernel = Kernel(PrimFunc("f", (source, out), 1, loop(i, 2000, store(out, (i,), value))), opt=0)
    got = np.zeros(2000, "i8")
    kernel(np.arange(1000) * 2, got)
    assert (got[:1000] == np.arange(1000) * 2).all()
    assert (got[1000:] == -1).all()


@pytest.mark.parametrize("lanes", [1, 8])
def test_checked_index(lanes: int) -> None:
    table, index, out = buffer("t", (10,)), buffer("x", (8,), "int64"), buffer("o", (8,))
    i = Var("i")
    at = Ramp(i * lanes, const(1), lanes) if lanes > 1 else i
    extent = Broadcast(const(10), lanes) if lanes > 1 else const(10)
    position = Call("checked_index", (load(index, at), extent), DType.INT64)
    body = loop(i, 8 // lanes, store(out, (at,), load(table, position)))
    kernel = Kernel(PrimFunc("f", (table, index, out), 1, body))
    assert kernel.ir.can_fail
    t, got = np.arange(10, dtype="f") + 1, np.zeros(8, "f")
    assert kernel(t, np.array([0, -1, -10, 9, 3, 3, 3, 3]), got) == 0
    assert got[:4].tolist() == [1, 10, 1, 10]
    assert kernel(t, np.array([0, -11, 10, 2**62, -(2**63), 0, 0, 5]), got) == 1
    assert got.tolist() == [1, 1, 1, 1, 1, 1, 1, 6]
