import pytest

from tinycomp.diagnostics import InternalError
from tinycomp.ir.expr import Load, Ramp, Var, call, const, if_then_else
from tinycomp.ir.node import preorder
from tinycomp.target import Target
from tinycomp.tir.nodes import Alloc, For, ForKind, If, Seq, Store
from tinycomp.tir.passes.vectorize import vectorize

AVX2 = Target.parse("llvm -mcpu=x86-64-v3")  # 8 floats


def vectors(func):
    return vectorize(func, AVX2)


def lanes(func):
    return [s.indices[-1].lanes for s in preorder(func.body) if isinstance(s, Store)]


@pytest.mark.parametrize(
    ("extent", "expected"),
    [(8, [8]), (21, [8, 8, 5]), (9, [8, 1]), (3, [3]), (80, [8]), (83, [8, 3])],
)
def test_native_vectors_then_the_rest(kit, extent, expected):
    a, b, i = kit.buffer("A", extent), kit.buffer("B", extent), Var("i")
    store = Store(b, (i,), Load(a, (i,), None) * 2.0 + 1.0)
    func = kit.same(kit.func(kit.loop(i, extent, store, "vectorized"), a, b), vectors)
    assert lanes(func) == expected


def test_width_follows_the_widest_element(kit):
    a, b, i = kit.buffer("A", 16, dtype="int8"), kit.buffer("B", 16, dtype="float64"), Var("i")
    store = Store(b, (i,), Load(a, (i,), None).astype("float64"))
    assert lanes(kit.same(kit.func(kit.loop(i, 16, store, "vectorized"), a, b), vectors)) == [4] * 4


def test_conditions_on_lanes_become_predicates(kit):
    a, b, o, i = kit.buffer("A", 13), kit.buffer("B", 13), Var("o"), Var("i")
    at = o * 8 + i
    value = if_then_else(at >= 2, Load(a, (at - 2,), None), Load(a, (at + 1,), None))
    body = If(at < 13, Store(b, (at,), value), None)
    func = kit.same(kit.func(kit.loop(o, 2, kit.loop(i, 8, body, "vectorized")), a, b), vectors)
    (store,) = (s for s in preorder(func.body) if isinstance(s, Store))
    assert store.predicate is not None
    assert all(n.predicate is not None for n in preorder(store) if isinstance(n, Load))


def test_scalars_are_read_whatever_the_condition(kit):
    a, x, b, i = kit.buffer("A", 8), kit.buffer("X"), kit.buffer("B", 8), Var("i")
    value = if_then_else(i < 5, Load(a, (i,), None) * Load(x, (), None), const(0.0, "float32"))
    store = Store(b, (i,), value)
    assert lanes(kit.same(kit.func(kit.loop(i, 8, store, "vectorized"), a, x, b), vectors)) == [8]


def test_else_branch_and_conditions_common_to_all_lanes(kit):
    a, b, o, i = kit.buffer("A", 2, 8), kit.buffer("B", 2, 8), Var("o"), Var("i")
    one, two, three = (Store(b, (o, i), Load(a, (o, i), None) + v) for v in (1.0, 2.0, 3.0))
    body = If(o < 1, If(i < 3, one, two), three)
    func = kit.same(kit.func(kit.loop(o, 2, kit.loop(i, 8, body, "vectorized")), a, b), vectors)
    assert isinstance(func.body.body, If)
    assert lanes(func) == [8, 8, 8]


def test_scalars_are_broadcast_and_lane_invariant_stores_stay_scalar(kit):
    a, b, i = kit.buffer("A", 1), kit.buffer("B", 9), Var("i")
    zero = const(0)
    body = Seq((
        Store(b, (const(8),), Load(a, (zero,), None)),
        Store(b, (i,), call("exp", Load(a, (zero,), None))),
    ))  # fmt: skip
    func = kit.same(kit.func(kit.loop(i, 8, body, "vectorized"), a, b), vectors)
    assert lanes(func) == [1, 8]


def test_serial_loops_and_allocations_inside(kit):
    a, b, t, i, k = (
        kit.buffer("A", 8, 5),
        kit.buffer("B", 8),
        kit.buffer("T", 1),
        Var("i"),
        Var("k"),
    )
    acc = Load(t, (const(0),), None)
    body = Alloc(t, Seq((
        Store(t, (const(0),), const(0.0, "float32")),
        kit.loop(k, 5, Store(t, (const(0),), acc + Load(a, (i, k), None))),
        Store(b, (i,), acc),
    )))  # fmt: skip
    func = kit.same(kit.func(kit.loop(i, 8, body, "vectorized"), a, b), vectors)
    assert isinstance(func.body, Alloc)
    assert any(isinstance(n, Ramp) for n in preorder(func.body))


def test_lane_dependent_lengths_run_serially(kit):
    b, i, k = kit.buffer("B", 8), Var("i"), Var("k")
    body = kit.loop(k, i + 1, Store(b, (i,), k.astype("float32")))
    func = kit.same(kit.func(kit.loop(i, 8, body, "vectorized"), b), vectors)
    assert func.body.kind is ForKind.SERIAL


def test_a_reduction_over_lanes_runs_serially(kit):
    a, b, i = kit.buffer("A", 8), kit.buffer("B", 1), Var("i")
    total = Store(b, (const(0),), Load(b, (const(0),), None) + Load(a, (i,), None))
    func = kit.same(kit.func(kit.loop(i, 8, total, "vectorized"), a, b), vectors)
    assert isinstance(func.body, For)
    assert func.body.kind is ForKind.SERIAL


def test_a_race_is_a_bug(kit):
    a, b, i = kit.buffer("A", 8), kit.buffer("B", 1), Var("i")
    race = Store(b, (const(0),), Load(a, (i,), None))
    with pytest.raises(InternalError, match="different values"):
        vectors(kit.func(kit.loop(i, 8, race, "vectorized"), a, b))
