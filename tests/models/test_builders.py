"""Every model builder, compiled at its tiny size and compared with ONNX Runtime."""

import onnx
import pytest

from tinycomp.cli.reference import run_reference
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.testing.compare import assert_close
from tinycomp.testing.graph_builder import seeded_inputs
from tinycomp.testing.models import TINY, builders

NAMES = tuple(builders())


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return Config(cache_dir=tmp_path_factory.mktemp("cache"))


def tiny(name, **arguments):
    return builders()[name](**{**TINY[name], **arguments})


def check(config, model, seeds=(0, 1), **options):
    onnx.checker.check_model(model, full_check=True)
    module = compile_with(config, model, **options)
    for seed in seeds:
        inputs = seeded_inputs(model, seed)
        assert_close(module.run(inputs), run_reference("ort", model, inputs))


def test_every_builder_has_a_tiny_size():
    assert set(TINY) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_tiny_models(name, config):
    check(config, tiny(name), num_threads=1)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v2", "ssd_detector", "gru_model", "gpt2"])
def test_lower_levels(name, level, config):
    check(config, tiny(name), opt_level=level, num_threads=1)


@pytest.mark.parametrize("name", ["resnet", "unet", "lstm_model", "bert"])
def test_two_threads(name, config):
    check(config, tiny(name), num_threads=2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lenet", {"batch": 3}),
        ("resnet", {"depth": 50, "batch": 2, "width": 4}),
        ("unet", {"resize": True}),
        ("gru_model", {"batch": 3}),
        ("seq2seq_attention", {"batch": 2}),
        ("transformer", {"batch": 2, "heads": 4}),
        ("vit", {"batch": 2}),
    ],
)
def test_variants(name, arguments, config):
    check(config, tiny(name, **arguments), num_threads=1)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_depend_on_inputs_and_are_of_ordinary_size(name):
    model = tiny(name)
    one, two = (run_reference("ort", model, seeded_inputs(model, seed)) for seed in (0, 1))
    for key, value in one.items():
        largest = abs(value).max()
        assert 0.05 < largest < 50
        assert abs(value - two[key]).max() > 0.01 * largest


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_default_sizes(name, config):
    check(config, builders()[name](), seeds=(0,))
