"""What a block of attention has to do, whichever way it multiplies: a tile of queries of one head,
and a part of the keys."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ....dtype import DType
from ....ir.expr import Binary, BinaryOp, Expr, Load, Var, all_of, as_int, const
from ....ops.fused_attention import AttentionAttrs
from ....ops.window import accumulation_dtype
from ....te.tensor import Tensor
from ....tir.nodes import Buffer, If, Stmt, Store
from .online_softmax import Mask, OnlineSoftmax


@dataclass(frozen=True)
class Sizes:
    batch: int
    heads: int
    queries: int
    keys: int
    depth: int
    v_depth: int
    shared: int  # query heads for each head of the keys


class Frame:
    """The place and the share of a block.

    Rows are queries; with `packed` > 1, those of as many heads that share their keys, one query of
    each head after the other.

    Args:
        tile: rows and keys of a tile.
        outs: the result; with several `parts`, weighted sums of values, tops and sums of weights
            [parts, batch, heads, n, ...].
        packed: divides the rows of a tile.
    """

    def __init__(
        self, attrs: AttentionAttrs, sizes: Sizes, tile: tuple[int, int], ins: Sequence[Buffer],
        outs: Sequence[Buffer], parts: int = 1, packed: int = 1,
    ) -> None:  # fmt: skip
        self.attrs, self.sizes, self.tile = attrs, sizes, tile
        (self.q, self.k, self.v), self.outs = ins[:3], outs
        self.parts, self.packed, self.acc = parts, packed, accumulation_dtype(self.q.dtype)
        self.softmax = softmax_of(attrs, ins[3:], sizes, (tile[0] // packed, tile[1]), self.acc)
        self.block = Var("block")
        self.rows, self.heads = sizes.queries * packed, sizes.heads // packed
        self.row_tiles = math.ceil(self.rows / tile[0])
        self.blocks = sizes.batch * self.heads * self.row_tiles * parts

    @property
    def part(self) -> Expr:
        """Which part of the keys this block sees."""
        return self.block % self.parts

    @cached_property
    def place(self) -> tuple[Expr, Expr, Expr]:
        """Batch, head (or group of packed ones) and first row of this block."""
        number = self.block // self.parts
        head, first = number // self.row_tiles, number % self.row_tiles * self.tile[0]
        return head // self.heads, head % self.heads, first

    def key_tiles(self) -> tuple[Expr, Expr]:
        """The first tile of the keys that this block sees, and how many it sees."""
        rows, keys = self.tile
        whole = math.ceil(self.sizes.keys / keys)
        share = math.ceil(whole / self.parts)
        first, count, causal = self.part * share, const(share), self.softmax.causal
        if share * self.parts != whole:
            count = Binary(BinaryOp.MIN, count, whole - first)
        if causal is not None and self.softmax.hides:
            last = self._query(self.place[2] + (rows - 1)) + (1 + causal)  # exclusive
            seen = (last + keys - 1) // keys - first
            count = Binary(BinaryOp.MAX, Binary(BinaryOp.MIN, seen, count), const(0))
        return first, count

    # -- rows and keys of this block -----------------------------------------------------------

    def _query(self, number: Expr) -> Expr:
        return number // self.packed if self.packed > 1 else number

    def row(self, row: Expr) -> tuple[Expr, Expr, Expr]:
        """Batch, head and query of a row of this block."""
        batch, head, first = self.place
        number = first + row
        if self.packed > 1:
            head = head * self.packed + number % self.packed
        return batch, head, self._query(number)

    def exists(self, row: Expr) -> Expr | None:
        """Whether a row does; None: it does."""
        return None if self.rows % self.tile[0] == 0 else self.place[2] + row < self.rows

    def query(self, row: Expr) -> tuple[Expr, Expr, Expr, Expr | None]:
        """Where a row of the queries is, and whether it exists."""
        return (*self.row(row), self.exists(row))

    def key(self, first: Expr, number: Expr) -> tuple[Expr, Expr, Expr, Expr | None]:
        """Where a key is that follows `first`, and whether it exists."""
        batch, head, _ = self.place
        shared = self.sizes.shared // self.packed
        head = head // shared if shared > 1 else head
        key, fits = first + number, self.sizes.keys % self.tile[1] == 0
        return batch, head, key, None if fits else key < self.sizes.keys

    def masked(self, product: Expr, row: Expr, key: Expr) -> Expr:
        """The score of a product of a row of this block and a key."""
        return self.softmax.score(product, (*self.row(row), key))

    # -- results -------------------------------------------------------------------------------

    def stored(self, row: Expr, e: Expr, value: Expr, total: Expr, top: Expr) -> Stmt:
        """The store of element `e` of a row from its weighted sum of values."""
        place, conditions = (*self.row(row), e), [self.exists(row)]
        if self.parts > 1:
            stmt = Store(self.outs[0], (self.part, *place), value)
        else:
            out = self.outs[0]
            at = tuple(place[a] for a in self.attrs.out_axes)
            stmt = Store(out, at, self.softmax.result(value, total, top).astype(out.dtype))
        known = [c for c in conditions if c is not None]
        return If(all_of(known), stmt) if known else stmt

    def noted(self, row: Expr, which: Expr, value: Expr) -> Stmt:
        """The store of the top (0) or the sum of weights (1) of a row in a part."""
        stmt = Store(self.outs[1], (self.part, *self.row(row), which), value)
        exists = self.exists(row)
        return stmt if exists is None else If(exists, stmt)


def softmax_of(
    attrs: AttentionAttrs, masks: Sequence[Buffer | Tensor], sizes: Sizes, tile: tuple[int, int],
    acc: DType,
) -> OnlineSoftmax:  # fmt: skip
    read = tuple(Mask(m.dtype, functools.partial(_broadcast, m)) for m in masks)
    return OnlineSoftmax(attrs, read, acc, sizes.queries, sizes.keys, tile)


def _broadcast(mask: Buffer | Tensor, index: Sequence[Expr]) -> Expr:
    """The element of a mask that broadcasting puts at `index`."""
    own = index[4 - len(mask.shape) :]
    place = (const(0) if as_int(d) == 1 else i for d, i in zip(mask.shape, own, strict=True))
    return Load(mask, tuple(place), None)
