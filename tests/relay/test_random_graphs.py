"""All cleaning passes together keep the meaning of random graphs."""

import numpy as np
import pytest

from tinycomp.dtype import DType
from tinycomp.relay.builder import Builder
from tinycomp.relay.parser import parse_function
from tinycomp.relay.passes.canonicalize_ops import CanonicalizeOps
from tinycomp.relay.passes.dead_code_elimination import DeadCodeElimination
from tinycomp.relay.passes.eliminate_common_subexpr import EliminateCommonSubexpr
from tinycomp.relay.passes.fold_constant import FoldConstant
from tinycomp.relay.passes.simplify_expr import SimplifyExpr
from tinycomp.relay.structural import first_difference
from tinycomp.relay.text import constant_table, function_text

CLEANING = (
    CanonicalizeOps(),
    SimplifyExpr(),
    FoldConstant(),
    EliminateCommonSubexpr(),
    SimplifyExpr(),
    FoldConstant(),
    EliminateCommonSubexpr(),
    DeadCodeElimination(),
)
UNARY = ("negative", "abs", "nn.relu", "floor", "sign", "round", "copy")
BINARY = ("add", "subtract", "multiply", "maximum", "minimum", "divide", "power")
NUMBERS = (0.0, -0.0, 1.0, -1.0, 2.0, 0.25, 6.0)


def random_function(ops, seed: int, length: int = 40):
    rng = np.random.default_rng(seed)
    b = Builder(ops, fold=False)
    values = [b.param("x", (2, 3, 4)), b.param("y", (2, 3, 4))]
    values += [b.const(np.full((2, 3, 4), c, np.float32)) for c in rng.choice(NUMBERS, 2)]

    def pick():
        return values[int(rng.integers(max(0, len(values) - 8), len(values)))]

    def number():
        shape = [(), (4,), (1, 3, 1)][rng.integers(3)]
        return b.const(np.full(shape, rng.choice(NUMBERS), np.float32))

    def transposed():
        axes = rng.permutation(3)
        y = b.call("transpose", pick(), axes=tuple(map(int, axes)))
        if rng.integers(2):
            y = b.call("nn.relu", y)
        return b.call("transpose", y, axes=tuple(map(int, np.argsort(axes))))

    def bounds():
        low, high = rng.choice([None, -1.0, 0.0, 2.0]), rng.choice([None, 3.0, 1.0, -2.0])
        return b.call("clip", pick(), a_min=low, a_max=high)

    makers = [
        lambda: b.call(str(rng.choice(UNARY)), pick()),
        lambda: b.call(str(rng.choice(BINARY[:5])), pick(), pick()),
        lambda: b.call(str(rng.choice(BINARY)), pick(), number()),
        lambda: b.call(str(rng.choice(BINARY[:6])), number(), pick()),
        lambda: b.call("reshape", b.call("reshape", pick(), newshape=(24,)), newshape=(2, 3, 4)),
        lambda: b.call("cast", b.call("cast", pick(), dtype=DType.FLOAT64), dtype=DType.FLOAT32),
        lambda: b.call("where", b.call("isnan", pick()), number(), pick()),
        transposed,
        bounds,
    ]
    for _ in range(length):
        values.append(makers[rng.integers(len(makers))]())
    return b.finish([v for v in values[-4:]])


@pytest.mark.parametrize("seed", range(25))
def test_cleaning_keeps_the_meaning(seed, ops, apply):
    function = random_function(ops, seed)
    # which zero a maximum of zeros is, and small powers, are not defined to the last bit
    result = apply(function, *CLEANING, signs=False, ulps=4, fixpoint=False)
    assert len(result.bindings) <= len(function.bindings) + 2
    again = parse_function(function_text(result), ops, constant_table(result))
    assert first_difference(result, again) is None
