from tinycomp.ir.expr import TRUE, Load, Var, const
from tinycomp.ir.node import preorder
from tinycomp.te.tensor import IterKind, IterVar
from tinycomp.tir.nodes import Block, For, ForKind, If, Seq, Store
from tinycomp.tir.passes.lower_blocks import CARRIES, lower_blocks


def row_sum(kit, wrap, extent=6, predicate=None):
    """B[i] = sum over k of A[i, k], with loops made by `wrap(block(i, k))`."""
    a, b = kit.buffer("A", 4, extent), kit.buffer("B", 4)
    vi, vk = Var("vi"), Var("vk")
    axes = (
        IterVar(vi, const(0), const(4)),
        IterVar(vk, const(0), const(extent), IterKind.REDUCE),
    )
    update = Store(b, (vi,), Load(b, (vi,), None) + Load(a, (vi, vk), None))

    def block(i, k, predicate=TRUE):
        return Block("B", axes, (i, k), update, Store(b, (vi,), const(0.0, "float32")), predicate)

    return kit.func(wrap(block), a, b)


def test_init_runs_before_the_outermost_reduction_loop_over_copies_of_the_tile(kit):
    ko, ki, io, ii = (Var(n) for n in ("ko", "ki", "io", "ii"))

    def wrap(block):
        tile = kit.loop(ii, 2, block(io * 2 + ii, ko * 3 + ki), "unrolled")
        return kit.loop(io, 2, kit.loop(ko, 2, kit.loop(ki, 3, tile)))

    func = kit.same(row_sum(kit, wrap), lower_blocks)
    body = func.body.body
    assert isinstance(body, Seq)
    first, second = body.stmts
    assert isinstance(first, For)
    assert first.kind is ForKind.UNROLLED
    assert first.var is not ii
    assert isinstance(second, For)
    assert second.var is ko
    assert not any(isinstance(s, If | Block) for s in preorder(func.body))


def test_predicates_guard_init_only_where_they_are_about_spatial_loops(kit):
    io, ii, ko, ki = (Var(n) for n in ("io", "ii", "ko", "ki"))

    def wrap(block):
        i, k = io * 3 + ii, ko * 4 + ki
        inner = block(i, k, (i < 4) & (k < 6))
        return kit.loop(io, 2, kit.loop(ko, 2, kit.loop(ki, 4, kit.loop(ii, 3, inner))))

    text = kit.body_text(kit.same(row_sum(kit, wrap), lower_blocks))
    assert text.count("if io * 3 + ii < 4") == 2
    assert text.count("ko * 4 + ki < 6") == 1


def test_spatial_and_reduction_loops_fused_into_one_keep_init_inside(kit):
    f = Var("f")
    func = kit.same(row_sum(kit, lambda block: kit.loop(f, 24, block(f // 6, f % 6))), lower_blocks)
    assert "if f % 6 == 0" in kit.body_text(func)
    assert [b.name for b in func.body.annotations[CARRIES]] == ["B"]


def test_a_loop_variable_used_twice_is_renamed(kit):
    b, i = kit.buffer("B", 4), Var("i")
    write = [kit.loop(i, 4, Store(b, (i,), const(float(v), "float32"))) for v in (1, 2)]
    func = kit.same(kit.func(Seq(tuple(write)), b), lower_blocks)
    first, second = func.body.stmts
    assert first.var is not second.var
