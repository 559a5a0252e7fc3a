"""Running sums and products as hand-written loops, on CPUs and (by the executor) on GPUs."""

import numpy as np
import pytest

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.ops.cumulative import CumulativeAttrs
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import IRModule

from .gpu import kit

OPS = default_ops()
# Shapes that the CPU or the GPU treat differently: rows and columns, short, whole, and in chunks.
SHAPES = [
    ((0, 3), 1), ((1,), 0), ((17, 33), 1), ((3, 5, 40), 1), ((2, 3, 4, 5), 1),
    ((3000,), 0), ((2, 1111), 1), ((2, 1030, 3), 1), ((3, 5000), 1), ((40000,), 0),
    ((1200, 37), 0), ((4, 7, 130), 1), ((300, 2, 70), 0),
]  # fmt: skip
DTYPES = ["float32", "int64", "float16", "float64", "int8"]


def case(n, shape, axis):
    """A shape with one of the dtypes, operators and variants; all of them come up."""
    op = "cumprod" if n % 7 in (2, 3, 5) else "cumsum"
    return pytest.param(op, shape, DTYPES[n % 5], CumulativeAttrs(axis, n % 3 == 1, n % 4 < 2))


CASES = [case(n, *place) for n, place in enumerate([*SHAPES, *SHAPES[2:]])]


def data(op, shape, dtype):
    """Numbers whose products stay small."""
    rng = np.random.default_rng(0)
    if DType(dtype).is_int:
        return rng.integers(-3, 4, shape).astype(dtype)
    x = rng.uniform(0.99, 1.01, shape) if op == "cumprod" else rng.uniform(-1, 1, shape)
    return x.astype(dtype)


def agrees(got, wanted):
    """Integers exactly, floats but for the order of the additions."""
    if wanted.dtype.kind == "i":
        np.testing.assert_array_equal(got, wanted)
    else:
        tolerance = {2: 5e-3, 4: 1e-3, 8: 1e-9}[wanted.dtype.itemsize]
        np.testing.assert_allclose(
            got.astype(np.float64), wanted.astype(np.float64), tolerance, tolerance
        )


@pytest.mark.parametrize(("op", "shape", "dtype", "attrs"), CASES)
def test_cpu(op, shape, dtype, attrs):
    builder = Builder(OPS, fold=False)
    result = builder.call(op, builder.param("x", shape, DType(dtype)), attrs=attrs)
    function = builder.finish(result)
    x = data(op, shape, dtype)
    found = []
    for threads in (1, 2):
        module = compile_with(
            Config(cache=False), IRModule({"main": function}, ("x",)), num_threads=threads
        )
        found.extend(module.run({"x": x}).values())
    agrees(found[0], OPS[op].reference(attrs, [x]))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(("op", "shape", "dtype", "attrs"), CASES)
def test_gpu(op, shape, dtype, attrs):
    x = data(op, shape, dtype)
    func = kit.kernel(lambda b, x: b.call(op, x, attrs=attrs), (shape, dtype))
    (out,) = kit.outputs(func, x)
    agrees(out.reshape(shape), OPS[op].reference(attrs, [x]))


def test_launches():
    def grids(shape, axis):
        made = kit.kernel(lambda b, x: b.call("cumsum", x, axis=axis), (shape, "float32"))
        return [launch.grid[0] for launch in emit_cuda(made).launches]

    assert grids((64, 100), 1) == [8]  # a warp for each row
    assert grids((64, 4096), 1) == [64]  # a block for each row
    assert grids((1, 1 << 22), 1) == [256, 256]  # chunks, and their totals first
    assert grids((64, 100, 1024), 1) == [256]  # a thread for each column
    assert grids((1 << 16, 64), 0) == [64, 64]
