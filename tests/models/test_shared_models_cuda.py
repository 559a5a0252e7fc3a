"""Trained and exported models compiled for a GPU: no kernel spills, and small models give ONNX
Runtime's values on the executor. Where a folder `shared/models` lies beside the repository."""

import pytest

from tinycomp.codegen.cuda import nvrtc
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import TinycompError
from tinycomp.testing.compare import assert_close
from tinycomp.testing.gpu import run_on_cpu

from .test_shared_models import CASES, MODELS, inputs_of, materialized, reference

pytestmark = [
    pytest.mark.skipif(
        not MODELS.is_dir(), reason="there is no folder shared/models beside the repository"
    ),
    pytest.mark.slow,
]
EXECUTED = ("exports/", "real/mnist", "real/magika", "real/silero")  # seconds, not minutes


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    return Config(cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("case", [pytest.param(c, id=c.path) for c in CASES])
def test_model(case, config, tmp_path):
    path = materialized(case, tmp_path)
    module = compile_with(config, path, target="cuda -arch=sm_90a", dims=case.dims)
    for kernel, found in module.plan.resources.items():
        for used in found.values():
            assert used.spill_stores == used.spill_loads == used.stack == 0, kernel
    if case.path.startswith(EXECUTED):
        inputs = inputs_of(case, module.inputs, 0)
        assert_close(run_on_cpu(module, inputs), reference(path, inputs, case.exact))
