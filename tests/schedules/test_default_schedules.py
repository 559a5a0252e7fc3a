"""Default schedules of fused functions: right on any target, tiles that fit in registers."""

import dataclasses
import re

import numpy as np
import pytest

from tinycomp.codegen.inspect import find_spills
from tinycomp.codegen.llvm import assembly, emit_kernel
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.ops import default_ops
from tinycomp.pipeline import default_pipeline
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Function, IRModule, all_functions
from tinycomp.relay.pass_infra import PassContext
from tinycomp.runtime.compare import compare_arrays
from tinycomp.schedules import build_kernel, default_schedule
from tinycomp.target import Target
from tinycomp.tir.interpreter import run
from tinycomp.tir.verify import verify

OPS = default_ops()
OFF = Config(cache=False)
# Vector widths and register counts of AVX-512, AVX2, SSE2 and NEON machines.
TARGETS = [
    dataclasses.replace(Target.host(), vector_bits=bits, vector_registers=registers)
    for bits, registers in ((512, 32), (256, 16), (128, 16), (128, 32))
]


def floats(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(b, x, out_channels, kernel, *, stride=1, pad=0, groups=1, seed=1):
    channels = x.type.shape[1]
    scale = np.sqrt(channels // groups * kernel * kernel)
    w = b.const(floats(seed, out_channels, channels // groups, kernel, kernel) / scale)
    y = b.call(
        "nn.conv2d", x, b.const(w.data.astype(np.float32)), strides=(stride, stride),
        padding=(pad,) * 4, dilation=(1, 1), groups=groups,
    )  # fmt: skip
    return b.call("add", y, b.const(floats(seed + 1, out_channels, 1, 1)))


# Each case builds a graph from a float32 input; sizes are odd so that every tile has an edge.
CASES = {
    "matmul_tails": ((37, 29), lambda b, x: b.call("nn.matmul", x, b.const(floats(1, 29, 53)))),
    "matvec": ((1, 67), lambda b, x: b.call("nn.matmul", x, b.const(floats(1, 67, 131)))),
    "matmul_bias_gelu": ((2, 19, 24), lambda b, x: gelu(b, linear(b, x, 40))),
    "batch_matmul": ((3, 17, 21), lambda b, x: b.call("nn.matmul", x, transposed(b, x))),
    "conv3x3": ((1, 3, 7, 6), lambda b, x: b.call("nn.relu", conv(b, x, 19, 3, pad=1))),
    "conv3x3_stride": ((2, 6, 15, 9), lambda b, x: conv(b, x, 33, 3, stride=2, pad=1)),
    "grouped_merged": ((1, 12, 5, 7), lambda b, x: conv(b, x, 12, 3, pad=1, groups=6)),
    "grouped_padded": (
        (1, 12, 5, 7),
        lambda b, x: b.call("nn.relu", conv(b, x, 4 * 34, 1, groups=4)),
    ),
    "merged_axis": (
        (1, 5, 4, 48),
        lambda b, x: b.call(
            "reshape",
            b.call("strided_slice", x, begin=(0,) * 4, end=(1, 5, 4, 34), strides=(1,) * 4),
            newshape=(1, 5, 136),
        ),
    ),
    "conv1x1_residual": (
        (1, 16, 7, 9),
        lambda b, x: b.call("nn.relu", b.call("add", conv(b, x, 16, 1), x)),
    ),
    "conv_grouped": ((1, 12, 9, 9), lambda b, x: conv(b, x, 24, 3, pad=1, groups=3)),
    "depthwise": ((1, 21, 10, 13), lambda b, x: conv(b, x, 21, 3, pad=1, groups=21)),
    "max_pool": ((1, 19, 11, 13), lambda b, x: pool(b, conv(b, x, 19, 1), "nn.max_pool2d")),
    "avg_pool": ((1, 19, 11, 13), lambda b, x: pool(b, conv(b, x, 19, 1), "nn.avg_pool2d")),
    "global_mean": ((1, 35, 7, 5), lambda b, x: b.call("mean", x, axis=(2, 3), keepdims=True)),
    "softmax": ((3, 5, 37), lambda b, x: b.call("nn.softmax", x, axis=-1)),
    "softmax_inner": ((3, 37, 5), lambda b, x: b.call("nn.softmax", x, axis=1)),
    "layer_norm": ((5, 77), lambda b, x: layer_norm(b, x)),
    "rms_norm": ((4, 3, 50), lambda b, x: rms_norm(b, x)),
    "masked_softmax": ((2, 9, 21), lambda b, x: masked_softmax(b, x)),
    "transpose_short": ((1, 3, 17, 19), lambda b, x: b.call("transpose", x, axes=(0, 2, 3, 1))),
    "transpose_long": ((2, 37, 41), lambda b, x: b.call("transpose", x, axes=(0, 2, 1))),
    "max_last": ((6, 100), lambda b, x: b.call("max", x, axis=(1,), keepdims=False)),
    "argmax": ((6, 33), lambda b, x: b.call("argmax", x, axis=1, keepdims=False)),
    "empty": ((0, 5), lambda b, x: b.call("tanh", x)),
    "scalar": ((), lambda b, x: b.call("exp", x)),
}


def linear(b, x, n):
    k = x.type.shape[-1]
    y = b.call("nn.matmul", x, b.const(floats(2, k, n)))
    return b.call("add", y, b.const(floats(3, n)))


def gelu(b, x):
    half = b.call("multiply", x, b.const(0.5))
    inner = b.call("erf", b.call("multiply", x, b.const(0.70710678)))
    return b.call("multiply", half, b.call("add", inner, b.const(1.0)))


def transposed(b, x):
    return b.call("transpose", x, axes=(0, 2, 1))


def pool(b, x, name):
    return b.call(name, x, pool_size=(3, 3), strides=(2, 2), padding=(1,) * 4, dilation=(1, 1))


def layer_norm(b, x):
    n = x.type.shape[-1]
    return b.call(
        "nn.layer_norm", x, b.const(floats(4, n)), b.const(floats(5, n)), axis=-1, epsilon=1e-5
    )


def rms_norm(b, x):
    square = b.call("mean", b.call("multiply", x, x), axis=(-1 % x.type.rank,), keepdims=True)
    scale = b.call("reciprocal", b.call("sqrt", b.call("add", square, b.const(1e-6))))
    return b.call("multiply", b.call("multiply", x, scale), b.const(floats(6, x.type.shape[-1])))


def masked_softmax(b, x):
    scores = b.call("add", b.call("multiply", x, b.const(0.125)), b.const(floats(7, 9, 21)))
    p = b.call("nn.softmax", scores, axis=-1)
    return b.call("where", b.call("isnan", p), b.const(0.0), p)


def graph(name) -> tuple[Function, np.ndarray]:
    shape, build = CASES[name]
    b = Builder(OPS, fold=False)
    x = b.param("x", shape)
    return b.finish(build(b, x)), floats(0, *shape)


def fused_functions(function: Function, target: Target) -> list[Function]:
    module = IRModule({"main": function}, ("x",), ("y",))
    module = default_pipeline(3, target).run(module, PassContext(ops=OPS, target=target))
    return [f for f in all_functions(module.main) if f.is_primitive]


@pytest.mark.parametrize("name", CASES)
def test_native(name):
    """The whole way to native code, with one and two threads."""
    function, x = graph(name)
    expected = evaluate(function, [x])[0]
    for threads in (1, 2):
        module = compile_with(OFF, IRModule({"main": function}, ("x",)), num_threads=threads)
        (got,) = module.run({"x": x}).values()
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        if got.size:
            assert compare_arrays(name, got, expected).difference < 1e-5


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.vector_bits}x{t.vector_registers}")
@pytest.mark.parametrize("name", ["matmul_tails", "conv3x3", "conv1x1_residual", "layer_norm"])
def test_any_vector_width(name, target):
    """Lowered loops for other machines, in the loop IR's interpreter."""
    function, x = graph(name)
    module = IRModule({"main": function}, ("x",), ("y",))
    module = default_pipeline(3, target).run(module, PassContext(ops=OPS, target=target))
    values = {module.main.params[0]: x}
    for binding in module.main.bindings:
        arguments = [a.data if hasattr(a, "data") else values[a] for a in binding.args]
        if not isinstance(binding.value.op, Function):  # a view between kernels
            values[binding.var] = binding.value.op.reference(binding.value.attrs, arguments)
            continue
        kernel = build_kernel(binding.value.op, target, "kernel")
        verify(kernel, lowered=True)
        out = np.empty(binding.var.type.static_shape, binding.var.type.dtype.numpy)
        # Kernels may see fewer dimensions than the graph: the elements are the same.
        arrays = [np.ascontiguousarray(a) for a in (*arguments, out)]
        shaped = [
            a.reshape([int(str(d)) for d in p.shape])
            for a, p in zip(arrays, kernel.params, strict=True)
        ]
        run(kernel, shaped)
        values[binding.var] = shaped[-1].reshape(out.shape)
    expected = evaluate(function, [x])[0]
    assert compare_arrays(name, values[module.main.result], expected).difference < 1e-5


@pytest.mark.parametrize("cpu", ["skylake-avx512", "haswell"])
@pytest.mark.parametrize("name", ["matmul", "conv"])
def test_register_tiles_do_not_spill(name, cpu):
    """The chosen tiles leave registers for what passes through them."""
    target = Target.parse(f"llvm -mcpu={cpu}")
    b = Builder(OPS, fold=False)
    if name == "matmul":
        x = b.param("x", (120, 256))
        y = b.call("nn.matmul", x, b.const(floats(1, 256, 384)))
    else:
        x = b.param("x", (1, 64, 28, 28))
        y = conv(b, x, 64, 3, pad=1)
    functions = fused_functions(b.finish(y), target)
    anchor = next(f for f in functions if "matmul_packed" in str(f) or "nn.conv2d" in str(f))
    text = assembly(emit_kernel(build_kernel(anchor, target, "kernel"), target).llvm_text, target)
    deepest = max(int(depth) for depth in re.findall(r"Depth=(\d+)", text))
    inner = [s for s in find_spills(text).loops if s.depth == deepest]
    assert not inner, inner


def test_schedules_are_printable():
    function, _ = graph("conv3x3")
    for fused in fused_functions(function, Target.host()):
        assert "for " in default_schedule(fused, Target.host(), "kernel").show()
