"""ceilings: what this GPU gives now: copies, and products through cuBLAS in every format."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from harness import Case, Env, Row
from timing import measure, rates, sets_for, torch_graph

SIZES = (1024, 2048, 4096, 8192)
FORMATS = ("fp32", "tf32", "fp16", "bf16")


def cases() -> list[Case]:
    copies = [
        Case(f"copy/{mib} MiB", functools.partial(_copy, mib)) for mib in (8, 64, 512, 2048, 4096)
    ]
    reads = [Case(f"sum/{mib} MiB", functools.partial(_sum, mib)) for mib in (512, 4096)]
    gemms = [
        Case(f"cublas/{precision}/{n}", functools.partial(_gemm, precision, n))
        for precision in FORMATS
        for n in SIZES
    ]
    return [*copies, *reads, *gemms, Case("launch", _launch)]


def _copy(mib: int, env: Env) -> Iterator[Row]:
    """Device to device, counting bytes read and bytes written."""
    import torch

    (size,) = env.sizes((mib << 20) // 4)
    count = sets_for(8 * size)
    pairs = [
        (torch.randn(size, device=env.device), torch.empty(size, device=env.device))
        for _ in range(count)
    ]
    graph = torch_graph(env, lambda i: pairs[i][1].copy_(pairs[i][0]), count)
    yield {"engine": "torch", **rates(measure(env, {"copy": graph})["copy"], 8 * size)}


def _sum(mib: int, env: Env) -> Iterator[Row]:
    """Reads alone."""
    import torch

    (size,) = env.sizes((mib << 20) // 4)
    x = torch.randn(size, device=env.device)
    graph = torch_graph(env, lambda _: torch.sum(x))
    yield {"engine": "torch", **rates(measure(env, {"sum": graph})["sum"], 4 * size)}


def _gemm(precision: str, n: int, env: Env) -> Iterator[Row]:
    import torch
    from peers.torch_ops import DTYPES, allow_tf32

    (n,) = env.sizes(n)
    allow_tf32(precision == "tf32")
    dtype = DTYPES[precision]
    count = sets_for(3 * n * n * dtype.itemsize, 8)
    sets = [
        tuple(torch.randn(n, n, device=env.device, dtype=dtype) for _ in range(3))
        for _ in range(count)
    ]
    graph = torch_graph(env, lambda i: torch.matmul(sets[i][0], sets[i][1], out=sets[i][2]), count)
    yield {"engine": "cublas", **rates(measure(env, {"gemm": graph})["gemm"], flops=2 * n**3)}


def _launch(env: Env) -> Iterator[Row]:
    """A kernel with nothing to do, in a graph of 64: what one more launch costs."""
    import torch

    x = torch.zeros(32, device=env.device)
    graph = torch_graph(env, lambda _: x.add_(1), 64)
    yield {"engine": "torch", **measure(env, {"launch": graph})["launch"]}
