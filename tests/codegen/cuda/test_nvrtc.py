"""NVRTC: machine code and what it uses, and clear errors."""

import pytest

from tinycomp.codegen.cuda import nvrtc
from tinycomp.codegen.cuda.nvrtc import Resources, compile_cuda, describe, parse_log
from tinycomp.diagnostics import InternalError, TinycompError

LOG = """ptxas info    : Compiling entry function 'f' for 'sm_90a'
ptxas info    : Function properties for f
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 12288 bytes smem
ptxas info    : Compiling entry function 'g' for 'sm_90a'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers
"""
SOURCE = """extern "C" __global__ void f(float* x) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = s[63 - threadIdx.x];
}"""


@pytest.fixture
def installed():
    try:
        return nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")


def test_resources_are_read_from_the_log():
    assert parse_log(LOG) == {"f": Resources(80, 8, 4, 16, 12288), "g": Resources(8, 0, 0, 0, 0)}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
def test_compiles_without_a_gpu(installed, arch):
    if int(arch.strip("sm_a")) not in installed.architectures:
        pytest.skip(f"NVRTC {installed.version} does not know {arch}")
    cubin = compile_cuda(SOURCE, arch)
    assert cubin.code[:4] == b"\x7fELF"
    assert cubin.kernels["f"].registers > 0
    assert cubin.kernels["f"].shared == 256
    assert cubin.kernels["f"].spill_stores == 0


def test_an_unknown_architecture_lists_those_that_are_known(installed):
    with pytest.raises(TinycompError, match="does not know the architecture 'sm_35'") as error:
        compile_cuda(SOURCE, "sm_35")
    assert "sm_90" in error.value.hint


def test_source_that_does_not_compile_is_a_bug_of_ours(installed):
    with pytest.raises(InternalError, match="expected"):
        compile_cuda("nonsense", "sm_90a")


def test_missing_nvrtc_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(()))
    monkeypatch.setattr(nvrtc, "library", nvrtc.library.__wrapped__)
    with pytest.raises(TinycompError, match="not installed") as error:
        compile_cuda(SOURCE, "sm_90a")
    assert "pip install nvidia-cuda-nvrtc" in error.value.hint
    assert "not found" in describe()
