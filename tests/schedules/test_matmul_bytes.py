"""Products of bytes, compiled: exact, by one instruction where the machine has it."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import tinycomp
from tinycomp.schedules.matmul_bytes import byte_dot, choose_byte_tile
from tinycomp.target import Target

VNNI = "llvm -mcpu=sapphirerapids"


def model(m, k, n, x_dtype, weights, zeros, bias=False):
    inputs, constants = ["x", "w"], [numpy_helper.from_array(weights, "w")]
    for name, value in zip(("x_zero", "w_zero"), zeros, strict=True):
        inputs.append(name)
        dtype = x_dtype if name == "x_zero" else weights.dtype
        constants.append(numpy_helper.from_array(np.array(value, dtype), name))
    nodes = [helper.make_node("MatMulInteger", inputs, ["p"], "product")]
    constants.append(numpy_helper.from_array(np.arange(n, dtype=np.int32), "b"))
    nodes.append(helper.make_node("Add" if bias else "Identity", ["p", "b"][: 1 + bias], ["y"]))
    element = helper.np_dtype_to_tensor_dtype(np.dtype(x_dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", element, [m, k])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [m, n])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


CASES = [
    (1, 4, 16, np.uint8, np.int8, (0, 0), False),
    (3, 8, 20, np.uint8, np.int8, (0, 0), False),
    (300, 12, 47, np.uint8, np.int8, (9, 0), True),
    (1, 256, 100, np.uint8, np.int8, (3, 0), True),
    (13, 64, 50, np.uint8, np.uint8, (128, 128), True),
    (37, 20, 33, np.int8, np.int8, (-3, 0), True),
    (197, 96, 64, np.uint8, np.int8, (255, 0), True),
    (64, 128, 160, np.int8, np.int8, (0, 0), False),
]


def case_data(m, k, n, x_dtype, w_dtype):
    rng = np.random.default_rng(m)
    limits = [(np.iinfo(t).min, np.iinfo(t).max) for t in (x_dtype, w_dtype)]
    x, w = (
        rng.integers(*limit, shape, dtype, endpoint=True)
        for limit, shape, dtype in zip(limits, ((m, k), (k, n)), (x_dtype, w_dtype), strict=True)
    )
    x[0], w[:, 0] = limits[0][1], limits[1][0]  # the largest sums
    return x, w


@pytest.mark.parametrize(("m", "k", "n", "x_dtype", "w_dtype", "zeros", "bias"), CASES)
def test_products_of_quantised_models_are_exact(m, k, n, x_dtype, w_dtype, zeros, bias):
    x, w = case_data(m, k, n, x_dtype, w_dtype)
    proto = model(m, k, n, x_dtype, w, zeros, bias)
    wide = (x.astype(np.int32) - zeros[0]) @ (w.astype(np.int32) - zeros[1])
    expected = wide + (np.arange(n, dtype=np.int32) if bias else 0)
    for threads in (1, 2):
        module = tinycomp.compile(proto, num_threads=threads)
        np.testing.assert_array_equal(module.run({"x": x})["y"], expected)
    assert ("nn.matmul_bytes" in module.ir("relay")) == (byte_dot(Target.host()) is not None)


def test_few_columns_stay():
    _, w = case_data(5, 64, 3, np.uint8, np.int8)
    proto = model(5, 64, 3, np.uint8, w, (7, 0))
    assert "nn.matmul_bytes" not in tinycomp.compile(proto, target=VNNI).ir("relay")


@pytest.mark.parametrize("cpu", ["sapphirerapids", "alderlake", "x86-64-v3", "neoverse-v1"])
def test_the_instruction_is_used_where_there_is_one(cpu):
    _, w = case_data(5, 64, 48, np.uint8, np.int8)
    proto = model(5, 64, 48, np.uint8, w, (7, 0), bias=True)
    module = tinycomp.compile(proto, target=f"llvm -mcpu={cpu}")
    assert ("vpdpbusd" in module.ir("asm")) == (cpu in ("sapphirerapids", "alderlake"))


@pytest.mark.parametrize("m", [1, 5, 12, 13, 49, 197, 1000])
def test_tiles_fit_the_registers(m):
    for text in (VNNI, "llvm -mcpu=alderlake"):
        target = Target.parse(text)
        instruction = byte_dot(target)
        assert instruction is not None
        lanes = instruction.result.lanes
        tile = choose_byte_tile(m, 96, target)
        assert tile is not None
        mr, nr = tile
        assert mr <= m
        assert nr % lanes == 0
        assert mr * nr // lanes + nr // lanes + 1 < target.vector_registers
        assert choose_byte_tile(m, lanes - 1, target) is None
    assert choose_byte_tile(m, 96, Target.parse("llvm -mcpu=haswell")) is None


def test_a_large_product_keeps_its_tile_in_registers():
    _, w = case_data(120, 64, 64, np.uint8, np.int8)
    module = tinycomp.compile(model(120, 64, 64, np.uint8, w, (0, 0)), target=VNNI)
    text = module.ir("tir")
    assert text.count("vpdpbusd") >= 20
    assert "min(" not in text
