import numpy as np
import pytest

from tinycomp.diagnostics import Span
from tinycomp.dtype import DType
from tinycomp.relay.passes.simplify_expr import RULES, SimplifyExpr, is_lossless

# name -> (operators left, function of (builder, x float32[2, 3, 4])), all exact
CASES = {
    "compose transposes": (
        ["transpose"],
        lambda b, x: b.call("transpose", b.call("transpose", x, axes=(1, 2, 0)), axes=(0, 2, 1)),
    ),
    "cancel transposes": (
        [],
        lambda b, x: b.call("transpose", b.call("transpose", x, axes=(1, 2, 0)), axes=(2, 0, 1)),
    ),
    "view": (
        ["reshape"],
        lambda b, x: b.call(
            "transpose", b.call("reshape", x, newshape=(6, 1, 4)), axes=(1, 0, 2)
        ),
    ),
    "merge reshapes": (
        ["reshape"],
        lambda b, x: b.call("reshape", b.call("reshape", x, newshape=(24,)), newshape=(4, 6)),
    ),
    "cancel reshapes": (
        [],
        lambda b, x: b.call("reshape", b.call("reshape", x, newshape=(24,)), newshape=(2, 3, 4)),
    ),
    "merge broadcasts": (
        ["broadcast_to"],
        lambda b, x: b.call(
            "broadcast_to", b.call("broadcast_to", x, shape=(2, 2, 3, 4)), shape=(5, 2, 2, 3, 4)
        ),
    ),
    "identity cast": ([], lambda b, x: b.call("cast", x, dtype=DType.FLOAT32)),
    "identity tile": ([], lambda b, x: b.call("tile", x, reps=(1, 1, 1))),
    "cast chain": (
        [],
        lambda b, x: b.call("cast", b.call("cast", x, dtype=DType.FLOAT64), dtype=DType.FLOAT32),
    ),
    "lossy cast chain": (
        ["cast", "cast"],
        lambda b, x: b.call("cast", b.call("cast", x, dtype=DType.FLOAT16), dtype=DType.FLOAT32),
    ),
    "concatenate of one": ([], lambda b, x: b.call("concatenate", x, axis=1)),
    "full slice": (
        [],
        lambda b, x: b.call(
            "strided_slice", x, begin=(0, 0, 0), end=(2, 3, 4), strides=(1, 1, 1)
        ),
    ),
    "reversal": (
        ["strided_slice"],
        lambda b, x: b.call(
            "strided_slice", x, begin=(1, 0, 0), end=(-1, 3, 4), strides=(-1, 1, 1)
        ),
    ),
    "merge slices": (
        ["strided_slice"],
        lambda b, x: b.call(
            "strided_slice",
            b.call("strided_slice", x, begin=(0, 1, 0), end=(2, 3, 4), strides=(1, 1, 2)),
            begin=(1, 0, 1),
            end=(2, 2, 2),
            strides=(1, 1, 1),
        ),
    ),
    "x + 0.0 keeps the sign of -0.0": (["add"], lambda b, x: b.call("add", x, b.const(0.0))),
    "x + -0.0": ([], lambda b, x: b.call("add", b.const(-0.0), x)),
    "x - 0": ([], lambda b, x: b.call("subtract", x, b.const(0.0))),
    "x * 1": ([], lambda b, x: b.call("multiply", b.const([[1.0]]), x)),
    "x / 1": ([], lambda b, x: b.call("divide", x, b.const(1.0))),
    "1 / x": (["divide"], lambda b, x: b.call("divide", b.const(1.0), x)),
    "broadcasting one": (
        ["multiply"],
        lambda b, x: b.call("multiply", x, b.const(np.ones((5, 1, 1, 1), np.float32))),
    ),
    "x * -1": (["negative"], lambda b, x: b.call("multiply", x, b.const(-1.0))),
    "double negative": ([], lambda b, x: b.call("negative", b.call("negative", x))),
    "relu twice": (["nn.relu"], lambda b, x: b.call("nn.relu", b.call("nn.relu", x))),
    "floor twice": (["floor"], lambda b, x: b.call("floor", b.call("floor", x))),
    "plus negative": (["subtract"], lambda b, x: b.call("add", x, b.call("negative", x))),
    "square": (["multiply"], lambda b, x: b.call("power", x, b.const(2.0))),
    "power of 2.5": (["power"], lambda b, x: b.call("power", x, b.const(2.5))),
    "divide by 8": (["multiply"], lambda b, x: b.call("divide", x, b.const(8.0))),
    "divide by 3": (["divide"], lambda b, x: b.call("divide", x, b.const(3.0))),
    "divide by 0": (["divide"], lambda b, x: b.call("divide", x, b.const(0.0))),
    "where true": (
        ["exp"],
        lambda b, x: b.call("where", b.const(True), b.call("exp", x), b.call("negative", x)),
    ),
    "where false": (
        ["negative"],
        lambda b, x: b.call(
            "where", b.const([False, False, False, False]), b.call("exp", x), b.call("negative", x)
        ),
    ),
    "where mixed": (
        ["negative", "where"],
        lambda b, x: b.call("where", b.const([True, False, True, False]), x, b.call("negative", x)),
    ),
    "where equal": ([], lambda b, x: b.call("where", b.call("isnan", x), x, x)),
    "where isnan": (
        ["isnan", "where"],
        lambda b, x: b.call("where", b.call("isnan", x), b.const(0.0), x),
    ),
    "clip of clip": (
        ["clip"],
        lambda b, x: b.call("clip", b.call("clip", x, a_min=-1.0, a_max=5.0), a_min=0.5, a_max=9.0),
    ),
    "clip of a disjoint clip": (
        ["clip"],
        lambda b, x: b.call("clip", b.call("clip", x, a_min=-1.0, a_max=1.0), a_min=2.0, a_max=9.0),
    ),
    "relu6": (["clip"], lambda b, x: b.call("clip", b.call("nn.relu", x), a_min=0.0, a_max=6.0)),
    "open clip": ([], lambda b, x: b.call("clip", x)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_exact_rule(name, builder, apply, names):
    expected, build = CASES[name]
    x = builder.param("x", (2, 3, 4))
    result = apply(builder.finish(build(builder, x)), SimplifyExpr())
    assert names(result) == expected


def test_softmax_guard_is_kept(builder, apply, names):
    """where(isnan(softmax(x)), 0, softmax(x)) matters for rows that are masked altogether."""
    x = builder.param("x", (2, 4))
    y = builder.call("nn.softmax", x, axis=-1)
    f = builder.finish(builder.call("where", builder.call("isnan", y), builder.const(0.0), y))
    assert names(apply(f, SimplifyExpr())) == ["nn.softmax", "isnan", "where"]


@pytest.mark.parametrize("exponent", [0.5, 3.0])
def test_inexact_powers(exponent, builder, apply, names):
    x = builder.call("abs", builder.param("x", (8,)))
    f = builder.finish(builder.call("power", x, builder.const(exponent)))
    result = apply(f, SimplifyExpr(), exact=False, rtol=1e-6)
    assert "power" not in names(result)


def test_integers(builder, apply, names):
    x = builder.param("x", (5,), "int32")
    y = builder.call("add", x, builder.const(0, "int32"))
    y = builder.call("cast", builder.call("cast", y, dtype=DType.INT64), dtype=DType.INT8)
    y = builder.call("floor_divide", y, builder.const(4, "int8"))
    assert names(apply(builder.finish(y), SimplifyExpr())) == ["cast", "floor_divide"]


def test_casts_of_integers_through_floats_are_kept(builder, ops, names, apply):
    x = builder.param("x", (5,), "int16")
    y = builder.call("cast", builder.call("cast", x, dtype=DType.FLOAT32), dtype=DType.INT32)
    z = builder.call("cast", builder.call("cast", x, dtype=DType.FLOAT32), dtype=DType.INT8)
    result = apply(builder.finish([y, z]), SimplifyExpr())
    assert names(result) == ["cast", "cast", "cast", "Tuple"]


@pytest.mark.parametrize("source", [d for d in DType if d.bits <= 16])
@pytest.mark.parametrize("target", list(DType))
def test_is_lossless_exhaustively(source, target):
    values = np.arange(1 << source.bits, dtype=f"uint{source.bits}")
    array = (values & 1).astype(bool) if source is DType.BOOL else values.view(source.numpy)
    with np.errstate(all="ignore"):
        back = array.astype(target.numpy).astype(source.numpy)
        same = (back == array) | (array != array)
    if is_lossless(source, target):
        assert same.all()
    elif not (source.is_float and not target.is_float):
        wraps = source.is_int and target.is_int and target.bits >= source.bits
        assert wraps or not same.all()


def test_spans_are_united(builder, apply):
    x = builder.param("x", (2, 3))
    with builder.at(Span(("first",))):
        y = builder.call("transpose", x, axes=(1, 0))
    y = builder.call("exp", builder.call("reshape", y, newshape=(6,)))
    with builder.at(Span(("second",))):
        y = builder.call(
            "reshape", builder.call("negative", builder.call("negative", y)), newshape=(3, 2)
        )
    with builder.at(Span(("third",))):
        y = builder.call("reshape", y, newshape=(1, 6))
    result = apply(builder.finish(y), SimplifyExpr())
    assert set(result.bindings[-1].span.nodes) == {"second", "third"}


def test_names_of_rules_are_unique():
    assert len({rule.name for rule in RULES}) == len(RULES)
