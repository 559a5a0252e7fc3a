"""Products of a few rows on a GPU: a matrix passes by once, and its reading is all that counts.

    partial[s, b, i, j] = sum of A[b, i, k] * B[b, k, j] over the k of slice s

A block takes a slice of k and a tile of the columns of B. Its threads stand `x` along the columns
(each reads 16 bytes of a row) and `y` along k; what they sum up is combined in shared memory. The
slices, as many as give every multiprocessor work, are summed up by what reads the product, in a
launch of its own and always in the same order. (Split-K: CUTLASS, "Efficient GEMM in CUDA".)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .... import te
from ....dtype import DType
from ....ir.expr import Expr, Load, Var, as_int, const, select
from ....ops.window import accumulation_dtype
from ....te.tensor import Tensor
from ....tir.lower_gpu import ACCESS
from ....tir.nodes import Buffer, For, ForKind, If, Scope, Seq, Stmt, Store
from ....types import TensorType
from ..loops import allocated, inside, rolled, threads, unrolled, vector
from .split_k import SLICES

MAX_ROWS = 16
_MIN_LENGTH = 128  # of a sum; below, a thread for each element is as good
_THREADS = 256
_DEPTH = 4  # elements of k that a thread takes at a time: so many wide reads are on their way
_BUSY = 132  # blocks that give every multiprocessor of a large GPU work
_SHARED_ELEMENTS = 16 * 1024  # of the rows that a block holds
_COMBINED_ROWS = 4  # rows whose sums pass through shared memory together

Place = Callable[..., tuple[Expr, ...]]


@dataclass(frozen=True)
class SkinnyTile:
    """How a block works.

    Attributes:
        x, y: threads along the columns and along k.
        lanes: columns that a thread has.
        steps: times that the threads take `y * 4` elements of k; these are one slice.
        slices: how many there are.
    """

    x: int
    y: int
    lanes: int
    steps: int
    slices: int

    @property
    def columns(self) -> int:
        return self.x * self.lanes

    @property
    def length(self) -> int:
        """Elements of k in a slice."""
        return self.steps * self.y * _DEPTH


def choose_skinny_tile(batch: int, m: int, n: int, k: int, lanes: int) -> SkinnyTile:
    """Slices of k so that there are enough blocks, and the rows of a slice fit shared memory.

    Args:
        lanes: elements of one access.

    >>> choose_skinny_tile(1, 1, 768, 768, 4)
    SkinnyTile(x=32, y=8, lanes=4, steps=1, slices=24)
    >>> choose_skinny_tile(1, 1, 50257, 768, 4).slices
    1
    """
    while n % lanes:
        lanes //= 2
    x = next((x for x in (8, 16) if x * lanes >= n), 32)
    y = _THREADS // x
    tiles = batch * math.ceil(n / (x * lanes))
    chunks = math.ceil(k / (y * _DEPTH))
    wanted = max(1, _BUSY // tiles)
    steps = max(1, min(chunks // wanted, _SHARED_ELEMENTS // (m * y * _DEPTH)))
    return SkinnyTile(x, y, lanes, steps, math.ceil(chunks / steps))


def expand_skinny(attrs: Any, args: Sequence[Tensor], out: TensorType) -> list[Tensor] | None:
    """nn.matmul of at most `MAX_ROWS` rows; None for others.

    Batches are rows too where the right operand is one matrix.
    """
    a, b = args
    *batch, m, n = out.static_shape
    k, count = as_int(a.shape[-1]), math.prod(batch)
    shared = math.prod(as_int(d) for d in b.shape[:-2]) == 1
    rows = count * m if shared else m
    if not out.dtype.is_float or rows > MAX_ROWS or k < _MIN_LENGTH or count * m * n == 0:
        return None
    groups = 1 if shared else count
    tile = choose_skinny_tile(groups, rows, n, k, ACCESS.lanes(b.dtype))
    acc = accumulation_dtype(out.dtype)
    shape = (*batch, m)

    def split(c: Any, i: Any) -> list[Any]:
        """Batch and row in the output."""
        return _unravel(i if shared else c * m + i, shape)

    def left(c: Any, i: Any, p: Any) -> tuple[Any, ...]:
        *lead, row = split(c, i)
        return (*_broadcast(a, lead), row, p)

    def right(c: Any, p: Any, j: Any) -> tuple[Any, ...]:
        return (*_broadcast(b, split(c, te.const(0))[:-1]), p, j)

    sizes = (groups, rows, n, k)
    if tile.slices == 1:  # nothing to add up
        place: Place = lambda s, c, i, j: (*split(c, i), j)  # noqa: E731
        builder = _Skinny(sizes, tile, left, right, place, acc)
        return [te.extern(out.static_shape, [a, b], builder.make, "skinny", out.dtype)]
    builder = _Skinny(sizes, tile, left, right, lambda *at: at, acc)
    partial = te.extern((tile.slices, groups, rows, n), [a, b], builder.make, "partial", acc)
    slice_ = te.reduce_axis((0, tile.slices), name="slice")

    def total(*index: Any) -> Any:
        flat = _ravel(index[:-1], shape)
        c, i = (te.const(0), flat) if shared else (flat // m, flat % m)
        return te.sum(partial(slice_, c, i, index[-1]), axis=slice_)

    result = te.compute(out.static_shape, total, name="product", tag=SLICES)
    if acc is out.dtype:
        return [result]
    return [te.compute(out.static_shape, lambda *i: result(*i).astype(out.dtype), name="rounded")]


def _broadcast(tensor: Tensor, lead: Sequence[Any]) -> list[Any]:
    """Batch indices into an operand."""
    own = tensor.shape[:-2]
    used = lead[len(lead) - len(own) :] if own else []
    return [te.const(0) if as_int(d) == 1 else i for d, i in zip(own, used, strict=True)]


def _unravel(flat: Any, shape: Sequence[int]) -> list[Any]:
    index: list[Any] = []
    for extent in reversed(shape[1:]):
        index.insert(0, flat % extent)
        flat = flat // extent
    return [flat, *index]


def _ravel(index: Sequence[Any], shape: Sequence[int]) -> Any:
    flat: Any = te.const(0)
    for i, extent in zip(index, shape, strict=True):
        flat = flat * extent + i
    return flat


@dataclass
class _Skinny:
    """Builds the loops. `left(c, i, k)`, `right(c, k, j)` and `place(slice, c, i, j)` are indices
    of the operands and the result."""

    sizes: tuple[int, int, int, int]
    tile: SkinnyTile
    left: Place
    right: Place
    place: Place
    acc: DType

    def make(self, ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        (self.a, self.b), (self.out,) = ins, outs
        tile, (groups, m, n, _) = self.tile, self.sizes
        self.together = min(m, _COMBINED_ROWS)
        self.line = tile.length + _DEPTH
        extents = {
            "rows": (m * self.line,),
            "combined": (tile.y * self.together * tile.columns,),
            "sum": (tile.y, tile.x, m, tile.lanes),
            "column": (tile.y, tile.x, _DEPTH, tile.lanes),
            "element": (tile.y, tile.x, _DEPTH),
            "total": (tile.y, tile.x),
        }
        made = {
            name: Buffer(
                name,
                tuple(const(e) for e in shape),
                self.acc,
                Scope.SHARED if name in ("rows", "combined") else Scope.LOCAL,
            )
            for name, shape in extents.items()
        }
        self.buffers = made
        tiles = math.ceil(n / tile.columns)
        block = Var("block")
        self.column = block % tiles * tile.columns
        self.slice, self.group = block // tiles % tile.slices, block // (tiles * tile.slices)
        chunks = unrolled("part", math.ceil(m / self.together), self._combine)
        body = Seq((self._copy_rows(), self._sum(), chunks))
        blocks = const(tiles * tile.slices * groups)
        stmt = For(block, const(0), blocks, body, ForKind.THREAD, "blockIdx.x")
        return allocated(list(made.values()), stmt)

    def _copy_rows(self) -> Stmt:
        """The slice of A to shared memory, zeros after its end."""
        tile, (_, m, _, k) = self.tile, self.sizes
        total = m * tile.length
        whole = tile.slices * tile.length == k

        def copy(y: Var, x: Var) -> Stmt:
            def step(s: Expr) -> Stmt:
                flat = s * _THREADS + y * tile.x + x
                i, p = flat // tile.length, flat % tile.length
                at, conditions = inside(self.slice * tile.length + p, k, whole)
                value: Expr = Load(self.a, self.left(self.group, i, at), None)
                for condition in conditions:
                    value = select(condition, value, const(0, self.a.dtype))
                target = self.buffers["rows"]
                stmt = Store(target, (i * self.line + p,), value.astype(self.acc))
                return stmt if total % _THREADS == 0 else If(flat < total, stmt)

            return rolled("step", math.ceil(total / _THREADS), step)

        return threads(tile.y, tile.x, copy)

    def _sum(self) -> Stmt:
        """Each thread's own sums."""
        tile, (_, m, n, k) = self.tile, self.sizes
        sums, column, element = (self.buffers[x] for x in ("sum", "column", "element"))
        whole = tile.slices * tile.length == k

        def thread(y: Var, x: Var) -> Stmt:
            j, _ = inside(self.column + x * tile.lanes, n, n % tile.columns == 0, tile.lanes)

            def read(first: Expr, u: Expr, lane: Expr) -> Stmt:
                p, conditions = inside(self.slice * tile.length + first + u, k, whole)
                value: Expr = Load(self.b, self.right(self.group, p, j + lane), None)
                for condition in conditions:
                    value = select(condition, value, const(0, self.b.dtype))
                return Store(column, (y, x, u, lane), value.astype(self.acc))

            def row(first: Expr, i: Expr) -> Stmt:
                def load(u: Expr) -> Stmt:
                    at = i * self.line + first + u
                    return Store(element, (y, x, u), Load(self.buffers["rows"], (at,), None))

                def add(u: Expr, lane: Expr) -> Stmt:
                    at = (y, x, i, lane)
                    value = Load(element, (y, x, u), None) * Load(column, (y, x, u, lane), None)
                    return Store(sums, at, Load(sums, at, None) + value)

                adds = unrolled("u", _DEPTH, lambda u: unrolled(
                    "lane", tile.lanes, lambda lane: add(u, lane)
                ))  # fmt: skip
                return Seq((vector("u", _DEPTH, load), adds))

            def step(s: Expr) -> Stmt:
                first = (s * tile.y + y) * _DEPTH
                reads = unrolled("u", _DEPTH, lambda u: vector(
                    "lane", tile.lanes, lambda lane: read(first, u, lane)
                ))  # fmt: skip
                return Seq((reads, unrolled("i", m, lambda i: row(first, i))))

            zero = const(0, self.acc)
            clear = unrolled("i", m, lambda i: unrolled(
                "lane", tile.lanes, lambda lane: Store(sums, (y, x, i, lane), zero)
            ))  # fmt: skip
            return Seq((clear, rolled("step", tile.steps, step)))

        return threads(tile.y, tile.x, thread)

    def _combine(self, part: Expr) -> Stmt:
        """The sums of the threads along k, for a few rows."""
        tile, (_, m, _, _) = self.tile, self.sizes
        sums, combined = self.buffers["sum"], self.buffers["combined"]
        first, area = part * self.together, self.together * tile.columns

        def store(y: Var, x: Var) -> Stmt:
            def one(i: Expr, lane: Expr) -> Stmt:
                at = (y * self.together + i) * tile.columns + x * tile.lanes + lane
                return Store(combined, (at,), Load(sums, (y, x, first + i, lane), None))

            def row(i: Expr) -> Stmt:
                stmt = vector("lane", tile.lanes, lambda lane: one(i, lane))
                return stmt if m % self.together == 0 else If(first + i < m, stmt)

            return unrolled("i", self.together, row)

        def add(y: Var, x: Var) -> Stmt:
            def step(s: Expr) -> Stmt:
                flat = s * _THREADS + y * tile.x + x
                stmt = self._write(y, x, first, flat)
                return stmt if area % _THREADS == 0 else If(flat < area, stmt)

            return unrolled("step", math.ceil(area / _THREADS), step)

        return Seq((threads(tile.y, tile.x, store), threads(tile.y, tile.x, add)))

    def _write(self, y: Var, x: Var, first: Expr, flat: Expr) -> Stmt:
        """One element of the result: the sum over the threads along k."""
        tile, (_, m, n, _) = self.tile, self.sizes
        total, combined, mine = self.buffers["total"], self.buffers["combined"], (y, x)
        area = self.together * tile.columns
        i, j = first + flat // tile.columns, self.column + flat % tile.columns

        def add(other: Expr) -> Stmt:
            value = Load(combined, (other * area + flat,), None)
            return Store(total, mine, Load(total, mine, None) + value)

        result = Load(total, mine, None).astype(self.out.dtype)
        write = Store(self.out, self.place(self.slice, self.group, i, j), result)
        conditions = [i < m] * (m % self.together != 0) + [j < n] * (n % tile.columns != 0)
        stmt: Stmt = Seq((
            Store(total, mine, const(0, self.acc)), unrolled("other", tile.y, add), write
        ))  # fmt: skip
        for condition in conditions:
            stmt = If(condition, stmt)
        return stmt
