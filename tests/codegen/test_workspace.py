"""Where intermediate buffers lie in the workspace of a kernel."""

from tinycomp.codegen.workspace import plan_workspace
from tinycomp.dtype import DType
from tinycomp.ir.expr import Var, const
from tinycomp.tir.nodes import Alloc, Buffer, For, ForKind, Seq, Store


def buffer(name, size):
    return Buffer(name, (const(size),), DType.FLOAT32)


def use(*buffers):
    return Seq(tuple(Store(b, (const(0),), const(0.0, "float32")) for b in buffers))


def test_nested_buffers_lie_apart_and_neighbours_together():
    a, b, c = buffer("A", 20), buffer("B", 100), buffer("C", 3)
    plan = plan_workspace(Alloc(a, Seq((Alloc(b, use(a, b)), Alloc(c, use(a, c))))))
    assert plan.shared == {a: 0, b: 128, c: 128}
    assert (plan.shared_bytes, plan.private_bytes) == (128 + 448, 0)


def test_a_buffer_allocated_twice_avoids_what_is_around_it_in_both_places():
    a, b, c = buffer("A", 16), buffer("B", 16), buffer("C", 16)
    plan = plan_workspace(Seq((Alloc(b, Alloc(c, use(b, c))), Alloc(a, Alloc(b, use(a, b))))))
    assert plan.shared == {b: 0, c: 64, a: 64}
    assert plan.shared_bytes == 128


def test_threads_have_their_own():
    a, b, c = buffer("A", 16), buffer("B", 16), buffer("C", 40)
    loops = [
        For(Var("i"), const(0), const(4), Alloc(x, use(a, x)), ForKind.PARALLEL) for x in (b, c)
    ]
    plan = plan_workspace(Alloc(a, Seq(tuple(loops))))
    assert (plan.shared, plan.private) == ({a: 0}, {b: 0, c: 0})
    assert (plan.shared_bytes, plan.private_bytes) == (64, 192)
