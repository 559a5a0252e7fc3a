"""Exported models in one bucket: every smaller size agrees with ONNX Runtime at its true size."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from tinycomp.cli.reference import run_reference
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.frontend.onnx import OnnxModel
from tinycomp.ops import default_ops
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.padding.bounded import bound
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.simplify_inference import SimplifyInference
from tinycomp.testing.compare import assert_close

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models"
OPS = default_ops()

pytestmark = pytest.mark.skipif(
    not MODELS.is_dir(), reason="there is no folder shared/models beside the repository"
)

TOKENS = {"batch": (3, 2, 1), "seq": (12, 11, 7, 1)}
OPEN = {  # the bucket, then other sizes
    "exports/bert": TOKENS,
    "exports/gpt2": TOKENS,
    "exports/q_dyn_bert": TOKENS,
    "exports/q_nbits": TOKENS,
    "exports/cnn": {"batch": (3, 2, 1)},
    "exports/cnn_ts": {"batch": (3, 2, 1)},
    "exports/vit": {"batch": (3, 2, 1)},
    "exports/rnn": {"b": (3, 2, 1), "t": (5,)},
    "real/magika_standard_v3_3": {"unk__214": (3, 2, 1)},
    "real/silero_vad_16k_op15": {"batch": (3, 2), "sequence": (640, 600, 576)},
}


def random_input(name, shape, dtype, rng):
    if name == "sr":
        return np.full(shape, 16000, dtype.numpy)
    if dtype.is_float:
        return rng.standard_normal(shape).astype(dtype.numpy)
    return rng.integers(1, 20, shape).astype(dtype.numpy)  # token ids; as a mask, all ones


def padded(array, shape):
    value = np.nan if array.dtype.kind == "f" else 1
    result = np.full(shape, value, array.dtype)
    result[tuple(slice(n) for n in array.shape)] = array
    return result


@pytest.mark.parametrize("name", OPEN)
def test_one_model_for_all_sizes(name):
    path, dims = MODELS / f"{name}.onnx", OPEN[name]
    model = OnnxModel.read(path)

    def of(sizes):
        named = dict(zip(dims, sizes, strict=True))
        return SimplifyInference().run(model.specialize({}, named, 1 << 30), PassContext(OPS))

    bucket, *others = itertools.product(*dims.values())
    large = of(bucket)
    bounded = bound(large, [of(others[-1])], OPS)
    module = bounded.module()
    rng = np.random.default_rng(0)
    for sizes in others[:: max(1, len(others) // 2)]:
        small = of(sizes)
        fit = bounded.fit(small)
        assert not isinstance(fit, str), fit
        inputs = {
            n: random_input(n, p.type.static_shape, p.type.dtype, rng)
            for n, p in zip(small.input_names, small.main.params, strict=True)
        }
        shapes = [p.type.static_shape for p in large.main.params]
        arrays = [padded(a, s) for a, s in zip(inputs.values(), shapes, strict=True)]
        with np.errstate(all="ignore"):
            results = evaluate(module, [*arrays, *fit.hidden])
        cropped = [crop(r) for crop, r in zip(fit.crops, results, strict=True)]
        got = dict(zip(small.output_names, cropped, strict=True))
        assert_close(got, run_reference("ort", str(path), inputs))


def test_compiled(tmp_path):
    """Attention without a mask and merged axes, in machine code."""
    path = MODELS / "exports" / "gpt2.onnx"
    dims = {"batch": [2], "seq": "auto..16"}
    module = compile_with(Config(cache_dir=tmp_path), path, dims=dims)
    rng = np.random.default_rng(0)
    for length in (16, 9, 13):
        ids = rng.integers(0, 60, (2, length))
        inputs = {"a_0": ids, "a_1": np.ones_like(ids)}
        assert_close(module.run(inputs), run_reference("ort", str(path), inputs))
    assert module.not_padded == {}
    assert module.variants == ({"seq": 16},)
