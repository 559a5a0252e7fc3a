"""Matrix products and convolutions on a GPU: tiles in shared memory, smaller ones in registers.

Both are one computation, over operands that are padded to whole tiles:

    acc[b, i, j] = sum_k A[b, i, k] * B[b, k, j]

A and B are no tensors in memory: they are computed where a tile of them is copied to shared
memory, which for a convolution gathers its windows (`conv`).
Each thread keeps a register tile of the result while k runs. (Volkov and Demmel, "Benchmarking GPUs
to tune dense linear algebra", SC 2008.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .... import te
from ....codegen.cuda.limits import shared_limit
from ....dtype import DType
from ....ir.expr import Binary, Call, IntImm, Var, as_int, variables
from ....ir.node import postorder
from ....ops.matmul import MatmulAttrs
from ....ops.operand_parts import TF32, split_of, sum_of_parts
from ....ops.window import accumulation_dtype
from ....te.tensor import ComputeOp, Tensor
from ....tir.lower_gpu import ACCESS
from ....tir.schedule import Stage
from ....types import TensorType
from ...common import Kernel, extent_of
from .split_k import choose_slices, split_product
from .tensor_cores import (
    choose_warp_tile,
    estimated_cycles,
    padded_operands,
    tensor_core_gemm,
    tensor_core_type,
)

_SIDE = 16  # threads of a block in each direction
_DEPTH = 16  # of a tile along k
_TOGETHER = 4  # values along k that a thread loads at once
_STAGES = 3  # tiles along k in shared memory: one is computed while the next ones arrive
_MULTIPLY_ADDS = 128  # of a multiprocessor per cycle
_BUSY = 132  # blocks that give every multiprocessor of a large GPU work
MIN_ROWS = 8  # fewer rows are not worth a tile


@dataclass(frozen=True)
class GemmTile:
    """A block's share of the result; each of its 16 x 16 threads has rows/16 x columns/16."""

    rows: int
    columns: int


_TILES = tuple(
    GemmTile(rows, columns)
    for rows, columns in (
        (128, 128), (64, 128), (64, 64), (32, 64), (32, 32), (16, 64), (16, 16)
    )
)  # fmt: skip


def choose_gemm_tile(batch: int, m: int, n: int) -> GemmTile:
    """The largest tile that leaves work for every multiprocessor and wastes little at the edges.

    >>> choose_gemm_tile(1, 4096, 4096), choose_gemm_tile(1, 64, 3136)
    (GemmTile(rows=128, columns=128), GemmTile(rows=32, columns=64))
    """
    return min(_TILES, key=lambda tile: _step(tile, batch, m, n))


def _step(tile: GemmTile, batch: int, m: int, n: int) -> float:
    """Time of a step along k, in multiply-adds of one multiprocessor."""
    blocks = batch * math.ceil(m / tile.rows) * math.ceil(n / tile.columns)
    # reads of shared memory have a quarter of the rate of multiply-adds
    work = tile.rows * tile.columns + 24 * (tile.rows + tile.columns)
    return math.ceil(blocks / _BUSY) * work


def plain_cycles(batch: int, m: int, n: int, k: int) -> float:
    """Estimated time of a product."""
    return k * _step(choose_gemm_tile(batch, m, n), batch, m, n) / _MULTIPLY_ADDS


def _padded(extent: int, tile: int) -> int:
    return math.ceil(extent / tile) * tile


def gemm(
    out: TensorType,
    sizes: tuple[int, int, int, int],
    left: Callable[..., Any],
    right: Callable[..., Any],
    result: Callable[..., tuple[Any, Any, Any]],
    precision: str,
    arch: str,
) -> list[Tensor]:
    """The product as te, for `left(b, i, k)` and `right(b, k, j)` inside their true extents; in
    slices of the sum where that is faster.

    Args:
        sizes: batch, rows, columns and length of the sum.
        result: which element (b, i, j) an index of the output is.
        precision: "tf32" allows float32 operands to be rounded for tensor cores.
        arch: of the GPU, "sm_90a" and the like.
    """
    product, cycles, acc = _tiled, plain_cycles, accumulation_dtype(out.dtype)
    record = tensor_core_type(out.dtype, precision, arch)
    if record is not None:
        product = partial(tensor_core_gemm, record=record, arch=arch)
        cycles = partial(_tensor_core_cycles, dtype=record.dtype, shared=shared_limit(arch))
        acc = record.accumulator
    slices = choose_slices(sizes, cycles)
    if slices == 1:
        return product(out, sizes, left, right, result)
    return split_product(product, out, acc, sizes, slices, left, right, result)


def _tensor_core_cycles(batch: int, m: int, n: int, k: int, dtype: DType, shared: int) -> float:
    tile = choose_warp_tile(batch, m, n, k, dtype, shared)
    return estimated_cycles(tile, batch, m, n, k, dtype)


def _tiled(
    out: TensorType,
    sizes: tuple[int, int, int, int],
    left: Callable[..., Any],
    right: Callable[..., Any],
    result: Callable[..., tuple[Any, Any, Any]],
) -> list[Tensor]:
    """The product without tensor cores."""
    batch, m, n, k = sizes
    tile = choose_gemm_tile(batch, m, n)
    rows, columns, depth = _padded(m, tile.rows), _padded(n, tile.columns), _padded(k, _DEPTH)
    acc = accumulation_dtype(out.dtype)

    a_tile, b_tile = padded_operands(sizes, (rows, columns, depth), left, right)
    a = te.compute((batch, rows, depth), a_tile, name="a_tile", tag="gemm_a")
    w = te.compute((batch, depth, columns), b_tile, name="b_tile", tag="gemm_b")
    axis = te.reduce_axis((0, depth), name="k")
    product = te.compute(
        (batch, rows, columns),
        lambda b, i, j: te.sum(a(b, i, axis).astype(acc) * w(b, axis, j).astype(acc), axis=axis),
        name="gemm",
        tag="gemm",
        attrs={"tile": tile, "sizes": sizes},
    )
    return [
        te.compute(
            out.shape, lambda *index: product(*result(*index)).astype(out.dtype), name="product"
        )
    ]


def expand_matmul(
    attrs: Any, args: Sequence[Tensor], out: TensorType, arch: str
) -> list[Tensor] | None:
    """nn.matmul; batches share the tile where the right operand is one matrix."""
    a, b = args
    if not out.dtype.is_float:
        return None
    *batch, m, n = out.static_shape
    k = as_int(a.shape[-1])
    count = math.prod(batch)
    if count * m * n * k == 0:
        return None

    def place(tensor: Tensor, index: Sequence[Any]) -> list[Any]:
        lead = tensor.ndim - 2
        used = index[len(index) - lead :] if lead else []
        return [
            te.const(0) if as_int(d) == 1 else i
            for d, i in zip(tensor.shape[:lead], used, strict=True)
        ]

    def unravel(flat: Any) -> list[Any]:
        index: list[Any] = []
        for extent in reversed(batch):
            index.insert(0, flat % extent)
            flat = flat // extent
        return index

    shared = math.prod(as_int(d) for d in b.shape[:-2]) == 1
    if shared:
        rows = count * m
        if rows < MIN_ROWS:
            return None
        return gemm(
            out,
            (1, rows, n, k),
            lambda _, i, p: a(*place(a, unravel(i // m)), i % m, p) if batch else a(i, p),
            lambda _, p, j: b(*[te.const(0)] * (b.ndim - 2), p, j),
            lambda *index: (te.const(0), _ravel(index[:-1], (*batch, m)), index[-1]),
            attrs.precision,
            arch,
        )
    if m < MIN_ROWS:
        return None
    return gemm(
        out,
        (count, m, n, k),
        lambda c, i, p: a(*place(a, unravel(c)), i, p),
        lambda c, p, j: b(*place(b, unravel(c)), p, j),
        lambda *index: (_ravel(index[:-2], batch), index[-2], index[-1]),
        attrs.precision,
        arch,
    )


def expand_matmul_parts(
    attrs: Any, args: Sequence[Tensor], out: TensorType, arch: str
) -> list[Tensor] | None:
    """nn.matmul_parts where there is no tile program: the parts are added as they are copied."""
    a, parts = args
    split = split_of(attrs)
    whole = te.compute(
        (attrs.k, attrs.n), lambda p, j: sum_of_parts(parts, split, p, j), name="whole"
    )
    precision = "tf32" if split is TF32 else "fp32"
    return expand_matmul(MatmulAttrs(precision), (a, whole), out, arch)


def _ravel(index: Sequence[Any], shape: Sequence[int]) -> Any:
    flat: Any = te.const(0)
    for i, extent in zip(index, shape, strict=True):
        flat = flat * extent + i
    return flat


def schedule_gemm(kernel: Kernel, product: ComputeOp) -> None:
    """Tiles of the output over blocks, register tiles over threads."""
    operands = [t.op for t in product.inputs]
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    for op in kernel.stages:
        if op not in (product, out, *operands):
            kernel.stage(op).compute_inline()
    tile: GemmTile = product.attrs["tile"]
    batch, m, n, _ = product.attrs["sizes"]
    stage = kernel.stage(out)
    b, i, j = matrix_axes(stage, batch, m, n)
    row_block, i = stage.split(i, factor=tile.rows)
    column_block, j = stage.split(j, factor=tile.columns)
    stage.reorder(b, row_block, column_block, i, j)
    stage.bind(b, "blockIdx.z")
    stage.bind(row_block, "blockIdx.y")
    stage.bind(column_block, "blockIdx.x")
    _bind_tile(stage, i, j, tile, wide=n % 4 == 0 and _is_wide(stage))
    compute = kernel.schedule[product.output(0)]
    compute.compute_at(stage, column_block)
    *_, i, j, k = compute.axes
    step, k, together = compute.split(k, factors=[None, _DEPTH // _TOGETHER, _TOGETHER])
    compute.reorder(step, k, together, i, j)
    _bind_tile(compute, i, j, tile, wide=True, inside=(k, together))
    compute.unroll(together)
    for operand in product.inputs:
        copy = kernel.stage(operand.op)  # type: ignore[arg-type]
        copy.compute_at(compute, step)
        kernel.schedule.set_scope(operand, "shared")
        _bind_copy(kernel.stage(operand.op))  # type: ignore[arg-type]
    compute.pipeline(step, _STAGES)


def matrix_axes(stage: Stage, batch: int, m: int, n: int) -> tuple[Var, Var, Var]:
    """The loops of the output fused to batch, rows and columns of the product."""
    axes = list(stage.axes)
    rows: list[Var] = []
    columns: list[Var] = []
    for group, wanted in ((columns, n), (rows, m)):
        size = 1
        while axes and (size < wanted or not group):  # an axis of one element, if there is none
            group.insert(0, axes.pop())
            size *= extent_of(stage, group[0])
        if size > wanted:  # channels of several groups
            inner = extent_of(stage, group[0]) * wanted // size
            outer, group[0] = stage.split(group[0], factor=inner)
            axes.append(outer)
    i = stage.fuse(*rows)
    if columns:
        j = stage.fuse(*columns)
    else:
        i, j = stage.split(i, factor=1)
    if axes:
        return stage.fuse(*axes), i, j
    b, i = stage.split(i, nparts=1)
    return b, i, j


def _is_wide(stage: Stage) -> bool:
    calls = (x.name for x in postorder(stage.block.body) if isinstance(x, Call))
    return not any(name in ("if_then_else", "checked_index") for name in calls)


def has_uniform_guards(stage: Stage, lanes: int) -> bool:
    """Whether `lanes` neighbours along the last axis, from a multiple on, are all inside or all
    outside of the tensor."""
    block = stage.block
    last = block.iter_vars[-1].var
    for node in postorder(block.body):
        if not isinstance(node, Call) or node.name not in ("if_then_else", "checked_index"):
            continue
        condition = node.args[0]
        if last not in variables(condition):
            continue
        limit = condition.b if isinstance(condition, Binary) and condition.a is last else None
        if not isinstance(limit, IntImm) or limit.value % lanes:
            return False
    return True


def _bind_tile(
    stage: Stage, i: Var, j: Var, tile: GemmTile, wide: bool, inside: Sequence[Var] = ()
) -> None:
    """Thread (y, x) has rows y, y + 16, ... and groups of up to 4 columns 4x, 4x + 64, ..."""
    lanes = min(4, tile.columns // _SIDE)
    row, y = stage.split(i, factor=_SIDE)
    group, x, lane = stage.split(j, factors=[None, _SIDE, lanes])
    stage.reorder(y, x, *inside, row, group, lane)
    stage.bind(y, "threadIdx.y")
    stage.bind(x, "threadIdx.x")
    stage.unroll(row)
    stage.unroll(group)
    if lanes > 1 and wide:
        stage.vectorize(lane)
    else:
        stage.unroll(lane)


def _bind_copy(stage: Stage) -> None:
    """A tile of an operand, copied by all threads."""
    own = stage.axes[-3:]
    lanes = min(ACCESS.lanes(stage.tensor.dtype), 4)
    if extent_of(stage, own[-1]) % 4 or not has_uniform_guards(stage, lanes):
        lanes = 1
    fused = stage.fuse(*own)
    step, y, x, lane = stage.split(fused, factors=[None, _SIDE, _SIDE, lanes])
    stage.bind(y, "threadIdx.y")
    stage.bind(x, "threadIdx.x")
    if extent_of(stage, step) <= 8:
        stage.unroll(step)
    if lanes > 1:
        stage.vectorize(lane)
