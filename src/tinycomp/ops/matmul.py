"""Matrix products: nn.matmul, its packed form, and ONNX MatMul, Gemm, FusedMatMul."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import te
from ..ir.expr import is_const
from ..relay.nodes import Atom
from ..relay.op import NO_ATTRS, Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor
from ..types import Dim, TensorType, Type
from .onnx_node import OnnxImport, OnnxNode
from .window import (
    accumulation_dtype,
    dims_agree,
    expect,
    expect_precision,
    stored,
    tensor_arg,
    widen,
)


@dataclass(frozen=True)
class MatmulAttrs(Attrs):
    """Attributes of nn.matmul.

    `precision` "tf32" allows a kernel to round float32 operands to tf32, which tensor cores take;
    sums stay float32. Kernels without tensor cores compute exactly. "fp32" is as accurate as a loop
    of float32 multiply-adds, "fp32_strict" is computed by those.
    """

    precision: str = "fp32"


@dataclass(frozen=True)
class PackMatmulAttrs(Attrs):
    tile: tuple[int, int] = (1, 16)  # rows and columns of the register tile


@dataclass(frozen=True)
class MatmulPackedAttrs(Attrs):
    n: int = 0  # columns of B before packing
    k: int = 0
    tile: tuple[int, int] = (1, 16)


def broadcast_batch(a: Sequence[Dim], b: Sequence[Dim], op: str) -> tuple[Dim, ...]:
    """Batch dimensions of a product, broadcast as NumPy does."""
    rank = max(len(a), len(b))
    out: list[Dim] = []
    for x, y in zip(
        (1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b), strict=True
    ):
        expect(x == 1 or y == 1 or dims_agree(x, y), f"{op}: batch dimensions {x} and {y} differ")
        out.append(y if x == 1 or (isinstance(y, int) and y != 1) else x)
    return tuple(out)


def _batch_index(tensor: Tensor, index: Sequence[Any], last: int) -> list[Any]:
    """The batch indices into `tensor`, which has `last` further axes, under broadcasting."""
    batch = tensor.shape[: tensor.ndim - last]
    aligned = index[len(index) - len(batch) :]
    return [te.const(0) if is_const(d, 1) else i for d, i in zip(batch, aligned, strict=True)]


def _infer_matmul(attrs: MatmulAttrs, types: Sequence[Type]) -> TensorType:
    a, b = tensor_arg(types, 0, "nn.matmul"), tensor_arg(types, 1, "nn.matmul")
    expect(a.rank >= 2 and b.rank >= 2, f"nn.matmul: needs matrices, found {a} and {b}")
    expect(a.dtype is b.dtype, f"nn.matmul: dtypes differ: {a} and {b}")
    expect_precision(attrs.precision, a.dtype, "nn.matmul")
    expect(
        dims_agree(a.shape[-1], b.shape[-2]),
        f"nn.matmul: columns of {a} differ from rows of {b}",
    )
    batch = broadcast_batch(a.shape[:-2], b.shape[:-2], "nn.matmul")
    return TensorType((*batch, a.shape[-2], b.shape[-1]), a.dtype)


def _compute_matmul(attrs: MatmulAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    a, b = args
    acc = accumulation_dtype(out.dtype)
    k = te.reduce_axis((0, a.shape[-1]), name="k")

    def body(*index: Any) -> Any:
        *batch, m, n = index
        left = a(*_batch_index(a, batch, 2), m, k).astype(acc)
        return te.sum(left * b(*_batch_index(b, batch, 2), k, n).astype(acc), axis=k)

    info = {"acc": acc, "precision": attrs.precision}
    product = te.compute(out.shape, body, name="matmul", tag="matmul", attrs=info)
    return [stored(product, out.dtype)]


def _reference_matmul(attrs: Attrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    a, b = arrays
    return np.matmul(widen(a), widen(b)).astype(a.dtype, copy=False)


def _infer_pack(attrs: PackMatmulAttrs, types: Sequence[Type]) -> TensorType:
    b = tensor_arg(types, 0, "nn.pack_matmul")
    expect(b.rank >= 2, f"nn.pack_matmul: needs a matrix, found {b}")
    *batch, k, n = b.shape
    nr = attrs.tile[1]
    return TensorType((*batch, (n + (nr - 1)) // nr, k, nr), b.dtype)


def _compute_pack(attrs: PackMatmulAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    (b,) = args
    nr, columns = attrs.tile[1], b.shape[-1]

    def body(*index: Any) -> Any:
        *batch, block, k, lane = index
        n = block * nr + lane
        value = b(*batch, k, n)
        if is_const(columns % nr, 0):
            return value
        return te.if_then_else(n < columns, value, te.const(0, b.dtype))

    return [te.compute(out.shape, body, name="pack_matmul")]


def _reference_pack(attrs: PackMatmulAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    (b,) = arrays
    *batch, k, n = b.shape
    nr = attrs.tile[1]
    blocks = -(-n // nr)
    if n % nr:
        b = np.pad(b, [(0, 0)] * (b.ndim - 1) + [(0, blocks * nr - n)])
    return np.ascontiguousarray(np.swapaxes(b.reshape(*batch, k, blocks, nr), -3, -2))


def _infer_packed(attrs: MatmulPackedAttrs, types: Sequence[Type]) -> TensorType:
    a, b = tensor_arg(types, 0, "nn.matmul_packed"), tensor_arg(types, 1, "nn.matmul_packed")
    expect(a.rank >= 2 and b.rank >= 3, f"nn.matmul_packed: ranks of {a} and {b} are too small")
    expect(a.dtype is b.dtype, f"nn.matmul_packed: dtypes differ: {a} and {b}")
    blocks, k, nr = b.shape[-3:]
    expect(
        nr == attrs.tile[1] and dims_agree(blocks, -(-attrs.n // attrs.tile[1])) and k == attrs.k,
        f"nn.matmul_packed: {b} is not a packed matrix of {attrs.k} x {attrs.n}",
    )
    expect(dims_agree(a.shape[-1], attrs.k), f"nn.matmul_packed: {a} has not {attrs.k} columns")
    batch = broadcast_batch(a.shape[:-2], b.shape[:-3], "nn.matmul_packed")
    return TensorType((*batch, a.shape[-2], attrs.n), a.dtype)


def _compute_packed(
    attrs: MatmulPackedAttrs, args: Sequence[Tensor], out: TensorType
) -> list[Tensor]:
    a, b = args
    nr, acc = attrs.tile[1], accumulation_dtype(out.dtype)
    k = te.reduce_axis((0, attrs.k), name="k")

    def body(*index: Any) -> Any:
        *batch, m, n = index
        left = a(*_batch_index(a, batch, 2), m, k).astype(acc)
        right = b(*_batch_index(b, batch, 3), n // nr, k, n % nr).astype(acc)
        return te.sum(left * right, axis=k)

    info = {"n": attrs.n, "k": attrs.k, "tile": attrs.tile, "acc": acc}
    product = te.compute(out.shape, body, name="matmul", tag="matmul_packed", attrs=info)
    return [stored(product, out.dtype)]


def _reference_packed(attrs: MatmulPackedAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    a, b = arrays
    *batch, blocks, k, nr = b.shape
    dense = np.swapaxes(b, -3, -2).reshape(*batch, k, blocks * nr)[..., : attrs.n]
    return _reference_matmul(NO_ATTRS, (a, dense))


def _f32(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _samples_matmul() -> Iterable[Sample]:
    plain = MatmulAttrs()
    yield Sample((_f32(0, 5, 7), _f32(1, 7, 6)), plain)
    yield Sample((_f32(2, 2, 1, 3, 4), _f32(3, 3, 4, 5)), plain)
    yield Sample((_f32(4, 3, 1, 8), _f32(5, 8, 9)), plain)
    halves = (_f32(6, 4, 5).astype(np.float16), _f32(7, 5, 3).astype(np.float16))
    yield Sample(halves, plain, rtol=1e-2)
    yield Sample((np.arange(12).reshape(3, 4), np.arange(8).reshape(4, 2)), plain)
    operands = (_f32(8, 33, 40), _f32(9, 40, 17))
    yield Sample(operands, MatmulAttrs(precision="tf32"), rtol=2e-2, atol=2e-2)


def _samples_pack() -> Iterable[Sample]:
    yield Sample((_f32(0, 5, 9),), PackMatmulAttrs((2, 4)))
    yield Sample((_f32(1, 2, 5, 8),), PackMatmulAttrs((2, 4)))


def _samples_packed() -> Iterable[Sample]:
    for shape_a, shape_b in (((6, 5), (5, 9)), ((2, 3, 5), (5, 8)), ((2, 3, 5), (2, 5, 7))):
        packed = _reference_pack(PackMatmulAttrs((2, 4)), (_f32(1, *shape_b),))
        yield Sample((_f32(0, *shape_a), packed), MatmulPackedAttrs(shape_b[-1], 5, (2, 4)))


OPS: tuple[Op, ...] = (
    Op(
        "nn.matmul",
        OpPattern.OUT_ELEMWISE_FUSABLE,
        _infer_matmul,
        _compute_matmul,
        _reference_matmul,
        MatmulAttrs,
        samples=_samples_matmul,
        doc="A[...,M,K] x B[...,K,N] with broadcast batch dimensions. ONNX MatMul.",
    ),
    Op(
        "nn.pack_matmul",
        OpPattern.INJECTIVE,
        _infer_pack,
        _compute_pack,
        _reference_pack,
        PackMatmulAttrs,
        _samples_pack,
        doc="B[...,K,N] in column blocks [...,ceil(N/nr),K,nr], zero-padded.",
    ),
    Op(
        "nn.matmul_packed",
        OpPattern.OUT_ELEMWISE_FUSABLE,
        _infer_packed,
        _compute_packed,
        _reference_packed,
        MatmulPackedAttrs,
        _samples_packed,
        doc="nn.matmul whose second operand was packed by nn.pack_matmul.",
    ),
)


def swap_last(node: OnnxNode, x: Atom) -> Atom:
    """`x` with its last two axes exchanged."""
    assert isinstance(x.type, TensorType)
    rank = x.type.rank
    return node.builder.call("transpose", x, axes=(*range(rank - 2), rank - 1, rank - 2))


def scaled(node: OnnxNode, x: Atom, factor: float) -> Atom:
    """`x * factor`; `x` itself for 1."""
    assert isinstance(x.type, TensorType)
    if factor == 1.0:
        return x
    return node.builder.call("multiply", x, node.builder.const(factor, x.type.dtype))


def matmul(node: OnnxNode, a: Atom, b: Atom) -> Atom:
    """NumPy's matmul of operands of any rank; vectors are matrices of one row or column."""
    assert isinstance(a.type, TensorType)
    assert isinstance(b.type, TensorType)
    call, a_vector, b_vector = node.builder.call, a.type.rank == 1, b.type.rank == 1
    if a_vector:
        a = call("reshape", a, newshape=(1, *a.type.shape))
    if b_vector:
        b = call("reshape", b, newshape=(*b.type.shape, 1))
    out = call("nn.matmul", a, b)
    assert isinstance(out.type, TensorType)
    if not (a_vector or b_vector):
        return out
    *batch, m, n = out.type.shape
    shape = (*batch, *(() if a_vector else (m,)), *(() if b_vector else (n,)))
    return call("reshape", out, newshape=shape)


def _import_matmul(node: OnnxNode) -> Atom:
    return matmul(node, node.input(0), node.input(1))


def _import_gemm(node: OnnxNode) -> Atom:
    a, b = node.input(0), node.input(1)
    a = swap_last(node, a) if node.attr("transA", 0) else a
    b = swap_last(node, b) if node.attr("transB", 0) else b
    out = scaled(node, node.builder.call("nn.matmul", a, b), node.attr("alpha", 1.0))
    if not node.has(2) or node.attr("beta", 1.0) == 0.0:
        return out
    return node.builder.call("add", out, scaled(node, node.input(2), node.attr("beta", 1.0)))


def _import_fused_matmul(node: OnnxNode) -> Atom:
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        raise node.unsupported("transBatchA and transBatchB")
    a, b = node.input(0), node.input(1)
    a = swap_last(node, a) if node.attr("transA", 0) and node.type(0).rank > 1 else a
    b = swap_last(node, b) if node.attr("transB", 0) and node.type(1).rank > 1 else b
    return scaled(node, matmul(node, a, b), node.attr("alpha", 1.0))


ONNX: dict[str, OnnxImport] = {
    "MatMul": _import_matmul,
    "Gemm": _import_gemm,
    "com.microsoft::FusedMatMul": _import_fused_matmul,
}
