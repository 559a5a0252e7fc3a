"""Precision: the policy, the pass, error bands of whole models, artifacts and the command line."""

import functools

import numpy as np
import pytest
from tests.relay.test_random_graphs import random_function

import tinycomp
from tinycomp.cli.main import main
from tinycomp.cli.reference import run_reference
from tinycomp.codegen.cuda import nvrtc
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import TinycompError
from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.precision import Precision, PrecisionPolicy
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Call, Constant, IRModule
from tinycomp.relay.parser import parse_function
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.to_mixed_precision import ToMixedPrecision
from tinycomp.relay.structural_key import structural_key
from tinycomp.relay.text import constant_table
from tinycomp.relay.verify import verify_module
from tinycomp.runtime.compare import compare
from tinycomp.testing.gpu import run_on_cpu
from tinycomp.testing.graph_builder import seeded_inputs
from tinycomp.testing.models import TINY, builders

CONFIG = Config(cache=False)
OPS = default_ops()


def tiny(name):
    return builders()[name](**TINY[name])


@functools.cache
def in_float32(name):
    """A tiny model, inputs, and its outputs in float32."""
    model = tiny(name)
    inputs = seeded_inputs(model, 0)
    return model, inputs, compile_with(CONFIG, model).run(inputs)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def mixed(function, precision, overrides=None):
    policy = PrecisionPolicy.of(precision, overrides)
    return ToMixedPrecision(policy).run_function(function, PassContext(OPS))


def calls(function):
    """(operator, dtype of the result) of every binding."""
    return [
        (b.value.op.name, str(b.var.type.dtype))
        for b in function.bindings
        if isinstance(b.value, Call)
    ]


def layer(scale=1.0):
    """softmax(relu(x W + b) W2), every operator named."""
    b = Builder(OPS)
    x = b.param("x", (5, 8))
    value = x
    for name, op, operand in (
        ("first", "nn.matmul", normal(0, 8, 6) * np.float32(scale)),
        ("bias", "add", normal(1, 6)),
        ("act", "nn.relu", None),
        ("second", "nn.matmul", normal(2, 6, 4)),
        ("soft", "nn.softmax", None),
    ):
        with b.at(tinycomp.diagnostics.Span((name,))):
            rest = [] if operand is None else [b.const(operand)]
            value = b.call(op, value, *rest)
    return b.finish(value)


def test_what_is_computed_in_which_format():
    f = mixed(layer(), "bf16")
    assert calls(f) == [
        ("cast", "bfloat16"),
        ("nn.matmul", "bfloat16"),
        ("add", "bfloat16"),
        ("nn.relu", "bfloat16"),
        ("nn.matmul", "bfloat16"),
        ("nn.softmax", "bfloat16"),
        ("cast", "float32"),
    ]
    weights = [a for b in f.bindings for a in b.args if isinstance(a, Constant)]
    assert {a.type.dtype for a in weights} == {DType.BFLOAT16}
    assert [p.type.dtype for p in f.params] == [f.ret_type.dtype] == [DType.FLOAT32]


def test_fp32_changes_nothing():
    f = layer()
    assert mixed(f, "fp32") is f


def test_overrides_by_node_operator_and_glob():
    everything = [("nn.matmul", "float32"), ("add", "float32"), ("nn.relu", "float32")] * 1
    assert calls(mixed(layer(), "fp16", {"*": "fp32"}))[:3] == everything
    f = mixed(layer(), "fp16", {"matmul": "fp32", "second": "bf16"})
    assert ("nn.matmul", "bfloat16") in calls(f)
    assert calls(f)[0] == ("nn.matmul", "float32")
    assert ("nn.softmax", "float16") in calls(mixed(layer(), "fp32", {"soft": "fp16"}))


def test_tf32_is_an_attribute_that_text_and_keys_carry():
    f = mixed(layer(), "tf32", {"second": "fp32"})
    found = [b.value.attrs.precision for b in f.bindings if b.value.op.name == "nn.matmul"]
    assert found == ["tf32", "fp32"]
    assert str(f).count('precision="tf32"') == 1
    again = parse_function(str(f), OPS, constant_table(f))
    assert str(again) == str(f)
    assert structural_key(again) == structural_key(f)
    assert structural_key(f) != structural_key(layer())


def test_tf32_is_for_float32_operands_only():
    b = Builder(OPS)
    x, y = b.param("x", (2, 3), "float16"), b.param("y", (3, 2), "float16")
    with pytest.raises(TinycompError, match="needs float32 operands"):
        b.call("nn.matmul", x, y, precision="tf32")
    with pytest.raises(TinycompError, match="is not"):
        b.call("nn.matmul", b.param("a", (2, 3)), b.param("c", (3, 2)), precision="fp8")


def test_each_reader_in_float32_casts_for_itself():
    b = Builder(OPS)
    x = b.param("x", (4, 4))
    y = b.call("nn.matmul", x, b.const(normal(0, 4, 4)))
    f = b.finish([b.call("exp", y), b.call("sqrt", y)])
    assert [n for n, _ in calls(mixed(f, "fp16"))].count("cast") == 3


@pytest.mark.parametrize("scale", [1e6, 1e-9])
def test_weights_out_of_the_range_of_fp16_are_refused_by_name(scale):
    with pytest.raises(TinycompError, match="does not fit float16") as error:
        mixed(layer(scale), "fp16")
    assert "first" in str(error.value)
    assert "bf16" in str(error.value)
    mixed(layer(scale), "bf16")
    mixed(layer(scale), "fp16", {"first": "fp32"})


def test_a_mask_beyond_fp16_keeps_its_operator_in_float32():
    b = Builder(OPS)
    x = b.param("x", (4, 4))
    y = b.call("nn.matmul", x, b.const(normal(0, 4, 4)))
    y = b.call("add", y, b.const(np.float32([[-1e9, 0, 0, 0]])))
    assert ("add", "float32") in calls(mixed(b.finish(y), "fp16"))


def test_what_becomes_constant_when_it_is_rounded():
    """Data movement of constants follows their format, and is evaluated at once."""
    b = Builder(OPS, fold=False)
    rows = b.call("take", b.const(normal(0, 4, 8)), b.const(np.array([1, 1, 3])), axis=0)
    function = b.finish(b.call("exp", b.call("add", b.param("x", (3, 8)), rows)))
    after = mixed(function, "bf16")
    x = normal(1, 3, 8)
    assert after.ret_type == function.ret_type
    np.testing.assert_allclose(evaluate(after, [x])[0], evaluate(function, [x])[0], rtol=0.02)


@pytest.mark.parametrize(("precision", "factor"), [("fp16", 2.0), ("bf16", 2.0)])
@pytest.mark.parametrize("name", ["lenet", "resnet", "bert"])
def test_error_bands_of_whole_models(name, precision, factor):
    """Random weights amplify errors more than trained ones do; hence twice the band."""
    model, inputs, exact = in_float32(name)
    module = compile_with(CONFIG, model, precision=precision)
    worst = max(c.difference for c in compare(module.run(inputs), exact))
    assert 0 < worst <= factor * Precision(precision).tolerance


def test_excess_precision_rounds_less_than_the_graph_says():
    """Inside a kernel 16-bit values are not rounded between elementwise operators."""
    b = Builder(OPS)
    x = b.param("x", (64, 64), "bfloat16")
    y = x
    for _ in range(12):
        y = b.call("multiply", y, b.const(1.01, "bfloat16"))
        y = b.call("subtract", y, b.const(0.013, "bfloat16"))
    f = b.finish(y)
    value = normal(0, 64, 64).astype(DType.BFLOAT16.numpy)
    module = compile_with(CONFIG, IRModule({"main": f}, ("x",), ("y",)))
    got = module.run({"x": value})["y"].astype(np.float64)
    exact = value.astype(np.float64)
    for _ in range(12):
        exact = exact * float(np.float32(1.01).astype(DType.BFLOAT16.numpy))
        exact = exact - float(np.float32(0.013).astype(DType.BFLOAT16.numpy))
    stepwise = np.asarray(evaluate(f, [value])).astype(np.float64)
    assert np.abs(got - exact).max() <= 2**-8 * np.abs(exact).max()
    assert np.abs(got - exact).mean() < 0.5 * np.abs(stepwise - exact).mean()


@pytest.mark.parametrize("width", [17, 18, 33])
def test_masked_stores_of_16_bits_write_their_lanes_only(width):
    """LLVM made a truncation and a masked store of one lane one store of 32 bits, which zeroed
    the first element of the next matrix."""
    b = Builder(OPS)
    x = b.param("x", (1, 2, 17, 8), "bfloat16")
    y = b.param("y", (1, 2, 8, width), "bfloat16")
    f = b.finish(b.call("nn.matmul", x, y))
    values = [
        normal(i, *p.type.static_shape).astype(p.type.dtype.numpy) for i, p in enumerate((x, y))
    ]
    module = IRModule({"main": f}, ("x", "y"), ("z",))
    got = compile_with(CONFIG, module).run(dict(zip("xy", values, strict=True)))["z"]
    wanted = values[0].astype(np.float64) @ values[1].astype(np.float64)
    np.testing.assert_allclose(got.astype(np.float64), wanted, 1e-2, 1e-2)


def test_artifact_and_inspect_say_the_precision_of_each_kernel(tmp_path, capsys):
    module = compile_with(
        CONFIG, tiny("lenet"), precision="bf16", precision_overrides={"nn.matmul": "fp32"}
    )
    module.save(tmp_path / "m.tc")
    manifest = tinycomp.load(tmp_path / "m.tc").manifest
    assert manifest.options["precision"] == "bf16"
    by_label = {k.label.split("+")[0]: k.precision for k in manifest.kernels}
    assert by_label["nn.conv2d"] == "bf16"
    assert by_label["nn.matmul_packed"] == "fp32"
    assert main(["inspect", str(tmp_path / "m.tc")]) == 0
    text = capsys.readouterr().out
    assert "bf16, nn.matmul=fp32" in text
    assert "\tbf16\t" in text


def test_weights_take_half_the_memory():
    sizes = [
        compile_with(CONFIG, tiny("bert"), precision=p)._artifact.constants.nbytes
        for p in ("fp32", "fp16")
    ]
    assert sizes[1] < 0.6 * sizes[0]


def test_command_line(tmp_path, capsys):
    import onnx

    path = tmp_path / "m.onnx"
    onnx.save(tiny("lenet"), path)
    options = ["--no-cache", "--precision", "fp16", "--precision-of", "softmax=fp32", "conv*=bf16"]
    assert main(["compile", str(path), "-o", str(tmp_path / "m.tc"), *options]) == 0
    assert "can cost time" in capsys.readouterr().err
    assert main(["verify", str(path), *options]) == 0
    assert main(["compile", str(path), "--precision-of", "cnov2d=bf16"]) == 1
    assert "'conv2d'" in capsys.readouterr().err
    assert main(["compile", str(path), "--precision-of", "conv2d"]) == 1
    assert main(["compile", str(path), "--precision", "tf32"]) == 1
    assert "tensor cores" in capsys.readouterr().err


def test_tf32_needs_ampere():
    with pytest.raises(TinycompError, match="sm_80"):
        compile_with(CONFIG, tiny("lenet"), target="cuda -arch=sm_75", precision="tf32")


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    return Config(cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["bert", "lenet"])
def test_gpu_kernels_on_the_executor(gpu, name, precision):
    model = tiny(name)
    inputs = seeded_inputs(model, 0)
    module = compile_with(gpu, model, target="cuda -arch=sm_90a", precision=precision)
    exact = run_reference("ort", model, inputs)
    worst = max(c.difference for c in compare(run_on_cpu(module, inputs), exact))
    assert worst <= 2 * Precision(precision).tolerance
    short = {"fp16", "bf16"} & {precision}
    products = [k.precision for k in module.manifest.kernels if "matmul" in k.label]
    assert products
    assert all(p.startswith(precision if short else ("tf32", "fp32")) for p in products)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "overrides", [{"*": "bf16"}, {"add": "fp16", "nn.*": "bf16", "multiply": "bf16"}]
)
def test_any_mixture_is_well_typed(seed, overrides):
    """Of formats, in random graphs: every binding verifies, the function keeps its type, and text
    reads back."""
    function = random_function(OPS, seed)
    result = mixed(function, "fp32", overrides)
    assert result is not function
    verify_module(IRModule({"main": result}))
    assert result.ret_type == function.ret_type
    assert [p.type for p in result.params] == [p.type for p in function.params]
    again = parse_function(str(result), OPS, constant_table(result))
    assert structural_key(again) == structural_key(result)
