from tinycomp.ir.expr import Load, Var, const
from tinycomp.tir.nodes import For, If, Store
from tinycomp.tir.passes.hoist_ifs import hoist_ifs


def test_conditions_leave_loops_that_do_not_change_them(kit):
    b, i, j = kit.buffer("B", 6, 4), Var("i"), Var("j")
    one = Store(b, (i, j), const(1.0, "float32"))
    nest = kit.loop(i, 6, kit.loop(j, 4, If((i < 3) & (j < 2), one)))
    func = kit.same(kit.func(nest, b), hoist_ifs)
    outer = func.body.body
    assert isinstance(outer, If)
    assert outer.condition is (i < 3)
    assert isinstance(outer.then, For)
    assert outer.then.body.condition is (j < 2)


def test_both_branches_move(kit):
    b, i, j = kit.buffer("B", 6, 4), Var("i"), Var("j")
    one, two = (Store(b, (i, j), const(v, "float32")) for v in (1.0, 2.0))
    func = kit.same(kit.func(kit.loop(i, 6, kit.loop(j, 4, If(i < 3, one, two))), b), hoist_ifs)
    assert isinstance(func.body.body, If)
    assert isinstance(func.body.body.otherwise, For)


def test_conditions_that_read_memory_stay(kit):
    a, b, i = kit.buffer("A", 1), kit.buffer("B", 4), Var("i")
    body = If(Load(a, (const(0),), None) < 0.5, Store(b, (i,), const(1.0, "float32")))
    func = kit.func(kit.loop(i, 4, body), a, b)
    assert hoist_ifs(func) is func
