"""Tile programs as CUDA C++: every shape compiles for sm_90a without spills or warnings."""

import re
from dataclasses import replace

import pytest
from tests.tir.tile.products import SHAPES, Product

from tinycomp.codegen.cuda.emit import emit_cuda
from tinycomp.codegen.cuda.nvrtc import compile_cuda, library
from tinycomp.diagnostics import ScheduleError, TinycompError
from tinycomp.dtype import DType
from tinycomp.schedules.gpu.hopper.operands import HopperTile
from tinycomp.tir.nodes import Seq
from tinycomp.tir.tile import nodes as op
from tinycomp.tir.tile.verify import verify_tile_program
from tinycomp.tir.tree import statements


def kernel(tile, **options):
    """Bias and rounding behind a product whose sizes are no multiples of any tile."""
    return emit_cuda(
        Product(4000, 4008, 4096, tile, blocks=132, bias=True, data=False, **options).func
    )


@pytest.fixture(scope="module")
def nvrtc():
    try:
        return library()
    except TinycompError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", SHAPES)
def test_compiles(nvrtc, name):
    tile, options = SHAPES[name]
    found = kernel(tile, **options)
    cubin = compile_cuda(found.source, "sm_90a")
    used = cubin.kernels["product"]
    assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0)
    assert used.registers * found.launches[0].threads <= 65536
    warnings = [line for line in cubin.log.splitlines() if re.search(r"C7\d\d\d|warning", line)]
    assert not warnings


def test_launch():
    (launch,) = kernel(HopperTile(128, 256, 4, 2, 2), out=DType.BFLOAT16).launches
    assert (launch.grid, launch.block, launch.cluster) == ((132, 1, 1), (384, 1, 1), (2, 1, 1))
    a, b, out = launch.maps
    assert (a.param, a.dims, a.strides, a.box) == (0, (4096, 4000), (8192,), (64, 128))
    assert (b.param, b.dims, b.box) == (1, (4008, 4096), (64, 32))  # half of the rows for each
    assert (out.param, out.box, out.swizzle) == (3, (64, 64), 128)
    assert launch.params == (2,)  # the bias; the rest is reached through the maps


def test_source():
    source = kernel(HopperTile(128, 256, 4, 2, 2), out=DType.BFLOAT16).source
    for text in (
        "__cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) product(",
        "const __grid_constant__ TensorMap a_map",
        "set_registers_down<40>();",
        "set_registers_up<232>();",
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16",
        ", p, 1, 1, 0, 1;",  # B transposed
        "fence_mbarrier_init();",
    ):
        assert text in source


def test_programmatic_launches():
    """Only requests to the L2 cache come before the wait for the launch ahead."""
    product = Product(256, 512, 512, HopperTile(128, 128, 4, 2, 1), blocks=4, data=False)
    plain, early = (emit_cuda(product.func, programmatic=p) for p in (False, True))
    assert early.launches[0].programmatic
    text = early.source[early.source.index("__global__") :]
    order = ["tma_prefetch_2d(b_map", "griddepcontrol.wait", "griddepcontrol.launch_dependents"]
    order += ["// producer", "tma_load_2d(a_tile", "tma_load_2d(b_tile"]
    assert sorted(order, key=text.index) == order
    assert "griddepcontrol" not in plain.source
    assert "tma_prefetch_2d" not in plain.source


def test_nothing_is_read_before_the_wait():
    product = Product(256, 512, 512, HopperTile(128, 128, 4, 2, 1), blocks=4, data=False)
    load = next(s for s in statements(product.program) if isinstance(s, op.TmaLoad))
    setup = Seq((op.Ahead(load), product.program.setup))
    with pytest.raises(ScheduleError, match="TmaLoad before the launch ahead has ended"):
        verify_tile_program(replace(product.program, setup=setup))
