"""nn.matmul_bytes: uint8 times packed int8 in int32, as instructions for dot products of bytes take
it. `relay.passes.byte_products` makes it of products of widened bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import te
from ..dtype import DType
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..relay.passes.layouts import QUAD, pack_bytes
from ..te.tensor import Tensor
from ..types import TensorType, Type
from .onnx_node import OnnxImport
from .window import expect, tensor_arg


@dataclass(frozen=True)
class MatmulBytesAttrs(Attrs):
    """`n` columns before packing; a register tile of `tile` rows and columns."""

    n: int = 0
    tile: tuple[int, int] = (1, 16)


def _infer(attrs: MatmulBytesAttrs, types: Sequence[Type]) -> TensorType:
    a, b = tensor_arg(types, 0, "nn.matmul_bytes"), tensor_arg(types, 1, "nn.matmul_bytes")
    expect(a.dtype is DType.UINT8 and b.dtype is DType.INT8, f"nn.matmul_bytes: {a} and {b}")
    expect(a.rank == 2 and b.rank == 3, f"nn.matmul_bytes: ranks of {a} and {b}")
    nr, k = attrs.tile[1], a.shape[1]
    wanted = (-(-attrs.n // nr), k // QUAD, nr * QUAD)
    expect(k % QUAD == 0 and b.shape == wanted, f"nn.matmul_bytes: {b} does not fit {a}")
    return TensorType((a.shape[0], attrs.n), DType.INT32)


def _compute(attrs: MatmulBytesAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    a, b = args
    (rows, depth), (mr, nr) = (d.value for d in a.shape), attrs.tile  # type: ignore[attr-defined]
    k = te.reduce_axis((0, depth), name="k")

    def body(i: Any, j: Any) -> Any:
        # A tile that reaches past the end computes the last row again, without a test.
        row = te.minimum(i, rows - 1) if rows % mr else i
        left = te.cast(a[row, k], DType.INT32)
        right = b[j // nr, k // QUAD, j % nr * QUAD + k % QUAD]
        return te.sum(left * te.cast(right, DType.INT32), axis=k)

    info = {"tile": attrs.tile}
    return [te.compute(out.shape, body, name="matmul", tag="matmul_bytes", attrs=info)]


def _reference(attrs: MatmulBytesAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    a, b = arrays
    blocks, quads, _ = b.shape
    dense = b.reshape(blocks, quads, -1, QUAD).transpose(1, 3, 0, 2).reshape(quads * QUAD, -1)
    return a.astype(np.int32) @ dense[:, : attrs.n].astype(np.int32)


def _samples() -> Iterable[Sample]:
    rng = np.random.default_rng(0)
    for m, n, k, tile in ((5, 20, 8, (5, 16)), (7, 33, 12, (3, 32)), (1, 16, 4, (1, 16))):
        a, b = rng.integers(0, 256, (m, k), np.uint8), rng.integers(-128, 128, (k, n), np.int8)
        yield Sample((a, pack_bytes(b, tile[1])), MatmulBytesAttrs(n, tile))


OPS: tuple[Op, ...] = (
    Op(
        "nn.matmul_bytes",
        OpPattern.OUT_ELEMWISE_FUSABLE,
        _infer,
        _compute,
        _reference,
        MatmulBytesAttrs,
        _samples,
        doc="A[M,K] of uint8 x B[K,N] of int8, packed in quads of rows, in int32.",
    ),
)
ONNX: dict[str, OnnxImport] = {}
