"""Right operands of float32 products as tensor cores take them: split into shorter parts
(nn.split_operand), and the product with such an operand (nn.matmul_parts)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import te
from ..dtype import DType
from ..ir.expr import as_int
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor
from ..types import TensorType, Type
from .onnx_node import OnnxImport
from .window import dims_agree, expect, tensor_arg

STEP = 32  # of the sum, whose order is changed within: 128 bytes of the other operand
_COLUMNS = 8  # rows of parts are whole 16 bytes


@dataclass(frozen=True)
class Split:
    """How a float32 is split.

    Attributes:
        dtype, count: of the parts.
        terms: how many of them, the first, have it as their sum.
        transposed: parts are [n, k], not [k, n].
    """

    name: str
    dtype: DType
    count: int
    terms: int
    transposed: bool

    def place(self, k: Any) -> Any:
        """Where step `k` of the sum is stored. A thread of wgmma loads 16 bytes of the other
        operand, four steps of the sum; these are the ones that its registers stand for (PTX ISA,
        fragments of wgmma .m64k16 and .m64k8). Works on ints, arrays and expressions.

        >>> [BF16X6.place(k) for k in range(8)], [TF32.place(k) for k in range(8)]
        ([0, 1, 8, 9, 16, 17, 24, 25], [0, 4, 8, 12, 16, 20, 24, 28])
        """
        unit, j = k % STEP // 4, k % 4
        thread, which = unit // 2, unit % 2
        if self.dtype is DType.FLOAT32:
            within = which * 16 + j // 2 * 8 + j % 2 * 4 + thread
        else:
            within = which * 16 + j // 2 * 8 + thread * 2 + j % 2
        return k // STEP * STEP + within

    def shape(self, taps: int, k: int, n: int) -> tuple[int, int, int]:
        """Of the parts of an operand [taps, k, n]."""
        rows, columns = taps * padded(k), math.ceil(n / _COLUMNS) * _COLUMNS
        return (self.count, columns, rows) if self.transposed else (self.count, rows, columns)

    def element(self, parts: Any, taps: int, k: int, n: int) -> np.ndarray:
        """The operand [taps, k, n] that these parts are of, as NumPy."""
        total = parts[: self.terms].astype(np.float32).sum(0, dtype=np.float32)
        total = total.T if self.transposed else total
        return total.reshape(taps, -1, total.shape[1])[:, self.place(np.arange(k)), :n]


BF16X6 = Split("bf16x6", DType.BFLOAT16, 3, 3, False)
BF16X6_ANY = Split("bf16x6", DType.BFLOAT16, 4, 3, False)
"""The fourth part is the first without its infinities, which products with lower parts need."""
TF32 = Split("tf32", DType.FLOAT32, 1, 1, True)
SPLITS = {
    ("bf16x6", True): BF16X6,
    ("bf16x6", False): BF16X6_ANY,
    ("tf32", True): TF32,
    ("tf32", False): TF32,
}
"""By their names, and whether the operand is known to be finite."""


def padded(k: int) -> int:
    """Steps of a sum in whole `STEP`s."""
    return math.ceil(k / STEP) * STEP


@dataclass(frozen=True)
class SplitOperandAttrs(Attrs):
    """`finite` says that the operand has no infinities."""

    split: str = "bf16x6"
    finite: bool = True


@dataclass(frozen=True)
class MatmulPartsAttrs(Attrs):
    """`k` and `n` are the extents of the operand before it was split by these attributes."""

    split: str = "bf16x6"
    finite: bool = True
    k: int = 0
    n: int = 0


def _infer_split(attrs: SplitOperandAttrs, types: Sequence[Type]) -> TensorType:
    b = tensor_arg(types, 0, "nn.split_operand")
    expect(b.dtype is DType.FLOAT32, f"nn.split_operand: needs float32, found {b}")
    expect(b.rank in (2, 3), f"nn.split_operand: needs [k, n] or [taps, k, n], found {b}")
    split = split_of(attrs)
    *taps, k, n = b.static_shape
    return TensorType(split.shape(math.prod(taps), k, n), split.dtype)


def split_of(attrs: SplitOperandAttrs | MatmulPartsAttrs) -> Split:
    """The split that attributes name."""
    known = sorted({name for name, _ in SPLITS})
    expect(attrs.split in known, f"split {attrs.split!r} is not one of {', '.join(known)}")
    return SPLITS[attrs.split, attrs.finite]


def parts_of(x: Any, split: Split) -> list[Any]:
    """The parts of a float32 expression, the largest first, as `split` has them."""
    if split is TF32:
        return [te.round_tf32(x)]
    high = te.truncate_bf16(x)
    rest = te.select(x.equal(high), te.const(0.0, "float32"), x - high)  # also of an infinity
    middle = rest.astype(split.dtype)
    low = (rest - middle.astype("float32")).astype(split.dtype)
    finite = te.select(te.isfinite(high), high, te.const(0.0, "float32")).astype(split.dtype)
    return [high.astype(split.dtype), middle, low, finite][: split.count]


def _compute_split(
    attrs: SplitOperandAttrs, args: Sequence[Tensor], out: TensorType
) -> list[Tensor]:
    (b,) = args
    split = split_of(attrs)
    k, n = (as_int(d) for d in b.shape[-2:])
    length = padded(k)
    steps = [split.place(step) for step in range(STEP)]

    def body(part: Any, i: Any, j: Any) -> Any:
        row, column = (j, i) if split.transposed else (i, j)
        inside = row % STEP
        step = _chosen([steps.index(s) for s in range(STEP)], inside)
        at = row % length - inside + step
        lead = [row // length] if b.ndim == 3 else []
        parts = parts_of(b(*lead, at, column), split)
        value = parts[-1]
        for number in reversed(range(split.count - 1)):
            value = te.select(part.equal(number), parts[number], value)
        edges = [at < k] * (length != k) + [column < n] * bool(n % _COLUMNS)
        for edge in edges:
            value = te.if_then_else(edge, value, te.const(0, split.dtype))
        return value

    return [te.compute(out.shape, body, name="split_operand")]


def _chosen(table: list[int], index: Any) -> Any:
    """table[index], for a permutation of bits: index bit i goes to the bit that table[1 << i] is.

    >>> from tinycomp.ir.expr import const
    >>> [_chosen([0, 2, 1, 3], const(i)).value for i in range(4)]
    [0, 2, 1, 3]
    """
    value: Any = te.const(0)
    bit = 1
    while bit < len(table):
        value = value + index // bit % 2 * table[bit]
        bit *= 2
    return value


def _reference_split(attrs: SplitOperandAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    split, (b,) = split_of(attrs), arrays
    b = b[None] if b.ndim == 2 else b
    taps, k, n = b.shape
    if split is TF32:
        bits = (np.ascontiguousarray(b).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        parts = [np.where(np.isnan(b), b, bits.view(np.float32))]
    else:
        with np.errstate(invalid="ignore"):
            high = (np.ascontiguousarray(b).view(np.uint32) & np.uint32(0xFFFF0000)).view("f4")
            rest = np.where(b == high, np.float32(0), b - high)
            middle = rest.astype(split.dtype.numpy)
            low = rest - middle.astype(np.float32)
            parts = [high, middle, low, np.where(np.isfinite(high), high, 0)][: split.count]
    columns = math.ceil(n / _COLUMNS) * _COLUMNS
    out = np.zeros((split.count, taps, padded(k), columns), split.dtype.numpy)
    for number, part in enumerate(parts):
        out[number][:, split.place(np.arange(k)), :n] = part
    flat = out.reshape(split.count, -1, columns)
    return np.ascontiguousarray(np.swapaxes(flat, 1, 2)) if split.transposed else flat


def _infer_matmul(attrs: MatmulPartsAttrs, types: Sequence[Type]) -> TensorType:
    a, parts = (tensor_arg(types, i, "nn.matmul_parts") for i in range(2))
    split = split_of(attrs)
    expect(a.rank >= 2 and a.dtype is DType.FLOAT32, f"nn.matmul_parts: needs float32, found {a}")
    expect(dims_agree(a.shape[-1], attrs.k), f"nn.matmul_parts: {a} has not {attrs.k} columns")
    wanted = TensorType(split.shape(1, attrs.k, attrs.n), split.dtype)
    expect(parts == wanted, f"nn.matmul_parts: {parts} is not {wanted}")
    return TensorType((*a.shape[:-1], attrs.n), a.dtype)


def sum_of_parts(parts: Tensor, split: Split, k: Any, n: Any) -> Any:
    """Element [k, n] of the operand, in float32."""
    at = (n, split.place(k)) if split.transposed else (split.place(k), n)
    total = parts(split.terms - 1, *at).astype("float32")
    for number in reversed(range(split.terms - 1)):
        total = total + parts(number, *at).astype("float32")
    return total


def _compute_matmul(
    attrs: MatmulPartsAttrs, args: Sequence[Tensor], out: TensorType
) -> list[Tensor]:
    a, parts = args
    split = split_of(attrs)
    axis = te.reduce_axis((0, attrs.k), name="k")

    def body(*index: Any) -> Any:
        *row, n = index
        return te.sum(a(*row, axis) * sum_of_parts(parts, split, axis, n), axis=axis)

    return [te.compute(out.shape, body, name="matmul")]


def _reference_matmul(attrs: MatmulPartsAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    a, parts = arrays
    return a @ split_of(attrs).element(parts, 1, attrs.k, attrs.n)[0]


def _f32(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _samples_split() -> Iterable[Sample]:
    for name, finite in SPLITS:
        yield Sample((_f32(0, 40, 5),), SplitOperandAttrs(name, finite))
        yield Sample((_f32(1, 3, 33, 16),), SplitOperandAttrs(name, finite))


def _samples_matmul() -> Iterable[Sample]:
    for name, finite in SPLITS:
        attrs = MatmulPartsAttrs(name, finite, 40, 5)
        parts = _reference_split(SplitOperandAttrs(name, finite), (_f32(0, 40, 5),))
        rtol, atol = (1e-3, 4e-3) if split_of(attrs) is TF32 else (1e-4, 1e-5)
        yield Sample((_f32(1, 2, 7, 40), parts), attrs, rtol=rtol, atol=atol)


OPS: tuple[Op, ...] = (
    Op(
        "nn.split_operand",
        OpPattern.INJECTIVE,
        _infer_split,
        _compute_split,
        _reference_split,
        SplitOperandAttrs,
        _samples_split,
        doc="B[k,n] or B[taps,k,n] in parts: bf16x6 gives three bfloat16 [3,K,N] whose sum it is "
        "(and, if it may be infinite, the first without infinities), tf32 one rounded to 10 bits "
        "[1,N,K]; k in an order of its own, both padded with zeros.",
    ),
    Op(
        "nn.matmul_parts",
        OpPattern.OUT_ELEMWISE_FUSABLE,
        _infer_matmul,
        _compute_matmul,
        _reference_matmul,
        MatmulPartsAttrs,
        samples=_samples_matmul,
        doc="nn.matmul whose second operand was split by nn.split_operand.",
    ),
)
ONNX: dict[str, OnnxImport] = {}
