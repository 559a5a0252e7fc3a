"""Softmax over scores that come tile by tile, as attention on a GPU computes it.

For every row there are the largest score so far (`top`), the sum of the weights (`total`), and the
weighted sums of the values. With the scores of the next tile,

    raised = max(top, max(scores))          base = raised, or 0 where nothing is seen yet
    weight = exp(score - base)              fade = exp(top - base)
    total = total * fade + sum(weights)     values = values * fade + weights v

and in the end `values / total` is the result. (Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018; Dao et al., "FlashAttention", NeurIPS 2022.) How the two products
are computed is up to the schedules: `simt`, `mma` and `hopper`.

Scores are in units of log2(e), because exp2 is what the machine has. Where no mask adds to them,
they stay products of queries and keys, and the scale is applied on the way to exp2: one
multiply-add for each weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ....dtype import DType
from ....ir.expr import BinaryOp as Op
from ....ir.expr import Expr, binary, call, const, select
from ....ops.fused_attention import AttentionAttrs
from ..loops import inside

_LOG2E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask of the scores: booleans hide, floats are added.

    Attributes:
        read: its element at [batch, head, query, key].
    """

    dtype: DType
    read: Callable[[Sequence[Expr]], Expr]


@dataclass(frozen=True)
class OnlineSoftmax:
    """The expressions of one attention.

    Attributes:
        dtype: of scores and sums.
        queries, keys: how many there are.
        tile: queries and keys of a tile, some of which may lie beyond the last ones.
    """

    attrs: AttentionAttrs
    masks: tuple[Mask, ...]
    dtype: DType
    queries: int
    keys: int
    tile: tuple[int, int]

    @property
    def raw(self) -> bool:
        """Whether scores are the bare products, which are scaled on the way to exp2."""
        hides = all(mask.dtype is DType.BOOL for mask in self.masks)
        return self.attrs.scale > 0 and hides and (not self.masks or self.attrs.fill == -math.inf)

    @property
    def causal(self) -> int | None:
        """Query i sees the keys up to i + causal; None where that hides nothing."""
        causal = self.attrs.causal
        return None if causal is None or causal >= self.keys - 1 else causal

    @property
    def hides(self) -> bool:
        """Whether what `causal` hides stays hidden: a mask that chooses a finite score does not."""
        fills = any(mask.dtype is DType.BOOL for mask in self.masks)
        return self.causal is not None and not (fills and self.attrs.fill > -math.inf)

    @property
    def whole(self) -> bool:
        """Whether scores are the bare products in all tiles."""
        return self.inner and self.causal is None and self.keys % self.tile[1] == 0

    @property
    def inner(self) -> bool:
        """Whether scores are the bare products in tiles that lie inside of what is seen."""
        return self.raw and not self.masks

    def key_tiles(self, first: Expr) -> Expr:
        """How many tiles of the keys the tile of queries from `first` on sees; at least one."""
        rows, keys = self.tile
        tiles = math.ceil(self.keys / keys)
        if self.causal is None or not self.hides:
            return const(tiles)
        seen = (first + (rows + self.causal + keys - 1)) // keys
        return binary(Op.MAX, binary(Op.MIN, seen, const(tiles)), const(1))

    def score(
        self, product: Expr, place: tuple[Expr, Expr, Expr, Expr], lane: Expr | None = None
    ) -> Expr:
        """The score of a product of a query and a key.

        Args:
            place: batch, head, query and key.
            lane: 0 or 1, where the key is `lane` behind that of `place`: a vector of two keys, both
                of which exist or neither.
        """
        b, h, i, first = place
        low = const(-math.inf, self.dtype)
        key = first if lane is None else first + lane
        score = product if self.raw else product * const(self.attrs.scale * _LOG2E, self.dtype)
        if self.causal is not None:
            score = select(key <= i + self.causal, score, low)
        # beyond the scores a mask has no elements: read the last ones
        rows, keys = self.tile
        i, _ = inside(i, self.queries, self.queries % rows == 0)
        lanes = 1 if lane is None else 2
        j, exists = inside(first, self.keys, self.keys % keys == 0, lanes)
        for mask in self.masks:
            value = mask.read((b, h, i, j if lane is None else j + lane))
            if mask.dtype is DType.BOOL:
                fill = self.attrs.fill * (1.0 if self.raw else _LOG2E)
                score = select(value, score, const(fill, self.dtype))
            else:
                score = score + value.astype(self.dtype) * const(_LOG2E, self.dtype)
        for condition in exists:
            score = select(condition, score, low)
        return score

    # -- the steps of a row --------------------------------------------------------------------

    def base(self, top: Expr) -> Expr:
        """What scores are relative to: exp(-inf - 0) is 0, where -inf - -inf would be NaN."""
        low, zero = const(-math.inf, self.dtype), const(0, self.dtype)
        return select(top.equal(low), zero, self._scaled(top))

    def weight(self, score: Expr, base: Expr) -> Expr:
        """exp(score - base). Of the top so far, what sums fade by."""
        return call("exp2_approx", self._scaled(score) - base)

    def result(self, value: Expr, total: Expr, top: Expr) -> Expr:
        """The result from a weighted sum of values: for a row that saw nothing NaN, or 0."""
        return self.unless_hidden(value / total, top)

    def unless_hidden(self, value: Expr, top: Expr) -> Expr:
        if not self.attrs.zero_hidden:
            return value
        return select(top.equal(const(-math.inf, self.dtype)), const(0, self.dtype), value)

    def _scaled(self, score: Expr) -> Expr:
        if not self.raw:
            return score
        return score * const(self.attrs.scale * _LOG2E, self.dtype)
