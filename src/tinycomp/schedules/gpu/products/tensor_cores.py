"""Matrix products on the tensor cores of warps (`mma.sync`, sm_80 and later).

The product of `gemm` with more stages: tiles of the operands in shared memory, filled by
asynchronous copies for later steps along k while one is computed; fragments of them in registers;
and the result through shared memory, from where each thread stores what lies together. (CUTLASS,
"Efficient GEMM in CUDA".)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .... import te
from ....codegen.cuda.limits import has_async_copies, shared_limit
from ....dtype import DType
from ....ir.expr import Load, Var, as_int, is_const, substitute
from ....ir.node import postorder
from ....te.simplify import Analyzer
from ....te.tensor import ComputeOp, Tensor
from ....tir.schedule import Stage
from ....tir.tensor_intrinsics.warp import (
    Mma,
    load_matrix,
    load_tf32,
    mma,
    mma_of,
    store_fragment,
)
from ....types import TensorType
from ...common import Kernel, extent_of

_LANES = 32
_ROW = 128  # bytes of a row of a shared tile: all banks, once
_ACCESS = 16  # bytes of the widest access of a thread
_WIDE = 4  # elements of the result that a thread loads and stores at once
_SMS = 132  # multiprocessors of a large GPU
# Of one multiprocessor, per cycle: multiply-adds of 16-bit operands, bytes of shared memory, bytes
# from the second cache. Cycles: of a step along k at least, and of a block besides.
_MULTIPLY_ADDS, _SHARED_BYTES, _L2_BYTES = 1200, 128, 48
_STEP, _START = 250, 1500


@dataclass(frozen=True)
class WarpTile:
    """A block's share of the result, and how its warps divide it.

    Attributes:
        rows, columns: of the block.
        warps: in each direction.
        depth: of a step along k, in elements.
        stages: steps whose operands are in shared memory.
    """

    rows: int
    columns: int
    warps: tuple[int, int]
    depth: int
    stages: int = 3

    @property
    def threads(self) -> int:
        return math.prod(self.warps) * _LANES

    @property
    def warp(self) -> tuple[int, int]:
        """Rows and columns of one warp."""
        return self.rows // self.warps[0], self.columns // self.warps[1]


_SHAPES = (
    (128, 256, (2, 4)), (128, 128, (2, 4)), (128, 64, (4, 2)), (64, 128, (2, 4)), (64, 64, (2, 2)),
    (32, 64, (2, 2)), (16, 64, (1, 4)),
)  # fmt: skip


def tensor_core_type(dtype: DType, precision: str, arch: str) -> Mma | None:
    """The instruction for operands of this type; float32 only where tf32 is allowed."""
    exact = dtype is DType.FLOAT32 and precision != "tf32"
    if exact or not has_async_copies(arch):
        return None
    return mma_of(dtype)


def is_transposed(record: Mma) -> bool:
    """Whether the right operand has k first in shared memory."""
    return record.dtype.bits > 8


def choose_warp_tile(
    batch: int, m: int, n: int, k: int, dtype: DType, shared: int = 227 * 1024
) -> WarpTile:
    """The tile with the shortest estimated time: whole waves of blocks, each limited by the tensor
    cores, shared memory or the second cache.

    >>> tile = choose_warp_tile(1, 4096, 4096, 4096, DType.BFLOAT16)
    >>> tile.rows, tile.columns, choose_warp_tile(1, 128, 768, 768, DType.BFLOAT16).rows
    (128, 256, 16)
    """
    depth = _ROW // dtype.itemsize
    tiles = [WarpTile(rows, columns, warps, depth) for rows, columns, warps in _SHAPES]
    fitting = [t for t in tiles if shared_bytes(t, dtype) <= shared]
    return min(fitting, key=lambda t: estimated_cycles(t, batch, m, n, k, dtype))


def shared_bytes(tile: WarpTile, dtype: DType) -> int:
    """Of the operands' tiles, in whose place the result's comes, with their padding."""
    rows = tile.rows * (_ROW + _ACCESS) + tile.depth * (tile.columns * dtype.itemsize + 32)
    return max(tile.stages * rows, tile.rows * (tile.columns + 8) * 4)


def estimated_cycles(tile: WarpTile, batch: int, m: int, n: int, k: int, dtype: DType) -> float:
    """Of the whole product, by one wave of blocks after the other."""
    blocks = batch * math.ceil(m / tile.rows) * math.ceil(n / tile.columns)
    size, warps = dtype.itemsize, math.prod(tile.warps)
    outline = (tile.rows + tile.columns) * tile.depth * size
    compute = tile.rows * tile.columns * tile.depth / _MULTIPLY_ADDS * size / 2
    shared = (sum(tile.warp) * warps * tile.depth * size + outline) / _SHARED_BYTES
    step = max(compute, shared, outline / _L2_BYTES, _STEP)
    end = tile.rows * tile.columns * 4 * 3 / _SHARED_BYTES
    return math.ceil(blocks / _SMS) * (math.ceil(k / tile.depth) * step + end + _START)


def padded_operands(
    sizes: tuple[int, int, int, int],
    padded: tuple[int, int, int],
    left: Callable[..., Any],
    right: Callable[..., Any],
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`left(b, i, k)` and `right(b, k, j)` with zeros from their true extents to the padded ones.

    Args:
        sizes: batch, rows, columns and length of the sum.
        padded: rows, columns and length to whole tiles.
    """
    _, m, n, k = sizes
    rows, columns, depth = padded

    def inside(conditions: list[Any], value: Any) -> Any:
        for condition in conditions:
            value = te.if_then_else(condition, value, te.const(0, value.dtype))
        return value

    def a_tile(b: Any, i: Any, p: Any) -> Any:
        return inside([i < m] * (rows != m) + [p < k] * (depth != k), left(b, i, p))

    def b_tile(b: Any, p: Any, j: Any) -> Any:
        return inside([j < n] * (columns != n) + [p < k] * (depth != k), right(b, p, j))

    return a_tile, b_tile


def tensor_core_gemm(
    out: TensorType,
    sizes: tuple[int, int, int, int],
    left: Callable[..., Any],
    right: Callable[..., Any],
    result: Callable[..., tuple[Any, Any, Any]],
    record: Mma,
    arch: str,
) -> list[Tensor]:
    """The product of `gemm` as te, with a stage for each memory that it passes through.

    The right operand is [k, columns] in shared memory and transposed as it is loaded; bytes, which
    cannot be, are [columns, k].
    """
    batch, m, n, k = sizes
    tile = choose_warp_tile(batch, m, n, k, record.dtype, shared_limit(arch))
    rows, columns, depth = (
        math.ceil(extent / part) * part
        for extent, part in ((m, tile.rows), (n, tile.columns), (k, tile.depth))
    )
    acc = record.accumulator
    fragment = te.round_tf32 if record.dtype is DType.FLOAT32 else lambda x: x

    a_tile, b_tile = padded_operands(sizes, (rows, columns, depth), left, right)

    def b_place(b: Any, p: Any, j: Any) -> tuple[Any, Any, Any]:
        return (b, p, j) if is_transposed(record) else (b, j, p)

    a = te.compute((batch, rows, depth), a_tile, name="a_tile", tag="mma_tile")
    w = te.compute(
        b_place(batch, depth, columns), lambda b, *at: b_tile(*b_place(b, *at)), name="b_tile",
        tag="mma_tile",
    )  # fmt: skip
    a_warp = te.compute(a.shape, lambda *i: fragment(a(*i)), name="a_warp", tag="mma_fragment")
    b_warp = te.compute(w.shape, lambda *i: fragment(w(*i)), name="b_warp", tag="mma_fragment")
    axis = te.reduce_axis((0, depth), name="k")
    product = te.compute(
        (batch, rows, columns),
        lambda b, i, j: te.sum(
            a_warp(b, i, axis).astype(acc) * b_warp(*b_place(b, axis, j)).astype(acc), axis=axis
        ),
        name="product",
        tag="mma",
        attrs={"tile": tile, "sizes": sizes, "instruction": record},
    )
    c_tile = te.compute(product.shape, lambda *i: product(*i), name="c_tile", tag="mma_result")
    return [te.compute(out.shape, lambda *i: c_tile(*result(*i)).astype(out.dtype), name="result")]


def schedule_tensor_cores(
    kernel: Kernel, product: ComputeOp, matrix_axes: Callable[..., tuple[Var, Var, Var]]
) -> None:
    """Tiles of the output over blocks, of these over warps.

    Args:
        matrix_axes: fuses the loops of the output to batch, rows and columns.
    """
    schedule, tile = kernel.schedule, product.attrs["tile"]
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    stages = {op for op in kernel.stages if op.tag.startswith("mma")}
    for op in kernel.stages:
        if op not in stages and op is not out:
            kernel.stage(op).compute_inline()
    (result,) = (op for op in stages if op.tag == "mma_result")
    fragments = [t.op for t in product.inputs]
    tiles = [f.inputs[0] for f in fragments]  # type: ignore[attr-defined]
    batch, m, n, _ = product.attrs["sizes"]
    stage = kernel.stage(out)
    b, i, j = matrix_axes(stage, batch, m, n)
    row_block, i = stage.split(i, factor=tile.rows)
    column_block, j = stage.split(j, factor=tile.columns)
    stage.reorder(b, row_block, column_block, i, j)
    for axis, thread in ((b, "z"), (row_block, "y"), (column_block, "x")):
        stage.bind(axis, f"blockIdx.{thread}")
    store, compute = kernel.stage(result), kernel.stage(product)
    store.compute_at(stage, column_block)
    compute.compute_at(stage, column_block)
    schedule.set_scope(result.output(0), "shared")
    schedule.set_scope(product.output(0), "warp")
    _over_threads(stage, stage.fuse(i, j), tile, _WIDE if n % _WIDE == 0 else 1)
    record: Mma = product.attrs["instruction"]
    step, inner = _bind_warps(compute, tile, record)
    for operand, fragment in zip("ab", fragments, strict=True):
        schedule.set_scope(fragment.output(0), "warp")
        _load_fragments(kernel.stage(fragment), compute, inner, operand, record)  # type: ignore[arg-type]
    for shared, offset in zip(tiles, (4, 8), strict=True):
        copy = schedule[shared]
        copy.compute_at(compute, step)
        schedule.set_scope(shared, "shared")
        size = shared.dtype.itemsize
        copy.storage_align(copy.axes[-2], _ROW // size, offset if size == 4 else _ACCESS // size)
        lanes = _together(copy, _ACCESS // size)
        _over_threads(copy, copy.fuse(*copy.axes[-2:]), tile, lanes)
    compute.pipeline(step, tile.stages)
    store.storage_align(store.axes[-2], 32, 8)
    _store_fragments(store, tile, product.output(0).dtype)


def _over_threads(stage: Stage, axis: Var, tile: WarpTile, lanes: int) -> None:
    """An axis over all threads of the block, `lanes` neighbours each."""
    step, y, x, lane = stage.split(axis, factors=[None, math.prod(tile.warps), _LANES, lanes])
    stage.bind(y, "threadIdx.y")
    stage.bind(x, "threadIdx.x")
    if extent_of(stage, step) <= 8:
        stage.unroll(step)
    if lanes > 1:
        stage.vectorize(lane)


def _together(stage: Stage, most: int) -> int:
    """How many neighbours of a tile, at most `most`, also lie together in memory: the channels of a
    pixel, say. `most` if fewer than four do: they are stored together at least."""
    last = stage.block.iter_vars[-1]
    loads = [n for n in postorder(stage.block.body) if isinstance(n, Load)]
    for lanes in (most, most // 2):
        if lanes < 4:
            break
        group, analyzer = Var("group"), Analyzer()
        analyzer.bind(group, 0, as_int(last.extent) // lanes)
        for axis in stage.block.iter_vars[:-1]:
            analyzer.bind(axis.var, 0, axis.extent)
        moved = [
            analyzer.simplify(
                substitute(load.indices[-1], {last.var: group * lanes + lane})
                - substitute(load.indices[-1], {last.var: group * lanes})
            )
            for load in loads
            for lane in range(lanes)
        ]
        if all(is_const(by, i % lanes) for i, by in enumerate(moved)):
            return lanes
    return most


def _bind_warps(stage: Stage, tile: WarpTile, record: Mma) -> tuple[Var, Var]:
    """The product in fragments; returns the loop over steps along k, and that inside a step."""
    rows, columns = tile.warp
    i, j, k = stage.axes[-3:]
    y, row, i = stage.split(i, factors=[None, rows // 16, 16])
    x, column, j = stage.split(j, factors=[None, columns // 8, 8])
    step, inner, k = stage.split(k, factors=[None, tile.depth // record.depth, record.depth])
    stage.reorder(step, y, x, inner, row, column, i, j, k)
    stage.bind(stage.fuse(y, x), "threadIdx.y")
    for axis in (inner, row, column):
        stage.unroll(axis)
    intrin = mma(
        record.dtype, record.accumulator, b_transposed=is_transposed(record), right=record.right
    )
    stage.tensorize(i, intrin)
    return step, inner


def _load_fragments(stage: Stage, compute: Stage, inner: Var, operand: str, record: Mma) -> None:
    """From shared memory to registers."""
    dtype = record.dtype if operand == "a" else record.right
    stage.compute_at(compute, inner)
    rows, columns = stage.axes[-2:]
    transposed = operand == "b" and is_transposed(record)
    if dtype is DType.FLOAT32:
        intrin = load_tf32(operand, transposed)
        outer = stage.split(columns if transposed else rows, factor=8 if transposed else 16)
    else:
        intrin = load_matrix(operand, dtype, transposed)
        outer = stage.split(columns if transposed else rows, factor=16)
    if transposed:
        stage.reorder(outer[0], rows, outer[1])
    stage.unroll(outer[0])
    stage.tensorize(rows if transposed else outer[1], intrin)


def _store_fragments(stage: Stage, tile: WarpTile, dtype: DType) -> None:
    rows, columns = tile.warp
    i, j = stage.axes[-2:]
    y, row, i = stage.split(i, factors=[None, rows // 16, 16])
    x, column, j = stage.split(j, factors=[None, columns // 8, 8])
    stage.reorder(y, x, row, column, i, j)
    stage.bind(stage.fuse(y, x), "threadIdx.y")
    stage.unroll(row)
    stage.unroll(column)
    stage.tensorize(i, store_fragment(dtype))
