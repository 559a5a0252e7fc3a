"""Attention on a GPU as one kernel that never writes the scores to memory.

A block owns a tile of the queries of one head and goes over the keys tile by tile
(`online_softmax`). Where queries are few and keys many, several blocks share the keys
(`parts`). Both products are computed by warps on tensor cores for 16-bit operands (`mma`), by
threads otherwise (`simt`); `hopper` has the shapes that Hopper's warpgroups take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .... import te
from ....codegen.cuda.limits import has_async_copies
from ....ir.expr import as_int
from ....ops.fused_attention import AttentionAttrs
from ....ops.window import accumulation_dtype
from ....te.tensor import Tensor
from ....tir.nodes import Buffer, Stmt
from ....types import TensorType
from .frame import Frame, Sizes, softmax_of
from .mma import ROWS, TensorCoreAttention
from .parts import combine_parts
from .simt import CoreAttention, choose_core_tile

_BUSY = 132  # blocks that give every multiprocessor of a large GPU work
_KEYS = 64  # of a tile on tensor cores
_DEEP = 128  # elements of a head: tiles are half as large beyond


def expand_attention(
    attrs: AttentionAttrs, args: Sequence[Tensor], out: TensorType, arch: str
) -> list[Tensor] | None:
    """nn.attention as hand-written loops; None for what has no elements."""
    q, k, v = args[:3]
    batch, heads, queries, depth = (as_int(q.shape[a]) for a in attrs.q_axes)
    kv_heads, keys = (as_int(k.shape[attrs.k_axes[d]]) for d in (1, 2))
    v_depth = as_int(v.shape[attrs.v_axes[3]])
    if 0 in (*out.static_shape, depth, keys):
        return None
    sizes = Sizes(batch, heads, queries, keys, depth, v_depth, heads // kv_heads)
    if out.dtype.bits == 16 and has_async_copies(arch):
        return _expand(attrs, args, out, sizes, *_on_tensor_cores(sizes))
    acc = accumulation_dtype(out.dtype)
    tile = choose_core_tile(batch * heads, queries, depth, v_depth, acc.itemsize)

    def build(frame: Frame) -> Stmt:
        return CoreAttention(frame, tile).kernel()

    return _expand(attrs, args, out, sizes, tile.shape, 1, build)


def _on_tensor_cores(sizes: Sizes) -> tuple[tuple[int, int], int, Callable[[Frame], Stmt]]:
    """The tile, how many heads are packed, and what builds the kernel."""
    deep = max(sizes.depth, sizes.v_depth) > _DEEP
    most = 2 if deep else 4
    packed = sizes.shared if sizes.queries * sizes.shared <= most * ROWS else 1
    packed = packed if ROWS % packed == 0 else 1
    rows, heads = sizes.queries * packed, sizes.batch * sizes.heads // packed
    warps = next(
        (w for w in (4, 2) if w <= most and heads * math.ceil(rows / (w * ROWS)) >= _BUSY), 1
    )
    warps = max(warps, min(2, math.ceil(rows / ROWS)))

    def build(frame: Frame) -> Stmt:
        return TensorCoreAttention(frame, warps).kernel()

    return (warps * ROWS, _KEYS // 2 if deep else _KEYS), packed, build


def _expand(
    attrs: AttentionAttrs, args: Sequence[Tensor], out: TensorType, sizes: Sizes,
    tile: tuple[int, int], packed: int, build: Callable[[Frame], Stmt],
) -> list[Tensor]:  # fmt: skip
    """One kernel, or one for the parts of the keys and one that adds them up."""
    parts = _choose_parts(sizes, tile, packed)

    def make(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        return build(Frame(attrs, sizes, tile, ins, outs, parts, packed))

    if parts == 1:
        return [te.extern(out.static_shape, args, make, name="attention", dtype=out.dtype)]
    acc = accumulation_dtype(out.dtype)
    rows = (parts, sizes.batch, sizes.heads, sizes.queries)
    shapes = [(*rows, sizes.v_depth), (*rows, 2)]
    values, notes = te.extern(shapes, args, make, "part", [acc, acc])
    return [combine_parts(values, notes, softmax_of(attrs, args[3:], sizes, tile, acc), out)]


def _choose_parts(sizes: Sizes, tile: tuple[int, int], packed: int) -> int:
    """Among how many blocks the keys are shared: several where there are few queries and many
    keys, at least two tiles for each. (Dao et al., "Flash-Decoding", 2023.)"""
    heads = sizes.batch * sizes.heads // packed
    blocks = heads * math.ceil(sizes.queries * packed / tile[0])
    tiles = math.ceil(sizes.keys / tile[1])
    parts = min(tiles // 2, math.ceil(2 * _BUSY / blocks))
    return math.ceil(tiles / math.ceil(tiles / parts)) if parts > 1 and 2 * blocks <= _BUSY else 1
