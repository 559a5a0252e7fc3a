"""Loop IR run in Python: blocks, vectors, scratch memory, and every checked error."""

from dataclasses import replace

import numpy as np
import pytest

from tinycomp.diagnostics import InputError, VerifyError
from tinycomp.dtype import DType
from tinycomp.ir.expr import (
    BinaryOp,
    Broadcast,
    Load,
    Ramp,
    Select,
    Var,
    binary,
    call,
    cast,
    const,
    if_then_else,
)
from tinycomp.tir.interpreter import run
from tinycomp.tir.nodes import Alloc, Block, Buffer, For, ForKind, If, IterVar, PrimFunc, Seq, Store

ONE = const(1.0, DType.FLOAT32)
I, J = Var("i"), Var("j")


def buffer(name, *shape, dtype=DType.FLOAT32):
    return Buffer(name, tuple(const(d) if isinstance(d, int) else d for d in shape), DType(dtype))


def load(source, *indices):
    return Load(source, tuple(const(i) if isinstance(i, int) else i for i in indices), None)


def store(target, value, *indices):
    return Store(target, tuple(const(i) if isinstance(i, int) else i for i in indices), value)


def loop(var, extent, body, **fields):
    return For(var, const(0), const(extent), body, **fields)


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def func(params, body, outputs=1, **fields):
    return PrimFunc("f", tuple(params), outputs, body, **fields)


def test_block_with_init(matmul):
    a, b, c = random(8, 8), random(8, 8).T.copy(), np.full((8, 8), np.nan, "float32")
    run(matmul, [a, b, c])
    np.testing.assert_allclose(c, a @ b, rtol=1e-5, atol=1e-5)


def test_block_predicate_guards_the_tail():
    out = buffer("out", 10)
    axis = IterVar(Var("v"), const(0), const(10))
    body = store(out, cast(axis.var, "float32"), axis.var)
    block = Block("b", (axis,), (I * 4 + J,), body, None, I * 4 + J < 10)
    result = np.zeros(10, "float32")
    run(func([out], loop(I, 3, loop(J, 4, block))), [result])
    assert result.tolist() == list(range(10))


@pytest.mark.parametrize("kind", ForKind)
def test_every_loop_kind_runs(kind):
    out = buffer("out", 4)
    result = np.zeros(4, "float32")
    run(func([out], loop(I, 4, store(out, ONE, I), kind=kind)), [result])
    assert result.tolist() == [1] * 4


def test_vectors_and_masks():
    source, out = buffer("x", 10), buffer("y", 10)
    lanes = Ramp(I * 8, const(1), 8)
    mask = binary(BinaryOp.LT, lanes, const(10))
    value = Load(source, (lanes,), mask) * Broadcast(const(2.0, DType.FLOAT32), 8)
    x, y = random(10), np.zeros(10, "float32")
    run(func([source, out], loop(I, 2, Store(out, (lanes,), value, mask))), [x, y])
    assert (y == x * 2).all()


def test_vector_select_and_intrinsic():
    out = buffer("y", 8)
    lanes = Ramp(const(0), const(1), 8)
    wide = cast(lanes, "float32")
    even = binary(BinaryOp.EQ, lanes % 2, const(0))
    value = Select(even, call("sqrt", wide), call("neg", wide))
    y = np.zeros(8, "float32")
    run(func([out], Store(out, (lanes,), value)), [y])
    n = np.arange(8)
    np.testing.assert_array_equal(y, np.where(n % 2 == 0, np.sqrt(n), -n).astype("float32"))


def test_a_load_after_a_store_sees_it():
    out = buffer("y", 1)
    bump = store(out, load(out, 0) + ONE, 0)
    y = np.zeros(1, "float32")
    guarded = If(load(out, 0) < 100.0, loop(I, 3, Seq((bump, bump))))
    run(func([out], Seq((bump, guarded))), [y])
    assert y[0] == 7


def test_if_then_else_does_not_evaluate_the_other_side():
    source, out = buffer("x", 4), buffer("y", 4)
    value = if_then_else(I < 1, const(9.0, DType.FLOAT32), load(source, I - 1))
    x, y = random(4), np.zeros(4, "float32")
    run(func([source, out], loop(I, 4, store(out, value, I))), [x, y])
    assert y.tolist() == [9.0, *x[:3].tolist()]


def test_if_and_else():
    out = buffer("y", 4)
    body = If(I < 2, store(out, ONE, I), store(out, ONE + ONE, I))
    y = np.zeros(4, "float32")
    run(func([out], loop(I, 4, body)), [y])
    assert y.tolist() == [1, 1, 2, 2]


def test_integers_wrap_in_their_dtype():
    source, out = buffer("x", 2, dtype="int8"), buffer("y", 2, dtype="int8")
    x, y = np.array([127, -128], "int8"), np.zeros(2, "int8")
    run(func([source, out], loop(I, 2, store(out, load(source, I) * 2 + 3, I))), [x, y])
    assert y.tolist() == [1, 3]


def test_symbolic_dimension():
    n = Var("n")
    out = buffer("y", n, n)
    body = For(I, const(0), n, store(out, ONE, I, n - 1 - I))
    y = np.zeros((3, 3), "float32")
    run(func([out], body), [y])
    assert (y == np.eye(3)[::-1]).all()


def test_many_nested_loops():
    out = buffer("y", 1)
    body = store(out, load(out, 0) + ONE, 0)
    for d in range(40):
        body = loop(Var(f"i{d}"), 1 + (d % 20 == 0), body)
    y = np.zeros(1, "float32")
    run(func([out], body), [y])
    assert y[0] == 4


def test_long_expression():
    out = buffer("y", 1)
    value = load(out, 0)
    for _ in range(3000):
        value = value + ONE
    y = np.zeros(1, "float32")
    run(func([out], store(out, value, 0)), [y])
    assert y[0] == 3000


SCRATCH = buffer("t", 4)
OUT = buffer("y", 4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (store(OUT, ONE, I + 1), r"y\[4\] is out of bounds"),
        (store(OUT, ONE, I - 1), r"y\[-1\] is out of bounds"),
        (Store(OUT, (Ramp(I, const(1), 4),), Broadcast(ONE, 4)), r"y\[4\] is out of bounds"),
        (Alloc(SCRATCH, store(OUT, load(SCRATCH, I), I)), r"t\[0\] is read but was never written"),
        (store(OUT, load(SCRATCH, I), I), "neither a parameter nor allocated"),
        (store(OUT, ONE, J), r"variables \['j'\] are not bound"),
        (store(OUT, ONE, I, I), "accessed with 2 indices"),
    ],
)
def test_errors(body, message):
    with pytest.raises(VerifyError, match=message):
        run(func([OUT], loop(I, 4, body)), [np.zeros(4, "float32")])


def test_scratch_is_fresh_in_every_allocation():
    body = Seq((store(SCRATCH, ONE, I), store(OUT, load(SCRATCH, 0), I)))
    with pytest.raises(VerifyError, match="never written"):
        run(func([OUT], loop(I, 4, Alloc(SCRATCH, body))), [np.zeros(4, "float32")])
    whole = replace(func([OUT], loop(I, 4, body)), allocs=(SCRATCH,))
    run(whole, [np.zeros(4, "float32")])


def test_arrays_must_fit():
    program = func([OUT], store(OUT, ONE, 0))
    for arrays in ([], [np.zeros(3, "float32")], [np.zeros(4)], [np.zeros((4, 1), "float32")]):
        with pytest.raises(InputError):
            run(program, arrays)
