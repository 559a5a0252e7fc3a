"""ceilings: what this GPU gives now: copies, and products through cuBLAS in every format."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from harness import Case, Env, Row
from timing import TorchGraph, measure, sets_for

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
    if env.dry:
        return
    import torch

    nbytes = mib << 20
    count = sets_for(2 * nbytes)
    pairs = [
        (torch.randn(nbytes // 4, device="cuda"), torch.empty(nbytes // 4, device="cuda"))
        for _ in range(count)
    ]
    graph = TorchGraph(lambda i: pairs[i][1].copy_(pairs[i][0]), count)
    found = measure({"copy": graph})["copy"]
    yield {"engine": "torch", **found, "gbps": 2 * nbytes / found["us"] / 1e3}


def _sum(mib: int, env: Env) -> Iterator[Row]:
    """Reads alone."""
    if env.dry:
        return
    import torch

    x = torch.randn((mib << 20) // 4, device="cuda")
    found = measure({"sum": TorchGraph(lambda _: torch.sum(x))})["sum"]
    yield {"engine": "torch", **found, "gbps": (mib << 20) / found["us"] / 1e3}


def _gemm(precision: str, n: int, env: Env) -> Iterator[Row]:
    if env.dry:
        return
    import torch
    from peers.torch_ops import DTYPES, allow_tf32

    allow_tf32(precision == "tf32")
    dtype = DTYPES[precision]
    count = sets_for(3 * n * n * dtype.itemsize, 8)
    sets = [
        tuple(torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(3)) for _ in range(count)
    ]
    graph = TorchGraph(lambda i: torch.matmul(sets[i][0], sets[i][1], out=sets[i][2]), count)
    found = measure({"cublas": graph})["cublas"]
    yield {"engine": "cublas", **found, "tflops": 2 * n**3 / found["us"] / 1e6}


def _launch(env: Env) -> Iterator[Row]:
    """A kernel with nothing to do, in a graph of 64: what one more launch costs."""
    if env.dry:
        return
    import torch

    x = torch.zeros(32, device="cuda")
    found = measure({"launch": TorchGraph(lambda _: x.add_(1), 64)})["launch"]
    yield {"engine": "torch", **found}
