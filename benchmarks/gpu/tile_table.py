"""The tile program that each product of some models becomes, and its time by the model of
`schedules/gpu/hopper/tiles.py`: tile, parts of the sum, blocks, waves, microseconds.

    python benchmarks/gpu/tile_table.py [--batch 1 8 32]

Needs no GPU. Rows with fewer than 120 blocks are marked. The stages `gemm` and `conv` measure the
same products: where they differ from this, the figures of the model are wrong.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace

from stage_conv import LAYERS
from stage_gemm import OTHER, SQUARE

from tinycomp.schedules.gpu.hopper.tiles import (
    BLOCKS,
    CLOCK,
    Task,
    blocks_of,
    choose_hopper_tile,
    estimated_seconds,
)
from tinycomp.schedules.gpu.products.split_k import choose_slices, slice_length

_FEW = 120  # blocks
_TRANSFORMERS = tuple(
    (f"{name} {layer}", rows, columns, depth)
    for name, rows, width in (("BERT", 128, 768), ("ViT", 197, 768), ("Llama prefill", 512, 4096))
    for layer, columns, depth in (
        ("qkv", 3 * width, width), ("out", width, width), ("up", 4 * width, width),
        ("down", width, 4 * width),
    )
)  # fmt: skip


def products(batch: int) -> Iterator[tuple[str, Task]]:
    """Names and products in 16 bits: of the stages, and of transformers."""
    for n in SQUARE:
        yield f"gemm {n}", Task(1, n, n, n)
    for m, n, k in OTHER:
        if m > 32:
            yield f"gemm {m}x{n}x{k}", Task(1, m, n, k)
    for name, m, n, k in _TRANSFORMERS:
        yield f"{name} b{batch}", Task(1, batch * m, n, k)
    for size, channels, features, kernel, stride, groups in LAYERS:
        if groups == 1 and channels % 8 == 0:
            out = math.ceil(size / stride)
            k = kernel * kernel * math.ceil(channels / 64) * 64
            name = f"conv {size} {channels}->{features} {kernel}x{kernel} b{batch}"
            yield name, Task(1, batch * out * out, features, k, narrow=True)


def row(name: str, task: Task) -> str:
    """What is chosen for a product."""

    def cycles(batch: int, m: int, n: int, k: int) -> float:
        part = replace(task, batch=batch, k=k, itemsize=4)
        return estimated_seconds(choose_hopper_tile(part), part) * CLOCK

    slices = choose_slices((task.batch, task.m, task.n, task.k), cycles)
    if slices > 1:
        length = slice_length(task.k, slices)
        task = replace(task, batch=task.batch * slices, k=length, itemsize=4)
    tile = choose_hopper_tile(task)
    tiles, slots = blocks_of(tile, task)
    seconds = estimated_seconds(tile, task)
    rate = 2 * task.batch * task.m * task.n * task.k / seconds / 1e12
    note = f"only {tiles} of {BLOCKS} multiprocessors" if tiles < _FEW else ""
    return (
        f"{name:34} {tile.rows:4}x{tile.columns:<4} {tile.cluster:7} {tile.split:5} {slices:6} "
        f"{tiles:7} {math.ceil(tiles / slots):6} {seconds * 1e6:8.1f} {rate:8.0f}  {note}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The tiles of products on Hopper.")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32])
    options = parser.parse_args()
    print(f"{'product':34} {'tile':9} cluster split slices   tiles  waves  model us  TFLOP/s")
    lines = [row(name, task) for batch in options.batch for name, task in products(batch)]
    print("\n".join(dict.fromkeys(lines)))


if __name__ == "__main__":
    main()
