"""gemm: products of matrices beside cuBLAS (through PyTorch), torch.compile and Triton."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from contest import contest
from harness import Case, Env, Row

SQUARE = (512, 1024, 2048, 4096, 8192)
OTHER = (  # m, n, k of transformers and of linear layers at batch 1
    (128, 768, 768), (128, 3072, 768), (128, 768, 3072), (1, 4096, 4096), (16, 4096, 4096),
    (1, 50257, 768), (4096, 4096, 1024), (1000, 1000, 1000),
)  # fmt: skip
FORMATS = (("bf16", "bfloat16"), ("tf32", "float32"), ("fp32", "float32"), ("fp16", "float16"))


LINEAR = ("fp32", "fp32_strict", "tf32")  # of layers, whose weights are known when compiling


def cases() -> list[Case]:
    sizes = [(n, n, n) for n in SQUARE] + list(OTHER)
    layers = [
        Case(
            f"linear/{precision}/{m}x{n}x{k}",
            functools.partial(_run, precision, "float32", m, n, k, weights=(1,)),
        )
        for precision in LINEAR
        for m, n, k in sizes
    ]
    return layers + [
        Case(f"gemm/{precision}/{m}x{n}x{k}", functools.partial(_run, precision, dtype, m, n, k))
        for precision, dtype in FORMATS
        for m, n, k in sizes
        if precision != "fp16" or m == n == k
    ]


def _run(
    precision: str, dtype: str, m: int, n: int, k: int, env: Env, weights: tuple[int, ...] = ()
) -> Iterator[Row]:
    return contest(
        env,
        lambda b, x, y: b.call("nn.matmul", x, y),
        [((m, k), dtype), ((k, n), dtype)],
        "matmul",
        "matmul" if m >= 16 else "",
        precision=precision if dtype == "float32" else "fp32",
        flops=2 * m * n * k,
        weights=weights,
    )
