"""Writing at computed places as hand-written loops, on CPUs and (by the executor) on GPUs: exactly
what one update after the other gives, for floats too."""

import numpy as np
import pytest

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import ExecutionError
from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.ops.scatter import REDUCTIONS, ScatterElementsAttrs, ScatterNdAttrs
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import IRModule

from .gpu import kit

OPS = default_ops()
# data, indices, and the axis: few updates, many to one place, and fewer of them than lines
ELEMENTS = [
    ((4, 3), (3, 2), 0), ((4, 3), (3, 2), 1), ((50,), (700,), 0), ((5, 6, 7), (5, 6, 7), 1),
    ((5, 6, 300), (4, 9, 280), 1), ((300, 3), (200, 3), 0), ((4,), (0,), 0), ((0, 3), (0, 3), 1),
    ((2, 100, 2), (2, 100, 2), 1),
]  # fmt: skip
# data, outer shape of the indices, and how many axes they are for
SLICES = [
    ((4, 3), (3,), 1), ((4, 3), (5, 2), 2), ((4, 3), (), 1), ((50, 300), (70,), 1),
    ((7, 8, 9, 10), (30,), 2), ((60,), (900,), 1), ((3,), (0,), 1),
]  # fmt: skip


def random(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    return (rng.uniform(-2, 2, shape) * (1 if DType(dtype).is_float else 40)).astype(dtype)


def cases():
    found = []
    for n, (shape, own, axis) in enumerate(ELEMENTS):
        indices = np.random.default_rng(n).integers(-shape[axis], shape[axis], own)
        found.append(
            ("scatter_elements", ScatterElementsAttrs, {"axis": axis}, shape, own, indices)
        )
    for n, (shape, outer, depth) in enumerate(SLICES):
        rng = np.random.default_rng(n)
        columns = [rng.integers(-shape[d], shape[d], outer) for d in range(depth)]
        indices = np.stack(columns, -1)
        own = (*outer, *shape[depth:])
        found.append(("scatter_nd", ScatterNdAttrs, {}, shape, own, indices))
    return [
        pytest.param(op, attrs(**own, reduction=reduction), shape, updates, indices,
                     ["float32", "int32", "float16"][(n + r) % 3], id=f"{op}-{n}-{reduction}")
        for n, (op, attrs, own, shape, updates, indices) in enumerate(found)
        for r, reduction in enumerate(REDUCTIONS)
        if (n + r) % 2 == 0 or reduction == "none"
    ]  # fmt: skip


CASES = cases()


def compiled(op, attrs, arrays):
    builder = Builder(OPS, fold=False)
    params = [builder.param(f"x{i}", a.shape, DType.of(a.dtype)) for i, a in enumerate(arrays)]
    function = builder.finish(builder.call(op, *params, attrs=attrs))
    module = IRModule({"main": function}, tuple(f"x{i}" for i in range(len(params))))
    return compile_with(Config(cache=False), module, num_threads=2)


@pytest.mark.parametrize(("op", "attrs", "shape", "updates", "indices", "dtype"), CASES)
def test_cpu(op, attrs, shape, updates, indices, dtype):
    arrays = [random(shape, dtype, 0), indices, random(updates, dtype, 1)]
    module = compiled(op, attrs, arrays)
    (got,) = module.run({f"x{i}": a for i, a in enumerate(arrays)}).values()
    np.testing.assert_array_equal(got, OPS[op].reference(attrs, arrays))


@pytest.mark.parametrize(("op", "attrs", "shape", "updates", "indices", "dtype"), CASES)
def test_gpu(op, attrs, shape, updates, indices, dtype):
    arrays = [random(shape, dtype, 0), indices, random(updates, dtype, 1)]
    func = kit.kernel(
        lambda b, *args: b.call(op, *args, attrs=attrs),
        *((a.shape, DType.of(a.dtype)) for a in arrays),
    )
    (got,) = kit.outputs(func, *arrays)
    np.testing.assert_array_equal(got.reshape(shape), OPS[op].reference(attrs, arrays))


def test_large_updates_use_threads():
    """Columns of long slices are shared among threads, and there are some that remain."""
    rng = np.random.default_rng(0)
    arrays = [random((40, 3, 700), "float32", 0), rng.integers(0, 40, (90, 1)),
              random((90, 3, 700), "float32", 1)]  # fmt: skip
    attrs = ScatterNdAttrs("add")
    module = compiled("scatter_nd", attrs, arrays)
    (got,) = module.run({f"x{i}": a for i, a in enumerate(arrays)}).values()
    np.testing.assert_array_equal(got, OPS["scatter_nd"].reference(attrs, arrays))


@pytest.mark.parametrize("count", [3, 300])
def test_index_out_of_range_on_a_gpu(count):
    """Walking and sorting both find it."""
    indices = np.full((count,), 7)
    func = kit.kernel(
        lambda b, *args: b.call("scatter_elements", *args, axis=0),
        ((7,), "float32"), ((count,), "int64"), ((count,), "float32"),
    )  # fmt: skip
    with pytest.raises(ExecutionError):
        kit.outputs(func, np.zeros(7, "f4"), indices, np.zeros(count, "f4"))


def test_launches():
    def launches(shape, own, axis):
        made = kit.kernel(
            lambda b, *args: b.call("scatter_elements", *args, axis=axis, reduction="add"),
            (shape, "float32"), (own, "int64"), (own, "float32"),
        )  # fmt: skip
        return [launch.grid[0] for launch in emit_cuda(made).launches]

    assert launches((64, 1024), (50, 1024), 0) == [64, 4]  # a thread for each column
    assert launches((1 << 20,), (4096,), 0) == [1024, 1, 16]  # one tile is sorted
    assert launches((1 << 20,), (8192,), 0) == [1024, 2, 8, 32]  # and two are merged
