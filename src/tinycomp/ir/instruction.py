"""Machine instructions as expressions: what the bodies of tensor intrinsics are made of.

An `Instruction` declares one: its LLVM name, the vectors it takes and gives, the feature that a
machine needs for it, and its meaning in NumPy, by which the interpreter runs it. Whoever needs an
instruction declares it; there is no table to enter it into.

>>> from tinycomp.ir.expr import Var, const
>>> x = Var("x", DType.UINT8)
>>> VPDPBUSD_512(3, x, const(1, "int8"))
vpdpbusd(x16(int32(3)), x64(x), x64(int8(1)))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..diagnostics import TinycompError
from ..dtype import DType
from .expr import BinaryOp, Broadcast, Expr, ExprLike, Interned, ReduceLanes, as_expr
from .node import dataclass


@dataclass(frozen=True)
class VectorType:
    """`lanes` elements of a dtype."""

    dtype: DType
    lanes: int = 1

    def __str__(self) -> str:
        return str(self.dtype) if self.lanes == 1 else f"{self.dtype}x{self.lanes}"


@dataclass(frozen=True, eq=False)
class Instruction:
    """An instruction of some machines, without side effects.

    Attributes:
        name: for people, the mnemonic.
        llvm_name: of the LLVM intrinsic that becomes this instruction.
        operands: what it takes.
        result: what it gives.
        features: LLVM's names of the features any one of which provides it ("avx512vnni").
        meaning: what it computes, of arrays with one element per lane.
    """

    name: str
    llvm_name: str
    operands: tuple[VectorType, ...]
    result: VectorType
    features: tuple[str, ...]
    meaning: Callable[..., np.ndarray]

    def __call__(self, *arguments: ExprLike) -> Expr:
        """The expression; a scalar argument is used in all lanes.

        Raises:
            TypeError: an argument is not what the instruction takes.
        """
        if len(arguments) != len(self.operands):
            raise TypeError(f"{self.name} takes {len(self.operands)} operands")
        exprs: list[Expr] = []
        for wanted, argument in zip(self.operands, arguments, strict=True):
            value = as_expr(argument, wanted.dtype)
            if value.lanes == 1 < wanted.lanes:
                value = Broadcast(value, wanted.lanes)
            if value.dtype is not wanted.dtype or value.lanes != wanted.lanes:
                given = VectorType(value.dtype, value.lanes)
                raise TypeError(f"{self.name} takes {wanted}, not {given}: {value}")
            exprs.append(value)
        return InstructionCall(self, tuple(exprs))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class InstructionCall(Expr, metaclass=Interned):
    """A machine instruction applied to vectors of the lane counts that it fixes."""

    CHILDREN = ("args",)
    instruction: Instruction
    args: tuple[Expr, ...]

    @property
    def dtype(self) -> DType:
        return self.instruction.result.dtype

    @property
    def lanes(self) -> int:
        return self.instruction.result.lanes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reinterpret(Expr, metaclass=Interned):
    """The bits of a vector seen as elements of another dtype, first lane lowest."""

    CHILDREN = ("value",)
    to: DType
    value: Expr

    @property
    def dtype(self) -> DType:
        return self.to

    @property
    def lanes(self) -> int:
        return self.value.lanes * self.value.dtype.bits // self.to.bits


def reinterpret(value: Expr, dtype: str | DType) -> Expr:
    """The bits of `value` as elements of `dtype`: four uint8 are one int32.

    Raises:
        TypeError: the bits do not make whole elements, or the dtype has no such bits (bool, and
            16-bit floats, which are computed in 32 bits).

    >>> from tinycomp import te
    >>> te.reinterpret(te.broadcast(te.var("x", "uint8"), 8), "int32").lanes
    2
    """
    to = DType(dtype)
    for each in (value.dtype, to):
        if each in (DType.BOOL, DType.FLOAT16, DType.BFLOAT16):
            raise TypeError(f"{each} cannot be reinterpreted")
    if value.lanes * value.dtype.bits % to.bits:
        given = VectorType(value.dtype, value.lanes)
        raise TypeError(f"the bits of {given} do not make whole {to}")
    return value if value.dtype is to else Reinterpret(to, value)


def broadcast(value: Expr, lanes: int) -> Expr:
    """One scalar in every lane of a vector.

    >>> from tinycomp import te
    >>> te.broadcast(te.var("x"), 4)
    x4(x)
    """
    return Broadcast(value, lanes) if lanes > 1 else value


def sum_lanes(value: Expr) -> Expr:
    """The sum of all lanes, added in a tree: halves first, then quarters.

    >>> from tinycomp import te
    >>> te.sum_lanes(te.broadcast(te.var("x"), 4))
    reducelanes(x4(x))
    """
    return ReduceLanes(BinaryOp.ADD, value) if value.lanes > 1 else value


def reinterpret_array(value: Any, to: DType) -> Any:
    """`Reinterpret` of a NumPy array of lanes, or of a scalar; one lane gives a scalar."""
    bits = np.atleast_1d(np.asarray(value)).view(to.numpy)
    return bits[0] if bits.size == 1 else bits


def _dot4(total: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    products = x.astype(total.dtype).reshape(-1, 4) * y.astype(total.dtype).reshape(-1, 4)
    return total + products.sum(1, dtype=total.dtype)


def _dot_instruction(
    name: str, llvm_name: str, x: DType, y: DType, lanes: int, features: tuple[str, ...]
) -> Instruction:
    """Four products of bytes added to each 32-bit lane."""
    total = VectorType(DType.UINT32 if x is y is DType.UINT8 else DType.INT32, lanes)
    operands = (total, VectorType(x, 4 * lanes), VectorType(y, 4 * lanes))
    return Instruction(name, llvm_name, operands, total, features, _dot4)


# Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, VPDPBUSD.
VPDPBUSD_128, VPDPBUSD_256, VPDPBUSD_512 = (
    _dot_instruction(
        "vpdpbusd", f"llvm.x86.avx512.vpdpbusd.{bits}", DType.UINT8, DType.INT8, bits // 32,
        ("avx512vnni",) if bits == 512 else ("avx512vnni", "avxvnni"),
    )
    for bits in (128, 256, 512)
)  # fmt: skip
# Arm Architecture Reference Manual for A-profile, C7.2, SDOT and UDOT (vector).
SDOT = _dot_instruction(
    "sdot", "llvm.aarch64.neon.sdot.v4i32.v16i8", DType.INT8, DType.INT8, 4, ("dotprod",)
)
UDOT = _dot_instruction(
    "udot", "llvm.aarch64.neon.udot.v4i32.v16i8", DType.UINT8, DType.UINT8, 4, ("dotprod",)
)


def require_features(instruction: Instruction, has_feature: Callable[[str], bool], on: str) -> None:
    """Refuse an instruction that a machine lacks.

    Raises:
        TinycompError: naming the feature.
    """
    if not any(map(has_feature, instruction.features)):
        raise TinycompError(
            f"the instruction {instruction.name} needs {' or '.join(instruction.features)}, "
            f"which {on} does not have",
            hint='choose a target that has it, such as "llvm -mcpu=sapphirerapids" for '
            "avx512vnni, or a tensor intrinsic without it",
        )
