"""Hostile files: each is refused with one clear message in two seconds, or runs correctly."""

import time

import numpy as np
import pytest
from tests.frontend.onnx.hostile import INVALID, LONG, VALID

from tinycomp.cli.main import main
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import MemoryBudgetError, TinycompError, UnsupportedModel
from tinycomp.frontend.onnx import from_onnx
from tinycomp.runtime.arrays import random_inputs

NO_CACHE = Config(cache=False)
UNSUPPORTED = {"unknown_op", "unknown_domain", "opset_999"}


@pytest.mark.parametrize("name", INVALID)
def test_refused(tmp_path, capsys, name):
    make, text = INVALID[name]
    path = make(tmp_path)
    start = time.perf_counter()
    with pytest.raises(TinycompError) as caught:
        compile_with(NO_CACHE, path)
    assert time.perf_counter() - start < 2
    assert text in str(caught.value)
    assert isinstance(caught.value, UnsupportedModel) is (name in UNSUPPORTED)
    if "bomb" in name or "2_30" in name:
        assert isinstance(caught.value, MemoryBudgetError)
    code = main(["compile", str(path), "-o", str(tmp_path / "m.tc"), "--no-cache"])
    assert code == (2 if name in UNSUPPORTED else 1)
    shown = capsys.readouterr()
    assert not shown.out
    assert "Traceback" not in shown.err
    assert text in shown.err
    assert not (tmp_path / "m.tc").exists()


@pytest.mark.parametrize("name", VALID)
def test_runs(tmp_path, name):
    module = compile_with(NO_CACHE, VALID[name](tmp_path), num_threads=1)
    inputs = random_inputs(module.inputs, 0)
    inputs = {n: np.ones_like(a) if a.dtype == bool else a for n, a in inputs.items()}
    (result,) = module.run(inputs).values()
    x = next(a for a in inputs.values() if a.dtype != bool)
    expected = {
        "external_ok": lambda: x + np.arange(4, dtype=np.float32),
        "rank_0": lambda: -x,
        "weird_names": lambda: np.maximum(-x, 0),
        "zero_size_concat": lambda: x,
        "identity": lambda: x,
    }.get(name, lambda: np.maximum(x, 0))
    np.testing.assert_array_equal(result, expected())


@pytest.mark.parametrize("name", LONG)
def test_long_chains_import(tmp_path, name):
    module = from_onnx(LONG[name](tmp_path))
    assert len(module.main.bindings) == int(name.split("_")[1])


def test_the_memory_budget_is_a_setting(tmp_path):
    path = VALID["rank_0"](tmp_path)  # 4 bytes in, 4 out
    compile_with(Config(cache=False, memory_limit_bytes=8), path)
    with pytest.raises(MemoryBudgetError, match="inputs and outputs"):
        compile_with(Config(cache=False, memory_limit_bytes=7), path)
    with pytest.raises(MemoryBudgetError, match="input 'x'"):
        compile_with(Config(cache=False, memory_limit_bytes=3), path)
    assert Config.from_environment({"TINYCOMP_MEMORY_LIMIT": "2"}).memory_budget == 2 << 20
