"""te.<function> against NumPy, in the interpreter and compiled."""

import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.te.interpreter import evaluate

X = np.array([-2.5, -1.0, -0.5, 0.0, 0.5, 1.5, 2.5, np.nan], "float32")
UNIT = np.linspace(-0.9, 0.9, 8).astype("float32")
POSITIVE = np.array([1.0, 1.25, 2.0, 3.5, 10.0, 0.5 + 1, 100.0, 7.0], "float32")
erf = np.vectorize(__import__("math").erf)
FLOATS = {
    "exp": (np.exp, X), "exp2": (np.exp2, X), "exp10": (lambda x: 10.0**x, X),
    "expm1": (np.expm1, X), "log": (np.log, POSITIVE), "log2": (np.log2, POSITIVE),
    "log10": (np.log10, POSITIVE), "log1p": (np.log1p, POSITIVE), "sqrt": (np.sqrt, POSITIVE),
    "rsqrt": (lambda x: 1 / np.sqrt(x), POSITIVE), "erf": (erf, X),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), X), "sin": (np.sin, X), "cos": (np.cos, X),
    "tan": (np.tan, UNIT), "asin": (np.arcsin, UNIT), "acos": (np.arccos, UNIT),
    "atan": (np.arctan, X), "sinh": (np.sinh, X), "cosh": (np.cosh, X), "tanh": (np.tanh, X),
    "asinh": (np.arcsinh, X), "acosh": (np.arccosh, POSITIVE), "atanh": (np.arctanh, UNIT),
    "floor": (np.floor, X), "ceil": (np.ceil, X), "trunc": (np.trunc, X), "round": (np.rint, X),
    "nearbyint": (np.rint, X), "abs": (np.abs, X), "sign": (np.sign, X),
    "negative": (lambda x: -x, X),
    "isnan": (np.isnan, X), "isinf": (np.isinf, np.where(X > 0, np.inf, X)),
    "isfinite": (np.isfinite, X),
}  # fmt: skip


def both(function, *arrays):
    """The value of `function(*elements)` from the interpreter and from compiled code."""
    n = len(arrays[0])
    inputs = [te.placeholder((n,), str(a.dtype), f"x{d}") for d, a in enumerate(arrays)]
    out = te.compute((n,), lambda i: function(*(t[i] for t in inputs)), name="out")
    expected = evaluate([out], dict(zip(inputs, arrays, strict=True)))[0]
    compiled = np.empty_like(expected)
    tinycomp.build(te.create_schedule(out), [*inputs, out])(*arrays, compiled)
    return expected, compiled


@pytest.mark.parametrize("name", FLOATS)
def test_float_function(name):
    reference, x = FLOATS[name]
    with np.errstate(all="ignore"):
        expected = reference(x.astype("float64"))
        for got in both(getattr(te, name), x):
            np.testing.assert_allclose(got, expected, rtol=3e-6, atol=1e-6)


A = np.array([7, -7, 7, -7, 0, 13, -1, 5], "int32")
B = np.array([2, 2, -2, -2, 3, 0, 31, 5], "int32")


def trunc_div(a, b):
    return np.where(b == 0, 0, np.trunc(a / np.where(b == 0, 1, b))).astype(a.dtype)


def floor_div(a, b):
    return np.where(b == 0, 0, np.floor(a / np.where(b == 0, 1, b))).astype(a.dtype)


INTEGERS = {
    "floordiv": floor_div,
    "floormod": lambda a, b: np.where(b == 0, 0, a - b * floor_div(a, b)),
    "indexdiv": floor_div,
    "truncdiv": trunc_div,
    "div": trunc_div,
    "truncmod": lambda a, b: np.where(b == 0, 0, a - b * trunc_div(a, b)),
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_function(name):
    expected = INTEGERS[name](A, B)
    for got in both(getattr(te, name), A, B):
        np.testing.assert_array_equal(got, expected)


def test_operators_have_floor_semantics():
    for got in both(lambda a, b: (a // b) * b + a % b, A[:5], B[:5]):
        np.testing.assert_array_equal(got, A[:5])


@pytest.mark.parametrize(("name", "symbol"), [("left_shift", "<<"), ("right_shift", ">>")])
def test_shifts_by_the_width_or_more_give_zero(name, symbol):
    a, b = np.array([5, -5, 5, 1], "int32"), np.array([1, 1, 32, 31], "int32")
    expected = [eval(f"int(x) {symbol} int(y)") if y < 32 else 0 for x, y in zip(a, b, strict=True)]
    for got in both(getattr(te, name), a, b):
        np.testing.assert_array_equal(got, np.array(expected).astype("int32"))


def test_bits():
    x = np.array([0, 1, 255, -1], "int32")
    for got in both(te.popcount, x):
        np.testing.assert_array_equal(got, [0, 1, 8, 32])
    for got in both(te.bitwise_not, x):
        np.testing.assert_array_equal(got, ~x)


def test_booleans():
    x = np.array([-1.0, 0.5, 2.0], "float32")
    for got in both(lambda v: te.all(v > 0.0, v < 1.0), x):
        np.testing.assert_array_equal(got, [False, True, False])
    for got in both(lambda v: te.any(v < 0.0, v > 1.0), x):
        np.testing.assert_array_equal(got, [True, False, True])
    for got in both(lambda v: te.logical_not(te.logical_xor(v > 0.0, v > 1.0)), x):
        np.testing.assert_array_equal(got, [True, False, True])


@pytest.mark.parametrize("name", ["all", "any"])
def test_boolean_reductions(name):
    x = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0]], "bool")
    data, k = te.placeholder((3, 3), "bool", "x"), te.reduce_axis((0, 3))
    out = te.compute((3,), lambda i: getattr(te, name)(data[i, k], axis=k))
    got = np.empty(3, "bool")
    tinycomp.build(te.create_schedule(out), [data, out])(x, got)
    np.testing.assert_array_equal(got, getattr(np, name)(x, axis=1))


def test_two_argument_floats():
    x, y = X[:7], POSITIVE[:7]
    for name, reference in {"power": np.power, "atan2": np.arctan2, "fmod": np.fmod}.items():
        a, b = (y, x) if name == "power" else (x, y)
        for got in both(getattr(te, name), a, b):
            np.testing.assert_allclose(got, reference(a, b), rtol=1e-5, atol=1e-6)
    for got in both(lambda a, b: te.clip(te.hypot(a, b), 1.0, 5.0), x, y):
        np.testing.assert_allclose(got, np.clip(np.hypot(x, y), 1, 5), rtol=1e-6)


def test_numbers_take_the_dtype_of_the_other_operand():
    x = np.arange(4, dtype="float64")
    for got in both(lambda v: te.maximum(2.0, te.power(v, 2)), x):
        np.testing.assert_array_equal(got, [2, 2, 4, 9])


def test_argmax_by_a_tuple_reducer():
    def combine(x, y):
        first = te.any(x[1] > y[1], te.all(x[1].equal(y[1]), x[0] < y[0]))
        return te.select(first, x[0], y[0]), te.select(first, x[1], y[1])

    argmax = te.comm_reducer(
        combine, lambda i, v: (te.max_value(i), te.const(float("-inf"), v)), name="argmax"
    )
    data, k = te.placeholder((5, 9), name="x"), te.reduce_axis((0, 9), "k")
    where, value = te.compute((5,), lambda i: argmax((te.cast(k, "int32"), data[i, k]), axis=k))
    x = np.random.default_rng(0).integers(0, 4, (5, 9)).astype("float32")
    position, top = np.empty(5, "int32"), np.empty(5, "float32")
    s = te.create_schedule([where, value])
    tinycomp.build(s, [data, where, value])(x, position, top)
    np.testing.assert_array_equal(position, x.argmax(1))
    np.testing.assert_array_equal(top, x.max(1))


def test_limits():
    assert te.min_value("int8").value == -128
    assert te.max_value("float32").value == np.finfo("float32").max
    assert te.infinity("float64").value == np.inf


def test_refusals():
    i, x = te.var("i"), te.var("x", "float32")
    with pytest.raises(TypeError, match="exp takes a float"):
        te.exp(i)
    with pytest.raises(TypeError, match="popcount takes an integer"):
        te.popcount(x)
    with pytest.raises(TypeError, match="cast one of them"):
        te.power(x, i)
    with pytest.raises(TypeError, match="expected a boolean"):
        te.logical_not(x)


def test_reduction_refusals():
    data, k = te.placeholder((4,), name="x"), te.reduce_axis((0, 4))
    with pytest.raises(TypeError, match="is not a reduction axis"):
        te.compute((4,), lambda i: te.sum(data[i], axis=te.compute((4,), lambda j: j).op.axis[0]))
    with pytest.raises(TypeError, match=r"te.compute\(shape, lambda"):
        te.compute((), lambda: te.sum(data[k], axis=k) + 1.0)
    with pytest.raises(TypeError, match="one comm_reducer"):
        te.compute((), lambda: (te.sum(data[k], axis=k), te.max(data[k], axis=k)))


def test_tag_scope_and_thread_axis():
    with te.tag_scope("mine", {"a": 1}):
        inner = te.compute((2,), lambda i: i)
        named = te.compute((2,), lambda i: i, tag="own")
    outside = te.compute((2,), lambda i: i)
    assert (inner.op.tag, inner.op.attrs, named.op.tag, outside.op.tag) == (
        "mine",
        {"a": 1},
        "own",
        "",
    )
    thread = te.thread_axis((0, 64), "threadIdx.x")
    assert thread == "threadIdx.x"
    assert thread.extent.value == 64
    assert te.thread_axis("blockIdx.y") == "blockIdx.y"
