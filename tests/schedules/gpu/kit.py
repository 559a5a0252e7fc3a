"""Kernels of single operators and small chains for a GPU: values by the executor, accesses by
analysis."""

import numpy as np

from tinycomp.codegen.cuda.access import find_accesses
from tinycomp.dtype import DType
from tinycomp.kernels import kernel_name
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import Call, Function
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.schedules import build_kernel
from tinycomp.schedules.gpu import default_gpu_schedule
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run

TARGET = Target.parse("cuda -arch=sm_90a")
OPS = default_ops()


def all_fused(make, *inputs):
    """The kernels that `make(builder, *params)` becomes, for inputs of (shape, dtype)."""
    builder = Builder(OPS, fold=False)
    params = [builder.param(f"x{i}", s, DType(d)) for i, (s, d) in enumerate(inputs)]
    whole = builder.finish(make(builder, *params))
    function = FuseOps().run_function(whole, PassContext(OPS, TARGET, 3))
    calls = [b.value.op for b in function.bindings if isinstance(b.value, Call)]
    return [op for op in calls if isinstance(op, Function)]


def fused(make, *inputs):
    """The one kernel that `make(builder, *params)` becomes."""
    (function,) = all_fused(make, *inputs)
    return function


def kernel(make, *inputs, arch="sm_90a"):
    """The kernel for a GPU, of its own schedule: not the plain one in place of a refused one."""
    return built(fused(make, *inputs), Target.parse(f"cuda -arch={arch}"))


def built(function, target=TARGET):
    name = kernel_name(function)
    default_gpu_schedule(function, target, name)  # what it refuses is an error here
    return build_kernel(function, target, name)


def launches(make, *inputs):
    return find_accesses(kernel(make, *inputs))


def check(make, *inputs, seed=0, rtol=1e-5, atol=1e-6, low=-3.0, high=3.0):
    """The kernel on the executor, with races looked for, against relay's interpreter."""
    return check_function(fused(make, *inputs), seed, rtol, atol, low, high)


def check_function(function, seed=0, rtol=1e-5, atol=1e-6, low=-3.0, high=3.0, target=TARGET):
    """The kernel of a primitive function, the same way."""
    func = built(function, target)
    rng = np.random.default_rng(seed)
    types = [p.type for p in function.params]
    arrays = [rng.uniform(low, high, t.static_shape).astype(t.dtype.numpy) for t in types]
    wanted = evaluate(function, arrays)
    for got, value in zip(outputs(func, *arrays), wanted, strict=True):
        np.testing.assert_allclose(
            got.astype(np.float64).reshape(-1), np.asarray(value).astype(np.float64).reshape(-1),
            rtol, atol,
        )  # fmt: skip
    return func


def outputs(func, *arrays):
    """The outputs of a kernel on the executor, with races looked for."""
    shapes = [[d.value for d in b.shape] for b in func.params]
    outs = [np.zeros(s, b.dtype.numpy) for s, b in zip(shapes, func.params, strict=True)]
    outs = outs[len(outs) - func.num_outputs :]
    run(func, [*(a.reshape(s) for a, s in zip(arrays, shapes, strict=False)), *outs])
    return outs
