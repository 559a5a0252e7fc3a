"""Shared buffers in one place: only what is never needed together, and with threads in step."""

from dataclasses import replace

import numpy as np
import pytest

from tinycomp import te
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.diagnostics import VerifyError
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.gpu_memory import RaceError
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.nodes import Alloc, Scope, Seq
from tinycomp.tir.passes.barriers import is_barrier
from tinycomp.tir.passes.share_memory import shared_bytes
from tinycomp.tir.passes.visit import rewriter
from tinycomp.tir.tree import statements


def reversed_copy(source, dtype, name):
    (n,) = source.shape
    return te.compute((n,), lambda i: source[n - 1 - i].astype(dtype), name=name)


def chain(*dtypes, n=32):
    """Reversals, each through a shared buffer of its own."""
    a = te.placeholder((n,), "float32", name="A")
    stage, stages = a, []
    for position, dtype in enumerate(dtypes):
        stage = reversed_copy(stage, dtype, f"S{position}")
        stages.append(stage)
    out = reversed_copy(stage, "float32", "B")
    s = te.create_schedule(out.op)
    block, i = s[out].split("i", factor=n)
    s[out].bind(block, "blockIdx.x")
    s[out].bind(i, "threadIdx.x")
    for one in reversed(stages):
        s.set_scope(one, "shared")
        s[one].compute_at(s[out], block)
        s[one].bind(s[one].axes[-1], "threadIdx.x")
    return lower_gpu(s.func)


def buffers(func):
    return {
        s.buffer.name: s.buffer
        for s in statements(func.body)
        if isinstance(s, Alloc) and s.buffer.scope is Scope.SHARED
    }


def check(func, n=32):
    a, b = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
    run(func, [a, b])
    reversed_ = len(buffers(func)) % 2 == 0
    np.testing.assert_array_equal(b, a[::-1] if reversed_ else a)


@pytest.mark.parametrize(
    "dtypes", [("float32",) * 4, ("float32", "float16", "int32", "int8")], ids=str
)
def test_what_is_dead_makes_room(dtypes):
    func = chain(*dtypes)
    found = buffers(func)
    check(func)
    starts = [found[f"S{n}"].offset for n in range(4)]
    assert starts[0] == starts[2] == 0  # S0 is read by S1 only
    assert starts[1] == starts[3] == 128
    assert shared_bytes(found.values()) <= 256
    assert "unsigned char shared[" in emit_cuda(func).source


@pytest.mark.parametrize("dtypes", [("float32",) * 3, ("int8", "float16", "float32")], ids=str)
def test_memory_that_is_still_needed_is_not_taken(dtypes):
    func = chain(*dtypes)
    found = buffers(func)

    def change(node):
        old = getattr(node, "buffer", None) or getattr(node, "source", None)
        if old not in moved:
            return node
        if hasattr(node, "source"):
            return type(node)(moved[old], node.indices, node.predicate)
        return replace(node, buffer=moved[old])

    moved = {found["S1"]: replace(found["S1"], offset=0)}
    with pytest.raises((RaceError, VerifyError)):
        check(replace(func, body=rewriter(change)(func.body)))


def test_a_barrier_stands_before_memory_is_taken_over():
    func = chain("float32", "float32", "float32")

    def change(node):
        return (
            Seq(tuple(s for s in node.stmts if not is_barrier(s)))
            if isinstance(node, Seq)
            else node
        )

    check(func)
    with pytest.raises((RaceError, VerifyError)):
        check(replace(func, body=rewriter(change)(func.body)))
