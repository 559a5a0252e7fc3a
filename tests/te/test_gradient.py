"""te.gradient against central differences in float64."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.te.interpreter import evaluate


def tensor(*shape, name="A"):
    return te.placeholder(shape, "float64", name)


def check(out, feeds, rtol=1e-5, step=1e-6, seed=0):
    """The gradient with a random head equals the differences of sum(head * out)."""
    rng = np.random.default_rng(seed)
    head = te.placeholder(out.shape, "float64", "head")
    weights = rng.standard_normal([d.value for d in out.shape])
    inputs = list(feeds)
    grads = te.gradient(out, inputs, head)
    assert [g.shape for g in grads] == [t.shape for t in inputs]
    values = evaluate(grads, {**feeds, head: weights})
    for tensor, got in zip(inputs, values, strict=True):
        expected = np.zeros_like(feeds[tensor])
        for at in np.ndindex(*expected.shape):
            sides = []
            for sign in (1, -1):
                moved = feeds[tensor].copy()
                moved[at] += sign * step
                sides.append((evaluate([out], {**feeds, tensor: moved})[0] * weights).sum())
            expected[at] = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-6)
    return grads


def random(*shape, low=-1.0, high=1.0, seed=1):
    return np.random.default_rng(seed).uniform(low, high, shape)


UNARY = {
    "exp": (-1, 1), "exp2": (-1, 1), "exp10": (-1, 1), "expm1": (-1, 1), "log": (0.5, 2),
    "log2": (0.5, 2), "log10": (0.5, 2), "log1p": (-0.5, 1), "sqrt": (0.5, 2), "rsqrt": (0.5, 2),
    "sin": (-1, 1), "cos": (-1, 1), "tan": (-1, 1), "asin": (-0.9, 0.9), "acos": (-0.9, 0.9),
    "atan": (-2, 2), "sinh": (-1, 1), "cosh": (-1, 1), "tanh": (-1, 1), "asinh": (-1, 1),
    "acosh": (1.1, 3), "atanh": (-0.9, 0.9), "erf": (-2, 2), "sigmoid": (-2, 2),
    "abs": (0.1, 2), "negative": (-1, 1), "floor": (0.1, 0.9), "round": (0.6, 0.9),
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_unary(name):
    a = tensor(5)
    out = te.compute((5,), lambda i: getattr(te, name)(a[i]), name="B")
    check(out, {a: random(5, low=UNARY[name][0], high=UNARY[name][1])})


BINARY = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "power": te.power,
    "minimum": te.minimum,
    "maximum": te.maximum,
    "atan2": te.atan2,
    "fmod": te.fmod,
    "fma": lambda x, y: te.fma(x, y, x),
    "select": lambda x, y: te.select(x > y, x * y, x + y),
    "if_then_else": lambda x, y: te.if_then_else(x > y, x * y, te.sqrt(y)),
    "shared": lambda x, y: te.exp(x * y) * te.sin(x * y),
}


@pytest.mark.parametrize("name", BINARY)
def test_binary_with_broadcasting(name):
    a, b = tensor(3, 4), tensor(4, name="B")
    out = te.compute((3, 4), lambda i, j: BINARY[name](a[i, j], b[j]))
    check(out, {a: random(3, 4, low=0.5, high=2.0), b: random(4, low=0.6, high=1.9, seed=2)})


@pytest.mark.parametrize("reduction", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize("axis", [0, 1, (0, 1)])
def test_reductions(reduction, axis):
    a = tensor(3, 4)
    i, j = te.reduce_axis((0, 3)), te.reduce_axis((0, 4))
    reduce = getattr(te, reduction)
    if axis == 0:
        out = te.compute((4,), lambda y: reduce(a[i, y], axis=i))
    elif axis == 1:
        out = te.compute((3,), lambda x: reduce(a[x, j] * 2.0, axis=j))
    else:
        out = te.compute((), lambda: reduce(a[i, j], axis=[i, j]))
    check(out, {a: random(3, 4)})


@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_product_with_zeros(zeros):
    a, k = tensor(4), te.reduce_axis((0, 4))
    out = te.compute((), lambda: te.prod(a[k], axis=k))
    x = random(4, low=0.5, high=2.0)
    x[:zeros] = 0.0
    check(out, {a: x})


def test_ties_share_the_gradient_of_a_maximum():
    a, k = tensor(4), te.reduce_axis((0, 4))
    out = te.compute((), lambda: te.max(a[k], axis=k))
    (grad,) = te.gradient(out, a)
    got = evaluate([grad], {a: np.array([1.0, 3.0, 3.0, 2.0])})[0]
    np.testing.assert_array_equal(got, [0, 0.5, 0.5, 0])


def test_sum_where():
    a, k = tensor(5), te.reduce_axis((0, 5))
    out = te.compute((3,), lambda i: te.sum(a[k] * a[k], axis=k, where=k <= i))
    check(out, {a: random(5)})


def test_matmul_gradients_are_matmuls():
    a, b, k = tensor(3, 4), tensor(4, 5, name="B"), te.reduce_axis((0, 4), "k")
    out = te.compute((3, 5), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k))
    left, right = check(out, {a: random(3, 4), b: random(4, 5, seed=2)})
    assert [x.extent.value for x in left.op.reduce_axis] == [5]
    assert [x.extent.value for x in right.op.reduce_axis] == [3]


@pytest.mark.parametrize(
    ("stride", "dilation", "pad"), [(1, 1, 0), (2, 1, 1), (1, 2, 2), (3, 2, 1)]
)
def test_convolution(stride, dilation, pad):
    size, kernel = 7, 3
    a, w = tensor(2, size, size), tensor(2, 2, kernel, kernel, name="W")
    padded = te.compute(
        (2, size + 2 * pad, size + 2 * pad),
        lambda c, y, x: te.if_then_else(
            te.all(y >= pad, y < size + pad, x >= pad, x < size + pad),
            a[c, y - pad, x - pad],
            0.0,
        ),
    )
    out_size = (size + 2 * pad - (kernel - 1) * dilation - 1) // stride + 1
    c, p, q = (te.reduce_axis((0, n)) for n in (2, kernel, kernel))
    out = te.compute(
        (2, out_size, out_size),
        lambda o, y, x: te.sum(
            padded[c, y * stride + p * dilation, x * stride + q * dilation] * w[o, c, p, q],
            axis=[c, p, q],
        ),
    )
    grads = check(out, {a: random(2, size, size), w: random(2, 2, kernel, kernel, seed=3)}, 1e-4)
    weights = grads[1].op
    assert len(weights.reduce_axis) == 2  # over output rows and columns only


@pytest.mark.parametrize(
    ("shape", "index"),
    {
        "reshape": ((3, 4), lambda i: (i // 4, i % 4)),
        "repeat": ((6,), lambda i: (i // 2,)),
        "tile": ((4,), lambda i: (i % 4,)),
        "reverse": ((12,), lambda i: (11 - i,)),
        "spread": ((24,), lambda i: (i * 2,)),
        "diagonal": ((12, 12), lambda i: (i, i)),
        "constant": ((5,), lambda i: (3,)),
        "mixed radix": ((2, 3, 2), lambda i: (i // 6, i // 2 % 3, i % 2)),
    }.values(),
)
def test_data_movement(shape, index):
    a = tensor(*shape)
    out = te.compute((12,), lambda i: a(*index(i)) * a(*index(i)))
    check(out, {a: random(*shape)})


def test_reshape_back_needs_no_sum():
    a = tensor(3, 4)
    out = te.compute((12,), lambda i: a[i // 4, i % 4])
    (grad,) = check(out, {a: random(3, 4)})
    assert not grad.op.reduce_axis


def test_softmax_chain():
    a, k, m = tensor(2, 5), te.reduce_axis((0, 5)), te.reduce_axis((0, 5))
    top = te.compute((2,), lambda i: te.max(a[i, m], axis=m))
    e = te.compute((2, 5), lambda i, j: te.exp(a[i, j] - top[i]))
    total = te.compute((2,), lambda i: te.sum(e[i, k], axis=k))
    out = te.compute((2, 5), lambda i, j: e[i, j] / total[i])
    check(out, {a: random(2, 5)}, rtol=1e-4)


def test_guarded_neighbours_are_never_read_out_of_bounds():
    a, b = tensor(5), tensor(5, name="B")
    out = te.compute((5,), lambda i: te.if_then_else(i > 0, a[i - 1] * b[i - 1], a[i] * 3.0))
    check(out, {a: random(5), b: random(5, seed=4)})


def test_several_outputs():
    a = tensor(4)
    first, second = te.compute((4,), lambda i: (a[i] * a[i], te.sin(a[i])))
    out = te.compute((4,), lambda i: first[i] * second[3 - i])
    check(out, {a: random(4)})


def test_jacobian_without_a_head():
    a, b, k = tensor(2, 3), tensor(3, name="B"), te.reduce_axis((0, 3))
    out = te.compute((2,), lambda i: te.sum(a[i, k] * b[k], axis=k))
    by_a, by_b = te.gradient(out, [a, b])
    x, y = random(2, 3), random(3, seed=2)
    got_a, got_b = evaluate([by_a, by_b], {a: x, b: y})
    np.testing.assert_allclose(got_b, x)
    np.testing.assert_allclose(got_a, np.einsum("pi,k->pik", np.eye(2), y))
    assert not by_b.op.reduce_axis


def test_input_that_does_not_matter_and_the_output_itself():
    a, b = tensor(2), tensor(3, name="B")
    out = te.compute((2,), lambda i: a[i] * 2.0)
    unused, own = te.gradient(out, [b, out])
    zeros, identity = evaluate([unused, own], {a: np.ones(2), b: np.ones(3)})
    np.testing.assert_array_equal(zeros, np.zeros((2, 3)))
    np.testing.assert_array_equal(identity, np.eye(2))


def test_casts_and_integers():
    a = te.placeholder((4,), "float32", "A")
    out = te.compute((4,), lambda i: te.cast(a[i], "float64") * te.cast(i, "float64"))
    (grad,) = te.gradient(out, [a], te.compute((4,), lambda i: te.const(1.0, "float64")))
    assert grad.dtype == "float32"
    got = evaluate([grad], {a: np.ones(4, "float32")})[0]
    np.testing.assert_array_equal(got, np.arange(4))


def test_refusals():
    a, k = tensor(4), te.reduce_axis((0, 4))
    larger = te.comm_reducer(lambda x, y: te.select(x > y, x, y), lambda t: te.const(0, t), "pick")
    out = te.compute((), lambda: larger(a[k], axis=k))
    with pytest.raises(TypeError, match="reducer 'pick'"):
        te.gradient(out, a)
    square = te.compute((4,), lambda i: a[i] * a[i])
    with pytest.raises(TypeError, match="does not end in the shape"):
        te.gradient(square, a, tensor(3, name="head"))
