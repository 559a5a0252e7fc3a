"""Whole small transformers in 16 bits: their attention becomes tile programs, and the outputs stay
within the band of the format."""

import pytest

from tinycomp.cli.reference import run_reference
from tinycomp.codegen.cuda import nvrtc
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import TinycompError
from tinycomp.precision import Precision
from tinycomp.runtime.compare import compare
from tinycomp.testing.gpu import run_on_cpu
from tinycomp.testing.graph_builder import seeded_inputs
from tinycomp.testing.models import builders

MODELS = {
    "bert": {"sequence": 70, "vocab": 64, "width": 32, "heads": 2, "layers": 1},
    "gpt2": {"sequence": 72, "vocab": 64, "width": 64, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize(("name", "precision"), [("bert", "bf16"), ("gpt2", "fp16")])
def test_small_transformers(name, precision):
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    model = builders()[name](**MODELS[name])
    inputs = seeded_inputs(model, 0)
    target = "cuda -arch=sm_90a"
    module = compile_with(Config(cache=False), model, target=target, precision=precision)
    exact = run_reference("ort", model, inputs)
    worst = max(c.difference for c in compare(run_on_cpu(module, inputs), exact))
    assert worst <= 2 * Precision(precision).tolerance
    sources = module.artifact.texts["cuda"].split("// ---- ")
    found = [s for s in sources if "nn_attention" in s.split("\n", 1)[0]]
    assert found
    assert all("wgmma" in s and "tma_load" in s for s in found)
