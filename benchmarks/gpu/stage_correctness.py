"""correctness: every operator on its samples, products in all shapes and formats, small models.

Wanted results come from the operators' NumPy references and, for models, from tinycomp's code for
the CPU; nothing else needs to be installed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from device import compile_graph, compile_module, relative_error
from harness import Case, Env, Row

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.precision import Precision
from tinycomp.relay.op import Op
from tinycomp.runtime.compare import compare
from tinycomp.testing.graph_builder import seeded_inputs
from tinycomp.testing.models import TINY, builders

PRODUCTS = (
    (1, 64, 64), (16, 8, 16), (37, 50, 21), (64, 64, 8), (128, 128, 64), (130, 66, 100),
    (256, 96, 40), (8, 768, 768), (257, 129, 65), (512, 512, 256), (300, 520, 192),
    (64, 4096, 1024), (2048, 1024, 512),
)  # fmt: skip
FORMATS = (
    ("float32", "fp32", 1e-5), ("float32", "tf32", 1e-3), ("float16", "fp32", 2e-3),
    ("bfloat16", "fp32", 2e-2),
)  # fmt: skip


def cases() -> list[Case]:
    return [*operators(), *products(), *convolutions(), *models()]


def operators() -> Iterator[Case]:
    """Every sample of every operator, alone in a kernel."""

    def run_one(op: Op, env: Env) -> Iterator[Row]:
        for number, sample in enumerate(op.samples()):
            wanted = op.reference(sample.attrs, list(sample.inputs))
            if isinstance(wanted, tuple) or not all(a.size for a in sample.inputs):
                continue  # results that are tuples are taken apart by models only
            inputs = [(a.shape, str(DType.of(a.dtype))) for a in sample.inputs]
            program = compile_graph(
                env, lambda b, *xs, s=sample: b.call(op, *xs, attrs=s.attrs), *inputs
            )
            (got,) = program.run(sample.inputs)
            wanted = np.asarray(wanted)
            good = got.dtype == wanted.dtype and np.allclose(
                got.astype("f8"), wanted.astype("f8"), 10 * sample.rtol, 10 * sample.atol, True
            )
            yield {"sample": number, "error": relative_error(got, wanted), "ok": bool(good)}

    for op in default_ops().ops.values():
        if op.compute is not None:
            yield Case(f"operator/{op.name}", functools.partial(_numbered, run_one, op))


def _numbered(run_one, op: Op, env: Env) -> Iterator[Row]:
    return run_one(op, env)


def products() -> Iterator[Case]:
    """Matrix products of odd and even sizes in every format."""
    for m, n, k in PRODUCTS:
        for dtype, precision, _ in FORMATS:
            name = dtype if precision == "fp32" else precision
            yield Case(
                f"product/{m}x{n}x{k}/{name}",
                functools.partial(_product, (m, n, k), dtype, precision),
            )


def _product(sizes: tuple[int, int, int], dtype: str, precision: str, env: Env) -> Iterator[Row]:
    return product_row(env, sizes, dtype, precision)


def product_row(env: Env, sizes: Sequence[int], dtype: str, precision: str) -> Iterator[Row]:
    """A product with bias and relu beside float64."""
    m, n, k = env.sizes(*sizes)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(DType(dtype).numpy) for s in ((m, k), (k, n), (n,))]
    program = compile_graph(
        env,
        lambda b, x, y, c: b.call("nn.relu", b.call("add", b.call("nn.matmul", x, y), c)),
        *((a.shape, dtype) for a in arrays),
        precision=precision,
    )
    x, y, c = (a.astype("f8") for a in arrays)
    error = relative_error(program.run(arrays)[0], np.maximum(x @ y + c, 0))
    limit = next(l for d, p, l in FORMATS if (d, p) == (dtype, precision))
    used = "+".join(sorted({i.precision for i in program.module.manifest.kernels}))
    yield {"engine": "tinycomp", "error": error, "ok": error <= limit, "precision": used}


def convolutions() -> Iterator[Case]:
    """Convolutions in every format: strides, padding, groups, 1x1, depthwise."""
    shapes = (
        ((2, 8, 14, 14), (16, 8, 3, 3), {"padding": (1, 1, 1, 1)}),
        ((1, 16, 12, 12), (24, 16, 1, 1), {}),
        ((1, 3, 24, 24), (16, 3, 7, 7), {"strides": (2, 2), "padding": (3, 3, 3, 3)}),
        ((1, 16, 9, 9), (16, 8, 3, 3), {"groups": 2, "padding": (1, 1, 1, 1)}),
        ((1, 16, 9, 9), (16, 1, 3, 3), {"groups": 16, "padding": (1, 1, 1, 1)}),
    )
    for number, (x, w, attrs) in enumerate(shapes):
        for dtype, precision, limit in FORMATS:
            name = dtype if precision == "fp32" else precision
            yield Case(
                f"conv2d/{number}/{name}",
                functools.partial(_convolution, x, w, attrs, dtype, precision, limit),
            )


def _convolution(
    x: Sequence[int], w: Sequence[int], attrs: dict, dtype: str, precision: str, limit: float,
    env: Env,
) -> Iterator[Row]:  # fmt: skip
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(DType(dtype).numpy) for s in (x, w)]
    op = default_ops()["nn.conv2d"]
    wanted = op.reference(op.attrs_type(**attrs), [a.astype("f8") for a in arrays])
    program = compile_graph(
        env, lambda b, i, k: b.call("nn.conv2d", i, k, **attrs), (x, dtype), (w, dtype),
        precision=precision,
    )  # fmt: skip
    error = relative_error(program.run(arrays)[0], wanted)
    yield {"engine": "tinycomp", "error": error, "ok": error <= limit}


def models(names: Sequence[str] = tuple(TINY)) -> Iterator[Case]:
    """Tiny models of every architecture, in every precision, beside the code for the CPU."""
    for name in names:
        for precision in Precision:
            yield Case(f"model/{name}/{precision}", functools.partial(_model, name, precision))


def _model(name: str, precision: Precision, env: Env) -> Iterator[Row]:
    model = builders()[name](**TINY[name])
    program = compile_module(env, model, precision)
    inputs = seeded_inputs(model, 0)
    wanted = compile_with(Config.from_environment(), model).run(inputs)
    got = program.module.run(inputs)  # the runtime's own path: graph, copies, error word
    worst = max(c.difference for c in compare(got, wanted))
    # random weights amplify what rounding differs by more than trained ones do
    yield {"engine": "tinycomp", "error": worst, "ok": bool(worst <= 10 * precision.tolerance)}
