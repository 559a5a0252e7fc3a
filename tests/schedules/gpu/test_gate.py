"""No kernel spills registers or uses local memory, and none uses many more than it did."""

import json

import pytest

from tinycomp.codegen.cuda import nvrtc
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.cuda.limits import shared_limit
from tinycomp.diagnostics import TinycompError

from . import gate, kit

RECORDS = json.loads(gate.RECORDS.read_text())
REGISTERS = 64 * 1024  # of a multiprocessor
TOLERANCE = 8  # registers; versions of the compiler differ


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")


def test_records_are_of_these_cases():
    assert list(RECORDS) == list(gate.CASES)


def check(name, cubin, launches):
    assert "warning" not in cubin.log.lower() or "C75" not in cubin.log, cubin.log
    for launch in launches:
        used = cubin.kernels[launch.name]
        assert used.spill_stores == used.spill_loads == used.stack == 0, name
        assert used.registers * launch.threads <= REGISTERS, name
        assert launch.shared_bytes <= shared_limit(cubin.arch), name


@pytest.mark.parametrize("name", gate.CASES)
def test_sm_90a(name):
    make, inputs = gate.CASES[name]
    kernel = emit_cuda(kit.kernel(make, *inputs), "sm_90a")
    cubin = nvrtc.compile_cuda(kernel.source, "sm_90a", "case.cu")
    check(name, cubin, kernel.launches)
    found = gate.registers(cubin)
    assert len(found) == len(RECORDS[name])
    for now, before in zip(found, RECORDS[name], strict=True):
        assert now <= before + TOLERANCE, f"{name}: {found}, recorded {RECORDS[name]}"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_100"])
@pytest.mark.parametrize("name", gate.CASES)
def test_other_architectures(name, arch):
    make, inputs = gate.CASES[name]
    kernel = emit_cuda(kit.kernel(make, *inputs, arch=arch), arch)
    check(name, nvrtc.compile_cuda(kernel.source, arch, "case.cu"), kernel.launches)
