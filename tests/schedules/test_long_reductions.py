"""Few results of much data on CPUs: pieces of it over threads, with one result for any number of
them; and argmax in vectors of partial results."""

import numpy as np
import pytest

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.dtype import DType
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Call, Function, IRModule
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.schedules import default_schedule
from tinycomp.target import Target
from tinycomp.tir.nodes import For, ForKind
from tinycomp.tir.tree import statements

OPS = default_ops()


def made(make, shape, dtype="float32"):
    builder = Builder(OPS, fold=False)
    return builder.finish(make(builder.call, builder.param("x", shape, DType(dtype))))


def on_threads(make, shape, dtype="float32"):
    """Whether a default schedule spreads work over threads."""
    whole = FuseOps().run_function(made(make, shape, dtype), PassContext(OPS, Target.host(), 3))
    calls = [b.value.op for b in whole.bindings if isinstance(b.value, Call)]
    functions = [op for op in calls if isinstance(op, Function)]
    bodies = [default_schedule(f, Target.host(), "k").func.body for f in functions]
    return any(
        isinstance(s, For) and s.kind is ForKind.PARALLEL
        for body in bodies
        for s in statements(body)
    )


def results(make, x):
    """The result with one thread, after it was compared with that of two."""
    function = made(make, x.shape, DType.of(x.dtype))
    found = []
    for threads in (1, 2):
        module = IRModule({"main": function}, ("x",))
        compiled = compile_with(Config(cache=False), module, num_threads=threads)
        found.extend(compiled.run({"x": x}).values())
    np.testing.assert_array_equal(*found)
    return found[0]


@pytest.mark.parametrize("op", ["sum", "max"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((200001,), (0,)), ((66000, 3), (0,)), ((2, 70000), (1,)), ((300, 2, 300, 3), (0, 2)),
     ((66000, 40), (0,)), ((2, 3, 70000), (2,))],
)  # fmt: skip
def test_long(op, shape, axes):
    x = np.random.default_rng(0).uniform(-1, 2, shape).astype(np.float32)

    def make(call, x):
        return call("negative", call(op, call("abs", x), axis=axes, keepdims=False))

    assert on_threads(make, shape)
    wanted = -getattr(np, op)(np.abs(x).astype(np.float64), axis=axes)
    np.testing.assert_allclose(results(make, x), wanted, 1e-4)


def test_short_ones_stay():
    assert not on_threads(lambda call, x: call("sum", x, axis=(0,), keepdims=False), (3000,))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7,), 0), ((70001,), 0), ((3, 70001), 1), ((50, 90), 0), ((50, 90), 1), ((66000, 40), 0),
     ((4, 5, 6, 70), 2), ((66000, 3), 0), ((0, 3), 1)],
)  # fmt: skip
def test_arg_reductions(shape, axis):
    x = np.random.default_rng(0).integers(-9, 9, shape)  # values repeat
    for op, dtype, last in (("argmax", "float32", False), ("argmin", "int8", True)):

        def make(call, x, op=op, last=last):
            doubled = call("add", x, x)
            return call(op, doubled, axis=axis, keepdims=last, select_last=last)

        attrs = OPS[op].attrs_type(axis=axis, keepdims=last, select_last=last)
        given = x.astype(dtype)
        wanted = OPS[op].reference(attrs, [given])
        np.testing.assert_array_equal(results(make, given), wanted)


def test_arg_reductions_use_threads():
    def make(call, x):
        return call("argmax", x, axis=0, keepdims=False, select_last=False)

    assert on_threads(make, (1 << 17,))
    assert on_threads(make, (512, 512))
    assert not on_threads(make, (512,))
