"""Random graphs: in its corner, one model for all sizes gives what the model for the size gives."""

import numpy as np
import pytest

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.ops import default_ops
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.padding.bounded import bound
from tinycomp.relay.verify import verify_module
from tinycomp.testing.open_graphs import random_graph

OPS = default_ops()
BUCKET = 7


def bounded(seed):
    samples = [random_graph(seed, n) for n in (6, 3)]
    return bound(random_graph(seed, BUCKET), samples, OPS)


def padded(arrays, large, garbage):
    for x, p in zip(arrays, large.main.params, strict=True):
        array = np.full(p.type.static_shape, garbage, np.float32)
        array[tuple(slice(n) for n in x.shape)] = x
        yield array


def inputs(module, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(p.type.static_shape).astype("f4") for p in module.main.params]


def close(got, expected):
    finite = np.abs(expected[np.isfinite(expected)]).max(initial=1)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * finite)


@pytest.mark.parametrize("block", range(4))
def test_corners_agree(block):
    proven = 0
    for seed in range(block * 6, block * 6 + 6):
        model = bounded(seed)
        module = model.module()
        verify_module(module)
        for n in (4, 5):
            small = random_graph(seed, n)
            fit = model.fit(small)
            if isinstance(fit, str):
                continue
            proven += 1
            arrays = inputs(small, seed)
            with np.errstate(all="ignore"):
                expected = evaluate(small, arrays)
                for garbage in (np.nan, -3e38):
                    padding = padded(arrays, model.large, garbage)
                    got = evaluate(module, [*padding, *fit.hidden])
                    for a, b, crop in zip(got, expected, fit.crops, strict=True):
                        close(crop(a), b)
    assert proven > 8  # of 12


@pytest.mark.parametrize("seed", [1, 9])
def test_compiled(seed, tmp_path):
    """The same in machine code, which loads padding with vectors and reduces it in trees."""
    model = bounded(seed)
    module = compile_with(Config(cache_dir=tmp_path), model.module())
    for n in (6, 3):
        small = random_graph(seed, n)
        fit = model.fit(small)
        assert not isinstance(fit, str), fit
        arrays = inputs(small, seed)
        for garbage in (np.nan, np.inf):
            values = [*padded(arrays, model.large, garbage), *fit.hidden]
            got = module.run(dict(zip([s.name for s in module.inputs], values, strict=True)))
            with np.errstate(all="ignore"):
                expected = evaluate(small, arrays)
            for a, b, crop in zip(got.values(), expected, fit.crops, strict=True):
                close(crop(a), b)
