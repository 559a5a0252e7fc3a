from tinycomp.ir.expr import FALSE, TRUE, Broadcast, Load, Ramp, Var, const, if_then_else
from tinycomp.tir.nodes import If, Seq, Store
from tinycomp.tir.passes.simplify import simplify


def test_ranges_of_loops_decide_conditions_and_divisions(kit):
    a, b, i, j = kit.buffer("A", 4, 8), kit.buffer("B", 4, 8), Var("i"), Var("j")
    f = i * 8 + j
    value = if_then_else(f < 32, Load(a, (f // 8, f % 8), None), 0.0)
    body = If(j < 9, Store(b, (i, j), value))
    func = kit.same(kit.func(kit.loop(i, 4, kit.loop(j, 8, body)), a, b), simplify)
    assert func.body.body.body.value is Load(a, (i, j), None)


def test_loops_of_one_or_no_iteration_disappear(kit):
    b, i, j = kit.buffer("B", 8), Var("i"), Var("j")
    store = kit.loop(i, 1, Store(b, (i * 2,), const(1.0, "float32")), start=3)
    never = kit.loop(j, 0, Store(b, (j,), const(2.0, "float32")))
    func = kit.same(kit.func(Seq((store, never)), b), simplify)
    assert isinstance(func.body, Store)
    assert func.body.indices == (const(6),)


def test_a_condition_is_known_inside_its_if(kit):
    b, i = kit.buffer("B", 8), Var("i")
    value = if_then_else(i < 5, const(1.0, "float32"), const(2.0, "float32"))
    func = kit.same(kit.func(kit.loop(i, 8, If(i < 5, Store(b, (i,), value))), b), simplify)
    assert func.body.body.then.value is const(1.0, "float32")


def test_predicates_that_are_the_same_in_all_lanes_are_dropped(kit):
    a, b = kit.buffer("A", 4), kit.buffer("B", 4)
    lanes = Ramp(const(0), const(1), 4)
    on, off = Broadcast(TRUE, 4), Broadcast(FALSE, 4)
    body = Seq((
        Store(b, (lanes,), Load(a, (lanes,), on) + Load(a, (lanes,), off), on),
        Store(b, (lanes,), Load(a, (lanes,), None), off),
    ))  # fmt: skip
    func = kit.same(kit.func(body, a, b), simplify)
    assert isinstance(func.body, Store)
    assert func.body.predicate is None
    assert " if " not in kit.body_text(func)


def test_nothing_to_do_gives_the_same_function(kit):
    b, i = kit.buffer("B", 8), Var("i")
    func = kit.func(kit.loop(i, 8, Store(b, (i,), const(1.0, "float32"))), b)
    assert simplify(func) is func
