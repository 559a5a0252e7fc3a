"""Trained and exported models, where a folder `shared/models` lies beside the repository."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tinycomp.cli.reference import run_reference
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.testing.compare import assert_close

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models"

pytestmark = pytest.mark.skipif(
    not MODELS.is_dir(), reason="there is no folder shared/models beside the repository"
)


@dataclass(frozen=True)
class Case:
    """A model file, its free dimensions, and what its integer inputs may be.

    `integers` has, by input name, the exclusive limit of random values, or an array. `pixels`:
    images are of 0 to 255 (noise around zero would be amplified in float32 by any engine).
    `exact`: without ONNX Runtime's rewrites, which round quantised values differently.
    """

    path: str
    dims: dict[str, int] = field(default_factory=dict)
    integers: dict[str, object] = field(default_factory=dict)
    pixels: bool = False
    exact: bool = False
    slow: bool = False


TOKENS = {
    "dims": {"batch": 2, "seq": 12},
    "integers": {"a_0": 60, "a_1": np.repeat([[1] * 9 + [0] * 3], 2, 0)},
}
CASES = (
    Case("real/mnist"),
    Case("real/ultraface_rfb320"),
    Case("real/fastestdet"),
    Case("real/magika_standard_v3_3", {"unk__214": 1}, {"bytes": 257}),
    Case("real/silero_vad_16k_op15", {"batch": 1, "sequence": 576}, {"sr": np.array(16000)}),
    Case("real/yolox_nano", pixels=True),
    Case("zoo/lstm_tagger", {}, {"x": 100}),
    Case("zoo/mobilenetv2", slow=True),
    Case("zoo/resnet50", slow=True),
    Case("zoo/convnext_tiny", slow=True),
    Case("zoo/unet_256", slow=True),
    Case("zoo/vit_base", slow=True),
    Case("zoo/bert_base_128", {}, {"x": 1000}, slow=True),
    Case("zoo/gpt2_64", {}, {"x": 1000}, slow=True),
    Case("zoo/llama_tiny_64", {}, {"x": 1000}, slow=True),
    Case("exports/cnn", {"batch": 3}),
    Case("exports/cnn_ts", {"batch": 3}),
    Case("exports/cond"),
    Case("exports/while"),
    Case("exports/rnn", {"b": 2, "t": 5}),
    Case("exports/vit", {"batch": 2}),
    Case("exports/bert", **TOKENS),
    Case("exports/gpt2", **TOKENS),
    Case("exports/q_dyn_bert", **TOKENS),
    Case("exports/q_nbits", **TOKENS),
    Case("exports/q_qdq", {"batch": 3}, exact=True),
)


def materialized(case, folder):
    """The model's file; a model of zoo/ is a skeleton that its script fills with weights."""
    source = MODELS / f"{case.path}.onnx"
    if source.parent.name != "zoo":
        return source
    spec = importlib.util.spec_from_file_location("materialize", MODELS / "materialize.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.fill(source, folder / source.name)
    return folder / source.name


def inputs_of(case, specs, seed):
    rng = np.random.default_rng(seed)
    arrays = {}
    for spec in specs:
        if spec.dtype.is_float:
            array = rng.standard_normal(spec.shape)
            if case.pixels:
                array = np.clip(127 + 60 * array, 0, 255)
        else:
            given = case.integers[spec.name]
            array = rng.integers(0, given, spec.shape) if isinstance(given, int) else given
        arrays[spec.name] = np.asarray(array, spec.dtype.numpy)
    return arrays


def reference(path, inputs, exact):
    if not exact:
        return run_reference("ort", str(path), inputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.path, marks=[pytest.mark.slow] if c.slow else []) for c in CASES],
)
def test_agrees_with_onnx_runtime(case, tmp_path):
    path = materialized(case, tmp_path)
    module = compile_with(Config(cache_dir=tmp_path / "cache"), path, dims=case.dims)
    for seed in (0,) if case.slow else (0, 1):
        inputs = inputs_of(case, module.inputs, seed)
        assert_close(module.run(inputs), reference(path, inputs, case.exact))
