"""What a matrix product on Hopper is made of: operands, tile, and what is done with the result."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.expr import Expr, Var
from ...tir.nodes import Buffer
from ...tir.tile.layout import Major


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


@dataclass(frozen=True, slots=True)
class Gathered:
    """An operand that is computed where it is copied: `value` is B[batch, k, column], for indices
    inside its extents."""

    value: Expr
    batch: Var
    k: Var
    column: Var


@dataclass(frozen=True, slots=True)
class Operands:
    """The matrix A[b, m, k], and B: a matrix [b, k, n], or [b, n, k] if it is K-major, or computed.

    Attributes:
        a_batches, b_batches: whether they have the batch, or one matrix serves all.
        slices: of the sum; slice s of batch b is result b * slices + s.
    """

    a: Buffer
    b: Buffer | Gathered
    batch: int
    m: int
    n: int
    k: int
    b_major: Major = Major.MN
    a_batches: bool = True
    b_batches: bool = True
    slices: int = 1


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
