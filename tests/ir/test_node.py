"""The iterative drivers."""

from tinycomp.ir.expr import Binary, BinaryOp, Var, binary
from tinycomp.ir.node import fold, postorder, preorder, rewrite

X, Y = Var("x"), Var("y")


def test_orders():
    total = X * Y + X
    assert postorder(total) == [X, Y, X * Y, total]
    assert list(preorder(total)) == [total, X * Y, X, Y]


def test_fold_visits_each_node_once():
    visits = []
    square = (X + Y) * (X + Y)
    size = fold(square, lambda node, children: visits.append(node) or 1 + sum(children))
    assert size == 7
    assert len(visits) == len(set(visits)) == 4


def test_rewrite_keeps_what_does_not_change():
    total = X * Y + X
    assert rewrite(total, lambda n: n) is total
    assert rewrite(total, lambda n: Y if n is X else n) is Y * Y + Y


def test_children_can_be_replaced():
    total = X + Y
    assert total.with_children([X, Y]) is total
    assert total.with_children([Y, X]) is Y + X
    assert total.attributes() == {"op": BinaryOp.ADD}


def test_shared_subexpressions_stay_linear():
    expr = X
    for _ in range(200):
        expr = Binary(BinaryOp.ADD, expr, expr)
    assert len(postorder(expr)) == 201
    assert fold(expr, lambda node, c: sum(c) if c else 1) == 2**200
    assert rewrite(expr, lambda n: n) is expr
    assert binary(BinaryOp.MIN, expr, expr) is expr
