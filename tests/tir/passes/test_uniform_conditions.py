from tinycomp.ir.expr import Var, const
from tinycomp.tir.nodes import If, Store
from tinycomp.tir.passes.uniform_conditions import uniform_conditions


def guarded(kit, limit, lanes=4):
    b, t, v = kit.buffer("B", 64), Var("t"), Var("v")
    at = t * lanes + v
    body = If(at < limit, Store(b, (at,), const(1.0, "float32")))
    return kit.func(kit.loop(t, 64 // lanes, kit.loop(v, lanes, body, "vectorized")), b), t


def test_whole_vectors_have_one_condition(kit):
    func, t = guarded(kit, 32)
    result = kit.same(func, uniform_conditions)
    assert result.body.body.body.condition is (t < 8)


def test_cut_vectors_stay(kit):
    func, _ = guarded(kit, 30)
    assert uniform_conditions(func) is func


def test_equality_within_the_vector_stays(kit):
    """First and last lane agree, the one between does not."""
    b, t, v = kit.buffer("B", 64), Var("t"), Var("v")
    body = If((t * 4 + v).equal(5), Store(b, (t * 4 + v,), const(1.0, "float32")))
    func = kit.func(kit.loop(t, 16, kit.loop(v, 4, body, "vectorized")), b)
    assert uniform_conditions(func) is func


def test_serial_loops_stay(kit):
    b, v = kit.buffer("B", 64), Var("v")
    body = If(v < 64, Store(b, (v,), const(1.0, "float32")))
    func = kit.func(kit.loop(v, 64, body), b)
    assert uniform_conditions(func) is func
