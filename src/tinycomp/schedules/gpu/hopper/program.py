"""The program of a matrix product on Hopper: a producer copies tiles by TMA into a ring in shared
memory, consumer warpgroups multiply them with wgmma and write the result.

    D[b, i, j] = epilogue(sum_k A[b, i, k] * B[b, k, j])

Blocks are persistent: each walks several tiles of the result, in an order that keeps operands in
the L2 cache, so that copies for the next tile run while the last one is written. The blocks of a
cluster have neighbouring rows and share the columns, so each copies a part of B to all of them.
(The structure is CUTLASS's "warp-specialised cooperative" kernel.)
"""

from __future__ import annotations

import math
from typing import Any

from ....ir.expr import BinaryOp as Op
from ....ir.expr import Expr, Load, Var, all_of, binary, const, substitute
from ....ir.node import rewrite
from ....tir.nodes import Buffer, For, ForKind, If, PrimFunc, Scope, Seq, Stmt, Store
from ....tir.passes.simplify import simplify
from ....tir.passes.vectorize import vectorize
from ....tir.tile.layout import (
    ROW_BYTES,
    Major,
    MatrixDescriptor,
    WgmmaShape,
)
from ....tir.tile.nodes import (
    Accumulator,
    Advance,
    Ahead,
    Arrive,
    Barrier,
    ClusterSync,
    Cursor,
    ExpectBytes,
    FenceBarrierInit,
    FenceProxy,
    InitBarriers,
    Let,
    LetStage,
    NamedBarrier,
    Operand,
    Role,
    ThreadCode,
    TileProgram,
    TmaPrefetch,
    Wait,
    Wgmma,
    WgmmaCommit,
    WgmmaFence,
    WgmmaWait,
)
from .copies import Copies, Step
from .epilogue import PAIRS, ROWS, Writer, shared_tile
from .operands import Epilogue, Gathered, HopperTile, Operands
from .split import ClusterSum

ROLLED = {"unroll": 1}


def gemm_program(
    name: str, operands: Operands, epilogue: Epilogue, tile: HopperTile, blocks: int
) -> TileProgram:
    """The program for one tile shape.

    Args:
        blocks: how many the machine runs at a time; no more are launched.
    """
    return Gemm(name, operands, epilogue, tile, blocks).program()


class Gemm:
    """The program, role by role; `program` gives all of it."""

    def __init__(
        self, name: str, operands: Operands, epilogue: Epilogue, tile: HopperTile, blocks: int
    ) -> None:
        self.name, self.operands, self.epilogue, self.tile = name, operands, epilogue, tile
        dtype = operands.dtype
        self.results = operands.batch * operands.slices
        right = None if operands.right is dtype else operands.right
        self.shape = WgmmaShape(tile.columns, dtype, operands.sum, right)
        sharing = 1 if tile.alternate else tile.consumers  # of the rows
        self.per_consumer = tile.rows // sharing // ROWS  # wgmma tiles along the rows
        self.row_tiles = math.ceil(operands.m / (tile.rows * tile.cluster))  # of clusters
        self.column_tiles = math.ceil(operands.n / tile.columns)
        self.tiles = self.results * self.row_tiles * self.column_tiles
        self.together = tile.cluster * tile.split  # blocks of a cluster
        self.clusters = min(self.tiles, max(1, blocks // self.together))
        self.block, self.rank = Var("block"), Var("rank")
        self.copies = self._copies()
        self.step, self.steps = self.copies.step, self.copies.steps  # of the sum
        self.gathers = isinstance(operands.b, Gathered)
        self.b_major = Major.MN if self.gathers else operands.b_major
        self.full = Barrier("full", 1 + tile.gatherers * self.gathers, tile.depth)
        self.empty = Barrier("empty", sharing * tile.cluster, tile.depth)
        self.turn = Barrier("turn", 1, 1)
        self.writer: Writer | ClusterSum
        if tile.split > 1:
            assert tile.cluster == 1
            assert not tile.alternate
            self.clusters = self.tiles  # one each: its sums are read by other blocks to the end
            self.writer = ClusterSum.of(operands, epilogue, tile, self.rank)
        else:
            self.writer = Writer.of(name, operands, epilogue, tile, self.shape)
        self.thread, self.warpgroup = Var("thread"), Var("warpgroup")  # of consumers
        self.arrays: tuple[Buffer, ...] = ()  # that they have in registers, beside sums
        self._shared()

    def _copies(self) -> Copies:
        return Copies(self.operands, self.tile, self.rank)

    def _shared(self) -> None:
        tile, o = self.tile, self.operands
        self.a_tile = shared_tile("a_tile", o.dtype, tile.rows * ROW_BYTES, tile.depth)
        self.b_tile = shared_tile("b_tile", o.right, tile.columns * ROW_BYTES, tile.depth)

    def program(self) -> TileProgram:
        writer = self.writer
        turn = (self.turn,) if self.tile.alternate else ()
        finish = (ClusterSync(),) if self.together > 1 else ()
        return TileProgram(
            self.name, self.clusters * self.together, self.together, self.block, self.rank,
            self.copies.maps + writer.maps, (self.a_tile, self.b_tile, *writer.tiles),
            (self.full, self.empty, *turn, *writer.barriers),
            Seq((InitBarriers(), FenceBarrierInit(), *self._ahead(), ClusterSync())),
            (self._producer(), self._consumer()), Seq(finish),
        )  # fmt: skip

    # -- the walk over tiles -------------------------------------------------------------------

    def _place(self) -> tuple[tuple[Var, Var, Var], Expr, Expr]:
        """Variables of `_walk` for a role, and the first row and column of the tile: multiples of
        its size, so that accesses to neighbours are known to be aligned."""
        variables = Var("batch"), Var("row_tile"), Var("column_tile")
        return variables, variables[1] * self.tile.rows, variables[2] * self.tile.columns

    def _walk(self, body: Stmt, place: tuple[Var, Var, Var], turn: Var | None = None) -> Stmt:
        """`body` for each tile of this block; the variables are the batch, and which tile of rows
        and of columns. With `turn`, only for tiles of this number modulo the consumers."""
        tile, t = self.tile, Var("t")
        count = self.tiles + self.clusters - 1 - self.block // self.together
        count //= self.clusters
        number: Expr = t
        if turn is not None:
            number, count = t * tile.consumers + turn, (count - turn + 1) // tile.consumers
        return For(t, const(0), count, Seq((*self._choose(number, place), body)))

    def _choose(self, number: Expr, place: tuple[Var, Var, Var]) -> list[Stmt]:
        """The variables of `_walk` for tile `number` of this block."""
        batch, row_tile, column_tile = place
        tile, per_batch = self.tile, self.row_tiles * self.column_tiles
        which, index = Var("tile"), Var("index")
        cluster = self.block // self.together
        group = min(tile.group, self.row_tiles)
        band, within = index // (group * self.column_tiles), index % (group * self.column_tiles)
        size: Expr = const(group)
        if self.row_tiles % group:
            size = binary(Op.MIN, size, self.row_tiles - band * group)
        down = band * group + within % size
        if tile.cluster > 1:
            down = down * tile.cluster + self.rank
        return [
            Let(which, cluster + number * self.clusters, self.tiles),
            Let(batch, which // per_batch, self.results),
            Let(index, which % per_batch, per_batch),
            Let(row_tile, down, self.row_tiles * tile.cluster),
            Let(column_tile, within // size, self.column_tiles),
        ]

    def _ahead(self) -> list[Stmt]:
        """The first boxes of B, most often weights, on their way to the L2 cache before the launch
        ahead has ended."""
        if self.gathers:
            return []
        (place, _, column), k = self._place(), Var("k")
        loads = self.copies.load_b(
            self.copies.place(place[0], k), column, self.b_tile, Cursor("write", 1), self.full
        )
        boxes = Seq(tuple(TmaPrefetch(load.map, load.coordinates) for load in loads))
        count = const(min(self.steps, self.tile.depth))
        loop = For(k, const(0), count, boxes, annotations=ROLLED)
        return [Ahead(Seq((*self._choose(const(0), place), loop)))]

    # -- producer ------------------------------------------------------------------------------

    def _producer(self) -> Role:
        tile, o = self.tile, self.operands
        write = Cursor("write", tile.depth)
        (place, row, column), k = self._place(), Var("k")
        if isinstance(o.b, Gathered):
            return self._gatherer(o.b, write)
        nbytes = self.a_tile.nbytes + self.b_tile.nbytes
        body: list[Stmt] = [Wait(self.empty, write, before=True)]
        body.append(ExpectBytes(self.full, write, nbytes))
        step = self.copies.place(place[0], k)
        body.append(self.copies.load_a(step, row, self.a_tile, write, self.full))
        body += self.copies.load_b(step, column, self.b_tile, write, self.full)
        body.append(Advance(write))
        loop = For(k, const(0), const(self.steps), Seq(tuple(body)), annotations=ROLLED)
        return Role(
            "producer", 0, 1, Var("warpgroup"), Var("thread"),
            self._walk(loop, place), self._registers()[0], True, (write,),
        )  # fmt: skip

    def _gatherer(self, b: Gathered, write: Cursor) -> Role:
        """Warpgroups that compute B; one thread of the first copies A."""
        tile = self.tile
        warpgroup, thread, stage = Var("warpgroup"), Var("thread"), Var("stage")
        (place, row, column), k = self._place(), Var("k")
        step = self.copies.place(place[0], k)
        copy = Seq((
            ExpectBytes(self.full, write, self.a_tile.nbytes),
            self.copies.load_a(step, row, self.a_tile, write, self.full),
        ))  # fmt: skip
        code = self._gather(b, step, column, warpgroup * 128 + thread, stage)
        body = Seq((
            Wait(self.empty, write, before=True), If(warpgroup.equal(0), copy),
            LetStage(stage, write), ThreadCode(code), FenceProxy(),
            NamedBarrier(warpgroup + (tile.consumers + 1), 1),  # behind those of the consumers
            Arrive(self.full, write), Advance(write),
        ))  # fmt: skip
        loop = For(k, const(0), const(self.steps), body, annotations=ROLLED)
        return Role(
            "producer", 0, tile.gatherers, warpgroup, thread,
            self._walk(loop, place), self._registers()[0], False, (write,),
        )  # fmt: skip

    def _gather(self, b: Gathered, step: Step, column: Expr, thread: Expr, stage: Var) -> Stmt:
        """Each thread has two neighbouring columns of every few steps of k."""
        tile, o = self.tile, self.operands
        pairs, threads = tile.columns // 2, tile.gatherers * 128
        together = threads // pairs  # steps of k at a time
        i, lane = Var("i"), Var("lane")
        in_k, in_column = i * together + thread // pairs, thread % pairs * 2
        at_k = step.element + in_k
        known = {b.batch: step.batch, b.k: at_k, b.column: column + in_column + lane}
        value = substitute(b.value, known)
        inside = [known[b.k] < o.k] * (o.k != o.slices * self.steps * self.step)
        inside += [known[b.column] < o.n] * bool(o.n % tile.columns)
        value = rewrite(value, lambda node: _guarded(node, inside)) if inside else value
        box = in_column // self.step * (self.step * ROW_BYTES // 4)  # in pairs of 4 bytes
        unit = binary(Op.BIT_XOR, in_column % self.step // 2, in_k % 8 * 4)
        where = stage * (self.b_tile.nbytes // 4) + box + in_k * (ROW_BYTES // 4) + unit
        store = Store(self.b_tile.buffer, (where * 2 + lane,), value)
        pair = For(lane, const(0), const(2), store, ForKind.VECTORIZED)
        body = For(i, const(0), const(self.step // together), pair, ForKind.UNROLLED)
        return simplify(vectorize(PrimFunc(self.name, (), 0, body), PAIRS)).body

    def _registers(self) -> tuple[int, int]:
        """Of producers and consumers, by setmaxnreg; together at most 512 for their warpgroups."""
        consumers = self.tile.consumers
        if self.gathers:
            gatherers = self.tile.gatherers
            return {(1, 2): (72, 216), (2, 2): (72, 184)}.get((gatherers, consumers), (0, 0))
        return {1: (0, 0), 2: (40, 232), 3: (32, 160)}[consumers]

    # -- consumers -----------------------------------------------------------------------------

    def _consumer(self) -> Role:
        tile = self.tile
        read, release = Cursor("read", tile.depth), Cursor("release", tile.depth)
        warpgroup, thread = self.warpgroup, self.thread
        place, row, column = self._place()
        registers = self.per_consumer * self.shape.registers
        buffer = Buffer("acc", (const(registers),), self.shape.acc, Scope.LOCAL)
        acc = Accumulator(self.shape, self.per_consumer, buffer)
        part = const(0) if tile.alternate else warpgroup * self.per_consumer  # of the tile's rows
        issue, drain = self._main_loop(acc, read, release, part)
        turn = Cursor("order", 1)
        parts, start = [*issue, *drain], []
        if tile.alternate:
            parts, start = self._in_turn(issue, drain, turn, (read, release), warpgroup)
        sums = self._result(acc)
        parts += self.writer.write(sums, place[0], row, column, part, warpgroup, thread)
        mine = warpgroup if tile.alternate else None
        walk = self._walk(Seq(tuple(parts)), place, mine)
        cursors = (read, release, *((turn,) if tile.alternate else ()), *self.writer.cursors)
        return Role(
            "consumer", tile.gatherers if self.gathers else 1, tile.consumers, warpgroup, thread,
            Seq((*start, walk, *self.writer.done)), self._registers()[1], False, cursors, (acc,),
            self.arrays,
        )  # fmt: skip

    def _result(self, acc: Accumulator) -> Accumulator:
        """Where the sums are after the main loop."""
        return acc

    def _in_turn(
        self, issue: list[Stmt], drain: list[Stmt], turn: Cursor, ring: tuple[Cursor, ...],
        warpgroup: Var,
    ) -> tuple[list[Stmt], list[Stmt]]:  # fmt: skip
        """The main loop after that of the tile before, which the other consumer has, and what comes
        first of all. The stages of the other tile are passed over.

        A parity tells one round from the next only: without turns, a consumer could take the end
        of a round long ago for that which it waits for.
        """
        others = self.tile.consumers - 1
        start: list[Stmt] = [Advance(c, warpgroup * self.steps) for c in ring]
        start.append(Advance(turn, warpgroup))
        skip = [Advance(c, const(others * self.steps)) for c in ring]
        done = [Arrive(self.turn, turn), Advance(turn, const(self.tile.consumers))]
        return [Wait(self.turn, turn, before=True), *issue, *done, *drain, *skip], start

    def _main_loop(
        self, acc: Accumulator, read: Cursor, release: Cursor, part: Expr
    ) -> tuple[list[Stmt], list[Stmt]]:
        """The sum over k, and the wait for its end. A stage is released when the products of the
        next one are under way; in a ring of one stage there is no next one before."""
        if not self.steps:
            return [ThreadCode(zero(acc))], []
        k = Var("k")
        free = [Arrive(self.empty, release, self.tile.cluster > 1), Advance(release)]
        first, later = (self._multiply(acc, read, part, past) for past in (False, True))
        if self.tile.depth == 1:
            first, later = [*first, WgmmaWait(0), *free], [*later, WgmmaWait(0), *free]
            last: list[Stmt] = []
        else:
            later, last = [*later, WgmmaWait(1), *free], [WgmmaWait(0), *free]
        loop = For(k, const(1), const(self.steps - 1), Seq(tuple(later)), annotations=ROLLED)
        return [*first, *([loop] if self.steps > 1 else [])], last

    def _multiply(self, acc: Accumulator, read: Cursor, part: Expr, accumulate: bool) -> list[Stmt]:
        """One stage: all of its steps of k for the warpgroup's tiles, from tile `part` of A."""
        out: list[Stmt] = [Wait(self.full, read), WgmmaFence()]
        k_bytes = self.shape.k * self.operands.dtype.itemsize
        a_layout = MatrixDescriptor(Major.K, 16, 8 * ROW_BYTES)
        major = self.b_major
        b_layout = a_layout
        if major is Major.MN:
            b_layout = MatrixDescriptor(major, self.step * ROW_BYTES, 8 * ROW_BYTES)
        for p in range(ROW_BYTES // k_bytes):
            along = p * k_bytes if major is Major.K else p * self.shape.k * ROW_BYTES
            b = Operand(self.b_tile, read, const(along), b_layout)
            for i in range(acc.tiles):
                rows = (part + i) * (ROWS * ROW_BYTES)
                a = Operand(self.a_tile, read, rows + p * k_bytes, a_layout)
                out.append(Wgmma(acc, i, a, b, accumulate or p > 0))
        return [*out, WgmmaCommit(), Advance(read)]


def zero(acc: Accumulator) -> Stmt:
    register = Var("register")
    count = math.prod((acc.tiles, acc.shape.registers))
    store = Store(acc.buffer, (register,), const(0, acc.shape.acc))
    return For(register, const(0), const(count), store, ForKind.UNROLLED)


def _guarded(node: Any, inside: list[Expr]) -> Any:
    """A load only where all of `inside` hold; else 0."""
    if not isinstance(node, Load):
        return node
    known = [] if node.predicate is None else [node.predicate]
    return Load(node.source, node.indices, all_of([*inside, *known]))
