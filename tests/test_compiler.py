"""The whole pipeline on small models: every level, both caches, threads, processes."""

import ctypes
import os
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import tinycomp
from tinycomp.compiler import Options, build, compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import (
    ArtifactError,
    ExecutionError,
    InputError,
    ModelError,
    TinycompError,
    UnsupportedModel,
)
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import IRModule
from tinycomp.runtime.cache import Cache
from tinycomp.target import Target

rng = np.random.default_rng(0)
W = rng.standard_normal((8, 6)).astype(np.float32)


@pytest.fixture
def config(tmp_path):
    return Config(cache_dir=tmp_path / "cache")


def value(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def perceptron(weights=W, batch=4):
    """y = relu(x W + b), z = sum of y"""
    initializers = [
        onnx.numpy_helper.from_array(weights, "w"),
        onnx.numpy_helper.from_array(np.arange(weights.shape[1], dtype=np.float32), "b"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"], "mm"),
        helper.make_node("Add", ["xw", "b"], ["a"], "bias"),
        helper.make_node("Relu", ["a"], ["y"], "act"),
        helper.make_node("ReduceSum", ["y"], ["z"], "total", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", [batch, 8])], [value("y", None), value("z", None)], initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def gather_model():
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"], "lookup")],
        "g",
        [value("i", [2], TensorProto.INT64)],
        [value("y", None)],
        [onnx.numpy_helper.from_array(W, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def expected(x, weights=W):
    y = np.maximum(x @ weights + np.arange(weights.shape[1], dtype=np.float32), 0)
    return {"y": y, "z": y.sum()}


def check(module, seed=1):
    x = np.random.default_rng(seed).standard_normal((4, 8)).astype(np.float32)
    got = module.run({"x": x})
    assert list(got) == ["y", "z"]
    for name, array in expected(x).items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5)
        assert got[name].ctypes.data % 64 == 0


@pytest.mark.parametrize("opt_level", range(4))
def test_every_opt_level_computes_the_same(config, opt_level):
    check(compile_with(config, perceptron(), opt_level=opt_level))


def test_every_spelling_of_a_model(config, tmp_path):
    proto = perceptron()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    for model in (proto, proto.SerializeToString(), path, str(path)):
        check(compile_with(config, model))
    with pytest.raises(TinycompError, match="cannot compile a dict"):
        compile_with(config, {})  # type: ignore[arg-type]


def test_a_relay_module_compiles(config):
    b = Builder(default_ops())
    x, y = b.param("x", (4, 8)), b.param("y", (8,))
    main = b.finish([b.call("nn.relu", b.call("add", x, y)), x])
    module = compile_with(config, IRModule({"main": main}, ("left", "right"), ("sum", "same")))
    left = np.ones((4, 8), np.float32)
    got = module.run({"left": left, "right": np.full(8, 2, np.float32)})
    assert list(got) == ["sum", "same"]
    np.testing.assert_array_equal(got["sum"], left + 2)
    np.testing.assert_array_equal(got["same"], left)
    assert not np.shares_memory(got["same"], left)


def test_saved_and_loaded(config, tmp_path):
    path = tmp_path / "m.tc"
    compile_with(config, perceptron()).save(path)
    module = tinycomp.load(path)
    check(module)
    assert [str(s) for s in module.inputs] == ["x: float32[4, 8]"]
    assert [s.name for s in module.outputs] == ["y", "z"]
    assert module.manifest.parameters == W.size + W.shape[1]


@pytest.mark.parametrize("level", ["relay", "te", "tir", "llvm", "asm"])
def test_levels_are_shown_also_after_loading(config, tmp_path, level):
    path = tmp_path / "m.tc"
    module = compile_with(config, perceptron())
    module.save(path)
    text = module.ir(level)
    assert "fused" in text
    assert tinycomp.load(path).ir(level) == text
    with pytest.raises(TinycompError, match="unknown level"):
        module.ir("wasm")


def test_second_compile_comes_from_the_cache(config, monkeypatch):
    check(compile_with(config, perceptron()))

    def refuse(*args):
        raise AssertionError("compiled again")

    monkeypatch.setattr("tinycomp.compiler.build", refuse)
    check(compile_with(config, perceptron()))
    with pytest.raises(AssertionError):
        compile_with(config, perceptron(), opt_level=1)
    with pytest.raises(AssertionError):
        compile_with(config, perceptron(2 * W))


def test_kernels_are_shared_between_models(config, monkeypatch):
    compile_with(config, perceptron())

    def refuse(*args):
        raise AssertionError("kernel compiled again")

    monkeypatch.setattr("tinycomp.kernels.lower_kernel", refuse)
    options = Options(Target.host(), num_threads=1)
    build(perceptron(2 * W), options, Cache.from_config(config), lambda *args: None)


def test_damaged_cache_entries_are_replaced(config):
    compile_with(config, perceptron())
    for _, _, path in Cache.from_config(config).entries():
        path.write_bytes(path.read_bytes()[:-5])
    check(compile_with(config, perceptron()))
    for _, _, path in Cache.from_config(config).entries():
        path.write_bytes(b"")
    check(compile_with(config, perceptron()))


def test_external_data_is_part_of_the_key(config, tmp_path):
    path = tmp_path / "m.onnx"
    for weights in (W, 3 * W):
        onnx.save(
            perceptron(weights), path, save_as_external_data=True, location="w.bin",
            size_threshold=0,
        )  # fmt: skip
        x = np.ones((4, 8), np.float32)
        got = compile_with(config, path).run({"x": x})
        np.testing.assert_allclose(got["y"], expected(x, weights)["y"], rtol=1e-5)
        (tmp_path / "w.bin").unlink()


def test_calls_by_position_and_keyword(config):
    module = compile_with(config, perceptron())
    x = np.ones((4, 8), np.float32)
    for result in (module(x), module(x=x)):
        np.testing.assert_allclose(result[0], expected(x)["y"], rtol=1e-5)
    with pytest.raises(InputError, match="missing 'x'"):
        module()
    with pytest.raises(InputError, match="dimension 0 is 3, not 4"):
        module(x[:3])
    with pytest.raises(InputError, match="unknown 'X', did you mean 'x'"):
        module.run({"X": x})


def test_indices_out_of_range_are_an_error_and_do_no_harm(config):
    module = compile_with(config, gather_model())
    good = np.array([1, 7])
    np.testing.assert_array_equal(module(good), W[good])
    for bad in ([0, 8], [-9, 0], [2**40, 0]):
        with pytest.raises(ExecutionError, match="out of range") as caught:
            module(np.array(bad))
        assert "lookup" in str(caught.value)
        np.testing.assert_array_equal(module(good), W[good])
    np.testing.assert_array_equal(module(np.array([-1, -8])), W[[-1, -8]])


def test_many_threads_call_many_modules(config):
    modules = [compile_with(config, perceptron(), num_threads=n) for n in (1, 2, 3)]
    errors = []

    def work(seed):
        try:
            for step in range(50):
                check(modules[(seed + step) % 3], seed * 100 + step)
        except AssertionError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_forked_child_runs_the_model(config):
    module = compile_with(config, perceptron(), num_threads=2)
    check(module)
    child = os.fork()
    if child == 0:
        try:
            check(module)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    check(module)


def test_profile_names_kernels_and_nodes(config, tmp_path):
    module = compile_with(config, perceptron())
    profile = module.profile({"x": np.ones((4, 8), np.float32)}, repeat=3)
    assert len(profile.rows) == len(module.manifest.kernels)
    assert any("mm" in row.kernel.nodes for row in profile.rows)
    assert all(row.milliseconds >= 0 for row in profile.rows)
    assert sum(row.share for row in profile.rows) == pytest.approx(1, abs=0.01)
    assert "mm" in str(profile)
    profile.save_trace(tmp_path / "trace.json")
    assert (tmp_path / "trace.json").stat().st_size > 100


def test_cross_compiled_modules_are_saved_but_not_run(config, tmp_path):
    module = compile_with(config, perceptron(), target="llvm -mcpu=neoverse-n1")
    module.save(tmp_path / "m.tc")
    with pytest.raises(ArtifactError, match="aarch64"):
        module(np.ones((4, 8), np.float32))
    with pytest.raises(ArtifactError, match="aarch64"):
        tinycomp.load(tmp_path / "m.tc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "tpu"}, "unknown target"),
        ({"target": "cuda -arch=90"}, "unknown architecture '90'"),
        ({"target": "cuda -arch=sm_90A"}, "unknown architecture 'sm_90A'"),
        ({"target": "cuda -arch=sm_35"}, "does not know the architecture 'sm_35'"),
        ({"precision": "fp8"}, "did you mean"),
        ({"precision": "half"}, 'did you mean "fp16"'),
        ({"precision": "tf32"}, "tensor cores"),
        ({"precision_overrides": {"mn": "bf16"}}, "did you mean 'mm'"),
        ({"opt_level": 7}, "opt_level"),
        ({"num_threads": -1}, "num_threads"),
        ({"tuning_records": "/does/not/exist"}, "cannot read tuning records"),
        ({"dims": {"batch": "x"}}, "is not a size"),
        ({"input_shapes": {"x": [-1, 8]}}, "not a list of sizes"),
        ({"input_shapes": {"q": [1, 8]}}, "no input 'q'"),
    ],
)
def test_wrong_arguments_are_refused(config, arguments, message):
    with pytest.raises(TinycompError, match=message):
        compile_with(config, perceptron(), **arguments)


def test_more_threads_than_planned_are_refused(config, tmp_path):
    compile_with(config, perceptron(), num_threads=1).save(tmp_path / "m.tc")
    assert tinycomp.load(tmp_path / "m.tc").num_threads == 1
    with pytest.raises(TinycompError, match="up to 1 threads"):
        tinycomp.load(tmp_path / "m.tc", num_threads=2)


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"version https://git-lfs\n", b"\x08"])
def test_files_that_are_no_models(config, tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        compile_with(config, path)


def test_unknown_operators_are_listed(config):
    model = perceptron()
    model.graph.node[2].op_type = "Frobnicate"
    with pytest.raises(UnsupportedModel, match="Frobnicate"):
        compile_with(config, model)


def test_import_is_quick_and_loads_nothing_heavy():
    script = (
        "import sys, time; t = time.perf_counter(); import tinycomp\n"
        "seconds = time.perf_counter() - t\n"
        "heavy = {'numpy', 'onnx', 'llvmlite', 'networkx', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert seconds < 0.3, seconds\n"
        "assert 'compile' in dir(tinycomp)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_calls_of_small_models_are_quick(config):
    module = compile_with(config, perceptron(), num_threads=1)
    x = {"x": np.ones((4, 8), np.float32)}
    import timeit

    fastest = min(timeit.repeat(lambda: module.run(x), number=200, repeat=20)) / 200
    assert fastest < 50e-6  # about 8 us on an idle machine
    assert ctypes.sizeof(ctypes.c_void_p) == 8


@pytest.mark.parametrize(("target", "text"), [("llvm", "define void @"), ("cuda", "__global__")])
def test_the_source_of_a_module(config, target, text):
    module = compile_with(config, perceptron(), target=target)
    assert text in module.get_source()
    assert text in module.get_source(target)
