"""Single kernels for a GPU: source, machine code and the program of the threads on the CPU."""

import numpy as np
import pytest

import tinycomp
from tinycomp import te
from tinycomp.codegen.cuda.nvrtc import library
from tinycomp.cuda_function import CudaFunction
from tinycomp.diagnostics import ExecutionError, InputError, ScheduleError, TinycompError
from tinycomp.testing.fake_cuda import FakeArrays, FakeDriver


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


def test_specialized_sizes_are_compiled_when_seen():
    args = doubled(te.size_var("n"))
    f = tinycomp.build(*args, target="cuda -arch=sm_80", name="twice", specialize=True)
    with pytest.raises(TinycompError, match="is specialized"):
        f.get_source()
    for n in (1, 127, 300):
        a, b = np.ones(n, np.float32), np.empty(n, np.float32)
        f.simulate(a, b)
        assert (b == 2).all()
        assert f.launches[0].grid[0] == -(-n // 128)
        assert "int n" not in f.get_source()


def test_one_code_takes_the_size():
    f = tinycomp.build(*doubled(te.var("n")), target="cuda -arch=sm_90a", name="twice")
    source = f.get_source()
    assert "const int n)" in source
    assert str(f.launches[0].grid[0]) == "(n + 127) // 128"
    for n in (0, 1, 127, 300):
        a, b = np.ones(n, np.float32), np.empty(n, np.float32)
        f.simulate(a, b)
        assert (b == 2).all()
        assert (f.launches[0].grid[0], f.launches[0].sizes) == (-(-n // 128), (n,))
    assert f.get_source() is source
    (access,) = f.accesses_at(n=1024)
    assert (access.blocks, access.moved) == (8, 8192)
    with pytest.raises(TinycompError, match=r"sizes of twice are \['n'\]"):
        f.accesses_at(m=3)


def test_indices_that_do_not_fit_an_int_are_long():
    n = te.var("n")
    a = te.placeholder((n, n), name="A")
    b = te.compute((n,), lambda i: a[i, n - 1 - i], name="B")
    s = te.create_schedule(b)
    f = tinycomp.build(s, [a, b], target="cuda -arch=sm_90a")
    assert "const int n)" in f.get_source()
    f.accesses_at(n=30000)
    assert "const int n)" in f.get_source()
    f.accesses_at(n=60000)
    assert "const long long n)" in f.get_source()


def test_a_grid_over_the_limits_is_refused_when_called():
    n = te.var("n")
    a = te.placeholder((n, 4), name="A")
    b = te.compute((n, 4), lambda i, j: a[i, j] + 1.0, name="B")
    s = te.create_schedule(b)
    s[b].bind("i", "blockIdx.y")
    s[b].bind("j", "threadIdx.x")
    f = tinycomp.build(s, [a, b], target="cuda -arch=sm_90a")
    x = np.ones((70000, 4), np.float32)
    with pytest.raises(ScheduleError, match=r"blockIdx\.y has extent 70000, at most 65535"):
        f.simulate(x, np.empty_like(x))
    f.simulate(x[:8], y := np.empty((8, 4), np.float32))
    assert (y == 2).all()


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


def on_fake_device(f, arch="sm_90a"):
    """The same function on a device made of NumPy, and its arrays."""
    driver = FakeDriver(arch=arch)
    driver.know_kernel(f.cubin.code, f.launches, f.lowered.func)
    return CudaFunction(f.lowered, driver), driver


def put(driver, value):
    driver.use()
    array = FakeArrays(driver).empty(value.shape, value.dtype, 0)
    array.host()[...] = value
    return array


@needs_nvrtc
def test_calls_with_numpy_arrays():
    f, driver = on_fake_device(tinycomp.build(*doubled(), target="cuda -arch=sm_90a"))
    a, b = np.arange(1000, dtype=np.float32), np.empty(1000, np.float32)
    for _ in range(2):
        f(a, b)
        np.testing.assert_array_equal(b, a * 2)
    assert driver.launches == 2


@needs_nvrtc
def test_clusters_of_more_than_eight_blocks_are_asked_for():
    a = te.placeholder((64, 32), name="A")
    k = te.reduce_axis((0, 64), name="k")
    b = te.compute((32,), lambda j: te.sum(a[k, j], axis=k), name="B")
    s = te.create_schedule(b.op)
    block, _ = s[b].split("k", nparts=16)
    partial = s.rfactor(b, block)
    j, block = s[b].axes
    s[b].bind(j, "threadIdx.x")
    s[b].bind(block, "cluster.x")
    s[partial].compute_at(s[b], block)
    f, _ = on_fake_device(tinycomp.build(s, [a, b], target="cuda -arch=sm_90a"))
    x, out = np.ones((64, 32), np.float32), np.empty(32, np.float32)
    f(x, out)
    np.testing.assert_array_equal(out, 64)


@needs_nvrtc
def test_calls_with_device_arrays():
    f, driver = on_fake_device(tinycomp.build(*doubled(), target="cuda -arch=sm_90a"))
    a, b = put(driver, np.arange(1000, dtype=np.float32)), put(driver, np.empty(1000, np.float32))
    f(a, b)
    np.testing.assert_array_equal(b.get(), a.get() * 2)
    result = f.time_evaluator(number=3, repeat=4)(a, b)
    assert len(result.results) == 4
    assert result.number == 3
    flushed = f.time_evaluator(number=3, repeat=2, flush_cache=True)(a, b)
    assert (len(flushed.results), flushed.number) == (2, 1)
    with pytest.raises(InputError, match="is a float, not an array on the device"):
        f(a, 1.0)
    with pytest.raises(InputError, match="'B' has shape"):
        f(a, put(driver, np.empty(999, np.float32)))


@needs_nvrtc
def test_an_index_out_of_range_is_reported():
    table, index = te.placeholder((5,), name="T"), te.placeholder((4,), "int32", name="i")
    out = te.compute((4,), lambda i: table[te.call("checked_index", index[i], 5)], name="R")
    s = te.create_schedule(out.op)
    f, driver = on_fake_device(tinycomp.build(s, [table, index, out], target="cuda -arch=sm_90a"))
    t, r = np.arange(5, dtype=np.float32), np.empty(4, np.float32)
    with pytest.raises(ExecutionError, match="out of range"):
        f(t, np.array([0, 1, 7, 2], np.int32), r)
    f(t, np.array([0, 1, 4, 2], np.int32), r)  # the error is not there any more
    assert r.tolist() == [0, 1, 4, 2]
    with pytest.raises(ExecutionError, match="out of range"):
        f(put(driver, t), put(driver, np.array([5, 0, 0, 0], np.int32)), put(driver, r))


@needs_nvrtc
def test_code_for_another_gpu_is_refused():
    built = tinycomp.build(*doubled(), target="cuda -arch=sm_90a")
    f, _ = on_fake_device(built, arch="sm_80")
    a = np.ones(1000, np.float32)
    with pytest.raises(TinycompError, match="compiled for sm_90a, but the GPU is sm_80"):
        f(a, np.empty_like(a))


def test_accesses_show_what_is_not_coalesced():
    a = te.placeholder((64, 64), name="A")
    b = te.compute((64, 64), lambda i, j: a[j, i] + 1.0, name="B")
    s = te.create_schedule(b.op)
    s[b].bind(b.op.axis[0], "blockIdx.x")
    s[b].bind(b.op.axis[1], "threadIdx.x")
    (touched,) = tinycomp.build(s, [a, b], "cuda -arch=sm_90a").accesses
    found = {site.verb: site.efficiency for site in touched.sites}
    assert found == {"load": 4 / 32, "store": 1.0}  # 4 bytes of each sector of 32


@needs_nvrtc
def test_symbolic_sizes_on_the_device():
    """Two launches with a workspace that grows; the sizes are arguments of the kernels."""
    n, m = te.var("n"), te.var("m")
    a = te.placeholder((n, m), name="A")
    b = te.compute((n, m), lambda i, j: a[i, j] + 1.0, name="B")
    c = te.compute((m, n), lambda i, j: b[j, i] * 2.0, name="C")
    f, driver = on_fake_device(
        tinycomp.build(te.create_schedule(c), [a, c], target="cuda -arch=sm_90a")
    )
    for shape in ((3, 5), (40, 30), (2, 2), (0, 3)):
        x, y = np.full(shape, 2.0, np.float32), np.empty(shape[::-1], np.float32)
        f(x, y)
        assert (y == 6).all()
    assert driver.launches == 6  # without blocks there is nothing to launch
    x, y = put(driver, np.ones((9, 7), np.float32)), put(driver, np.empty((7, 9), np.float32))
    f(x, y)
    driver.synchronize(0)
    assert (y.get() == 4).all()
