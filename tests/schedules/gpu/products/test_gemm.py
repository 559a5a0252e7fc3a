"""Products in float32 without tensor cores: any sizes, copies ahead of time, machine code."""

import numpy as np
import pytest
from tests.schedules.gpu.product_cases import execute, matmul

from tinycomp.codegen.cuda.access import find_accesses
from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.cuda.nvrtc import compile_cuda, library
from tinycomp.diagnostics import TinycompError

SIZES = [(64, 64, 64), (17, 131, 67), (100, 72, 200), (130, 96, 17), (37, 40, 1), (129, 33, 48)]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_matmul_of_any_size(sizes):
    m, n, k = sizes
    (a, b, c), got = execute(matmul((m, k), (k, n), "float32"))
    np.testing.assert_allclose(got, np.maximum(a @ b + c, 0), 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("sizes", "copy"), [((64, 64, 64), 16), ((60, 52, 44), 16), ((65, 63, 61), 4)], ids=str
)
def test_copies_run_ahead(sizes, copy):
    """In vectors where guards are the same for a whole vector, else element by element."""
    m, n, k = sizes
    source = emit_cuda(matmul((m, k), (k, n), "float32")).source
    assert f"cp_async<{copy}>(" in source
    assert f"cp_async<{20 - copy}>(" not in source


def test_memory_is_accessed_without_conflicts():
    (launch,) = find_accesses(matmul((1024, 1024), (1024, 1024), "float32"))
    for site in launch.sites:
        assert site.efficiency == 1.0, str(site)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100"])
def test_machine_code(arch):
    try:
        library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    code = emit_cuda(matmul((4096, 4096), (4096, 4096), "float32"), arch)
    (used,) = compile_cuda(code.source, arch).kernels.values()
    assert used.spill_stores == used.spill_loads == used.stack == 0
    assert 2 * used.registers * code.launches[0].threads <= 65536  # two blocks at a time
