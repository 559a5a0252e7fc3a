"""Loop IR as text."""

from tinycomp.dtype import DType
from tinycomp.ir.expr import Ramp, Var, const
from tinycomp.tir.nodes import Alloc, Buffer, For, ForKind, If, PrimFunc, Scope, Seq, Store
from tinycomp.tir.printer import func_text, stmt_text

ONE = const(1.0, DType.FLOAT32)


def test_block(matmul):
    assert func_text(matmul).splitlines() == [
        "def matmul(A: float32[8, 8], B: float32[8, 8]) -> (C: float32[8, 8]):",
        "    for i in range(8):",
        "        for j in range(8):",
        "            for k in range(8):",
        '                with block("C"): vi = i, vj = j, reduce vk = k',
        "                    init:",
        "                        C[vi, vj] = 0f32",
        "                    C[vi, vj] = C[vi, vj] + A[vi, vk] * B[vk, vj]",
    ]
    assert str(matmul) == func_text(matmul)


def test_lowered_statements():
    y, t = (
        Buffer(n, (const(8),), DType.FLOAT32, s)
        for n, s in (("y", Scope.GLOBAL), ("t", Scope.LOCAL))
    )
    i = Var("i.outer")
    lanes = Ramp(i * 4, const(1), 4)
    body = Seq(
        (
            If(i < 1, Store(t, (i,), ONE), Seq(())),
            Store(y, (lanes,), ONE, lanes < 6),
        )
    )
    loop = For(i, const(0), const(2), Alloc(t, body), ForKind.PARALLEL, annotations={"grain": 2})
    assert stmt_text(loop).splitlines() == [
        "for i.outer in parallel(2):  # grain=2",
        "    alloc t: float32[8] in local",
        "    if i.outer < 1:",
        "        t[i.outer] = 1f32",
        "    else:",
        "        pass",
        "    y[ramp(i.outer * 4, 1, 4) if ramp(i.outer * 4, 1, 4) < x4(6)] = 1f32",
    ]


def test_thread_loop_and_offset():
    y = Buffer("y", (const(8),), DType.FLOAT32)
    i = Var("i")
    loop = For(i, const(2), const(3), Store(y, (i,), ONE), ForKind.THREAD, "threadIdx.x")
    assert stmt_text(loop).splitlines()[0] == 'for i in thread(2, 5, "threadIdx.x"):'


def test_deep_nests_print():
    y = Buffer("y", (const(1),), DType.FLOAT32)
    body = Store(y, (const(0),), ONE)
    for d in range(3000):
        body = If(Var(f"p{d}", DType.BOOL), body)
    assert stmt_text(body).count("\n") == 3000
    empty = PrimFunc("f", (y,), 1, Seq(()))
    assert func_text(empty).endswith("pass")
