"""Data for which C has no answer: here every case has a defined value or is a clean error.

Integer division by zero gives 0, the smallest integer by -1 wraps, shifts by the width or more
give 0, conversions of floats out of range give the smallest integer (as on x86), indices out of
range are an ExecutionError naming the node.
"""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import ExecutionError

CONFIG = Config(cache=False)
INT_MIN = -(2**31)
LENGTHS = (3, 37)  # scalar code, and vectors with a rest


@pytest.fixture(params=[(1, 0), (2, 3)], ids=lambda p: f"threads{p[0]}-opt{p[1]}")
def setting(request):
    return {"num_threads": request.param[0], "opt_level": request.param[1]}


def onnx_type(array):
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def build(setting, op, inputs, constants=(), opset=20, **attrs):
    """A module of one node named "the_node" over these inputs and constants."""
    names = [f"i{k}" for k in range(len(inputs))]
    initializers = [numpy_helper.from_array(c, f"c{k}") for k, c in enumerate(constants)]
    node = helper.make_node(op, names + [i.name for i in initializers], ["y"], "the_node", **attrs)
    infos = [
        helper.make_tensor_value_info(n, onnx_type(a), a.shape)
        for n, a in zip(names, inputs, strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)
    graph = helper.make_graph([node], "g", infos, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return compile_with(CONFIG, model, **setting)


def run(setting, op, *inputs, **attrs):
    return build(setting, op, inputs, **attrs)(*inputs)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint32", "uint64"])
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_integer_division(setting, op, dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    pairs = [(7, 0), (0, 0), (high, 0), (low, 0), (7, 2), (high, 3)]
    pairs += [(low, -1), (low, 1), (-7, 2), (7, -2), (-1, low)] if low else []
    for length in LENGTHS:
        a, b = (np.resize(np.array(column, dtype), length) for column in zip(*pairs, strict=True))
        result = run(setting, op, a, b)
        for x, y, got in zip(a.tolist(), b.tolist(), result.tolist(), strict=True):
            wanted = 0 if y == 0 else int(abs(x) // abs(y)) * (1 if (x < 0) == (y < 0) else -1)
            if op == "Mod":
                wanted = 0 if y == 0 else x % y
            assert got == np.array([wanted % 2 ** np.iinfo(dtype).bits]).astype(dtype)[0] or (
                got == wanted
            )
            if (x, y) == (low, -1):
                assert got == (low if op == "Div" else 0)


def test_integer_division_by_a_constant_zero(setting):
    a = np.array([7, INT_MIN, 0], np.int32)
    for op in ("Div", "Mod"):
        module = build(setting, op, [a], [np.zeros(3, np.int32)])
        np.testing.assert_array_equal(module(a), [0, 0, 0])
    module = build(setting, "Div", [a], [np.full(3, -1, np.int32)])
    np.testing.assert_array_equal(module(a), [-7, INT_MIN, 0])


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts(setting, dtype, direction):
    bits = np.iinfo(dtype).bits
    for length in LENGTHS:
        a = np.resize(np.array([1, 255, 200], dtype), length)
        b = np.resize(np.array([0, 1, bits - 1, bits, bits + 1, 255], dtype), length)
        wanted = [
            (x << y) % 2**bits if direction == "LEFT" else x >> y
            for x, y in zip(a.tolist(), b.tolist(), strict=True)
        ]
        got = run(setting, "BitShift", a, b, direction=direction)
        assert got.tolist() == wanted


@pytest.mark.parametrize("source", ["float32", "float64", "float16"])
def test_conversions_of_floats(setting, source):
    values = [np.nan, np.inf, -np.inf, 3e10, -3e10, 1.9, -1.9, 300.7, -5.0]
    for length in (9, 37):
        with np.errstate(all="ignore"):
            x = np.resize(np.array(values, source), length)
        as_int = run(setting, "Cast", x, to=TensorProto.INT32)
        wanted = np.resize([INT_MIN] * 5 + [1, -1, 300, -5], length)
        np.testing.assert_array_equal(as_int, wanted)
        as_byte = run(setting, "Cast", x, to=TensorProto.UINT8)
        np.testing.assert_array_equal(
            as_byte[5:9], np.array([1, 255, 300 % 256, 251], np.uint8), err_msg=str(as_byte)
        )
        assert as_byte[0] == 0
        as_long = run(setting, "Cast", x, to=TensorProto.INT64)
        assert as_long[:3].tolist() == [-(2**63)] * 3
        assert as_long[5:9].tolist() == [1, -1, 300, -5]
        as_bool = run(setting, "Cast", x, to=TensorProto.BOOL)
        assert as_bool.tolist() == [True] * length


def test_wrong_conversions_are_the_same_when_folded(setting):
    """At run time and while compiling: one meaning."""
    for dtype in ("float32", "float64"):
        x = np.array([np.nan, np.inf, -np.inf, 3e10, -3e10, 1e20, 300.7, -5.0, -0.5], dtype)
        for to in (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.INT32,
                   TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64):  # fmt: skip
            at_run_time = run(setting, "Cast", x, to=to)
            folded = build(setting, "Cast", [], [x], to=to)()
            np.testing.assert_array_equal(at_run_time, folded, err_msg=f"{dtype} to {to}")


TABLE = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize("index", ["int32", "int64"])
def test_gather(setting, index):
    for axis, size in ((0, 4), (1, 6)):
        good = np.array([0, -1, size - 1, -size], index)
        module = build(setting, "Gather", [TABLE, good], axis=axis)
        np.testing.assert_array_equal(module(TABLE, good), np.take(TABLE, good, axis))
        for bad in (size, -size - 1, np.iinfo(index).max, np.iinfo(index).min):
            for place in range(4):
                wrong = good.copy()
                wrong[place] = bad
                with pytest.raises(ExecutionError, match="out of range") as caught:
                    module(TABLE, wrong)
                assert "the_node" in str(caught.value)
        np.testing.assert_array_equal(module(TABLE, good), np.take(TABLE, good, axis))


def test_gather_elements(setting):
    good = np.array([[0, -1, 3, 2, 1, -4]])
    module = build(setting, "GatherElements", [TABLE, good], axis=0)
    np.testing.assert_array_equal(module(TABLE, good), np.take_along_axis(TABLE, good, 0))
    with pytest.raises(ExecutionError, match="the_node"):
        module(TABLE, good + 1)


def test_gather_nd(setting):
    good = np.array([[0, 5], [-4, -1]])
    module = build(setting, "GatherND", [TABLE, good])
    assert module(TABLE, good).tolist() == [5, 5]
    for bad in ([[4, 0], [0, 0]], [[0, 0], [0, 6]], [[-5, 0], [0, 0]], [[0, 2**40], [0, 0]]):
        with pytest.raises(ExecutionError, match="the_node"):
            module(TABLE, np.array(bad))


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter(setting, reduction):
    good, updates = np.array([[3], [-4]]), np.ones((2, 6), np.float32)
    module = build(setting, "ScatterND", [TABLE, good, updates], reduction=reduction)
    assert module(TABLE, good, updates)[3].tolist() == [
        1 + (v if reduction == "add" else 0) for v in TABLE[3]
    ]
    for bad in ([[4], [0]], [[0], [-5]], [[0], [2**62]]):
        with pytest.raises(ExecutionError, match="the_node"):
            module(TABLE, np.array(bad), updates)
    good, updates = np.array([[3, -4, 0, 1, 2, -1]]), np.ones((1, 6), np.float32)
    module = build(setting, "ScatterElements", [TABLE, good, updates], reduction=reduction)
    assert module(TABLE, good, updates)[3, 0] == (1 if reduction == "none" else 19)
    for bad in (good + 1, good - 1, good + 2**40):
        with pytest.raises(ExecutionError, match="the_node"):
            module(TABLE, bad, updates)


def test_one_hot_of_an_index_outside_is_all_off(setting):
    index = np.array([0, 2, 3, -1, -3, -4, 2**40])
    depth, values = np.array(3), np.array([5, 9], np.float32)
    module = build(setting, "OneHot", [index], [depth, values])
    wanted = np.full((7, 3), 5, np.float32)
    for row, column in enumerate([0, 2, None, 2, 0]):
        if column is not None:
            wanted[row, column] = 9
    np.testing.assert_array_equal(module(index), wanted)


def test_reverse_sequence_longer_than_the_data(setting):
    lengths = np.array([1, 4, 2, 3, 4, 4])
    module = build(setting, "ReverseSequence", [TABLE, lengths], time_axis=0, batch_axis=1)
    np.testing.assert_array_equal(module(TABLE, lengths)[:, 1], TABLE[::-1, 1])
    for bad in (5, 2**40):
        wrong = np.array([1, 4, bad, 3, 4, 4])
        with pytest.raises(ExecutionError, match="the_node"):
            module(TABLE, wrong)


def test_reductions_of_nothing(setting):
    for op, wanted in {
        "ReduceMax": -np.inf, "ReduceMin": np.inf, "ReduceSum": 0, "ReduceProd": 1,
        "ReduceMean": np.nan, "ReduceL2": 0, "ReduceLogSumExp": -np.inf,
    }.items():  # fmt: skip
        x = np.ones((3, 0), np.float32)
        module = build(setting, op, [x], [np.array([1])], keepdims=0)
        np.testing.assert_array_equal(module(x), np.full(3, wanted, np.float32), err_msg=op)
    x = np.ones((3, 0), np.int32)
    module = build(setting, "ReduceMax", [x], [np.array([1])], keepdims=0)
    assert module(x).tolist() == [INT_MIN] * 3


@pytest.mark.parametrize("size", [4, 37])
def test_softmax_of_infinities(setting, size):
    x = np.zeros((3, size), np.float32)
    x[0, 1], x[1, 1], x[2] = np.inf, -np.inf, -np.inf
    for op in ("Softmax", "LogSoftmax"):
        result = run(setting, op, x, axis=1)
        assert np.isnan(result[0]).all()
        assert np.isnan(result[2]).all()
        finite = np.delete(result[1], 1)
        wanted = 1 / (size - 1) if op == "Softmax" else -np.log(size - 1)
        np.testing.assert_allclose(finite, wanted, rtol=1e-6)
        assert result[1, 1] == (0 if op == "Softmax" else -np.inf)


@pytest.mark.parametrize("length", LENGTHS)
def test_nan_passes_through(setting, length):
    x = np.full(length, np.nan, np.float32)
    y = np.zeros(length, np.float32)
    cases = {"Max": (x, y), "Min": (y, x), "Sqrt": (y - 1,), "Log": (y - 1,)}
    cases |= dict.fromkeys(["Relu", "Sigmoid", "Tanh", "Exp", "Erf"], (x,))
    for op, inputs in cases.items():
        assert np.isnan(run(setting, op, *inputs)).all(), op
    assert np.isnan(run(setting, "ReduceMax", x, keepdims=0))
    assert np.isnan(run(setting, "ReduceSum", x, keepdims=0))


def test_integer_power(setting):
    """A negative exponent gives the exact result, truncated: 1 for 1, 0 from 2 on."""
    base = np.array([2, 1, -1, -1, 3, 0, 2], np.int32)
    exponent = np.array([-1, -5, -3, -2, 4, 0, 31], np.int32)
    got = run(setting, "Pow", base, exponent)
    assert got[:6].tolist() == [0, 1, -1, 1, 81, 1]
    assert got[6] == INT_MIN


def test_matmul_of_nothing(setting):
    for a, b in (
        ((0, 3, 4), (0, 4, 5)),
        ((2, 3, 0), (2, 0, 5)),
        ((3, 0), (0, 5)),
        ((0, 4), (4, 5)),
    ):
        x, w = np.ones(a, np.float32), np.ones(b, np.float32)
        np.testing.assert_array_equal(run(setting, "MatMul", x, w), x @ w)


def test_top_k_and_arg_max_with_nan_and_ties(setting):
    x = np.array([[3, 1, 3, 2], [1, 1, 1, 1]], np.float32)
    assert run(setting, "ArgMax", x, axis=1, keepdims=0).tolist() == [0, 0]
    assert run(setting, "ArgMax", x, axis=1, keepdims=0, select_last_index=1).tolist() == [2, 3]
