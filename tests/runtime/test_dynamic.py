"""Models with open dimensions: routing, specialisation, saving, and what is refused."""

import threading

import numpy as np
import onnx
import pytest
from onnx import parser

import tinycomp
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import InputError, ModelError, TinycompError
from tinycomp.frontend.onnx import from_onnx
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import IRModule
from tinycomp.runtime.dynamic import DynamicModule
from tinycomp.types import tensor_type

HEADER = '<ir_version: 9, opset_import: ["": 20]>'
TWO_DIMS = """g (float[batch, seq, 4] x, float[batch, 4] y) => (float[batch, seq, 4] z)
    <int64[1] one = {1}> { u = Unsqueeze(y, one) s = Add(x, u) z = Softmax(s) }"""
DENSE = """g (float[batch, 3] x) => (float[batch, 2] y)
    <float[3, 2] w = {1, 2, 3, 4, 5, 6}> { m = MatMul(x, w) y = Relu(m) }"""
SCALED = """g (float[batch, 3] x) => (float[batch, 3] y)
    { s = Shape <start = 0, end = 1> (x) f = Cast <to = 1> (s) y = Div(x, f) }"""
AVERAGED = """g (float[batch, 3] x) => (float[batch, 3] y) <int64[1] axis = {0}> {
    t = Transpose <perm = [1, 0]> (x) s = MatMul(x, t) p = Softmax(s) z = MatMul(p, x)
    m = ReduceMean(z, axis) y = Sub(z, m) }"""
SORTED = """g (float[batch, 3] x) => (float[2, 3] y, int64[2, 3] i) <int64[1] k = {2}>
    { y, i = TopK <axis = 0, largest = 0> (x, k) }"""


def model(text):
    return parser.parse_model(HEADER + text)


@pytest.fixture
def config(tmp_path):
    return Config(cache_dir=tmp_path / "cache", num_threads=1)


def dense(x):
    return np.maximum(x @ np.float32([[1, 2], [3, 4], [5, 6]]), 0)


def rows(n, width=3):
    return np.random.default_rng(n).standard_normal((n, width)).astype("f4")


def test_any_size_runs(config):
    module = compile_with(config, model(DENSE))
    assert isinstance(module, DynamicModule)
    assert [str(s) for s in (*module.inputs, *module.outputs)] == [
        "x: float32[batch, 3]", "y: float32[batch, 2]",
    ]  # fmt: skip
    for n in (1, 4, 1, 0):
        np.testing.assert_allclose(module.run({"x": rows(n)})["y"], dense(rows(n)), rtol=1e-6)
    np.testing.assert_allclose(module(rows(4).tolist()), dense(rows(4)), rtol=1e-6)
    assert module.variants == ({"batch": 1}, {"batch": 0}, {"batch": 4})


def test_two_dimensions(config):
    module = compile_with(config, model(TWO_DIMS))
    for batch, seq in ((2, 3), (3, 2)):
        x, y = rows(batch * seq, 4).reshape(batch, seq, 4), rows(batch, 4)
        e = np.exp(x + y[:, None])
        expected = e / e.sum(-1, keepdims=True)
        np.testing.assert_allclose(module.run({"x": x, "y": y})["z"], expected, rtol=1e-5)


def test_a_size_that_follows_from_the_data_is_not_mixed_up(config):
    """A shape used as a number is another constant in each variant."""
    module = compile_with(config, model(SCALED), dims={"batch": [2, 4]})
    for n in (2, 3, 4):
        np.testing.assert_allclose(module.run({"x": rows(n)})["y"], rows(n) / n, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((2, 3, 4), (3, 4), r"dimension 0 of input 'y' is 3, not 2 \(batch in dimension 0 of"),
        ((2, 3), (2, 4), "it has 2 dimensions, not 3"),
        ((2, 3, 5), (2, 4), "dimension 2 of input 'x' is 5, not 4"),
        ((9, 3, 4), (9, 4), "batch has size 9, but the model was compiled for 1..8"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(config, x, y, message):
    module = compile_with(config, model(TWO_DIMS), dims={"batch": (1, 8)})
    with pytest.raises(InputError, match=message):
        module.run({"x": np.zeros(x, "f4"), "y": np.zeros(y, "f4")})


def test_names_and_dtypes_are_checked_too(config):
    module = compile_with(config, model(DENSE))
    with pytest.raises(InputError, match="missing 'x'"):
        module.run({"X": rows(1)})
    with pytest.raises(InputError, match="unknown 'z'"):
        module.run({"x": rows(1), "z": rows(1)})
    with pytest.raises(InputError, match="float64"):
        module.run({"x": rows(1).astype("f8")})
    with pytest.raises(InputError, match="no dimension 'batc'"):
        compile_with(config, model(DENSE), dims={"batc": (1, 2)})
    with pytest.raises(InputError, match="exactly the dimensions batch"):
        module.specialize(seq=3)


def test_dimensions_without_names(config):
    anonymous = model(DENSE)
    anonymous.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    module = compile_with(config, anonymous)
    assert list(module.dims) == ["x.0"]
    assert module.run({"x": rows(3)})["y"].shape == (3, 2)
    fixed = compile_with(config, anonymous, dims={"x.0": 2})
    assert fixed.inputs[0].shape == (2, 3)


def test_buckets_are_compiled_ahead(config):
    module = compile_with(config, model(DENSE), dims={"batch": [1, 4]})
    assert module.variants == ({"batch": 1}, {"batch": 4})
    with pytest.raises(InputError, match="compiled for 1,4"):
        module.run({"x": rows(5)})
    with pytest.raises(TinycompError, match="10000 combinations"):
        compile_with(
            config, model(TWO_DIMS),
            dims={"batch": list(range(1, 101)), "seq": list(range(1, 101))},
        )  # fmt: skip


def test_the_least_recently_used_variant_is_forgotten(config):
    module = compile_with(config, model(DENSE), dims={"batch": (1, 9)})
    module.max_variants = 2
    for n in (1, 2, 1, 3):
        module.run({"x": rows(n)})
    assert module.variants == ({"batch": 1}, {"batch": 3})
    np.testing.assert_allclose(module.run({"x": rows(2)})["y"], dense(rows(2)), rtol=1e-6)


def test_variants_share_a_budget_of_memory(config):
    proto = model("g (float[n, 4096] x) => (float[n, 4096] y) { y = Add(x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(rows(1, 4096), "w"))
    module = compile_with(config, proto)
    module.max_bytes = 40_000  # of which each variant needs 16 KiB and a little
    for n in (1, 2, 3):
        module.run({"x": rows(n, 4096)})
    assert module.variants == ({"n": 2}, {"n": 3})
    module.max_bytes = 1
    module.run({"x": rows(4, 4096)})
    assert module.variants == ({"n": 4},)


def test_variants_are_shared_with_fixed_models_through_the_cache(config):
    compile_with(config, model(DENSE), dims={"batch": 3})
    stages = []
    module = compile_with(
        config, model(DENSE), progress=lambda stage, done, total: stages.append(stage)
    )
    module.run({"x": rows(3)})
    assert stages == []
    module.run({"x": rows(2)})
    assert stages[:2] == ["batch=2", "import"]


def test_save_and_load(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYCOMP_CACHE", "0")
    path = tmp_path / "m.tc"
    compile_with(config, model(DENSE), dims={"batch": [1, 4]}).save(path)
    module = tinycomp.load(path)
    assert isinstance(module, DynamicModule)
    assert module.variants == ({"batch": 1}, {"batch": 4})
    for n in (1, 2, 4):
        np.testing.assert_allclose(module.run({"x": rows(n)})["y"], dense(rows(n)), rtol=1e-6)
    module.save(tmp_path / "again.tc")
    again = tinycomp.load(tmp_path / "again.tc")
    assert again.variants == module.variants
    np.testing.assert_allclose(again.run({"x": rows(3)})["y"], dense(rows(3)), rtol=1e-6)


def test_options_are_kept_in_the_file(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYCOMP_CACHE", "0")
    compile_with(
        config, model(TWO_DIMS), dims={"seq": 3}, precision="bf16", opt_level=1,
        precision_overrides={"add": "fp32"},
    ).save(tmp_path / "m.tc")  # fmt: skip
    module = tinycomp.load(tmp_path / "m.tc", num_threads=1)
    assert list(module.dims) == ["batch"]
    made = module.specialize(batch=2).manifest
    assert made.inputs[0].shape == (2, 3, 4)
    assert {k: made.options[k] for k in ("precision", "opt_level", "precision_overrides")} == {
        "precision": "bf16", "opt_level": 1, "precision_overrides": {"add": "fp32"},
    }  # fmt: skip
    with pytest.raises(TinycompError, match="up to 1 threads"):
        tinycomp.load(tmp_path / "m.tc", num_threads=2)


def test_large_weights_are_archived(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYCOMP_CACHE", "0")
    weights = rows(40, 30)
    text = "g (float[n, 40] x) => (float[n, 30] y) { y = MatMul(x, w) }"
    proto = model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    compile_with(config, proto).save(tmp_path / "m.tc")
    module = tinycomp.load(tmp_path / "m.tc")
    x = rows(2, 40)
    np.testing.assert_allclose(module.run({"x": x})["y"], x @ weights, rtol=1e-4, atol=1e-5)


def test_equal_parts_of_variants_are_stored_once(config, tmp_path):
    proto = model("g (float[n, 4096] x) => (float[n, 4096] y) { y = Add(x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(rows(1, 4096), "w"))
    sizes = []
    for buckets in ([1, 2], [1, 2, 3, 4]):
        compile_with(config, proto, dims={"n": buckets}).save(tmp_path / "m.tc")
        sizes.append((tmp_path / "m.tc").stat().st_size)
    assert sizes[1] < sizes[0] + 2 * 16384


def test_a_file_that_changes_meanwhile_is_refused(config, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model(DENSE), path)
    compile_with(config, path)  # its interface is in the cache now
    module = compile_with(config, path)
    onnx.save(model(SCALED), path)
    with pytest.raises(ModelError, match="has changed"):
        module.run({"x": rows(2)})


def test_errors_say_for_which_sizes(config):
    text = """g (float[n] x) => (float[m] y) <int64[2] s = {-1, 4}> { y = Reshape(x, s) }"""
    module = compile_with(config, model(text.replace("[m]", "[m, 4]")))
    assert module.run({"x": np.zeros(8, "f4")})["y"].shape == (2, 4)
    with pytest.raises(TinycompError, match=r"this is for n=6: the model may need other sizes"):
        module.run({"x": np.zeros(6, "f4")})


def test_ir_needs_sizes(config):
    module = compile_with(config, model(DENSE))
    with pytest.raises(TinycompError, match="nothing is compiled"):
        module.ir("relay")
    assert "nn.matmul" in module.specialize(batch=2).ir("relay")
    assert "nn.matmul" in module.ir("relay")
    module.specialize(batch=3)
    with pytest.raises(TinycompError, match="2 variants"):
        module.ir("relay")


def test_callers_on_several_threads_compile_each_size_once(config):
    stages = []
    module = compile_with(
        config, model(DENSE), progress=lambda stage, done, total: stages.append(stage)
    )
    failures = []

    def call(n):
        try:
            np.testing.assert_allclose(module.run({"x": rows(n)})["y"], dense(rows(n)), rtol=1e-6)
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(1 + i % 2,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(s for s in stages if s.startswith("batch")) == ["batch=1", "batch=2"]


def test_relay_modules_with_symbolic_dimensions(config, tmp_path):
    from tinycomp.ops import default_ops
    from tinycomp.te import size_var

    builder = Builder(default_ops())
    x = builder.param("x", tensor_type((size_var("n"), 3)))
    module = compile_with(
        config, IRModule({"main": builder.finish(builder.call("nn.relu", x))}, ("x",), ("y",))
    )
    assert list(module.dims) == ["n"]
    for n in (2, 3):
        np.testing.assert_array_equal(module.run({"x": rows(n)})["y"], np.maximum(rows(n), 0))
    with pytest.raises(TinycompError, match="cannot be saved"):
        module.save(tmp_path / "m.tc")


def test_for_a_gpu(config, tmp_path):
    module = compile_with(config, model(DENSE), target="cuda -arch=sm_90a", dims={"batch": [1, 4]})
    assert "cuda" in module.levels
    module.save(tmp_path / "m.tc")
    loaded = tinycomp.load(tmp_path / "m.tc")
    assert loaded.variants == ({"batch": 1}, {"batch": 4})
    assert "__global__" in loaded.specialize(batch=4).ir("cuda")


def test_sizes_between_buckets_run_padded(config):
    module = compile_with(config, model(TWO_DIMS), dims={"batch": [1, 4], "seq": [3]})
    compiled = module.variants
    for batch in (2, 3, 1, 4):
        x, y = rows(batch * 3, 4).reshape(batch, 3, 4), rows(batch, 4)
        e = np.exp(x + y[:, None])
        got = module.run({"x": x, "y": y})["z"]
        assert got.shape == x.shape
        assert got.flags.c_contiguous
        np.testing.assert_allclose(got, e / e.sum(-1, keepdims=True), rtol=1e-5)
    assert module.variants == compiled
    assert module.not_padded == {}


@pytest.mark.parametrize("text", [SCALED, AVERAGED])
def test_one_compile_serves_sizes_that_count(config, tmp_path, text):
    module = compile_with(config, model(text), dims={"batch": [2, 8]})
    reference = compile_with(config, model(text))
    compiled = module.variants
    for loaded in (module, roundtrip(module, tmp_path)):
        for n in (1, 2, 3, 5, 8):
            (got,) = loaded.run({"x": rows(n)}).values()
            (expected,) = reference.run({"x": rows(n)}).values()
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        assert loaded.variants == compiled
        assert loaded.not_padded == {}
    assert [s.name for s in module.specialize(batch=8).inputs] == ["x"]
    assert module.profile({"x": rows(5)}, repeat=1).rows


def roundtrip(module, folder):
    module.save(folder / "m.tc")
    return tinycomp.load(folder / "m.tc")


@pytest.mark.parametrize(
    ("kind", "gates", "direction"), [("LSTM", 4, "bidirectional"), ("GRU", 3, "reverse")]
)
def test_recurrent_layers_over_padded_time(config, kind, gates, direction):
    """They are unrolled over the bucket's steps, and end where the sequence does."""
    both = 2 if direction == "bidirectional" else 1
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal(shape).astype("f4"), name)
        for name, shape in (("w", (both, gates * 5, 3)), ("r", (both, gates * 5, 5)))
    ]
    proto = model(
        f"g (float[time, batch, 3] x) => (float[time, {both}, batch, 5] y, "
        f"float[{both}, batch, 5] h) {{ y, h = {kind} <hidden_size = 5, "
        f'direction = "{direction}"> (x, w, r) }}'
    )
    proto.graph.initializer.extend(weights)
    module = compile_with(config, proto, dims={"time": [2, 6], "batch": [2]})
    for time in (6, 5, 3, 1):
        x = rng.standard_normal((time, 2, 3)).astype("f4")
        expected = evaluate(from_onnx(proto, dims={"time": time, "batch": 2}), [x])
        for got, value in zip(module.run({"x": x}).values(), expected, strict=True):
            np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-5)
    assert module.not_padded == {}
    assert len(module.variants) == 2


def test_automatic_buckets(config, tmp_path):
    """Made when a size needs one; sizes that follow find it."""
    module = compile_with(config, model(AVERAGED), dims={"batch": "auto..20"})
    assert module.variants == ()
    for n in (3, 4, 9, 12, 16, 20, 17):
        assert module.run({"x": rows(n)})["y"].shape == (n, 3)
    assert sorted(v["batch"] for v in module.variants) == [4, 16, 20]
    loaded = roundtrip(module, tmp_path)
    np.testing.assert_array_equal(loaded(rows(10)), module(rows(10)))
    assert len(loaded.variants) == 3
    with pytest.raises(InputError, match=r"compiled for auto..20"):
        module(rows(21))


def test_what_cannot_be_padded_is_compiled(config):
    module = compile_with(config, model(SORTED), dims={"batch": [2, 4]})
    np.testing.assert_array_equal(module.run({"x": rows(3)})["y"], np.sort(rows(3), 0)[:2])
    assert {"batch": 3} in module.variants
    assert "topk sorts what is padded" in module.not_padded[3,]


def test_padded_data_is_checked_like_any(config):
    module = compile_with(config, model(DENSE), dims={"batch": [2, 4]})
    with pytest.raises(InputError, match="float64"):
        module.run({"x": rows(3).astype("f8")})
    np.testing.assert_allclose(module.run({"x": rows(3).tolist()})["y"], dense(rows(3)), rtol=1e-6)
    assert module.run({"x": rows(0)})["y"].shape == (0, 2)
