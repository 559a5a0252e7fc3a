"""Single kernels for a GPU: source, machine code and the program of the threads on the CPU."""

import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.codegen.nvrtc import library
from tinycomp.cuda_function import CudaFunction
from tinycomp.diagnostics import InputError, ScheduleError, TinycompError


def doubled(extent=1000, bind=True, threads=128):
    a = te.placeholder((extent,), name="A")
    b = te.compute((extent,), lambda i: a[i] * 2.0, name="B")
    s = te.create_schedule(b.op)
    if bind:
        block, thread = s[b].split("i", factor=threads)
        s[b].bind(block, "blockIdx.x")
        s[b].bind(thread, "threadIdx.x")
    return s, [a, b]


def have_nvrtc():
    try:
        library()
    except TinycompError:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not have_nvrtc(), reason="NVRTC is not installed")


@pytest.mark.parametrize("bind", [True, False])
def test_simulation_equals_numpy(bind):
    f = tinycomp.build(*doubled(bind=bind), target="cuda -arch=sm_90a")
    assert isinstance(f, CudaFunction)
    a, b = np.arange(1000, dtype=np.float32), np.empty(1000, np.float32)
    f.simulate(a, b)
    np.testing.assert_array_equal(b, a * 2)
    assert f.launches[0].threads >= 32
    assert "__global__" in f.get_source()
    assert "threadIdx.x" in f.get_source("tir")


def test_symbolic_sizes_are_compiled_when_seen():
    f = tinycomp.build(*doubled(te.size_var("n")), target="cuda -arch=sm_80", name="twice")
    with pytest.raises(TinycompError, match="has symbolic dimensions"):
        f.get_source()
    for n in (1, 127, 300):
        a, b = np.ones(n, np.float32), np.empty(n, np.float32)
        f.simulate(a, b)
        assert (b == 2).all()
        assert f.launches[0].grid[0] == -(-n // 128)


def test_arguments_are_checked():
    f = tinycomp.build(*doubled(), target="cuda -arch=sm_90a")
    a = np.ones(1000, np.float32)
    with pytest.raises(InputError, match="takes 2 arguments"):
        f.simulate(a)
    with pytest.raises(InputError, match="dtype float64"):
        f.simulate(a.astype(np.float64), a)
    with pytest.raises(InputError, match="shares memory"):
        f.simulate(a, a)


def test_a_block_over_the_limits_is_refused_when_built():
    with pytest.raises(ScheduleError, match=r"threadIdx\.x has extent 2048, at most 1024"):
        tinycomp.build(*doubled(4096, threads=2048), target="cuda -arch=sm_90a")


def test_an_unknown_form_is_refused():
    f = tinycomp.build(*doubled(), target="cuda -arch=sm_90a")
    with pytest.raises(TinycompError, match="unknown form 'll'"):
        f.get_source("ll")


@needs_nvrtc
def test_resources_come_from_the_assembler():
    f = tinycomp.build(*doubled(), target="cuda -arch=sm_90a")
    (used,) = f.resources.values()
    assert 0 < used.registers <= 32
    assert used.spill_stores == used.stack == 0
    assert f.cubin.code[:4] == b"\x7fELF"


@needs_nvrtc
def test_an_unknown_architecture_is_named():
    f = tinycomp.build(*doubled(), target="cuda -arch=sm_999")
    with pytest.raises(TinycompError, match="does not know the architecture 'sm_999'"):
        f.cubin  # noqa: B018
