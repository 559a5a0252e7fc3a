"""The command as a user runs it: output, messages, exit codes."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tinycomp.cli import main as cli
from tinycomp.cli.common import human_bytes, parse_dims, parse_input_shapes
from tinycomp.codegen.cuda.nvrtc import library
from tinycomp.diagnostics import TinycompError
from tinycomp.runtime.compare import compare


def write_model(path, op="Relu", shape=(2, 3)):
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "scale"], ["scaled"], "scaling"),
            helper.make_node(op, ["scaled"], ["y"], "act"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))],
        [onnx.numpy_helper.from_array(np.full(3, 2, np.float32), "scale")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path
    )
    return str(path)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYCOMP_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def model(workspace):
    return write_model(workspace / "m.onnx")


def run(*argv):
    return cli.main([str(a) for a in argv])


def test_compile_then_run(model, workspace, capsys):
    assert run("compile", model, "-o", "m.tc") == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "m.tc" in printed.err
    x = np.array([[-1, 0, 1], [2, 3, 4]], np.float32)
    np.savez("in.npz", x=x)
    assert run("run", "m.tc", "--inputs", "in.npz", "--outputs", "out.npz") == 0
    with np.load("out.npz") as stored:
        np.testing.assert_array_equal(stored["y"], np.maximum(2 * x, 0))
    assert capsys.readouterr().out.startswith("name\tdtype\tshape")


def test_compile_names_the_artifact_after_the_model(model, workspace, capsys):
    assert run("compile", model, "--json", "--dump-ir", "ir") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["artifact"] == "m.tc"
    assert facts["kernels"] == 1
    assert sorted(p.name for p in (workspace / "ir").iterdir()) == [
        "asm.txt", "llvm.txt", "relay.txt", "te.txt", "tir.txt",
    ]  # fmt: skip


def test_run_fills_inputs(model, capsys):
    results = []
    for options in (["--seed", 1], ["--seed", 1], ["--seed", 2], ["--fill", "zeros"]):
        assert run("run", model, "--json", *options) == 0
        results.append(json.loads(capsys.readouterr().out)["outputs"])
    assert results[0] == results[1] != results[2]
    assert results[3][0]["max"] == 0


def test_dynamic_dimensions_are_given_on_the_command_line(workspace, capsys):
    path = write_model(workspace / "d.onnx", shape=("batch", 3))
    assert run("run", path, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["outputs"][0]["shape"] == [1, 3]
    assert "batch" in printed.err
    np.savez("five.npz", x=np.ones((5, 3), np.float32))
    assert run("run", path, "--inputs", "five.npz", "--json") == 0
    assert json.loads(capsys.readouterr().out)["outputs"][0]["shape"] == [5, 3]
    for options in (["--dim", "batch=4"], ["--input-shapes", "x:[4,3]"]):
        assert run("run", path, "--json", *options) == 0
        assert json.loads(capsys.readouterr().out)["outputs"][0]["shape"] == [4, 3]


def test_inspect_both_kinds_of_file(model, capsys):
    assert run("inspect", model, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["operators"] == {"Mul": 1, "Relu": 1}
    assert facts["parameters"] == 3
    assert facts["groups"][0]["nodes"] == ["scaling", "act"]
    run("compile", model, "-o", "m.tc")
    capsys.readouterr()
    assert run("inspect", "m.tc") == 0
    assert "multiply+nn.relu" in capsys.readouterr().out
    assert run("inspect", "m.tc", "--ir", "tir") == 0
    assert "def fused" in capsys.readouterr().out


def test_inspect_sass_is_for_gpus(model, capsys):
    assert run("inspect", model, "--sass") == 1
    assert "--sass is for GPUs\n  hint: add --target cuda" in capsys.readouterr().err


def test_inspect_registers(model, capsys):
    assert run("inspect", model, "--registers") == 0
    assert "no vector registers are spilled" in capsys.readouterr().out
    try:
        library()
    except TinycompError:
        return
    assert run("inspect", model, "--registers", "--json", "--target", "cuda -arch=sm_90a") == 0
    (kernel,) = json.loads(capsys.readouterr().out)
    assert kernel["spilled bytes"] == kernel["stack"] == 0
    assert 0 < kernel["registers"] < 64


def test_inspect_lists_what_is_unsupported(workspace, capsys):
    path = write_model(workspace / "u.onnx", op="Frobnicate")
    assert run("inspect", path) == 2
    printed = capsys.readouterr()
    assert "operators" in printed.out
    assert "Frobnicate" in printed.err
    assert "act" in printed.err


def test_verify_agrees_and_disagrees(model, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    assert run("verify", model, "--layerwise", "--json") == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["ok"]
    assert verdict["layer"] is None
    assert verdict["outputs"][0]["difference"] < 1e-6

    def wrong(engine, path, inputs):
        return {"y": np.full((2, 3), 7, np.float32)}

    monkeypatch.setattr("tinycomp.cli.reference.run_reference", wrong)
    assert run("verify", model) == 3
    printed = capsys.readouterr()
    assert "DIFFERS" in printed.out
    assert "--layerwise" in printed.err


def test_layerwise_names_the_first_node_that_differs(model, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    from tinycomp.cli import layerwise, reference

    right = reference.run_reference

    def wrong(engine, model, inputs):
        results = right(engine, model, inputs)
        return {n: a + (n in ("scaled", "y")) for n, a in results.items()}

    monkeypatch.setattr(reference, "run_reference", wrong)
    monkeypatch.setattr(layerwise, "run_reference", wrong)
    assert run("verify", model, "--layerwise") == 3
    assert "node 'scaling' (Mul), 'scaled'" in capsys.readouterr().err


def test_profile_writes_a_trace(model, capsys):
    assert run("profile", model, "--trace", "t.json", "--repeat", 2, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0]["kernel"]["nodes"] == ["scaling", "act"]
    with open("t.json") as file:
        assert json.load(file)["traceEvents"][0]["ph"] == "X"


def test_bench_beside_another_engine(model, capsys):
    pytest.importorskip("onnxruntime")
    run("compile", model, "-o", "m.tc")
    capsys.readouterr()
    options = ["--rounds", 2, "--seconds", 0.01, "--threads", 1, "--json"]
    assert run("bench", "m.tc", "--compare", "ort", *options) == 0
    ours, theirs = json.loads(capsys.readouterr().out)
    assert (ours["engine"], theirs["engine"]) == ("tinycomp", "ort")
    assert ours["ratio"] == 1
    assert theirs["median_ms"] > 0
    assert ours["peak_bytes"] > 1 << 20
    os.unlink(model)
    assert run("bench", "m.tc", "--compare", "ort") == 1
    assert "--onnx" in capsys.readouterr().err
    assert run("bench", "m.tc", "--compare", "abacus") == 1


def test_doctor(capsys, workspace):
    assert run("doctor", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["LLVM"].count(".") == 2
    assert "cache" in facts
    assert run("doctor") == 0
    assert "CPU features" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"\x08\x07\x12\x99", "ONNX"),
    ],
)
def test_files_that_are_no_models(workspace, capsys, content, message):
    (workspace / "bad.onnx").write_bytes(content)
    for command in ("compile", "run", "inspect", "verify"):
        assert run(command, "bad.onnx") == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_damaged_and_missing_files(model, workspace, capsys):
    run("compile", model, "-o", "m.tc")
    data = (workspace / "m.tc").read_bytes()
    (workspace / "cut.tc").write_bytes(data[: len(data) // 2])
    (workspace / "foreign.tc").write_bytes(b"PK\3\4")
    for path in ("cut.tc", "foreign.tc", "absent.tc", "."):
        for command in ("run", "inspect"):
            assert run(command, path) == 1
            error = capsys.readouterr().err
            assert "error: " in error
            assert "Traceback" not in error


def test_wrong_inputs(model, workspace, capsys):
    run("compile", model, "-o", "m.tc")
    cases = {
        "missing 'x'": {"q": np.zeros((2, 3), np.float32)},
        "float64": {"x": np.zeros((2, 3))},
        "dimension 1 is 4, not 3": {"x": np.zeros((2, 4), np.float32)},
    }
    for message, arrays in cases.items():
        np.savez("in.npz", **arrays)
        assert run("run", "m.tc", "--inputs", "in.npz") == 1
        assert message in capsys.readouterr().err
    (workspace / "in.npz").write_text("text")
    assert run("run", "m.tc", "--inputs", "in.npz") == 1
    assert run("run", "m.tc", "--outputs", "no/such/folder.npz") == 1


def test_usage_errors_have_exit_code_one(capsys):
    for argv in ([], ["frobnicate"], ["run"], ["compile", "m.onnx", "--opt-level", "9"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 1


def test_bugs_are_one_line_and_exit_code_four(model, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("surprise")

    monkeypatch.setattr("tinycomp.compiler.import_model", broken)
    assert run("compile", model) == 4
    error = capsys.readouterr().err
    assert "internal error" in error
    assert "Traceback" not in error
    assert run("compile", model, "--debug") == 4
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(workspace):
    command = f"{sys.executable} -m tinycomp.cli doctor | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_shapes_and_dimensions():
    assert parse_input_shapes(["a:0:1x3", "b:[2, 3],c:7"]) == {"a:0": [1, 3], "b": [2, 3], "c": [7]}
    for bad in ("x", "x:", "x:[a]", "x:1x", "x:-1x3"):
        with pytest.raises(TinycompError):
            parse_input_shapes([bad])
    assert parse_dims(["a=b=3"])["a=b"].fixed == 3
    for bad in ("x", "=3", "x=", "x=-1", "x=3..1", "x=1,", "x=a..b"):
        with pytest.raises(TinycompError):
            parse_dims([bad])
    assert human_bytes(3 << 30) == "3.00 GiB"


def test_comparisons():
    expected = {"a": np.array([1.0, np.nan, np.inf]), "b": np.zeros(0), "c": np.zeros(2)}
    same = compare({n: a.copy() for n, a in expected.items()}, expected)
    assert [r.difference for r in same] == [0, 0, 0]
    got = {"a": np.array([1.0, 2.0, np.inf]), "b": np.zeros(1)}
    nan, shape, missing = compare(got, expected)
    assert nan.difference == np.inf
    assert nan.index == (1,)
    assert "shape" in shape.problem
    assert missing.problem == "missing"


def test_buckets_on_the_command_line(workspace, capsys):
    path = write_model(workspace / "d.onnx", shape=("batch", 3))
    assert run("compile", path, "-o", "d.tc", "--dim", "batch=1,4") == 0
    assert "compiled for: batch=1; batch=4" in capsys.readouterr().err
    np.savez("three.npz", x=np.ones((3, 3), np.float32))
    assert run("run", "d.tc", "--inputs", "three.npz", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["outputs"][0]["shape"] == [3, 3]
    assert "compile kernels" not in printed.err
    assert run("inspect", "d.tc", "--json") == 0
    assert json.loads(capsys.readouterr().out)["open_dimensions"] == {"batch": "1,4"}
    assert run("compile", path, "-o", "any.tc") == 0
    assert "--dim batch=1,8,32" in capsys.readouterr().err
    assert run("run", "any.tc", "--json") == 0
    capsys.readouterr()
    assert run("inspect", path, "--ir", "relay") == 1
    assert "choose sizes" in capsys.readouterr().err
    assert run("profile", path, "--repeat", 1) == 0
    assert run("export", path, "-o", "out") == 1
    assert "open" in capsys.readouterr().err
