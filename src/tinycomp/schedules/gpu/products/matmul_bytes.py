"""Products of bytes on a GPU, on tensor cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .... import te
from ....codegen.cuda.limits import has_async_copies
from ....dtype import DType
from ....ir.expr import as_int
from ....relay.passes.layouts import QUAD
from ....te.tensor import Tensor
from ....tir.tensor_intrinsics.warp import mma_of
from ....types import TensorType
from .tensor_cores import tensor_core_gemm


def choose_gpu_byte_tile(rows: int, columns: int) -> tuple[int, int]:
    """The packing that ByteProducts gives weights: [columns, k], by which fragments are loaded."""
    return 1, 1


def expand_matmul_bytes(
    attrs: Any, args: Sequence[Tensor], out: TensorType, arch: str
) -> list[Tensor] | None:
    """nn.matmul_bytes, uint8 by int8 into int32; None without tensor cores."""
    a, b = args
    record = mma_of(DType.UINT8, DType.INT8)
    (m, k), lanes = (as_int(d) for d in a.shape), attrs.tile[1]
    if record is None or not has_async_copies(arch) or not m * k * attrs.n:
        return None

    def weights(_: Any, p: Any, j: Any) -> Any:
        return b(j // lanes, p // QUAD, j % lanes * QUAD + p % QUAD)

    return tensor_core_gemm(
        out,
        (1, m, attrs.n, k),
        lambda _, i, p: a(i, p),
        weights,
        lambda i, j: (te.const(0), i, j),
        record,
        arch,
    )
