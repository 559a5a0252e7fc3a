"""Products of bytes, by instructions that add four products to each 32-bit lane.

    C[i, j] = sum_k A[i, k] * B[j // nr, k // 4, j % nr * 4 + k % 4]

The register tile is that of `matmul`; one step of its loop takes four values of k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import te
from ..dtype import DType
from ..ir.expr import as_int
from ..ir.instruction import VPDPBUSD_256, VPDPBUSD_512, Instruction
from ..relay.passes.layouts import QUAD
from ..target import Target
from ..te.intrin import TensorIntrin
from ..te.tensor import ComputeOp
from .common import PARALLEL_CYCLES, Kernel, extent_of, inline_injective
from .matmul import prefetch_distance, spread

_LATENCY = 5.0  # cycles of an instruction; two start in each


def byte_dot(target: Target) -> Instruction | None:
    """The widest instruction of a machine for dot products of bytes, if it has one."""
    for instruction in (VPDPBUSD_512, VPDPBUSD_256):
        fits = instruction.result.lanes * 32 <= target.vector_bits
        if target.kind == "llvm" and fits and any(map(target.has_feature, instruction.features)):
            return instruction
    return None


def choose_byte_tile(m: int, n: int, target: Target) -> tuple[int, int] | None:
    """Rows and columns of the tile of least estimated cost; tiles at the edge are computed whole.

    None where the target has no instruction, or there are fewer columns than it has lanes.
    """
    instruction = byte_dot(target)
    lanes = 0 if instruction is None else instruction.result.lanes
    if not lanes or n < lanes:
        return None
    best: tuple[float, int, int] | None = None
    for vectors in (1, 2, 4):
        for mr in range(1, min(m, 14) + 1):
            if mr * vectors + vectors + 1 > target.vector_registers - 1 or vectors * lanes > n:
                continue
            one = max(mr * vectors / 2, _LATENCY) + 0.3
            cost = math.ceil(n / (vectors * lanes)) * math.ceil(m / mr) * one
            if best is None or cost < best[0]:
                best = (cost, mr, vectors * lanes)
    assert best is not None
    return best[1], best[2]


def dot_intrinsic(instruction: Instruction) -> TensorIntrin:
    """Four bytes of A with four rows of as many columns of B as the instruction has lanes."""
    lanes = instruction.result.lanes
    x = te.placeholder((QUAD,), DType.UINT8, name="x")
    w = te.placeholder((lanes * QUAD,), DType.INT8, name="w")
    q = te.reduce_axis((0, QUAD), name="q")
    dots = te.compute(
        (lanes,),
        lambda j: te.sum(te.cast(x[q], "int32") * te.cast(w[j * QUAD + q], "int32"), axis=q),
        name="dots",
    )

    def emit(ins: Sequence[Any], outs: Sequence[Any]) -> tuple[Any, Any, Any]:
        number = te.reinterpret(ins[0].vload([0], QUAD), "int32")
        spread_out = te.reinterpret(te.broadcast(number, lanes), "uint8")
        total = outs[0].vload([0], lanes)
        zero = te.broadcast(te.const(0, "int32"), lanes)
        added = instruction(total, spread_out, ins[1].vload([0], lanes * QUAD))
        return None, outs[0].vstore(zero, [0]), outs[0].vstore(added, [0])

    return te.decl_tensor_intrin(dots, emit, name=f"{instruction.name}_{lanes}")


def schedule_matmul_bytes(kernel: Kernel, product: ComputeOp, instruction: Instruction) -> None:
    """Register tiles over the output, panels of columns over threads."""
    inline_injective(kernel)
    out = kernel.outputs[0].op
    assert isinstance(out, ComputeOp)
    mr, nr = product.attrs["tile"]
    lanes, schedule = instruction.result.lanes, kernel.schedule
    if out is product:
        accumulator = schedule.cache_write(product.output(0), "local")
    else:
        accumulator = product.output(0)
    stage = kernel.stage(out)
    i, j = stage.axes
    jo, ji = stage.split(j, factor=nr)
    io, ii = stage.split(i, factor=min(mr, extent_of(stage, i)))
    stage.reorder(jo, io, ii, ji)
    stage.unroll(ii)
    parts, vector = stage.split(ji, factor=lanes)
    stage.unroll(parts)
    stage.vectorize(vector)
    threads, tile_loop = spread(kernel, stage, [jo], io, product)
    points = math.prod(as_int(axis.extent) for axis in (*product.axis, *product.reduce_axis))
    if points / (lanes * QUAD) * 0.6 >= PARALLEL_CYCLES:
        stage.parallel(threads)
    compute = schedule[accumulator]
    compute.compute_at(stage, tile_loop)
    if out is not product:
        schedule.set_scope(accumulator, "local")
    *_, i, j, k = compute.axes
    step, quad = compute.split(k, factor=QUAD)
    part, lane = compute.split(j, factor=lanes)
    compute.reorder(step, i, part, lane, quad)
    compute.unroll(i)
    compute.unroll(part)
    panels = kernel.buffer(product.inputs[-1]).name
    compute.pragma(step, "prefetch", (panels, prefetch_distance(mr * nr // lanes, nr)))
    compute.tensorize(lane, dot_intrinsic(instruction))
