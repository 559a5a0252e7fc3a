"""What a matrix product on Hopper is made of: operands, tile, and what is done with the result."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ....dtype import DType
from ....ir.expr import Expr, Var
from ....ops.operand_parts import Split
from ....tir.nodes import Buffer
from ....tir.tile.layout import ROW_BYTES, Major
from ....tir.tile.nodes import Im2col


@dataclass(frozen=True, slots=True)
class HopperTile:
    """A block's share of the result, and how it is computed.

    Attributes:
        rows, columns: of the tile; each consumer has a multiple of 64 rows.
        depth: stages of the ring.
        consumers: warpgroups that multiply.
        cluster: blocks that share B.
        group: tiles of rows that are walked together, before the next columns.
        staged: results go through shared memory and TMA, not straight to memory.
        gatherers: warpgroups that compute B where it is no matrix in memory.
        split: blocks of a cluster that each compute a part of the sum of the same tile.
        alternate: two consumers take whole tiles in turn ("ping-pong"), so that one writes its
            result while the other multiplies; otherwise they share the rows of each tile.
    """

    rows: int
    columns: int
    depth: int
    consumers: int = 2
    cluster: int = 1
    group: int = 8
    staged: bool = True
    alternate: bool = False
    gatherers: int = 2
    split: int = 1


@dataclass(frozen=True, slots=True)
class Gathered:
    """An operand that is computed where it is copied: `value` is B[batch, k, column], for indices
    inside its extents."""

    value: Expr
    batch: Var
    k: Var
    column: Var


@dataclass(frozen=True, slots=True)
class Windows:
    """The operand A of a convolution of images in NHWC: row i is the window of output pixel i, a
    sum over its taps and then its channels.

    Attributes:
        image: [n, h, w, c].
        size: height and width of the output.
        kernel, strides, dilation: down and across.
        padding: top, left, bottom, right.
    """

    image: Buffer
    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]

    @property
    def walk(self) -> Im2col:
        """How TMA walks the image."""
        top, left, bottom, right = self.padding
        down, across = ((k - 1) * d for k, d in zip(self.kernel, self.dilation, strict=True))
        upper = (right - across, bottom - down)
        return Im2col((-left, -top), upper, (self.strides[1], self.strides[0]))

    def pixel(self, row: Expr) -> tuple[Expr, Expr, Expr]:
        """Where the window of a row begins: across, down, image."""
        height, width = self.size
        across = row % width * self.strides[1] - self.padding[1]
        down = row // width % height * self.strides[0] - self.padding[0]
        return across, down, row // (height * width)

    def tap(self, number: Expr) -> tuple[Expr, Expr]:
        """Where tap `number` lies in a window: across, down."""
        width = self.kernel[1]
        return number % width * self.dilation[1], number // width * self.dilation[0]


@dataclass(frozen=True, slots=True)
class Operands:
    """The matrix A[b, m, k], or windows of images, and B: a matrix [b, k, n], or [b, n, k] if it is
    K-major, or computed.

    Attributes:
        a_batches, b_batches: whether they have the batch, or one matrix serves all.
        slices: of the sum; slice s of batch b is result b * slices + s.
        b_split: how B is split into parts, if it is, by nn.split_operand; A is float32 then.
    """

    a: Buffer | Windows
    b: Buffer | Gathered
    batch: int
    m: int
    n: int
    k: int
    b_major: Major = Major.MN
    a_batches: bool = True
    b_batches: bool = True
    slices: int = 1
    b_split: Split | None = None

    @property
    def dtype(self) -> DType:
        return (self.a.image if isinstance(self.a, Windows) else self.a).dtype

    @property
    def right(self) -> DType:
        """The type of B."""
        b = self.b
        return b.dtype if isinstance(b, Buffer) else self.dtype

    @property
    def sum(self) -> DType:
        """The type that products are added up in."""
        return DType.INT32 if self.dtype in (DType.INT8, DType.UINT8) else DType.FLOAT32

    @property
    def taps(self) -> int:
        """Parts of the sum that begin at a step of their own."""
        return math.prod(self.a.kernel) if isinstance(self.a, Windows) else 1

    @property
    def length(self) -> int:
        """Of the sum, with every tap in whole steps of the ring."""
        step = ROW_BYTES // self.dtype.itemsize
        return self.taps * math.ceil(self.k // self.taps / step) * step


@dataclass(frozen=True, slots=True)
class Epilogue:
    """`out[indices] = value`, over variables `batch` (which result), `row`, `column` and the sum
    `acc`.

    `scattered` says that rows of the product are not rows of memory.
    """

    out: Buffer
    indices: tuple[Expr, ...]
    value: Expr
    batch: Var
    row: Var
    column: Var
    acc: Var
    scattered: bool = False
