"""Kernels of fused functions on a GPU, and their values by the executor."""

import numpy as np

from tinycomp.dtype import DType
from tinycomp.kernels import kernel_name
from tinycomp.ops import default_ops
from tinycomp.ops.matmul import MatmulAttrs
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Call, Function
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.schedules import build_kernel
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run

OPS = default_ops()
TARGET = Target.parse("cuda -arch=sm_80")


def kernel(shapes, dtype, body, target=TARGET):
    """The kernel of a fused function of these inputs."""
    builder = Builder(OPS, fold=False)
    params = [builder.param(f"x{i}", shape, DType(dtype)) for i, shape in enumerate(shapes)]
    out = body(lambda name, *args, attrs=None: builder.call(OPS[name], *args, attrs=attrs), *params)
    return lowered(builder, out, target)


def lowered(builder, out, target=TARGET):
    """The kernel of what a builder has made."""
    function = FuseOps().run_function(builder.finish(out), PassContext(OPS, target, 3))
    calls = [b.value.op for b in function.bindings if isinstance(b.value, Call)]
    (function,) = (c for c in calls if isinstance(c, Function))
    return build_kernel(function, target, kernel_name(function))


def matmul(a, b, dtype, target=TARGET, bias=True, precision="fp32"):
    """relu(a b + bias), or a b alone."""
    attrs = MatmulAttrs(precision=precision)

    def body(call, x, w, c=None):
        product = call("nn.matmul", x, w, attrs=attrs)
        return call("nn.relu", call("add", product, c)) if c is not None else product

    return kernel([a, b, b[-1:]][: 3 if bias else 2], dtype, body, target)


def execute(func, seed=0):
    """Random inputs and what comes out, as float64."""
    rng = np.random.default_rng(seed)
    *ins, out = ([d.value for d in b.shape] for b in func.params)
    dtype = func.params[0].dtype.numpy
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ins]
    result = np.full(out, np.nan).astype(func.params[-1].dtype.numpy)
    run(func, [*arrays, result])
    return [a.astype(np.float64) for a in arrays], result.astype(np.float64)
