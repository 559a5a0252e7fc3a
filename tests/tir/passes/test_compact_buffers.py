import pytest

from tinycomp import te
from tinycomp.diagnostics import ScheduleError
from tinycomp.ir.expr import Load, Var, const
from tinycomp.ir.node import preorder
from tinycomp.tir.nodes import Alloc, If, Seq, Store
from tinycomp.tir.passes.compact_buffers import compact_buffers
from tinycomp.tir.passes.lower_blocks import CARRIES, lower_blocks


def allocs(func):
    return {
        s.buffer.name: tuple(d.value for d in s.buffer.shape)
        for s in preorder(func.body)
        if isinstance(s, Alloc)
    }


def stencil(kit, guard=None, rows=6):
    """C[i, j] = B[i, j] + B[i, j + 2], B computed per row tile of 2 rows."""
    a, b, c = kit.buffer("A", rows, 10), kit.buffer("B", rows, 10), kit.buffer("C", rows, 8)
    io, i1, j1, i2, j2 = (Var(n) for n in ("io", "i1", "j1", "i2", "j2"))
    at1, at2 = (io * 2 + i1, j1), io * 2 + i2
    produce = Store(b, at1, Load(a, at1, None) + 1.0)
    consume = Store(c, (at2, j2), Load(b, (at2, j2), None) + Load(b, (at2, j2 + 2), None))
    if guard is not None:
        produce, consume = If(at1[0] < guard, produce), If(at2 < guard, consume)
    inside = Seq((
        kit.loop(i1, 2, kit.loop(j1, 10, produce)),
        kit.loop(i2, 2, kit.loop(j2, 8, consume)),
    ))  # fmt: skip
    return kit.func(kit.loop(io, 3, inside), a, c, allocs=[b])


def test_buffer_moves_into_the_loop_and_shrinks_to_the_tile(kit):
    func = kit.same(stencil(kit), compact_buffers)
    assert allocs(func) == {"B": (2, 10)}
    assert func.allocs == ()
    assert isinstance(func.body.body, Alloc)
    assert "B[i2, j2 + 2]" in kit.body_text(func)


def test_guarded_tile_keeps_its_full_size(kit):
    func = kit.same(stencil(kit, guard=5, rows=5), compact_buffers)
    assert allocs(func) == {"B": (2, 10)}


def test_a_tile_larger_than_the_buffer_is_enlarged(kit):
    b, c, o, i, j = kit.buffer("B", 3), kit.buffer("C", 6), Var("o"), Var("i"), Var("j")
    tile = Seq((
        kit.loop(i, 4, Store(b, (o * 4 + i,), const(2.0, "float32"))),
        kit.loop(j, 3, Store(c, (o * 3 + j,), Load(b, (o * 4 + j,), None))),
    ))  # fmt: skip
    func = compact_buffers(kit.func(kit.loop(o, 2, tile), c, allocs=[b]))
    assert allocs(func) == {"B": (4,)}


def test_function_level_buffers_stay_whole(kit):
    a, b, c, i, j = (*(kit.buffer(n, 8) for n in "ABC"), Var("i"), Var("j"))
    body = Seq((
        kit.loop(i, 8, Store(b, (i,), Load(a, (i,), None) * 2.0)),
        kit.loop(j, 4, Store(c, (j,), Load(b, (j + 4,), None))),
    ))  # fmt: skip
    func = kit.same(kit.func(body, a, c, allocs=[b]), compact_buffers)
    assert allocs(func) == {"B": (8,)}
    assert isinstance(func.body, Alloc)


def test_carried_buffers_stay_outside_the_carrying_loop(kit):
    from dataclasses import replace

    a, b, c, o, k = (
        kit.buffer("A", 3, 5),
        kit.buffer("B", 3),
        kit.buffer("C", 3),
        Var("o"),
        Var("k"),
    )
    old = Load(b, (o,), None)
    steps = Seq((
        If(k.equal(0), Store(b, (o,), const(0.0, "float32"))),
        Store(b, (o,), old + Load(a, (o, k), None)),
    ))  # fmt: skip
    inner = replace(kit.loop(k, 5, Seq((steps, Store(c, (o,), old)))), annotations={CARRIES: (b,)})
    func = kit.same(kit.func(kit.loop(o, 3, inner), a, c, allocs=[b]), compact_buffers)
    assert allocs(func) == {"B": (1,)}
    assert isinstance(func.body.body, Alloc)


def test_strides_are_what_the_schedule_wants():
    a = te.placeholder((6, 8, 10), name="A")
    b = te.compute((6, 8, 10), lambda i, j, k: a[i, j, k] + 1.0, name="B")
    shapes = []
    for axis, factor, offset in (("i1", 32, 4), ("i1", 8, 0), ("i0", 16, 1), ("i2", 4, 2)):
        s = te.create_schedule(b.op)
        shared = s.cache_read(a, "shared", [b])
        s[shared].storage_align(axis, factor, offset)
        func = compact_buffers(lower_blocks(s.func))
        (buffer,) = (x.buffer for x in preorder(func.body) if isinstance(x, Alloc))
        shapes.append([d.value for d in buffer.shape])
    # 8 x 10 elements cannot be 1 modulo 16; the last dimension has stride 1 whatever is wanted
    assert shapes == [[6, 8, 36], [6, 8, 16], [6, 8, 10], [6, 8, 10]]
    s[shared].fuse("i0", "i1")
    with pytest.raises(ScheduleError, match="runs along 2 dimensions"):
        s[shared].storage_align("i0.i1.fused", 4, 0)
