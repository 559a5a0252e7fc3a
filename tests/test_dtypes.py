"""Whole models in every dtype: floats against the same model in float64, integers exactly.

float16 and bfloat16 are stored and computed in float32, so each operator rounds its result once.
"""

import math

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.dtype import DType

CONFIG = Config(cache=False)
RTOL = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")


def elem(dtype):
    return helper.np_dtype_to_tensor_dtype(np.dtype(DType(dtype).numpy))


def rand(seed, *shape, scale=1.0):
    """Numbers that every float dtype holds exactly, so that all models get the same inputs."""
    values = np.random.default_rng(seed).integers(-64, 65, shape) / 64 * scale
    return values.astype(np.float64)


def proto(dtype, nodes, inputs, weights, outputs=("y",), types=None):
    """A model whose inputs and weights (float64 arrays) are in `dtype`."""
    kinds = {name: (types or {}).get(name, dtype) for name in (*inputs, *weights)}

    def convert(name, array):
        return np.asarray(array).astype(DType(kinds[name]).numpy)

    given = {name: convert(name, a) for name, a in inputs.items()}
    infos = [helper.make_tensor_value_info(n, elem(kinds[n]), a.shape) for n, a in given.items()]
    results = [helper.make_tensor_value_info(n, elem(dtype), None) for n in outputs]
    tensors = [numpy_helper.from_array(convert(n, a), n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", infos, results, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return model, given


def node(op, inputs, outputs, **attrs):
    return helper.make_node(op, inputs.split(), outputs.split(), **attrs)


def matmul():
    nodes = [node("MatMul", "x w", "h"), node("Add", "h b", "a"), node("Relu", "a", "y")]
    weights = {"w": rand(1, 48, 33, scale=0.5), "b": rand(2, 33)}
    return nodes, {"x": rand(0, 3, 7, 48)}, weights


def batched_matmul():
    nodes = [node("Transpose", "b", "t", perm=[0, 1, 3, 2]), node("MatMul", "a t", "y")]
    return nodes, {"a": rand(0, 2, 3, 9, 16), "b": rand(1, 2, 3, 11, 16)}, {}


def gemm():
    nodes = [node("Gemm", "x w c", "y", alpha=0.5, beta=2.0, transB=1)]
    return nodes, {"x": rand(0, 5, 20)}, {"w": rand(1, 17, 20), "c": rand(2, 17)}


def conv():
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "c", "r"),
        node("Conv", "r d", "e", pads=[1, 1, 1, 1], group=8),
        node("MaxPool", "e", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "p", "y"),
    ]
    weights = {"w": rand(1, 8, 3, 3, 3, scale=0.3), "b": rand(2, 8), "d": rand(3, 8, 1, 3, 3)}
    return nodes, {"x": rand(0, 2, 3, 16, 16)}, weights


def layer_norm():
    nodes = [node("LayerNormalization", "x g b", "y", axis=-1, epsilon=1e-3)]
    return nodes, {"x": rand(0, 4, 40)}, {"g": rand(1, 40), "b": rand(2, 40)}


def softmax():
    return [node("Softmax", "x", "y", axis=1)], {"x": rand(0, 3, 21, 5, scale=4)}, {}


def elementwise():
    nodes = [
        node("Mul", "x z", "a"), node("Sub", "a x", "b"), node("Div", "b c", "d"),
        node("Tanh", "d", "e"), node("Exp", "e", "f"), node("Sqrt", "f", "s"),
        node("Sigmoid", "s", "g"), node("Softsign", "g", "h"), node("Max", "h d", "i"),
        node("Clip", "i lo hi", "j"), node("Neg", "j", "k"), node("Abs", "k", "l"),
        node("Log", "f", "m"), node("Add", "l m", "y"),
    ]  # fmt: skip
    weights = {"z": rand(1, 6, 1), "c": 2 + rand(2, 37), "lo": np.array(-0.5), "hi": np.array(0.75)}
    return nodes, {"x": rand(0, 6, 37)}, weights


def reductions():
    nodes = [
        node("ReduceMean", "x ax", "a", keepdims=1), node("Sub", "x a", "b"),
        node("ReduceL2", "b ax", "c", keepdims=1), node("ReduceMax", "b ax", "d", keepdims=1),
        node("ReduceSum", "b", "s", keepdims=0), node("Sum", "c d s", "y"),
    ]  # fmt: skip
    return nodes, {"x": rand(0, 5, 45)}, {"ax": np.array([1])}, {"ax": "int64"}


def movement():
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0, 2]), node("Slice", "t st en", "s"),
        node("Concat", "s s", "c", axis=2), node("Gather", "c i", "g", axis=2),
        node("Pad", "g pads v", "p"), node("Tile", "p reps", "y"),
    ]  # fmt: skip
    weights = {
        "st": np.array([1]), "en": np.array([4]), "i": np.array([0, -1, 3]), "v": np.array(1),
        "pads": np.array([0, 1, 0, 0, 0, 2]), "reps": np.array([1, 2, 1]),
    }  # fmt: skip
    return (
        nodes,
        {"x": rand(0, 3, 5, 4, scale=64)},
        weights,
        dict.fromkeys(["st", "en", "i", "pads", "reps"], "int64"),
    )


FLOAT_MODELS = [
    matmul, batched_matmul, gemm, conv, layer_norm, softmax, elementwise, reductions, movement,
]  # fmt: skip


@pytest.mark.parametrize("build", FLOAT_MODELS, ids=lambda b: b.__name__)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_float_models(build, dtype):
    nodes, inputs, weights, *types = build()
    types = types[0] if types else None
    exact, wide = proto("float64", nodes, inputs, weights, types=types)
    (wanted,) = ReferenceEvaluator(exact).run(None, wide)
    model, given = proto(dtype, nodes, inputs, weights, types=types)
    for opt_level in (0, 3):
        module = compile_with(CONFIG, model, num_threads=1 + opt_level // 3, opt_level=opt_level)
        (got,) = module.run(given).values()
        assert DType.of(got.dtype) == dtype
        assert got.shape == wanted.shape
        worst = np.abs(got.astype(np.float64) - wanted).max() / np.abs(wanted).max()
        assert worst < (RTOL[dtype] if build is not movement else 1e-300), worst


def test_elementary_functions_of_float64():
    """Within 4 ulp of the C library, which the reference of ONNX leaves to float32 for Erf."""
    functions = {
        "Erf": math.erf, "Tanh": math.tanh, "Exp": math.exp, "Sin": math.sin, "Cos": math.cos,
        "Atan": math.atan, "Asinh": math.asinh,
    }  # fmt: skip
    x = np.concatenate([np.linspace(-6, 6, 997), rand(0, 100, scale=1e-3)])
    nodes = [node(op, "x", op) for op in functions]
    model, given = proto("float64", nodes, {"x": x}, {}, list(functions))
    results = compile_with(CONFIG, model, num_threads=1).run(given)
    for op, function in functions.items():
        wanted = np.array([function(v) for v in x])
        np.testing.assert_array_max_ulp(results[op], wanted, 4)


@pytest.mark.parametrize("build", FLOAT_MODELS, ids=lambda b: b.__name__)
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_float_models_agree_with_onnx_runtime(build, dtype):
    nodes, inputs, weights, *types = build()
    model, given = proto(dtype, nodes, inputs, weights, types=types[0] if types else None)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # NotImplemented is not exported by every version
        if "NOT_IMPLEMENTED" not in str(error):
            raise
        pytest.skip(f"ONNX Runtime has no kernel: {error}")
    (wanted,) = session.run(None, given)
    (got,) = compile_with(CONFIG, model, num_threads=2).run(given).values()
    assert got.dtype == wanted.dtype
    scale = np.abs(wanted.astype(np.float64)).max()
    worst = np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max() / scale
    assert worst < RTOL[dtype], worst


def integer_model(signed):
    nodes = [
        node("Add", "x z", "a"), node("Mul", "a x", "b"), node("Sub", "b z", "c"),
        node("Div", "c three", "d"), node("Mod", "c three", "m"), node("Max", "d m", "e"),
        node("Min", "e x", "f"), node("Abs", "f", "g") if signed else node("Identity", "f", "g"),
        node("Cast", "g", "long", to=TensorProto.INT64),
        node("ReduceSum", "long ax", "sum", keepdims=1), node("CastLike", "sum x", "s"),
        node("Equal", "g s", "q"),
        node("Less", "g s", "l"), node("Where", "l g s", "w"), node("Not", "q", "nq"),
        node("Cast", "w", "wf", to=TensorProto.FLOAT), node("Concat", "w x", "y", axis=1),
    ]  # fmt: skip
    return nodes


@pytest.mark.parametrize("dtype", SIGNED + UNSIGNED)
def test_integer_models_are_exact(dtype):
    """Against NumPy, which wraps as the compiled code does."""
    signed, kind = dtype in SIGNED, DType(dtype).numpy
    generator = np.random.default_rng(0)
    bounds = np.iinfo(kind)
    x = generator.integers(bounds.min, bounds.max, (5, 37), kind, endpoint=True)
    z = generator.integers(bounds.min, bounds.max, (37,), kind, endpoint=True)
    outputs = ("y", "s", "nq", "wf")
    model, given = proto(
        dtype, integer_model(signed), {"x": x}, {"z": z, "three": np.array(3), "ax": np.array([1])},
        outputs, {"ax": "int64"},
    )  # fmt: skip
    c = (x + z) * x - z
    d = np.trunc_divide(c, 3) if hasattr(np, "trunc_divide") else _trunc_divide(c, 3)
    f = np.minimum(np.maximum(d, np.mod(c, kind.type(3))), x)
    g = np.abs(f)
    s = g.sum(axis=1, keepdims=True, dtype=kind)
    w = np.where(g < s, g, s)
    wanted = {
        "y": np.concatenate([w, x], 1), "s": s, "nq": g != s, "wf": w.astype(np.float32),
    }  # fmt: skip
    for opt_level in (0, 3):
        module = compile_with(CONFIG, model, num_threads=1, opt_level=opt_level)
        got = module.run(given)
        for name in outputs:
            assert got[name].dtype == wanted[name].dtype
            np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)


def _trunc_divide(a, b):
    """Integer division rounded towards zero, also of the smallest integer."""
    quotient = a // a.dtype.type(b)
    return quotient + ((a % a.dtype.type(b) != 0) & (a < 0)).astype(a.dtype)


def test_integer_matmul():
    generator = np.random.default_rng(0)
    for dtype in ("int32", "int64", "uint32", "uint64"):
        kind = DType(dtype).numpy
        a, b = (generator.integers(0, 2**31, s).astype(kind) for s in ((9, 70), (70, 33)))
        model, given = proto(dtype, [node("MatMul", "a b", "y")], {"a": a, "b": b}, {})
        (got,) = compile_with(CONFIG, model, num_threads=2).run(given).values()
        np.testing.assert_array_equal(got, a @ b)


def test_boolean_models():
    generator = np.random.default_rng(0)
    a, b = (generator.integers(0, 2, (5, 37)).astype(bool) for _ in "ab")
    nodes = [
        node("And", "a b", "c"), node("Or", "c a", "d"), node("Xor", "d b", "e"),
        node("Not", "e", "n"), node("Where", "n a b", "w"), node("Equal", "w b", "q"),
        node("Cast", "q", "i", to=TensorProto.INT32), node("ReduceSum", "i ax", "s", keepdims=0),
        node("Cast", "s", "y", to=TensorProto.BOOL), node("Transpose", "q", "t", perm=[1, 0]),
        node("Gather", "t idx", "r"),
    ]  # fmt: skip
    weights = {"ax": np.array([1]), "idx": np.array([3, -1])}
    model, given = proto(
        "bool", nodes, {"a": a, "b": b}, weights, ("q", "s", "y", "r"),
        {"ax": "int64", "idx": "int64"},
    )  # fmt: skip
    e = ((a & b) | a) ^ b
    q = np.where(~e, a, b) == b
    got = compile_with(CONFIG, model, num_threads=2).run(given)
    np.testing.assert_array_equal(got["q"], q)
    np.testing.assert_array_equal(got["s"], q.sum(1, dtype=np.int32))
    np.testing.assert_array_equal(got["y"], q.sum(1) != 0)
    np.testing.assert_array_equal(got["r"], q.T[[3, -1]])


@pytest.mark.parametrize("source", list(DType))
def test_casts_between_all_dtypes(source):
    values = rand(0, 4, 21, scale=60).round() if DType(source).is_int else rand(0, 4, 21, scale=60)
    values = np.abs(values) if DType(source).is_unsigned or source == "bool" else values
    outputs = [f"to_{d}" for d in DType]
    nodes = [node("Cast", "x", o, to=elem(d)) for o, d in zip(outputs, DType, strict=True)]
    model, given = proto(source, nodes, {"x": values}, {}, outputs)
    got = compile_with(CONFIG, model, num_threads=1).run(given)
    x = given["x"].astype(np.float64)
    for target in DType:
        result = got[f"to_{target}"]
        wanted = x != 0 if target == "bool" else x
        if target.is_int and target != "bool":
            wanted = np.trunc(x).astype(np.int64)
        wanted = wanted.astype(target.numpy)
        np.testing.assert_array_equal(result, wanted, err_msg=f"{source} to {target}")
