"""Models compiled for a GPU without one: machine code for every kernel, and the values of their
loop IR, run on the CPU, against ONNX Runtime."""

import numpy as np
import pytest

import tinycomp
from tinycomp.cli.main import main
from tinycomp.cli.reference import run_reference
from tinycomp.codegen.cuda import nvrtc
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import TinycompError
from tinycomp.runtime.cuda.driver import present_arch
from tinycomp.testing.compare import assert_close
from tinycomp.testing.gpu import run_on_cpu
from tinycomp.testing.graph_builder import seeded_inputs
from tinycomp.testing.models import TINY, builders

FEW = ("lenet", "unet", "gru_model", "bert", "gpt2", "vit")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    return Config(cache_dir=tmp_path_factory.mktemp("cache"))


def tiny(name):
    return builders()[name](**TINY[name])


def check(config, name):
    model = tiny(name)
    module = compile_with(config, model, target="cuda -arch=sm_90a")
    for resources in module.plan.resources.values():
        assert all(r.spill_stores == 0 and r.stack == 0 for r in resources.values())
    inputs = seeded_inputs(model, 0)
    assert_close(run_on_cpu(module, inputs), run_reference("ort", model, inputs))


@pytest.mark.parametrize("name", FEW)
def test_tiny_models(name, config):
    check(config, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY if name not in FEW])
def test_more_tiny_models(name, config):
    check(config, name)


def test_artifact_round_trip(config, tmp_path):
    module = compile_with(config, tiny("lenet"), target="cuda -arch=sm_80")
    module.save(tmp_path / "model.tc")
    loaded = tinycomp.load(tmp_path / "model.tc")
    assert loaded.manifest.target.arch == "sm_80"
    assert loaded.plan == module.plan
    assert "__global__" in loaded.ir("cuda")
    assert 'thread(256, "threadIdx.x")' in loaded.ir("tir")
    assert "of bytes moved wanted" in loaded.ir("access")
    with pytest.raises(TinycompError, match="levels are relay, te, tir, cuda"):
        loaded.ir("llvm")


def test_control_flow_is_planned(config):
    from tinycomp.relay.plan import Branch, Repeat
    from tinycomp.runtime.cuda.plan import _steps, _steps_json

    plan = compile_with(config, tiny("lenet"), target="cuda").plan.plan
    step = plan.steps[0]
    ref = step.args[0]
    steps = (Branch(ref, (step, Repeat((step,), ref, ())), ()), *plan.steps)
    assert _steps(_steps_json(steps)) == steps


@pytest.mark.skipif(bool(present_arch()), reason="there is a GPU")
def test_running_needs_a_gpu(config):
    module = compile_with(config, tiny("lenet"), target="cuda")
    inputs = {s.name: np.zeros(s.shape, s.dtype.numpy) for s in module.inputs}
    with pytest.raises(TinycompError, match="no GPU or CUDA driver is found") as error:
        module.run(inputs)
    assert "tinycomp doctor" in error.value.hint


def test_export_writes_sources_and_machine_code(config, tmp_path, monkeypatch):
    import onnx

    monkeypatch.setenv("TINYCOMP_CACHE_DIR", str(config.cache_dir))
    onnx.save(tiny("lenet"), str(tmp_path / "m.onnx"))
    folder = tmp_path / "out"
    assert main(["export", str(tmp_path / "m.onnx"), "--format", "cuda", "-o", str(folder)]) == 0
    sources = sorted(p.stem for p in folder.glob("*.cu"))
    assert sources
    assert sources == sorted(p.stem for p in folder.glob("*.cubin"))
    assert "__launch_bounds__" in (folder / f"{sources[0]}.cu").read_text()
    assert (folder / "plan.json").exists()


def test_an_unknown_architecture(config):
    with pytest.raises(TinycompError, match="does not know the architecture 'sm_12'"):
        compile_with(config, tiny("lenet"), target="cuda -arch=sm_12")
