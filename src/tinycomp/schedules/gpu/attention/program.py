"""The program of attention on Hopper: a producer copies tiles of keys and values by TMA into rings
in shared memory, consumer warpgroups do both products with wgmma and the softmax in registers.

A block has the queries of one head, 64 for each consumer. A consumer multiplies them with a tile of
keys; the products stay in registers, where they become weights (`online_softmax`), are rounded to
16 bits and are the left operand of the second product; fragments of results and of left operands
have the same layout, so nothing moves. Values are read as they lie, keys along the rows: the matrix
descriptor transposes them.

What the tensor cores and the units for exp2 do overlaps twice. Inside a consumer, the scores of the
next tile are under way with the second product of this one, while the weights are computed; and two
consumers take turns at issuing products, so that one computes weights while the other multiplies.
(Shah et al., "FlashAttention-3", 2024: warp specialisation, pingpong scheduling, intra-warpgroup
pipelining.)

Roofline, for 128 queries, tiles of 128 keys and heads of 128, on an H100 or H200: a tile of keys
and values is 64 KB and 8.4 MFLOP, 128 FLOP for each byte from the L2 cache, so that at 61 GB/s for
a multiprocessor copies allow 7.8 TFLOP/s where the tensor cores sustain 6.0. The 16384 weights of a
tile take 1024 cycles at 16 of exp2 for each cycle, products 2048 cycles: with heads of 128 the
weights hide behind the products, with heads of 64 both take as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ....dtype import DType
from ....ir.expr import BinaryOp as Op
from ....ir.expr import Expr, Var, as_expr, binary, const
from ....tir.nodes import Buffer, For, If, Scope, Seq, Stmt
from ....tir.tile.layout import ROW_BYTES, Major, MatrixDescriptor, Swizzle
from ....tir.tile.nodes import (
    Advance,
    Arrive,
    Barrier,
    ClusterSync,
    CommitStores,
    Cursor,
    ExpectBytes,
    FenceBarrierInit,
    FenceProxy,
    Fragment,
    InitBarriers,
    Let,
    NamedArrive,
    NamedBarrier,
    Operand,
    Role,
    SharedTile,
    TensorMap,
    TileProgram,
    TmaLoad,
    TmaStore,
    Wait,
    WaitStores,
    Wgmma,
    WgmmaCommit,
    WgmmaFence,
    WgmmaWait,
)
from .fragments import ROWS, Place, SoftmaxFragments
from .online_softmax import OnlineSoftmax

GRAIN = 16  # keys, and elements of a head, of one wgmma
_CHUNK = ROW_BYTES // 2  # elements of a head that lie side by side in shared memory
_L2_BYTES = 30 << 20  # that keys and values of heads that are worked on at a time may take
_ROLLED = {"unroll": 1}
_REGISTERS = {1: (0, 0), 2: (40, 232)}  # of producer and consumers


@dataclass(frozen=True, slots=True)
class Heads:
    """An operand [batch, head, row, element] in memory: elements of a row side by side.

    Attributes:
        shape: batch, heads, rows, elements.
        strides: of the first three, in elements.
        offset: of the first element in `buffer`.
    """

    buffer: Buffer
    shape: tuple[int, int, int, int]
    strides: tuple[int, int, int]
    offset: int = 0

    @property
    def aligned(self) -> bool:
        """Whether TMA can copy it."""
        unit = 16 // self.buffer.dtype.itemsize
        used = [s for s, n in zip(self.strides, self.shape, strict=False) if n > 1]
        return all(s > 0 and s % unit == 0 for s in used) and self.offset % unit == 0

    @property
    def chunks(self) -> int:
        return math.ceil(self.shape[3] / _CHUNK)

    def map(self, name: str, rows: int) -> TensorMap:
        """Boxes of `rows` rows of one head, and 128 bytes of each."""
        batch, heads, count, size = self.shape
        itemsize = self.buffer.dtype.itemsize
        axes = [(count, self.strides[2])]
        axes += [(n, s) for n, s in ((heads, self.strides[1]), (batch, self.strides[0])) if n > 1]
        strides = [s * itemsize if n > 1 else ROW_BYTES for n, s in axes]
        return TensorMap(
            name, self.buffer, (size, *(n for n, _ in axes)), tuple(strides),
            (_CHUNK, rows) + (1,) * (len(axes) - 1), Swizzle(ROW_BYTES),
            offset=self.offset * itemsize,
        )  # fmt: skip

    def at(self, batch: Expr, head: Expr, row: Expr, chunk: int) -> tuple[Expr, ...]:
        """Coordinates of a box."""
        lead = [x for x, n in ((head, self.shape[1]), (batch, self.shape[0])) if n > 1]
        return (const(chunk * _CHUNK), row, *lead)


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """How a block computes attention.

    Attributes:
        consumers: warpgroups, with 64 queries each.
        keys: of a tile, a multiple of 16.
        stages: tiles of keys, and of values, in shared memory.
        staged: results go through shared memory and TMA, not straight to memory.
    """

    consumers: int
    keys: int
    stages: int
    staged: bool = True

    @property
    def queries(self) -> int:
        return self.consumers * ROWS


def attention_program(
    name: str, q: Heads, k: Heads, v: Heads, out: Heads, softmax: OnlineSoftmax,
    tile: AttentionTile, blocks: int,
) -> TileProgram:  # fmt: skip
    """The program of one attention.

    Args:
        blocks: how many the machine runs at a time.
    """
    return _Attention(name, q, k, v, out, softmax, tile, blocks).program()


@dataclass(frozen=True, slots=True)
class _Work:
    """A tile of queries: whose they are, the first of them, and the tiles of keys that they see."""

    batch: Var
    head: Var
    row: Var
    tiles: Var


class _Attention:
    def __init__(
        self, name: str, q: Heads, k: Heads, v: Heads, out: Heads, softmax: OnlineSoftmax,
        tile: AttentionTile, blocks: int,
    ) -> None:  # fmt: skip
        self.name, self.softmax, self.tile = name, softmax, tile
        self.q, self.k, self.v, self.out = q, k, v, out
        self.batch, self.heads, queries, self.depth = q.shape
        self.v_depth = v.shape[3]
        self.row_tiles = math.ceil(queries / tile.queries)
        self.count = self.batch * self.heads * self.row_tiles
        # Blocks that have more than one tile copy ahead for the next one. Causal tiles are of
        # different size: there the hardware gives each block that ends the next one.
        self.blocks = self.count if softmax.hides else min(self.count, blocks)
        self.block, self.rank = Var("block"), Var("rank")
        self.warpgroup, self.thread = Var("warpgroup"), Var("thread")
        self._declare(q.buffer.dtype)
        self.rows = SoftmaxFragments(softmax, tile.keys, self.v_depth, q.buffer.dtype, self.thread)

    def _declare(self, dtype: DType) -> None:
        tile = self.tile
        self.maps = {
            "q": self.q.map("q", tile.queries), "k": self.k.map("k", tile.keys),
            "v": self.v.map("v", tile.keys), "out": self.out.map("out", ROWS),
        }  # fmt: skip
        self.q_tile = _shared_tile("q_tile", dtype, self.q.chunks * tile.queries * ROW_BYTES, 1)
        self.k_tile = _shared_tile(
            "k_tile", dtype, self.k.chunks * tile.keys * ROW_BYTES, tile.stages
        )
        self.v_tile = _shared_tile(
            "v_tile", dtype, self.v.chunks * tile.keys * ROW_BYTES, tile.stages
        )
        slots = tile.consumers * self.out.chunks
        self.out_tile = _shared_tile("out_tile", dtype, ROWS * ROW_BYTES, slots)
        self.q_full, self.q_empty = Barrier("q_full", 1, 1), Barrier("q_empty", tile.consumers, 1)
        self.k_full, self.v_full = (Barrier(f"{x}_full", 1, tile.stages) for x in "kv")
        self.k_empty, self.v_empty = (
            Barrier(f"{x}_empty", tile.consumers, tile.stages) for x in "kv"
        )

    def program(self) -> TileProgram:
        staged = self.tile.staged
        maps = tuple(m for n, m in self.maps.items() if staged or n != "out")
        tiles = (self.q_tile, self.k_tile, self.v_tile) + ((self.out_tile,) if staged else ())
        barriers = (
            self.q_full, self.q_empty, self.k_full, self.k_empty, self.v_full, self.v_empty,
        )  # fmt: skip
        return TileProgram(
            self.name, self.blocks, 1, self.block, self.rank, maps, tiles, barriers,
            Seq((InitBarriers(), FenceBarrierInit(), ClusterSync())),
            (self._producer(), self._consumer()), Seq(()),
        )  # fmt: skip

    # -- the walk over tiles of queries --------------------------------------------------------

    def _walk(self, body: list[Stmt], work: _Work) -> Stmt:
        """`body` for each tile of queries of this block.

        Tiles of one head follow each other, for they share its keys. Causal ones come with the
        longest first, in several heads at a time: those whose keys and values fit in the L2 cache.
        """
        t, which, head = Var("t"), Var("which"), Var("head_number")
        heads, count = self.batch * self.heads, self.row_tiles
        lets = [Let(which, self.block + t * self.blocks, self.count)]
        if not self.softmax.hides:
            row_tile: Expr = which % count
            lets.append(Let(head, which // count, heads))
        else:
            group = self._heads_in_cache()
            band, within = which // (group * count), which % (group * count)
            size: Expr = const(group)
            if heads % group:
                size = binary(Op.MIN, size, heads - band * group)
            row_tile = count - 1 - within // size
            lets.append(Let(head, band * group + within % size, heads))
        rounds = (as_expr(self.count + self.blocks - 1) - self.block) // self.blocks
        if self.count == self.blocks:
            rounds = const(1)
        key_tiles = math.ceil(self.softmax.keys / self.tile.keys)
        lets += [
            Let(work.row, row_tile * self.tile.queries, count * self.tile.queries),
            Let(work.batch, head // self.heads, self.batch),
            Let(work.head, head % self.heads, self.heads),
            Let(work.tiles, self.softmax.key_tiles(work.row), key_tiles + 1),
        ]
        return For(t, const(0), rounds, Seq((*lets, *body)), annotations=_ROLLED)

    def _heads_in_cache(self) -> int:
        itemsize = self.q.buffer.dtype.itemsize
        per_head = self.softmax.keys * (self.depth + self.v_depth) * itemsize
        shared = self.heads // self.k.shape[1]
        return min(self.batch * self.heads, max(1, _L2_BYTES // per_head) * shared)

    def _work(self) -> _Work:
        return _Work(Var("batch"), Var("head"), Var("row"), Var("tiles"))

    # -- producer ------------------------------------------------------------------------------

    def _producer(self) -> Role:
        work, n = self._work(), Var("n")
        q, k, v = Cursor("write_q", 1), *(Cursor(f"write_{x}", self.tile.stages) for x in "kv")
        queries = [
            Wait(self.q_empty, q, before=True), ExpectBytes(self.q_full, q, self.q_tile.nbytes),
            *self._load(self.q, "q", work, work.row, self.q_tile, q, self.q_full), Advance(q),
        ]  # fmt: skip

        def keys(number: Expr) -> list[Stmt]:
            return self._load_tile(self.k, "k", work, number, (self.k_empty, self.k_full), k)

        def values(number: Expr) -> list[Stmt]:
            return self._load_tile(self.v, "v", work, number, (self.v_empty, self.v_full), v)

        last = work.tiles - 1
        ahead = Seq((*keys(last - 1 - n), *values(last - n)))  # in the order in which they are read
        loop = For(n, const(0), last, ahead, annotations=_ROLLED)
        body = self._walk([*queries, *keys(last), loop, *values(const(0))], work)
        return Role(
            "producer", 0, 1, Var("warpgroup"), Var("thread"), body,
            _REGISTERS[self.tile.consumers][0], True, (q, k, v),
        )  # fmt: skip

    def _load_tile(
        self, heads: Heads, name: str, work: _Work, number: Expr,
        barriers: tuple[Barrier, Barrier], cursor: Cursor,
    ) -> list[Stmt]:  # fmt: skip
        empty, full = barriers
        tile = self.k_tile if name == "k" else self.v_tile
        row = number * self.tile.keys
        loads = self._load(heads, name, work, row, tile, cursor, full)
        wait = Wait(empty, cursor, before=True)
        return [wait, ExpectBytes(full, cursor, tile.nbytes), *loads, Advance(cursor)]

    def _load(
        self, heads: Heads, name: str, work: _Work, row: Expr, tile: SharedTile, cursor: Cursor,
        full: Barrier,
    ) -> list[Stmt]:  # fmt: skip
        """Rows of a head, one box for each 128 bytes of them."""
        shared = self.heads // heads.shape[1]
        head = work.head // shared if shared > 1 else work.head
        map, box = self.maps[name], self.maps[name].box[1] * ROW_BYTES
        return [
            TmaLoad(map, heads.at(work.batch, head, row, c), tile, const(c * box), cursor, full)
            for c in range(heads.chunks)
        ]

    # -- consumers -----------------------------------------------------------------------------

    def _consumer(self) -> Role:
        work, tile = self._work(), self.tile
        read_q = Cursor("read_q", 1)
        read_k, read_v, free_k, free_v = (
            Cursor(name, tile.stages) for name in ("read_k", "read_v", "free_k", "free_v")
        )
        release_k = [Arrive(self.k_empty, free_k), Advance(free_k)]
        release_v = [Arrive(self.v_empty, free_v), Advance(free_v)]
        multiply, accumulate = self._multiply(read_q, read_k), self._accumulate(read_v)
        begin = [
            self.rows.clear(),
            Wait(self.q_full, read_q), Wait(self.k_full, read_k), WgmmaFence(), *multiply,
            WgmmaCommit(), Advance(read_k), WgmmaWait(0), *release_k,
            *self._soften(work, work.tiles - 1, not self.softmax.whole), self.rows.pack(),
        ]  # fmt: skip

        def step(number: Expr, masked: bool) -> Stmt:
            """The scores of a tile beside the second product of the one before."""
            return Seq((
                Wait(self.k_full, read_k), Wait(self.v_full, read_v), *self._take_turn(),
                WgmmaFence(), *multiply, WgmmaCommit(), *accumulate, WgmmaCommit(),
                *self._give_turn(), Advance(read_k), Advance(read_v),
                WgmmaWait(1, (self.rows.scores,)), *release_k,
                *self._soften(work, number, masked),
                WgmmaWait(0), *release_v, self.rows.fade_values(), self.rows.pack(),
            ))  # fmt: skip

        end = [
            Arrive(self.q_empty, read_q), Advance(read_q),
            Wait(self.v_full, read_v), WgmmaFence(), *accumulate, WgmmaCommit(), Advance(read_v),
            WgmmaWait(0), *release_v, *self._write(work),
        ]  # fmt: skip
        body = self._walk([*begin, *self._loops(work, step), *end], work)
        first, last = self._turns()
        done = [WaitStores(0)] if tile.staged else []
        return Role(
            "consumer", 1, tile.consumers, self.warpgroup, self.thread,
            Seq((*first, body, *last, *done)), _REGISTERS[tile.consumers][1], False,
            (read_q, read_k, read_v, free_k, free_v), (self.rows.scores, self.rows.values),
            self.rows.arrays,
        )  # fmt: skip

    def _soften(self, work: _Work, number: Expr, masked: bool) -> list[Stmt]:
        return self.rows.soften(self._place(work), number * self.tile.keys, masked)

    def _loops(self, work: _Work, step: Callable[[Expr, bool], Stmt]) -> list[Stmt]:
        """The tiles of keys but the last, backwards: those that the diagonal crosses come first and
        are masked, the others only where scores are more than products."""
        n, rest = Var("n"), work.tiles - 1
        rows, keys = self.softmax.tile
        crossed = math.ceil((rows + keys - 2) / keys) - 1 if self.softmax.hides else 0
        if not self.softmax.inner:
            return [For(n, const(0), rest, step(rest - 1 - n, True), annotations=_ROLLED)]
        plain = For(n, const(0), rest, step(rest - 1 - n, False), annotations=_ROLLED)
        if not crossed:
            return [plain]
        m, masked = Var("m"), binary(Op.MIN, rest, const(crossed))
        first = For(m, const(0), masked, step(rest - 1 - m, True), annotations=_ROLLED)
        others = rest - masked
        plain = For(n, const(0), others, step(others - 1 - n, False), annotations=_ROLLED)
        return [first, plain]

    # Consumers issue their products in turn. Barrier 1 + c is the turn of consumer c.

    def _turns(self) -> tuple[list[Stmt], list[Stmt]]:
        """The last consumer gives the first turn, and the first takes the one that is left over."""
        count = self.tile.consumers
        if count == 1:
            return [], []
        give = If(self.warpgroup.equal(count - 1), NamedArrive(const(1), 2))
        return [give], [If(self.warpgroup.equal(0), NamedBarrier(const(1), 2))]

    def _take_turn(self) -> list[Stmt]:
        return [NamedBarrier(self.warpgroup + 1, 2)] if self.tile.consumers > 1 else []

    def _give_turn(self) -> list[Stmt]:
        count = self.tile.consumers
        return [NamedArrive((self.warpgroup + 1) % count + 1, 2)] if count > 1 else []

    # -- products ------------------------------------------------------------------------------

    def _multiply(self, read_q: Cursor, read_k: Cursor) -> list[Stmt]:
        """scores = queries keys^T"""
        layout = MatrixDescriptor(Major.K, 16, 8 * ROW_BYTES)
        tile, out = self.tile, []
        for p in range(math.ceil(self.depth / GRAIN)):
            chunk, within = divmod(p * GRAIN, _CHUNK)
            row = self.warpgroup * (ROWS * ROW_BYTES)
            at_q = row + (chunk * tile.queries * ROW_BYTES + within * 2)
            at_k = const(chunk * tile.keys * ROW_BYTES + within * 2)
            a, b = (
                Operand(self.q_tile, read_q, at_q, layout),
                Operand(self.k_tile, read_k, at_k, layout),
            )
            out.append(Wgmma(self.rows.scores, 0, a, b, p > 0))
        return out

    def _accumulate(self, read_v: Cursor) -> list[Stmt]:
        """values += weights v"""
        keys = self.tile.keys
        layout = MatrixDescriptor(Major.MN, keys * ROW_BYTES, 8 * ROW_BYTES)
        return [
            Wgmma(
                self.rows.values, 0, Fragment(self.rows.weights, p * GRAIN // 2),
                Operand(self.v_tile, read_v, const(p * GRAIN * ROW_BYTES), layout),
            )
            for p in range(keys // GRAIN)
        ]  # fmt: skip

    # -- results -------------------------------------------------------------------------------

    def _write(self, work: _Work) -> list[Stmt]:
        place, rows = self._place(work), self.rows
        if not self.tile.staged:
            return [rows.finish(), rows.to_memory(self.out.buffer, place)]
        chunks, meet = self.out.chunks, NamedBarrier(self.warpgroup + (1 + self.tile.consumers), 1)
        first = self.warpgroup * chunks
        stores = [
            TmaStore(
                self.maps["out"], self.out.at(*place, c), self.out_tile,
                (first + c) * self.out_tile.nbytes,
            )
            for c in range(chunks)
        ]  # fmt: skip
        return [
            rows.finish(), WaitStores(0), meet, rows.to_shared(self.out_tile, first), FenceProxy(),
            meet, *stores, CommitStores(),
        ]  # fmt: skip

    def _place(self, work: _Work) -> Place:
        return (work.batch, work.head, work.row + self.warpgroup * ROWS)


def _shared_tile(name: str, dtype: DType, nbytes: int, stages: int) -> SharedTile:
    elements = const(stages * nbytes // dtype.itemsize)
    buffer = Buffer(name, (elements,), dtype, Scope.SHARED, 1024)
    return SharedTile(name, dtype, nbytes, stages, buffer)
