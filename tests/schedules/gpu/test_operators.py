"""Every operator's samples under GPU schedules: CUDA C++ comes out, and the loop IR gives the
reference's values without races."""

import numpy as np
import pytest

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.dtype import DType
from tinycomp.kernels import kernel_name
from tinycomp.ops import default_ops
from tinycomp.relay.builder import Builder
from tinycomp.relay.nodes import Call, Function
from tinycomp.relay.pass_infra import PassContext
from tinycomp.relay.passes.fuse_ops import FuseOps
from tinycomp.schedules import build_kernel
from tinycomp.schedules.gpu import PLAIN
from tinycomp.target import Target
from tinycomp.tir.gpu_executor import run

TARGET = Target.parse("cuda -arch=sm_90a")
OPS = default_ops()
# Softmax over an axis that is not the last, and bytes on other shapes than a fragment's.
WITHOUT_SCHEDULE = {"nn.softmax", "nn.log_softmax", "nn.matmul_bytes"}
CASES = [
    pytest.param(op, sample, id=f"{op.name}-{n}")
    for op in OPS.ops.values()
    if op.compute is not None and not op.view and op.name != "nn.batch_norm"  # never a kernel
    for n, sample in enumerate(op.samples())
]


def primitive(op, sample):
    """The operator alone as a kernel: a fused function with one output tensor."""
    builder = Builder(OPS, fold=False)
    params = [
        builder.param(f"x{i}", a.shape, DType.of(a.dtype)) for i, a in enumerate(sample.inputs)
    ]
    out = builder.call(op, *params, attrs=sample.attrs)
    function = FuseOps().run_function(builder.finish(out), PassContext(OPS, TARGET, 3))
    calls = [b.value.op for b in function.bindings if isinstance(b.value, Call)]
    return next((c for c in calls if isinstance(c, Function)), None)


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_sample(op, sample):
    function = primitive(op, sample)
    if function is None:
        pytest.skip("no kernel of its own")
    func = build_kernel(function, TARGET, kernel_name(function))
    assert PLAIN not in func.attrs or op.name in WITHOUT_SCHEDULE, func.attrs[PLAIN]
    assert emit_cuda(func).name == func.name
    with np.errstate(all="ignore"):
        expected = op.reference(sample.attrs, list(sample.inputs))
    wanted = expected if isinstance(expected, tuple) else (expected,)
    outs = [np.zeros([d.value for d in b.shape], b.dtype.numpy)
            for b in func.params[-func.num_outputs :]]  # fmt: skip
    inputs = [
        np.ascontiguousarray(a).reshape([d.value for d in b.shape])
        for a, b in zip(sample.inputs, func.params, strict=False)
    ]
    run(func, [*inputs, *outs])
    for got, value in zip(outs, wanted, strict=True):
        np.testing.assert_allclose(
            got.astype(np.float64).reshape(-1),
            np.asarray(value).astype(np.float64).reshape(-1),
            max(sample.rtol, 1e-6),
            max(sample.atol, 1e-6),
        )
