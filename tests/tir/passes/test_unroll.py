from tinycomp.ir.expr import Load, Var, const, if_then_else
from tinycomp.ir.node import preorder
from tinycomp.tir.nodes import For, ForKind, If, Seq, Store
from tinycomp.tir.passes.unroll import MAX_STATEMENTS, unroll


def test_nested_unrolled_loops_are_written_out_and_folded(kit):
    a, b, i, j = kit.buffer("A", 3, 4), kit.buffer("B", 3, 4), Var("i"), Var("j")
    value = if_then_else(i < j, Load(a, (i, j), None), 0.0)
    body = If(i + j < 5, Store(b, (i, j), value))
    nest = kit.loop(i, 3, kit.loop(j, 4, body, "unrolled"), "unrolled")
    func = kit.same(kit.func(nest, a, b), unroll)
    assert isinstance(func.body, Seq)
    assert len(func.body.stmts) == 11
    assert "if" not in kit.body_text(func)


def test_loops_that_would_become_too_long_stay(kit):
    b, i, j = kit.buffer("B", 100, 100), Var("i"), Var("j")
    store = Store(b, (i, j), const(1.0, "float32"))
    nest = kit.loop(i, 100, kit.loop(j, 100, store, "unrolled"), "unrolled")
    func = unroll(kit.func(nest, b))
    loops = [s for s in preorder(func.body) if isinstance(s, For)]
    assert [s.kind for s in loops] == [ForKind.SERIAL]
    assert len(loops[0].body.stmts) == 100 <= MAX_STATEMENTS


def test_serial_loop_of_one_iteration(kit):
    b, i = kit.buffer("B", 4), Var("i")
    func = kit.same(
        kit.func(kit.loop(i, 1, Store(b, (i,), const(1.0, "float32")), start=2), b), unroll
    )
    assert isinstance(func.body, Store)
