"""Matrix instructions of a warp (`mma.sync`, `ldmatrix`) as tensor intrinsics.

One record, `Mma`, holds what the rest derives from: the computation that `tensorize` compares with,
the layouts by which the executor and the code generator place elements in registers, and the
instruction. (PTX ISA, "Warp-level matrix instructions".)

>>> intrin = mma("bfloat16", "float32")
>>> intrin.name, [str(i.shape) for i in intrin.op.inputs]
('mma.m16n8k16.bfloat16', ['(16, 16)', '(8, 16)'])
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...dtype import DType
from ...ir.expr import BinaryOp, Expr, Load, Var, binary, const, substitute
from ...ir.fold import refold
from ...ir.node import fold
from ...te.intrin import BufferView, TensorIntrin, decl_tensor_intrin
from ...te.math import round_tf32
from ...te.reducers import sum as te_sum
from ...te.tensor import ComputeOp, Reduce, compute, placeholder, reduce_axis
from ..nodes import Collective, For, Stmt
from .fragments import FragmentLayout


@dataclass(frozen=True, slots=True)
class Mma:
    """d = a b + c on the tensor cores of one warp.

    Attributes:
        dtype, right: of a and of b. float32 stands for tf32: the low 13 bits are ignored.
        accumulator: of c and d.
        ptx: the instruction; its operands are the registers of d, a, b and c.
    """

    dtype: DType
    right: DType
    accumulator: DType
    ptx: str

    @property
    def a(self) -> FragmentLayout:
        return FragmentLayout("a", self.dtype.bits)

    @property
    def b(self) -> FragmentLayout:
        return FragmentLayout("b", self.dtype.bits)

    @property
    def c(self) -> FragmentLayout:
        return FragmentLayout("c", 32)

    @property
    def depth(self) -> int:
        return self.a.shape[1]

    @property
    def name(self) -> str:
        mixed = f".{self.right}" if self.right is not self.dtype else ""
        return f"mma.m16n8k{self.depth}.{self.dtype}{mixed}"


def _record(
    dtype: DType, accumulator: DType, shape: str, types: str, right: DType | None = None
) -> Mma:
    ptx = f"mma.sync.aligned.{shape}.row.col.{types}"
    return Mma(dtype, right or dtype, accumulator, ptx)


_F32, _S32 = DType.FLOAT32, DType.INT32
MMA: Mapping[str, Mma] = {
    one.name: one
    for one in (
        _record(DType.FLOAT16, _F32, "m16n8k16", "f32.f16.f16.f32"),
        _record(DType.BFLOAT16, _F32, "m16n8k16", "f32.bf16.bf16.f32"),
        _record(DType.FLOAT32, _F32, "m16n8k8", "f32.tf32.tf32.f32"),
        _record(DType.INT8, _S32, "m16n8k32", "s32.s8.s8.s32"),
        _record(DType.UINT8, _S32, "m16n8k32", "s32.u8.u8.s32"),
        _record(DType.UINT8, _S32, "m16n8k32", "s32.u8.s8.s32", DType.INT8),
    )
}
"""The instructions of sm_80 and later, by name."""
LOADS = ("ldmatrix.x4", "ldmatrix.x4.trans")
PACKS: Mapping[str, DType] = {f"pack.x2.{t}": t for t in (DType.FLOAT16, DType.BFLOAT16)}
"""Two floats, which follow each other in a fragment of c, to one register of a."""


def mma_of(dtype: DType, right: DType | None = None) -> Mma | None:
    """The instruction that multiplies matrices of this element type, or of these two."""
    types = (dtype, right or dtype)
    return next((one for one in MMA.values() if (one.dtype, one.right) == types), None)


@dataclass(frozen=True, slots=True)
class WarpOp:
    """How a warp executes a `Collective`.

    Attributes:
        name: "ldmatrix", the name of an `Mma`, or "map": each lane runs the body for the elements
            that it holds; "across": the columns of a fragment are combined with those of others;
            "pack": two fragments of c are rounded to one of a, where each lane holds the same
            elements.
        layouts: of the inputs and then the output; None for ordinary memory.
    """

    name: str
    layouts: tuple[FragmentLayout | None, ...]


@functools.cache
def mma(
    dtype: str,
    accumulator: str,
    a_transposed: bool = False,
    b_transposed: bool = False,
    right: str = "",
) -> TensorIntrin:
    """c[i, j] += sum of a[i, k] * b[j, k] for 16 x 8 elements of a warp's fragments.

    Args:
        a_transposed: the left operand is a[k, i].
        b_transposed: the right operand is b[k, j].
        right: its element type, if that is another.
    """
    record = mma_of(DType(dtype), DType(right or dtype))
    if record is None or record.accumulator != accumulator:
        raise ValueError(f"no instruction multiplies {dtype} into {accumulator}")
    layouts = (
        FragmentLayout("a", record.dtype.bits, a_transposed),
        FragmentLayout("b", record.dtype.bits, b_transposed),
        record.c,
    )
    a, b = (
        placeholder(layout.shape, one, name=layout.role)  # type: ignore[arg-type]
        for layout, one in zip(layouts[:2], (record.dtype, record.right), strict=True)
    )
    k = reduce_axis((0, record.depth), name="k")

    def product(i: Any, j: Any) -> Any:
        left = a[k, i] if a_transposed else a[i, k]
        right = b[k, j] if b_transposed else b[j, k]
        return te_sum(left.astype(accumulator) * right.astype(accumulator), axis=k)

    c = compute(record.c.shape, product, name="c")
    form = "".join("kt"[t] for t in (a_transposed, b_transposed)).replace("kk", "")
    name = f"{record.name}.{form}" if form else record.name
    op = WarpOp(record.name, layouts)
    start = WarpOp("map", (record.c,))

    def emit(ins: list[BufferView], outs: list[BufferView]) -> Any:
        reset = collective(start, c.op, [], outs, starts=True)  # type: ignore[arg-type]
        return None, reset, collective(op, c.op, ins, outs)  # type: ignore[arg-type]

    return decl_tensor_intrin(c, emit, name)


@functools.cache
def load_matrix(role: str, dtype: str, transposed: bool = False) -> TensorIntrin:
    """Four 8 x 8 matrices of 16-bit units from shared memory to a fragment of a, or two of b.

    Args:
        transposed: the matrix has k first, both in shared memory and logically. Only for elements
            of 16 bits.
    """
    layout = FragmentLayout(role, DType(dtype).bits, transposed)
    if transposed and layout.bits != 16:
        raise ValueError(f"ldmatrix transposes elements of 16 bits, not {dtype}")
    rows, columns = layout.shape
    count = 4 // layout.registers
    shape = (rows, columns * count) if transposed else (rows * count, columns)
    name = f"ldmatrix.{role}.{dtype}{'.trans' if transposed else ''}"
    return _copy(name, WarpOp("ldmatrix", (None, layout)), shape, dtype)


@functools.cache
def load_tf32(role: str, transposed: bool = False) -> TensorIntrin:
    """A fragment of a or b from memory, element by element, rounded to tf32."""
    layout = FragmentLayout(role, 32, transposed)
    name = f"load.{role}.tf32{'.trans' if transposed else ''}"
    return _copy(name, WarpOp("map", (None, layout)), layout.shape, "float32", round_tf32)


def across_columns(op: BinaryOp, source: BufferView, target: BufferView) -> Collective:
    """target[i, j] = target[i, j] op source[i, 0] op ... op source[i, 7]: what a row has in all of
    its columns is known to all lanes that hold a part of it."""
    layout = FragmentLayout("c", 32)
    i, j, k = Var("i"), Var("j"), Var("k")
    stmt: Stmt = target.store(binary(op, target[i, j], source[i, k]), i, j)
    for var, extent in ((k, 8), (j, 8), (i, 16)):
        stmt = For(var, const(0), const(extent), stmt)
    return Collective(WarpOp("across", (layout, layout)), (source[0, 0],), stmt)


def pack_fragment(source: BufferView, target: BufferView, dtype: DType) -> Collective:
    """Sixteen columns of an accumulator as the left operand of an instruction."""
    c, a = FragmentLayout("c", 32), FragmentLayout("a", dtype.bits)
    i, k = Var("i"), Var("k")
    stmt: Stmt = target.store(source[i, k].astype(dtype), i, k)
    for var in (k, i):
        stmt = For(var, const(0), const(16), stmt)
    return Collective(WarpOp("pack", (c, a)), (source[0, 0],), stmt)


@functools.cache
def store_fragment(dtype: str) -> TensorIntrin:
    """A fragment of c to memory, element by element."""
    layout = FragmentLayout("c", DType(dtype).bits)
    return _copy(f"store.c.{dtype}", WarpOp("map", (layout, None)), layout.shape, dtype)


def _copy(
    name: str,
    op: WarpOp,
    shape: tuple[int, int],
    dtype: str,
    change: Callable[[Any], Any] = lambda x: x,
) -> TensorIntrin:
    source = placeholder(shape, dtype, name="source")  # type: ignore[arg-type]
    target = compute(shape, lambda i, j: change(source[i, j]), name="target")
    operation: Any = target.op
    return decl_tensor_intrin(target, lambda ins, outs: collective(op, operation, ins, outs), name)


def collective(
    op: WarpOp,
    operation: ComputeOp,
    ins: list[BufferView],
    outs: list[BufferView],
    starts: bool = False,
) -> Collective:
    """The statement that computes an operation of small tensors on parts of buffers.

    Args:
        starts: set the outputs to the identity of the reduction instead.
    """
    reduced = () if starts else operation.reduce_axis
    axes = (*operation.axis, *reduced)
    own: dict[Var, Expr] = {a.var: Var(a.var.name) for a in axes}
    views = dict(zip(operation.inputs, ins, strict=True)) if ins else {}
    place = [own[a.var] for a in operation.axis]

    def step(node: Any, parts: list[Any]) -> Any:
        if isinstance(node, Load):
            return views[node.source][tuple(parts)]
        return own[node] if node in own else refold(node, parts)

    (value,) = operation.body
    if isinstance(value, Reduce):
        combiner = value.combiner
        if starts:
            value = combiner.identity[0]
        else:
            new = fold(value.sources[0], step)
            value = substitute(
                combiner.results[0], {combiner.lhs[0]: outs[0][place], combiner.rhs[0]: new}
            )
    else:
        value = fold(value, step)
    stmt: Stmt = outs[0].store(value, *place)
    for axis in reversed(axes):
        var = own[axis.var]
        assert isinstance(var, Var)
        stmt = For(var, axis.min, axis.extent, stmt)
    zeros = [v[[const(0)] * len(v.shape)] for v in ins]
    return Collective(op, tuple(zeros), stmt)


__all__ = [
    "LOADS", "MMA", "PACKS", "Mma", "WarpOp", "across_columns", "collective",
    "load_matrix", "load_tf32", "mma", "mma_of", "pack_fragment", "store_fragment",
]  # fmt: skip
