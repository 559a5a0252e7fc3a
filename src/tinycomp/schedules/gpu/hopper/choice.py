"""Which float32 products are computed by parts on tensor cores, by estimated times."""

from __future__ import annotations

from collections.abc import Callable

from ....dtype import DType
from ....ops.operand_parts import BF16X6, BF16X6_ANY, TF32, Split
from ....target import Target
from ..products.gemm import plain_cycles
from ..products.split_k import BYTES, LAUNCH, fastest
from ..products.tensor_cores import choose_warp_tile, estimated_cycles
from .gemm import ARCH, MIN_ROWS
from .tiles import CLOCK, FILL, Task, choose_hopper_tile, estimated_seconds

_PLAIN_CLOCK = 1.9e9  # cycles/s without tensor cores, which power does not limit (H100: 1.98 GHz)


def choose_split(
    precision: str, m: int, n: int, k: int, constant: bool, *, target: Target
) -> str | None:
    """The name of the way in which the right operand of a float32 product [m, k] [k, n] is split,
    for the least estimated time; None to leave it whole.

    "fp32" is computed by six products of bfloat16 parts, as accurate as multiply-adds, or by those;
    "tf32" on tensor cores in any case, by warps where the operand is not constant, as wgmma would
    need it transposed; "fp32_strict" never on tensor cores.

    >>> hopper = Target.parse("cuda -arch=sm_90a")
    >>> [choose_split("fp32", n, n, n, True, target=hopper) for n in (64, 4096)]
    [None, 'bf16x6']
    """
    splits = {"fp32": BF16X6, "tf32": TF32} if constant else {"fp32": BF16X6_ANY}
    split = splits.get(precision)
    takes = target.arch == ARCH and m >= MIN_ROWS and k % 4 == 0 and k > 0 and n > 0
    if split is None or not takes:
        return None
    other = _warp_cycles if split is TF32 else _plain_cycles
    sizes = (1, m, n, k)
    cycles = fastest(sizes, _parts_cycles(split))[1]
    if not constant:
        cycles += LAUNCH + (4 + split.dtype.itemsize * split.count) * k * n / BYTES
    return split.name if cycles < fastest(sizes, other)[1] else None


def _parts_cycles(split: Split) -> Callable[[int, int, int, int], float]:
    def cycles(batch: int, m: int, n: int, k: int) -> float:
        task = Task(batch, m, n, 2 * k, 4, b_split=split)
        return estimated_seconds(choose_hopper_tile(task), task) * CLOCK

    return cycles


def _plain_cycles(batch: int, m: int, n: int, k: int) -> float:
    return plain_cycles(batch, m, n, k) * CLOCK / _PLAIN_CLOCK + FILL * CLOCK


def _warp_cycles(batch: int, m: int, n: int, k: int) -> float:
    tile = choose_warp_tile(batch, m, n, k, DType.FLOAT32)
    return estimated_cycles(tile, batch, m, n, k, DType.FLOAT32)
