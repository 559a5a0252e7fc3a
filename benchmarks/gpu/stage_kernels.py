"""kernels: memory-bound kernels beside PyTorch, torch.compile and Triton.

`gbps` counts the bytes that must move: each input read once, each output written once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from contest import contest
from harness import Case, Env, Row


@dataclass(frozen=True)
class Operation:
    """One computation in all engines.

    Attributes:
        make: the graph, `make(builder, *inputs)`.
        torch: name of the function in `peers.torch_ops`.
        triton: name in `peers.triton_ops` of a function that takes an output too, or empty.
        shapes: of the inputs.
    """

    name: str
    make: Callable[..., Any]
    torch: str
    shapes: Sequence[Sequence[int]]
    triton: str = ""
    dtypes: Sequence[str] = field(default=("float32", "bfloat16"))


def _chain(b, x, y):
    scaled = b.call("add", b.call("multiply", x, b.const(1.5, x.type.dtype)), y)
    clipped = b.call("clip", b.call("subtract", x, y), a_min=-1.0, a_max=1.0)
    return b.call("multiply", b.call("sigmoid", scaled), clipped)


def _gelu(b, x, bias):
    dtype = x.type.dtype
    x = b.call("add", x, bias)
    curve = b.call("erf", b.call("multiply", x, b.const(2**-0.5, dtype)))
    half = b.call("multiply", x, b.const(0.5, dtype))
    return b.call("multiply", half, b.call("add", curve, b.const(1.0, dtype)))


def _softmax(b, x):
    return b.call("nn.softmax", x, axis=1)


def _layer_norm(b, x, gamma, beta):
    return b.call("nn.layer_norm", x, gamma, beta, axis=1, epsilon=1e-5)


def _transpose(b, x):
    return b.call("transpose", x, axes=(1, 0))


def _sum(axis):
    return lambda b, x: b.call("sum", x, axis=(axis,))


def operations() -> Iterator[Operation]:
    for n in (1 << 16, 1 << 22, 1 << 26):
        yield Operation(f"chain/{n}", _chain, "chain", [(n,), (n,)], "chain")
    yield Operation("gelu_bias/8192x4096", _gelu, "gelu_bias", [(8192, 4096), (4096,)])
    for rows, columns in ((128, 768), (65536, 1024), (16384, 4096), (4096, 32768), (512, 262144)):
        shape, vector = (rows, columns), (columns,)
        triton = "softmax" if columns <= 65536 else ""
        yield Operation(f"softmax/{rows}x{columns}", _softmax, "softmax", [shape], triton)
        triton = "layer_norm" if columns <= 65536 else ""
        yield Operation(
            f"layer_norm/{rows}x{columns}", _layer_norm, "layer_norm", [shape, vector, vector],
            triton,
        )  # fmt: skip
    for rows, columns in ((2048, 2048), (16384, 16384), (16383, 4097)):
        yield Operation(f"transpose/{rows}x{columns}", _transpose, "transpose", [(rows, columns)])
    yield Operation("sum_rows/16384x16384", _sum(1), "sum_rows", [(16384, 16384)])
    yield Operation("sum_columns/16384x16384", _sum(0), "sum_columns", [(16384, 16384)])
    yield Operation("sum_rows/8x16777216", _sum(1), "sum_rows", [(8, 1 << 24)])


def cases() -> list[Case]:
    return [
        Case(f"{op.name}/{dtype}", functools.partial(_run, op, dtype))
        for op in operations()
        for dtype in op.dtypes
    ]


def _run(op: Operation, dtype: str, env: Env) -> Iterator[Row]:
    return contest(env, op.make, [(s, dtype) for s in op.shapes], op.torch, op.triton)
