"""The verifier accepts what is right and names what is wrong."""

import pytest

from tinycomp.diagnostics import VerifyError
from tinycomp.dtype import DType
from tinycomp.ir.expr import Binary, BinaryOp, Broadcast, Load, Ramp, Var, const
from tinycomp.tir.nodes import Alloc, Buffer, For, If, PrimFunc, Seq, Store
from tinycomp.tir.verify import verify

I, J = Var("i"), Var("j")
ONE = const(1.0, DType.FLOAT32)
Y = Buffer("y", (const(8),), DType.FLOAT32)
T = Buffer("t", (const(8),), DType.FLOAT32)
LANES = Ramp(I, const(1), 4)


def func(body):
    return PrimFunc("f", (Y,), 1, For(I, const(0), const(8), body))


def test_accepts_blocks_only_before_lowering(matmul):
    verify(matmul)
    with pytest.raises(VerifyError, match="block C is left"):
        verify(matmul, lowered=True)


def test_accepts_siblings_that_reuse_a_variable():
    body = For(J, const(0), const(8), Alloc(T, Seq((Store(T, (J,), ONE), Store(Y, (J,), ONE)))))
    verify(func(Seq((body, body))), lowered=True)


def test_accepts_symbolic_dimensions():
    n = Var("n")
    out = Buffer("out", (n,), DType.FLOAT32)
    loop = For(I, const(0), n, Store(out, (I,), ONE))
    verify(PrimFunc("f", (out,), 1, loop, sizes=(n,)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (Store(Y, (J,), ONE), "variable j is used but not bound"),
        (Store(Y, (I,), Load(Y, (J,), None)), "variable j is used but not bound"),
        (Seq((For(J, const(0), I, Seq(())), Store(Y, (J,), ONE))), "j is used but not bound"),
        (For(I, const(0), const(2), Seq(())), "i is bound twice"),
        (Alloc(T, Alloc(T, Seq(()))), "t is bound twice"),
        (Seq((Alloc(T, Seq(())), Store(T, (I,), ONE))), "t: .* neither a parameter"),
        (Store(Y, (I,), Load(T, (I,), None)), "t: .* neither a parameter"),
        (Store(Y, (I, I), ONE), "accessed with 2 indices"),
        (Store(Y, (ONE,), ONE), "not all integers"),
        (Store(Y, (I,), I), "a int64 is stored"),
        (Store(Y, (I,), Broadcast(ONE, 4)), "4 lanes are stored to 1"),
        (Store(Y, (LANES,), Broadcast(ONE, 8)), "8 lanes are stored to 4"),
        (Store(Y, (LANES,), Broadcast(ONE, 4), Broadcast(I < 1, 8)), "lane counts"),
        (Store(Y, (I,), ONE, I), "not a bool"),
        (If(I, Seq(())), "scalar bool"),
        (Store(Y, (I,), Binary(BinaryOp.ADD, ONE, I)), "differ in dtype"),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_rejects(body, message):
    with pytest.raises(VerifyError, match=message):
        verify(func(body), lowered=True)
