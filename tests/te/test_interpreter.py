"""The NumPy meaning of tensor expressions, against NumPy itself."""

import numpy as np
import pytest

from tinycomp import te
from tinycomp.diagnostics import ExecutionError, InputError, VerifyError
from tinycomp.te.interpreter import _CHUNK, evaluate
from tinycomp.te.tensor import Tensor


def random(*shape, dtype="float32"):
    rng = np.random.default_rng(sum(shape))
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def value(tensor: Tensor, **feeds):
    return evaluate([tensor], feeds["feeds"])[0]


def test_padded_convolution():
    data, weight = te.placeholder((1, 3, 8, 8)), te.placeholder((4, 3, 3, 3))
    padded = te.compute(
        (1, 3, 10, 10),
        lambda n, c, h, w: te.if_then_else(
            (h >= 1) & (h < 9) & (w >= 1) & (w < 9), data[n, c, h - 1, w - 1], 0.0
        ),
    )
    c, p, q = te.reduce_axis((0, 3)), te.reduce_axis((0, 3)), te.reduce_axis((0, 3))
    conv = te.compute(
        (1, 4, 8, 8),
        lambda n, o, h, w: te.sum(padded[n, c, h + p, w + q] * weight[o, c, p, q], axis=(c, p, q)),
    )
    x, k = random(1, 3, 8, 8), random(4, 3, 3, 3)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3)
    )
    expected = np.einsum("ncijkl,ockl->noij", windows, k)
    got = evaluate([conv], {data: x, weight: k})[0]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("reducer", "numpy"),
    [(te.sum, np.sum), (te.prod, np.prod), (te.max, np.max), (te.min, np.min)],
)
def test_reductions(reducer, numpy):
    data, k = te.placeholder((5, 7)), te.reduce_axis((0, 7))
    out = te.compute((5,), lambda i: reducer(data[i, k], axis=k))
    x = random(5, 7)
    np.testing.assert_allclose(value(out, feeds={data: x}), numpy(x, axis=1), rtol=1e-5)


def test_all_and_any():
    data = te.placeholder((4, 3), "bool")
    k, m = te.reduce_axis((0, 3)), te.reduce_axis((0, 3))
    every = te.compute((4,), lambda i: te.all(data[i, k], axis=k))
    some = te.compute((4,), lambda i: te.any(data[i, m], axis=m))
    x = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 1], [0, 0, 1]], bool)
    got = evaluate([every, some], {data: x})
    assert got[0].tolist() == x.all(1).tolist()
    assert got[1].tolist() == x.any(1).tolist()


def test_max_propagates_nan_and_condition_skips():
    data, k = te.placeholder((2, 4)), te.reduce_axis((0, 4))
    out = te.compute((2,), lambda i: te.max(data[i, k], axis=k, where=k.var < 3))
    x = np.array([[1, np.nan, 2, 9], [1, 3, 2, np.nan]], "float32")
    np.testing.assert_array_equal(value(out, feeds={data: x}), [np.nan, 3])


def test_tuple_reduction_argmax():
    data, k = te.placeholder((6, 5)), te.reduce_axis((0, 5))
    argmax = te.comm_reducer(
        lambda a, b: (te.select(a[1] >= b[1], a[0], b[0]), te.select(a[1] >= b[1], a[1], b[1])),
        lambda i, v: (te.const(-1, i), te.const(-np.inf, v)),
    )
    index, best = te.compute((6,), lambda i: argmax((k.var, data[i, k]), axis=k))
    x = random(6, 5)
    got = evaluate([index, best], {data: x})
    assert got[0].tolist() == x.argmax(1).tolist()
    assert got[1].tolist() == x.max(1).tolist()


def test_rows_are_evaluated_in_chunks():
    rows, columns = 3, _CHUNK // 2
    data = te.placeholder((1, columns), "int8")
    out = te.compute((rows, columns), lambda i, j: data[0, j])
    x = random(1, columns, dtype="int8")
    assert (value(out, feeds={data: x}) == x).all()


def test_scan_is_a_running_sum():
    data, state = te.placeholder((5, 3)), te.placeholder((5, 3))
    init = te.compute((1, 3), lambda t, i: data[0, i])
    update = te.compute((5, 3), lambda t, i: state[t - 1, i] + data[t, i])
    out = te.scan(init, update, state, [data])
    x = random(5, 3)
    np.testing.assert_allclose(value(out, feeds={data: x}), np.cumsum(x, 0), rtol=1e-6)


def test_symbolic_dimension_comes_from_the_array():
    n = te.var("n")
    data = te.placeholder((n,))
    out = te.compute((n * 2,), lambda i: data[i // 2])
    assert value(out, feeds={data: np.ones(3, "float32")}).shape == (6,)


def test_scalar_and_empty():
    data, k = te.placeholder((0,)), te.reduce_axis((0, 0))
    out = te.compute((), lambda: te.sum(data[k], axis=k))
    assert value(out, feeds={data: np.zeros(0, "float32")}) == 0


def test_extern_is_called_back():
    data = te.placeholder((3,))
    out = te.extern((3,), [data], lambda ins, outs: None)

    def run_extern(op, inputs, outputs):
        outputs[0][:] = inputs[0] * 2

    got = evaluate([out], {data: np.ones(3, "float32")}, run_extern)[0]
    assert got.tolist() == [2, 2, 2]
    with pytest.raises(InputError, match="extern"):
        evaluate([out], {data: np.ones(3, "float32")})


def test_errors():
    data = te.placeholder((4,), name="data")
    over = te.compute((4,), lambda i: data[i + 1])
    x = np.zeros(4, "float32")
    with pytest.raises(VerifyError, match="outside dimension 0"):
        evaluate([over], {data: x})
    with pytest.raises(InputError, match="no array"):
        evaluate([over], {})
    with pytest.raises(InputError, match="fed"):
        evaluate([over], {data: x[:2]})
    indices = te.placeholder((2,), "int64")
    taken = te.compute((2,), lambda i: data[te.call("checked_index", indices[i], 4)])
    assert evaluate([taken], {data: x, indices: np.array([-4, 3])})[0].shape == (2,)
    with pytest.raises(ExecutionError, match="index 4"):
        evaluate([taken], {data: x, indices: np.array([0, 4])})
