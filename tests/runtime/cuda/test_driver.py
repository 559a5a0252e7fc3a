"""The ctypes side of the CUDA driver, against a library that cuda.h checks the prototypes of."""

import ctypes
import glob
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tinycomp.diagnostics import ExecutionError, MemoryBudgetError, TinycompError
from tinycomp.runtime.cuda.driver import CudaDriver, DeviceFacts, describe, driver_error

PLACES = (
    os.environ.get("CUDA_HOME", "") + "/include",
    "/usr/local/cuda*/include",
    str(Path(pytest.__file__).parent.parent / "nvidia/*/include"),
)


def cuda_include():
    found = (p for place in PLACES for p in glob.glob(place) if Path(p, "cuda.h").is_file())
    return next(found, None)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    include = cuda_include()
    if include is None or shutil.which("g++") is None:
        pytest.skip("cuda.h or g++ is not installed")
    output = tmp_path_factory.mktemp("stub") / "libstub.so"
    source = Path(__file__).with_name("stub_cuda.cpp")
    command = ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{include}", str(source), "-o", output]
    subprocess.run(command, check=True)
    found = ctypes.CDLL(str(output))
    found.stub_notes.restype = ctypes.c_char_p
    return found


@pytest.fixture
def driver(library):
    library.stub_reset(b"", 0)
    driver = CudaDriver(library)
    library.stub_reset(b"", 0)
    return driver


def notes(library):
    return library.stub_notes().decode().splitlines()


def test_the_device(driver, library):
    assert driver.arch == "sm_90a"
    assert driver.memory() == (5 << 32, 6 << 32)
    assert driver.facts() == DeviceFacts(132, 1.98, pytest.approx(4917, abs=1), 50 << 20)
    driver.use()
    assert notes(library)[-1] == "cuCtxSetCurrent(40)"


def test_kernels(driver, library):
    module = driver.load_module(b"\x7f\x05\x00\x00")
    function = driver.function(module, "kernel")
    driver.allow_shared(function, 200_000)
    driver.allow_large_clusters(function)
    arguments = [ctypes.c_uint64(1 << 40), ctypes.c_int32(7)]
    driver.launch(function, (1, 2, 3), (4, 5, 6), 8, 60, arguments)
    driver.launch(function, (1, 2, 3), (4, 5, 6), 8, 60, arguments, programmatic=True)
    assert notes(library) == [
        "cuModuleLoadData(5)",
        "cuModuleGetFunction(50kernel)",
        "cuFuncSetAttribute(51,200000)",
        "cuFuncSetAttribute(51clusters1)",
        f"cuLaunchKernel(1,2,3,4,5,6,8,51,60,{1 << 40},7)",
        "cuLaunchKernelEx(1,2,3,4,5,6,8,1,60,pdl1,51,7)",
    ]


def test_memory(driver, library):
    device, host = driver.allocate(1 << 20), driver.allocate_host(16)
    ctypes.memset(host, 3, 16)
    driver.copy(device, host, 16, 60)
    ctypes.memset(host, 0, 16)
    driver.copy(host, device, 16, 0)
    assert ctypes.string_at(host, 16) == b"\3" * 16
    driver.copy(host, device, 0, 0)  # nothing: no call
    driver.clear(device, 8, 60)
    assert ctypes.string_at(device, 9) == bytes(8) + b"\3"
    driver.free(device)
    driver.free_host(host)
    assert notes(library) == [
        "cuMemAlloc(1048576)", "cuMemHostAlloc(16,0)", "cuMemcpyAsync(60)", "cuMemcpyAsync(0)",
        "cuMemsetD8Async()", "cuMemFree()", "cuMemFreeHost()",
    ]  # fmt: skip


def test_streams_and_events(driver, library):
    stream = driver.new_stream()
    event, timer = driver.new_event(), driver.new_event(timing=True)
    driver.record(event, stream)
    driver.wait(0, event)
    driver.synchronize(stream)
    assert driver.elapsed(timer, timer) == 1.5
    driver.free_event(event)
    assert notes(library) == [
        "cuStreamCreate(n)", "cuEventCreate(no timing)", "cuEventCreate(0)",
        "cuEventRecord(61,60)", "cuStreamWaitEvent(0,61,0)", "cuStreamSynchronize(60)",
        "cuEventSynchronize()", "cuEventElapsedTime()", "cuEventDestroy(61)",
    ]  # fmt: skip


def test_graphs(driver, library):
    with driver.capture(60) as captured:
        driver.clear(driver.allocate(8), 8, 60)
    driver.launch_graph(captured.graph, 62)
    driver.free_graph(captured.graph)
    assert [n for n in notes(library) if "Mem" not in n] == [
        "cuStreamBeginCapture(60,thread)", "cuStreamEndCapture()",
        "cuGraphInstantiateWithFlags(70,0)", "cuGraphDestroy(70)", "cuGraphLaunch(71,62)",
        "cuGraphExecDestroy(71)",
    ]  # fmt: skip


def test_an_error_ends_a_capture(driver, library):
    with pytest.raises(ZeroDivisionError), driver.capture(60):
        _ = 1 // 0
    assert notes(library)[1:] == ["cuStreamEndCapture()", "cuGraphDestroy(70)"]


def test_failures(driver, library):
    library.stub_reset(b"cuMemAlloc", 2)
    with pytest.raises(MemoryBudgetError, match=r"out of memory \(cuMemAlloc_v2\)"):
        driver.allocate(8)
    library.stub_reset(b"cuModuleLoadData", 209)
    with pytest.raises(ExecutionError, match="CUDA_ERROR_NO_BINARY_FOR_GPU: what went wrong") as e:
        driver.load_module(b"xx")
    assert "compile the model again for this GPU" in str(e.value)
    library.stub_reset(b"cuInit", 100)
    with pytest.raises(ExecutionError, match="refuses cuInit"):
        CudaDriver(library)


def test_what_doctor_says(library):
    library.stub_reset(b"", 0)
    assert describe(library) == {
        "CUDA driver": "CUDA 12.4",
        "GPU": "NVIDIA Stub, sm_90a, 24.0 GiB of memory, 20.0 GiB free",
    }
    library.stub_reset(b"cuInit", 999)
    assert describe(library) == {
        "CUDA driver": "the CUDA driver refuses cuInit: CUDA_ERROR_X: what went wrong"
    }


def test_what_doctor_says_of_gpus_that_are_hidden(monkeypatch):
    def refuse(self, call, *_):
        raise driver_error(call, 100, "CUDA_ERROR_NO_DEVICE", "no device is detected")

    monkeypatch.setattr(CudaDriver, "_call", refuse)
    found = describe(object())
    assert "cuInit: CUDA_ERROR_NO_DEVICE" in found["CUDA driver"]
    assert "CUDA_VISIBLE_DEVICES" in found["problem"]


def test_what_doctor_says_without_a_driver(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert describe() == {"CUDA driver": "no GPU or CUDA driver is found"}


def test_an_old_driver():
    class Old:
        pass

    with pytest.raises(TinycompError, match="has no cuInit: it is too old"):
        CudaDriver(Old())


def test_other_errors_say_what_to_do():
    assert "doctor" in str(driver_error("cuX", 999, "CUDA_ERROR_UNKNOWN", "unknown"))
