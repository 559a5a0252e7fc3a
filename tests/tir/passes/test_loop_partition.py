import pytest

from tinycomp.ir.expr import Load, Var, const, if_then_else
from tinycomp.ir.node import preorder
from tinycomp.tir.nodes import For, ForKind, If, Seq, Store
from tinycomp.tir.passes.hoist_ifs import hoist_ifs
from tinycomp.tir.passes.loop_partition import loop_partition
from tinycomp.tir.passes.simplify import simplify
from tinycomp.tir.passes.trim_loops import trim_loops


def partition(func):
    return trim_loops(hoist_ifs(simplify(loop_partition(func))))


def ranges(func):
    return [(s.min.value, s.extent.value) for s in preorder(func.body) if isinstance(s, For)]


@pytest.mark.parametrize("rows", [1, 11, 12, 13, 29, 36])
def test_tail_of_a_split_loop(kit, rows):
    a, b, o, i = kit.buffer("A", rows), kit.buffer("B", rows), Var("o"), Var("i")
    row = o * 12 + i
    inner = kit.loop(i, 12, If(row < rows, Store(b, (row,), Load(a, (row,), None))), "unrolled")
    func = kit.same(kit.func(kit.loop(o, -(-rows // 12), inner), a, b), partition)
    assert not any(isinstance(s, If) for s in preorder(func.body))
    if rows == 29:
        assert ranges(func) == [(0, 2), (0, 12), (0, 5)]


def test_padding_is_cut_off_at_both_ends(kit):
    a, b, y, r = kit.buffer("A", 9), kit.buffer("B", 9, 3), Var("y"), Var("r")
    at = y + r - 1
    value = if_then_else((at >= 0) & (at < 9), Load(a, (at,), None), 0.0)
    nest = kit.loop(y, 9, kit.loop(r, 3, Store(b, (y, r), value)))
    func = kit.same(kit.func(nest, a, b), partition)
    assert (1, 7) in ranges(func)
    assert "if" not in kit.body_text(func)


def test_concatenation_becomes_one_loop_per_part(kit):
    a, b, c, j = kit.buffer("A", 5), kit.buffer("B", 9), kit.buffer("C", 14), Var("j")
    value = if_then_else(j < 5, Load(a, (j,), None), Load(b, (j - 5,), None))
    func = kit.same(kit.func(kit.loop(j, 14, Store(c, (j,), value)), a, b, c), partition)
    assert ranges(func) == [(0, 5), (5, 9)]


def test_decreasing_guards(kit):
    b, j, i = kit.buffer("B", 20), Var("j"), Var("i")
    one = Store(b, (j,), const(1.0, "float32"))
    body = kit.loop(i, 3, If(j * 3 + i <= 17 - j, one))
    kit.same(kit.func(kit.loop(j, 20, body), b), partition)


def test_parallel_loops_stay_one_loop(kit):
    a, b, o, i = kit.buffer("A", 29), kit.buffer("B", 29), Var("o"), Var("i")
    row = o * 12 + i
    inner = kit.loop(i, 12, If(row < 29, Store(b, (row,), Load(a, (row,), None))))
    func = kit.same(kit.func(kit.loop(o, 3, inner, "parallel"), a, b), partition)
    assert func.body.kind is ForKind.PARALLEL
    switch = func.body.body
    assert isinstance(switch, If)
    assert ranges(func)[1:] == [(0, 12), (0, 5)]
    assert sum(isinstance(s, If) for s in preorder(func.body)) == 1


def test_only_the_guarded_part_gets_versions(kit):
    a, b, c, o, i, j = (*(kit.buffer(n, 29) for n in "ABC"), Var("o"), Var("i"), Var("j"))
    row = o * 12 + j
    body = Seq((
        kit.loop(i, 29, Store(c, (i,), Load(a, (i,), None))),
        kit.loop(j, 12, If(row < 29, Store(b, (row,), Load(a, (row,), None)))),
    ))  # fmt: skip
    func = kit.same(kit.func(kit.loop(o, 3, body), a, c, b), partition)
    first, second = func.body.body.stmts
    assert isinstance(first, For)
    assert isinstance(second, If)


def test_guards_on_a_fused_variable_are_switched(kit):
    a, b, p, r = kit.buffer("A", 6, 7), kit.buffer("B", 42, 3), Var("p"), Var("r")
    at = p % 7 + r - 1
    value = if_then_else((at >= 0) & (at < 7), Load(a, (p // 7, at), None), 0.0)
    nest = kit.loop(p, 42, kit.loop(r, 3, Store(b, (p, r), value)), "parallel")
    func = kit.same(kit.func(nest, a, b), partition)
    fast = func.body.body.then
    assert "if" not in str(fast)


def test_growth_is_bounded(kit):
    n = 40
    arrays = [kit.buffer(f"A{d}", n) for d in range(6)]
    out, i, j, k = kit.buffer("B", n, n, n), Var("i"), Var("j"), Var("k")
    value = const(0.0, "float32")
    for d, array in enumerate(arrays):
        for v in (i, j, k):
            value = if_then_else(v < 5 * d + 3, Load(array, (v,), None), value)
    nest = kit.loop(i, n, kit.loop(j, n, kit.loop(k, n, Store(out, (i, j, k), value))))
    func = simplify(loop_partition(kit.func(nest, *arrays, out)))
    assert sum(isinstance(s, Store) for s in preorder(func.body)) < 600


def test_trim_needs_the_guard_to_be_the_whole_body(kit):
    b, i = kit.buffer("B", 8), Var("i")
    one = Store(b, (i,), const(1.0, "float32"))
    func = kit.same(
        kit.func(kit.loop(i, 8, If((i >= 2) & (i < 5), one), "vectorized"), b), trim_loops
    )
    assert ranges(func) == [(2, 3)]
    either = kit.func(kit.loop(i, 8, If(i < 5, one, Store(b, (i,), const(2.0, "float32")))), b)
    assert trim_loops(either) is either
