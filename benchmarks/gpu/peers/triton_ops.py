"""Single operations in Triton, as its users write them."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on the CPU, where nothing is tuned
_CONFIGS = [
    triton.Config({"BM": bm, "BN": bn, "BK": bk}, num_warps=warps, num_stages=stages)
    for bm, bn, bk, warps, stages in (
        (128, 256, 64, 8, 3), (128, 128, 64, 4, 4), (128, 128, 64, 8, 4), (128, 64, 64, 4, 4),
        (64, 128, 64, 4, 4), (64, 64, 64, 4, 4), (128, 128, 32, 4, 4), (64, 32, 64, 4, 5),
    )
]  # fmt: skip


@triton.autotune(configs=_CONFIGS[-1:] if _INTERPRETED else _CONFIGS, key=["m", "n", "k"])
@triton.jit
def _matmul(a, b, c, m, n, k, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
            BK: tl.constexpr):  # fmt: skip
    """c = a b, row-major; blocks of 8 rows of tiles share their columns in L2."""
    tile = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    group = tile // (8 * tiles_n)
    rows_here = min(tiles_m - group * 8, 8)
    row = group * 8 + (tile % (8 * tiles_n)) % rows_here
    column = (tile % (8 * tiles_n)) // rows_here
    i, j = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN)
    p = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, k, BK):
        q = step + p
        x = tl.load(a + i[:, None] * k + q[None, :],
                    mask=(i[:, None] < m) & (q[None, :] < k), other=0.0)  # fmt: skip
        y = tl.load(b + q[:, None] * n + j[None, :],
                    mask=(q[:, None] < k) & (j[None, :] < n), other=0.0)  # fmt: skip
        acc = tl.dot(x, y, acc, input_precision=PRECISION)
    where = c + i[:, None] * n + j[None, :]
    tl.store(where, acc.to(c.dtype.element_ty), mask=(i[:, None] < m) & (j[None, :] < n))


def matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, precision: str) -> None:
    """out = a b; `precision` is "tf32" or "ieee" for float32."""
    if _INTERPRETED and a.dtype is torch.bfloat16:  # the interpreter has no products of these
        a, b = a.float(), b.float()
    (m, k), n = a.shape, b.shape[1]
    _matmul[lambda meta: (triton.cdiv(m, meta["BM"]) * triton.cdiv(n, meta["BN"]),)](
        a, b, out, m, n, k, PRECISION="tf32" if precision == "tf32" else "ieee"
    )


@triton.jit
def _softmax(x, y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    v = tl.load(x + row * columns + j, mask=j < columns, other=-float("inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, 0))
    tl.store(y + row * columns + j, (e / tl.sum(e, 0)).to(y.dtype.element_ty), mask=j < columns)


def softmax(x: torch.Tensor, out: torch.Tensor) -> None:
    """Over the last axis; a row is kept in registers."""
    rows, columns = x.shape
    block = triton.next_power_of_2(columns)
    _softmax[(rows,)](x, out, columns, BLOCK=block, num_warps=_warps(block))


@triton.jit
def _layer_norm(x, g, b, y, columns, EPSILON: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    inside = j < columns
    v = tl.load(x + row * columns + j, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(v, 0) / columns
    centred = tl.where(inside, v - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / columns + EPSILON)
    gamma = tl.load(g + j, mask=inside, other=0.0).to(tl.float32)
    beta = tl.load(b + j, mask=inside, other=0.0).to(tl.float32)
    result = centred * scale * gamma + beta
    tl.store(y + row * columns + j, result.to(y.dtype.element_ty), mask=inside)


def layer_norm(x: torch.Tensor, g: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    rows, columns = x.shape
    block = triton.next_power_of_2(columns)
    _layer_norm[(rows,)](x, g, b, out, columns, 1e-5, BLOCK=block, num_warps=_warps(block))


@triton.jit
def _chain(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x + i, mask=i < n).to(tl.float32)
    b = tl.load(y + i, mask=i < n).to(tl.float32)
    result = tl.sigmoid(a * 1.5 + b) * tl.clamp(a - b, -1.0, 1.0)
    tl.store(out + i, result.to(out.dtype.element_ty), mask=i < n)


def chain(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    n = x.numel()
    _chain[(triton.cdiv(n, 2048),)](x, y, out, n, BLOCK=2048, num_warps=8)


def _warps(block: int) -> int:
    return 4 if block <= 2048 else 8 if block <= 8192 else 16 if block <= 32768 else 32
