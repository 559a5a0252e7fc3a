"""The stages for a GPU without one: their cases compile, their host logic works, and the models of
the peers are those of tinycomp."""

import importlib
import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tinycomp.cli.reference import run_reference
from tinycomp.codegen.cuda import nvrtc
from tinycomp.diagnostics import TinycompError
from tinycomp.testing.graph_builder import seeded_inputs
from tinycomp.testing.models import builders

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def stages(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("TINYCOMP_CACHE_DIR", str(tmp_path / "cache"))
    before = set(sys.modules)
    yield importlib.import_module("stages")
    for name in set(sys.modules) - before:  # names like `device` are of this folder only
        if not name.startswith(("tinycomp", "numpy")):
            del sys.modules[name]


@pytest.fixture
def compiler():
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "bert_base", "vit_base", "gpt2"])
def test_models_of_the_peers_are_those_of_tinycomp(stages, name):
    models = importlib.import_module("peers.models")
    layers = importlib.import_module("peers.numpy_layers")
    builder, sizes, arguments = models.SMALL[name]
    model = builders()[builder](**sizes)
    inputs = seeded_inputs(model, 0)
    weights = models.Weights(models.folded(models.weights_of(model)))
    got = models.MODELS[name](layers, weights, inputs, **arguments)
    assert weights.position == len(weights.arrays)
    wanted = run_reference("ort", model, inputs)
    for mine, theirs in zip(got, wanted.values(), strict=True):
        assert np.abs(mine - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_every_stage_lists_its_cases(stages):
    for stage in stages.STAGES:
        names = [case.name for case in stages.cases_of(stage)]
        assert names, stage
        assert len(set(names)) == len(names), stage


FEW = {
    "smoke": "*exp*",
    "correctness": "product/16x8x16/float*",
    "kernels": "chain/65536/float32",
    "gemm": "gemm/bf16/512x512x512",
    "attention": "*x128x64/bfloat16",
    "conv": "conv/tf32/b1/7x*",
    "sanitizer": "conv2d/0/float32",
}


@pytest.mark.parametrize("stage", FEW)
def test_cases_run_without_a_gpu(stages, compiler, stage):
    """From end to end, small; other engines are there or are rows that say which is missing."""
    harness = importlib.import_module("harness")
    env = harness.dry_env("sm_90a")
    cases = stages.cases_of(stage, FEW[stage])
    rows = [row for case in cases[:3] for row in harness.guarded(case, env)]
    assert rows
    assert all(row["dry"] and not {"us", "gbps", "tflops"} & row.keys() for row in rows)
    for row in rows:
        assert row.get("ok", True), row
        assert "failed" not in row or row["failed"].startswith("ModuleNotFoundError"), row
        assert row.get("engine") != "tinycomp" or "failed" not in row


def test_a_dry_run_is_marked_and_beside_real_results(stages, compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1] / "src"))
    assert stages.main(["smoke", "--only", "function/exp", "--dry"]) == 0
    assert not (tmp_path / "smoke.json").exists()
    found = json.loads((tmp_path / "smoke_dry.json").read_text())
    assert found["dry"]
    (row,) = found["rows"]
    assert row["dry"]
    assert row["ok"]


@pytest.mark.parametrize("stage", ["gemm", "conv"])
def test_cases_compile_at_their_real_sizes(stages, compiler, stage):
    harness = importlib.import_module("harness")
    env = harness.Env(dry=False, arch="sm_90a", compile_only=True)
    (row,) = harness.guarded(stages.cases_of(stage, FEW[stage])[0], env)
    assert row["compiled"], row


def test_files_of_models_are_cases(stages, compiler, tmp_path, monkeypatch):
    import onnx

    text = """<ir_version: 9, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y)
        { e = Exp(x) y = Softmax(e) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "tiny.onnx")
    monkeypatch.setenv("MODELS", str(tmp_path))
    harness = importlib.import_module("harness")
    (case,) = stages.cases_of("models", "onnx/tiny/fp32")
    rows = {row["engine"]: row for row in harness.guarded(case, harness.dry_env("sm_90a"))}
    assert rows["tinycomp graph"]["ok"]
    assert rows["tinycomp run"]["ok"]
    (compiled,) = harness.guarded(case, harness.Env(False, "sm_90a", compile_only=True))
    assert compiled["compiled"]


def test_wrong_results_do_not_count_as_peers(stages):
    timing = importlib.import_module("timing")
    times = {"tinycomp": {"us": 2.0}, "torch": {"us": 3.0}, "triton": {"us": 1.0}}
    assert timing.beside_best({"tinycomp", "torch"}, times, "tinycomp") == 1.5
    assert timing.beside_best({"tinycomp"}, times, "tinycomp") is None


BROKEN = """
    import os
    import time

    from harness import Case

    def good(env):
        yield {"us": 1.0}

    def raises(env):
        yield {"us": 2.0}
        raise ValueError("wrong shape")

    def dies(env):
        yield {"us": 3.0}
        os._exit(11)

    def hangs(env):
        yield {"us": 4.0}
        time.sleep(60)

    def cases():
        return [Case("good", good), Case("raises", raises), Case("dies", dies),
                Case("hangs", hangs, 1.5), Case("last", good)]
"""


def test_what_fails_is_a_row_and_the_others_go_on(stages, tmp_path, monkeypatch, capfd):
    harness = importlib.import_module("harness")
    (tmp_path / "stage_broken.py").write_text(textwrap.dedent(BROKEN))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "run_broken.py").write_text(
        f"import sys\nsys.path[:0] = [{str(FOLDER)!r}, {str(tmp_path)!r}]\n"
        "from harness import dry_env, work\nfrom stage_broken import cases\n"
        "sys.exit(work(cases(), dry_env('sm_90a'), int(sys.argv[1])))\n"
    )
    cases = importlib.import_module("stage_broken").cases()
    report = harness.Report("broken", tmp_path / "broken.json", harness.machine_facts(dry=True))
    command = [sys.executable, str(tmp_path / "run_broken.py")]
    harness.Supervisor(report, command, cases, 60).run()
    report.show()
    rows = json.loads((tmp_path / "broken.json").read_text())["rows"]
    assert [r["case"] for r in rows if "us" in r] == ["good", "raises", "dies", "hangs", "last"]
    failed = {r["case"]: r["failed"] for r in rows if "failed" in r}
    assert failed["raises"] == "ValueError: wrong shape"
    assert "status 11" in failed["dies"]
    assert "too long" in failed["hangs"]
    assert set(failed) == {"raises", "dies", "hangs"}
    assert "FAILED hangs" in capfd.readouterr().out


def test_a_stage_out_of_time_says_what_it_left_out(stages, tmp_path):
    harness = importlib.import_module("harness")
    cases = [harness.Case(name, lambda env: ()) for name in "ab"]
    report = harness.Report("late", tmp_path / "late.json", {})
    harness.Supervisor(report, ["false"], cases, 0).run()
    assert [r["failed"] for r in report.rows] == ["not run: time was up"] * 2


def test_times_are_medians_of_interleaved_rounds(stages):
    timing = importlib.import_module("timing")
    order = []

    class Fake:
        def __init__(self, name, seconds, count):
            self.name, self.each, self.count = name, seconds, count

        def seconds(self, replays):
            order.append(self.name)
            return replays * self.each * self.count

    env = importlib.import_module("harness").Env(False, "sm_90a")
    found = timing.measure(env, {"a": Fake("a", 1e-3, 1), "b": Fake("b", 2e-3, 4)}, rounds=3)
    assert found["a"]["us"] == pytest.approx(1000)
    assert found["b"]["us"] == pytest.approx(2000)
    assert order[-6:] == ["a", "b"] * 3


def test_programs_on_a_device_made_of_numpy(stages, compiler):
    """Several sets of buffers, poisoned, in one graph: as kernels are timed."""
    device, harness, timing = map(importlib.import_module, ("device", "harness", "timing"))
    env = harness.dry_env("sm_90a")

    def make(b, x, y):
        return b.call("nn.softmax", b.call("add", x, y), axis=1)

    program = device.compile_graph(env, make, ((6, 40), "float32"), ((40,), "float32"))
    driver = program.driver
    rng = np.random.default_rng(0)
    sets = [[rng.standard_normal(s).astype("f4") for s in ((6, 40), (40,))] for _ in range(3)]
    frames = [program.frame(one) for one in sets]
    graph = timing.DriverGraph(driver, lambda i, stream: program.enqueue(frames[i], stream), 3)
    assert graph.seconds(2) > 0
    assert driver.captures == 1
    for one, frame in zip(sets, frames, strict=True):
        e = np.exp(one[0] + one[1])
        (got,) = program.results(frame)
        np.testing.assert_allclose(got, e / e.sum(1, keepdims=True), 1e-5)
    np.testing.assert_allclose(program.run(sets[1])[0], program.results(frames[1])[0])
    assert harness._context_works(env)


def test_single_kernels_on_a_device_made_of_numpy(stages, compiler):
    from tinycomp import te
    from tinycomp.schedules.gpu.bind import bind_unbound
    from tinycomp.tir.lower_gpu import lower_gpu

    device, harness = map(importlib.import_module, ("device", "harness"))
    a = te.placeholder((100,), name="A")
    b = te.compute((100,), lambda i: a[i] * 2.0, name="B")
    func = lower_gpu(bind_unbound(te.create_schedule(b.op).func))
    env = harness.dry_env("sm_90a")
    x = np.arange(100, dtype="f4")
    got = device.run_func(func, [x, np.zeros(100, "f4")], env)[-1]
    np.testing.assert_array_equal(got, 2 * x)
