"""Matrix instructions of a warp: records, products against NumPy, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from tests.codegen.cuda.host import HostKernel, all_aligned
from tests.codegen.helpers import Kernel

from tinycomp import te
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.cuda.nvrtc import compile_cuda, library
from tinycomp.diagnostics import ScheduleError, TinycompError, VerifyError
from tinycomp.dtype import DType
from tinycomp.ir.expr import Call
from tinycomp.target import Target
from tinycomp.tir import interpreter
from tinycomp.tir.gpu_executor import run
from tinycomp.tir.lower import lower
from tinycomp.tir.lower_gpu import lower_gpu
from tinycomp.tir.nodes import Evaluate, For, If
from tinycomp.tir.passes.visit import rewriter
from tinycomp.tir.tensor_intrinsics.fragments import FragmentLayout
from tinycomp.tir.tensor_intrinsics.warp import MMA, load_matrix, mma, mma_of
from tinycomp.tir.tree import statements
from tinycomp.tir.verify import verify

from .products import warp_product

DTYPES = ["float16", "bfloat16", "float32", "int8", "uint8"]
LAYOUTS = [
    FragmentLayout(role, bits, transposed)
    for role in "ab" for bits in (8, 16, 32) for transposed in (False, True)
] + [FragmentLayout("c", 32)]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_element_has_one_place(layout):
    rows, columns = layout.indices()
    assert rows.shape == (32, layout.elements) == (32, layout.registers * layout.packed)
    places = set(zip(rows.flat, columns.flat, strict=True))
    assert places == set(np.ndindex(*layout.shape))


def test_layouts_are_those_of_the_manual():
    """PTX ISA, matrix fragments for mma.m16n8k16 with .f16 and mma.m16n8k8 with .tf32."""
    lane = 4 * 3 + 2  # groupID 3, threadID_in_group 2
    a, b, c = FragmentLayout("a", 16), FragmentLayout("b", 16), FragmentLayout("c", 32)
    assert [a.place(lane, e) for e in range(8)] == [
        (3, 4), (3, 5), (11, 4), (11, 5), (3, 12), (3, 13), (11, 12), (11, 13)
    ]  # fmt: skip
    assert [b.place(lane, e) for e in range(4)] == [(3, 4), (3, 5), (3, 12), (3, 13)]
    assert [c.place(lane, e) for e in range(4)] == [(3, 4), (3, 5), (11, 4), (11, 5)]
    a, b = FragmentLayout("a", 32), FragmentLayout("b", 32)
    assert [a.place(lane, e) for e in range(4)] == [(3, 2), (11, 2), (3, 6), (11, 6)]
    assert [b.place(lane, e) for e in range(2)] == [(3, 2), (3, 6)]


def operands(func, coded, seed=0):
    """Random arrays, or ones that hold their position."""
    rng = np.random.default_rng(seed)
    arrays = []
    for buffer in func.params[:2]:
        shape = [d.value for d in buffer.shape]
        if coded:
            i, j = np.indices(shape)
            values = (i * 31 + j * 7) % 61
        elif buffer.dtype.is_float:
            values = rng.standard_normal(shape)
        else:
            low = 0 if buffer.dtype.is_unsigned else -128
            values = rng.integers(low, low + 256, shape)
        values = values.astype(buffer.dtype.numpy)
        if buffer.dtype is DType.FLOAT32:  # exact in tf32
            values = (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        arrays.append(values)
    return arrays


def result(func, arrays, executor=run):
    out = np.zeros([d.value for d in func.params[-1].shape], func.params[-1].dtype.numpy)
    executor(func, [*arrays, out])
    return out


def expected(arrays, a_transposed=False, b_transposed=False):
    a, b = (x.astype("float64" if x.dtype.kind not in "iu" else "int64") for x in arrays)
    return 2 * ((a.T if a_transposed else a) @ (b if b_transposed else b.T))


@pytest.mark.parametrize("coded", [True, False], ids=["coded", "random"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype, coded):
    func = lower_gpu(warp_product(dtype, grid=(2, 1), steps=3).func)
    verify(func, lowered=True)
    arrays = operands(func, coded)
    np.testing.assert_allclose(result(func, arrays), expected(arrays), 1e-5, 1e-3)


@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
def test_transposed_operands(a_transposed, b_transposed):
    schedule = warp_product("float16", a_transposed=a_transposed, b_transposed=b_transposed)
    func = lower_gpu(schedule.func)
    arrays = operands(func, coded=False)
    want = expected(arrays, a_transposed, b_transposed)
    np.testing.assert_allclose(result(func, arrays), want, 1e-5, 1e-3)


def test_scheduled_loops_keep_their_meaning():
    schedule = warp_product("bfloat16", block=(32, 16), warp=(16, 16))
    verify(schedule.func)
    arrays = operands(schedule.func, coded=False)
    want = expected(arrays)
    got = result(schedule.func, arrays, interpreter.run)
    np.testing.assert_allclose(got, want, 1e-5, 1e-3)
    out = np.zeros(want.shape, np.float32)
    Kernel(lower(schedule.func, Target.host()))(*arrays, out)  # without warps, their loops run
    np.testing.assert_allclose(out, want, 1e-5, 1e-3)


def test_tf32_ignores_the_low_bits():
    func = lower_gpu(warp_product("float32", block=(32, 16), warp=(16, 16)).func)
    arrays = [np.full([d.value for d in b.shape], 1 + 2.0**-12, np.float32) for b in func.params]
    assert (result(func, arrays[:2]) == 2 * func.params[0].shape[1].value).all()


def test_a_warp_must_come_whole():
    func = lower_gpu(warp_product("float16", block=(32, 16), warp=(16, 16)).func)
    lane = next(v for v in _variables(func) if v.name == "threadIdx.x")

    def half(node):
        named = isinstance(node, Evaluate) and isinstance(node.value, Call)
        return If(lane < 16, node) if named and node.value.name in MMA else node

    broken = replace(func, body=rewriter(half)(func.body))
    with pytest.raises(VerifyError, match="not reached by all lanes of a warp"):
        result(broken, operands(func, coded=False))


def _variables(func):
    return [s.var for s in statements(func.body) if isinstance(s, For)]


def test_the_lanes_of_a_warp_are_32():
    with pytest.raises(
        ScheduleError, match=r"threadIdx\.x is their 32 lanes, but it has extent 64"
    ):
        lower_gpu(warp_product("float16", lanes=64).func)


def test_other_computations_do_not_match():
    a, b = (te.placeholder((16, 16), "float16", name=name) for name in "AB")
    k = te.reduce_axis((0, 16), name="k")
    c = te.compute(
        (16, 16),
        lambda i, j: te.sum(a[i, k].astype("float32") * b[j, k].astype("float32"), axis=k),
        name="C",
    )
    s = te.create_schedule(c.op)
    with pytest.raises(ScheduleError, match="its spatial axes are"):
        s[c].tensorize("i", mma("float16", "float32"))
    with pytest.raises(ValueError, match="no instruction multiplies float64"):
        mma("float64", "float64")
    with pytest.raises(ValueError, match="transposes elements of 16 bits"):
        load_matrix("b", "int8", True)
    assert mma_of(DType.FLOAT64) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_generated_code(dtype, tmp_path):
    """The CUDA C++ itself, with its asynchronous copies and barriers, on the CPU."""
    transposed = DType(dtype).bits == 16
    schedule = warp_product(
        dtype, block=(32, 32), warp=(16, 16), steps=4, b_transposed=transposed,
        a_transposed=dtype == "bfloat16",
    )  # fmt: skip
    schedule["C"].pipeline("k.0", 3)
    func = lower_gpu(schedule.func)
    arrays = all_aligned(operands(func, coded=False))
    want = expected(arrays, dtype == "bfloat16", transposed)
    (out,) = all_aligned([np.zeros(want.shape, func.params[-1].dtype.numpy)])
    kernel = emit_cuda(func)
    assert "cp_async<16>" in kernel.source
    assert HostKernel(kernel, tmp_path)(*arrays, out) == 0
    np.testing.assert_allclose(out, want, 1e-5, 1e-3)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
def test_machine_code(arch):
    try:
        library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    for dtype in DTYPES:
        kernel = emit_cuda(lower_gpu(warp_product(dtype).func), arch)
        cubin = compile_cuda(kernel.source, arch)
        (used,) = cubin.kernels.values()
        assert used.spill_stores == used.spill_loads == used.stack == 0
        assert used.registers * kernel.launches[0].threads <= 65536
