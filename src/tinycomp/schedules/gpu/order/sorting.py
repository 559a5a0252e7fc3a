"""Sorting records on a GPU, in building blocks of one launch each.

`sort_tiles`: a block sorts some tiles in shared memory by a bitonic network (Batcher, "Sorting
Networks and Their Applications", 1968) and keeps the first records of each. `merge_runs`: runs that
are sorted become runs of twice the length; a thread finds where its part of the result begins in
both by a binary search. (Odeh, Green et al., "Merge Path", 2012.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ....dtype import DType
from ....ir.expr import Binary, BinaryOp, Expr, Load, call, const, select
from ....tir.nodes import Buffer, If, Scope, Seq, Stmt, Store
from ...sort_records import Fields, Records
from ..loops import allocated, blocks, inside, loop, rolled, threads, unrolled

_BLOCK = 1024  # records of short lines that a block sorts together
_MAX_THREADS = 512
_MERGED = 8  # records that a thread merges
_THREADS = 128  # of a block that merges

Source = Callable[[Expr, Expr], Fields]
"""The record at a place of a line."""
Sink = Callable[[Expr, Expr, Fields], Stmt]
"""What is done with the record at a place of a sorted line."""


def tile_size(records: Records) -> int:
    """Records that a block can sort: 32 KiB of shared memory."""
    return 4096 // len(records.fields)


def load(buffers: Sequence[Buffer], *index: Expr) -> Fields:
    return tuple(Load(b, index, None) for b in buffers)


def store(buffers: Sequence[Buffer], record: Fields, *index: Expr) -> Seq:
    return Seq(tuple(Store(b, index, f) for b, f in zip(buffers, record, strict=True)))


def buffers(records: Records, name: str, shape: Sequence[int], scope: Scope) -> list[Buffer]:
    """One buffer for each field of a record."""
    return [Buffer(name, tuple(map(const, shape)), dtype, scope) for dtype in records.fields]


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def sort_tiles(
    records: Records, lines: int, count: int, tile: int, keep: int, source: Source, sink: Sink
) -> Stmt:
    """Sort the tiles of `tile` records of each line of `count`, and pass on the first `keep` ones
    of each: `sink(line, number of the tile * keep + place, record)`. Tiles that are not full have
    records behind all others at their ends."""
    return _TileSort(records, lines, count, tile, keep, source, sink).launch()


@dataclass
class _TileSort:
    records: Records
    lines: int
    count: int
    tile: int
    keep: int
    source: Source
    sink: Sink

    def __post_init__(self) -> None:
        self.size = max(2, _power_of_two(min(self.tile, self.count)))
        self.tiles = math.ceil(self.count / self.tile)
        self.together = max(1, min(_BLOCK // self.size, self.lines * self.tiles))
        self.together = 1 << (self.together.bit_length() - 1)
        self.elements = self.together * self.size
        self.threads = max(1, min(_MAX_THREADS, self.elements // 2))
        self.pairs = self.elements // 2 // self.threads
        self.shared = buffers(self.records, "tile", (self.elements,), Scope.SHARED)
        own = (self.threads, self.pairs)
        self.left, self.right = (
            buffers(self.records, name, own, Scope.LOCAL) for name in ("left", "right")
        )

    def launch(self) -> Stmt:
        def block(number: Expr) -> Stmt:
            return Seq((self._read(number), self._sort(), self._write(number)))

        grid = blocks(math.ceil(self.lines * self.tiles / self.together), block)
        return allocated([*self.shared, *self.left, *self.right], grid)

    def _each(self, count: int, body: Callable[[Expr], Stmt]) -> Stmt:
        """`body` for each number below `count`, spread over the threads."""

        def thread(_: Expr, x: Expr) -> Stmt:
            def step(s: Expr) -> Stmt:
                q = s * self.threads + x
                return body(q) if count % self.threads == 0 else If(q < count, body(q))

            return rolled("step", math.ceil(count / self.threads), step)

        return threads(1, self.threads, thread)

    def _place(self, number: Expr, q: Expr, each: int) -> tuple[Expr, Expr, Expr]:
        """The line, the number of the tile in it, and the place in the tile."""
        tile = number * self.together + q // each
        return tile // self.tiles, tile % self.tiles, q % each

    def _read(self, number: Expr) -> Stmt:
        def element(q: Expr) -> Stmt:
            line, tile, p = self._place(number, q, self.size)
            at = tile * self.tile + p
            line, _ = inside(line, self.lines, self.lines * self.tiles % self.together == 0)
            exists = (p < self.tile) & (at < self.count)
            at, _ = inside(at, self.count, False)
            record = self.source(line, at)
            chosen = [select(exists, f, e) for f, e in zip(record, self.records.last, strict=True)]
            return store(self.shared, tuple(chosen), q)

        return self._each(self.elements, element)

    def _write(self, number: Expr) -> Stmt:
        whole = self.lines * self.tiles % self.together == 0

        def element(q: Expr) -> Stmt:
            line, tile, p = self._place(number, q, self.keep)
            record = load(self.shared, q // self.keep * self.size + p)
            stmt = self.sink(line, tile * self.keep + p, record)
            return stmt if whole else If(line < self.lines, stmt)

        return self._each(self.together * self.keep, element)

    def _sort(self) -> Stmt:
        """Runs of 2, 4, 8... records, in turns ascending and descending, so that two of them are a
        bitonic sequence; such a sequence is sorted by halves of halves."""

        def stage(s: Expr) -> Stmt:
            return loop("step", s + 1, lambda step: self._compare(s, const(1) << (s - step)))

        return rolled("stage", self.size.bit_length() - 1, stage)

    def _compare(self, stage: Expr, stride: Expr) -> Stmt:
        """Bring records that are `stride` apart into order. All are read before any is written."""

        def low(u: Expr, x: Expr) -> Expr:
            pair = u * self.threads + x
            return pair * 2 - (pair & (stride - 1))

        def read(_: Expr, x: Expr) -> Stmt:
            def pair(u: Expr) -> Stmt:
                at = low(u, x)
                first = store(self.left, load(self.shared, at), x, u)
                return Seq((first, store(self.right, load(self.shared, at + stride), x, u)))

            return unrolled("u", self.pairs, pair)

        def swap(_: Expr, x: Expr) -> Stmt:
            def pair(u: Expr) -> Stmt:
                at = low(u, x)
                a, b = load(self.left, x, u), load(self.right, x, u)
                descending = (at & (self.size - 1) & (const(2) << stage)).not_equal(0)
                wrong = self.records.before(b, a).not_equal(descending)
                both = Seq((store(self.shared, b, at), store(self.shared, a, at + stride)))
                return If(wrong, both)

            return unrolled("u", self.pairs, pair)

        return Seq((threads(1, self.threads, read), threads(1, self.threads, swap)))


def merge_runs(
    records: Records, lines: int, count: int, run: int, keep: int, source: Source, sink: Sink
) -> Stmt:
    """Neighbouring sorted runs of `run` records of each line of `count` as one; only the first
    `keep` records of it are passed on, at the place where they belong in the line."""
    return _Merge(records, lines, count, run, keep, source, sink).launch()


@dataclass
class _Merge:
    records: Records
    lines: int
    count: int
    run: int
    keep: int
    source: Source
    sink: Sink

    def __post_init__(self) -> None:
        self.length = min(2 * self.run, self.keep)
        self.parts = math.ceil(self.length / _MERGED)
        self.merges = math.ceil(self.count / (2 * self.run))
        self.bounds = Buffer("bounds", (const(_THREADS), const(2)), DType.INT64, Scope.LOCAL)

    def launch(self) -> Stmt:
        total = self.lines * self.merges * self.parts

        def block(number: Expr) -> Stmt:
            def thread(_: Expr, x: Expr) -> Stmt:
                flat = number * _THREADS + x
                line, rest = flat // (self.merges * self.parts), flat % (self.merges * self.parts)
                stmt = self._part(line, rest // self.parts, rest % self.parts * _MERGED, x)
                return stmt if total % _THREADS == 0 else If(flat < total, stmt)

            return threads(1, _THREADS, thread)

        return allocated([self.bounds], blocks(math.ceil(total / _THREADS), block))

    def _part(self, line: Expr, number: Expr, first: Expr, x: Expr) -> Stmt:
        """A thread's records of the result, from `first` on."""
        begin = number * (2 * self.run)
        middle = _min(begin + self.run, self.count)
        end = _min(begin + 2 * self.run, self.count)
        low, high = (x, const(0)), (x, const(1))
        i, j = Load(self.bounds, low, None), Load(self.bounds, high, None)

        def a(p: Expr) -> Fields:
            return self.source(line, begin + p)

        def b(p: Expr) -> Fields:
            return self.source(line, middle + p)

        def halve(_: Expr) -> Stmt:
            """How many of the first `first` records are of the left run: between i and j."""
            mid = (i + j) // 2
            left = self.records.before(a(mid), b(first - 1 - mid))
            return If(i < j, If(left, Store(self.bounds, low, mid + 1),
                                Store(self.bounds, high, mid)))  # fmt: skip

        def take(e: Expr) -> Stmt:
            place = first + e
            left = call("if_then_else", j < end - middle,
                        ~self.records.before(b(j), a(i)), const(1, DType.BOOL))  # fmt: skip
            left = call("if_then_else", i < middle - begin, left, const(0, DType.BOOL))

            def pass_on(record: Fields, count: Expr, at: Any) -> Stmt:
                return Seq((
                    self.sink(line, begin + place, record), Store(self.bounds, at, count + 1)
                ))  # fmt: skip

            stmt = If(left, pass_on(a(i), i, low), pass_on(b(j), j, high))
            return If((place < self.length) & (begin + place < end), stmt)

        zero = const(0)
        return Seq((
            Store(self.bounds, low, Binary(BinaryOp.MAX, zero, first - (end - middle))),
            Store(self.bounds, high, Binary(BinaryOp.MIN, first, middle - begin)),
            loop("halving", self.run.bit_length() + 1, halve),
            Store(self.bounds, high, first - i),
            rolled("e", _MERGED, take),
        ))  # fmt: skip


def _min(a: Expr, b: int) -> Expr:
    return Binary(BinaryOp.MIN, a, const(b))


def sort_lines(
    records: Records, lines: int, count: int, keep: int, source: Source, sink: Sink
) -> Stmt:
    """The first `keep` records of each line of `count` in order, by as many launches as it takes.

    Where few are kept, those of each tile are all that the next launch has to look at; else whole
    tiles are merged.
    """
    tile = tile_size(records)
    launches: list[Stmt] = []
    scratch: list[Buffer] = []

    def between(size: int) -> tuple[Sink, Source]:
        """Where a launch leaves records and the next one finds them."""
        made = buffers(records, "records", (lines, size), Scope.GLOBAL)
        scratch.extend(made)
        return (
            lambda line, p, record: store(made, record, line, p),
            lambda line, p: load(made, line, p),
        )

    while count > tile and 2 * keep <= tile:
        tiles = math.ceil(count / tile)
        to, then = between(tiles * keep)
        launches.append(sort_tiles(records, lines, count, tile, keep, source, to))
        source, count = then, tiles * keep
    if count <= tile:
        launches.append(sort_tiles(records, lines, count, tile, keep, source, sink))
    else:
        whole = math.ceil(count / tile) * tile
        to, then = between(whole)
        launches.append(sort_tiles(records, lines, count, tile, tile, source, to))
        run, source = tile, then
        while run < whole:
            to, then = (sink, source) if 2 * run >= whole else between(whole)
            launches.append(merge_runs(records, lines, whole, run, keep, source, to))
            run, source = 2 * run, then
    return allocated(scratch, Seq(tuple(launches)))


__all__ = ["Sink", "Source", "merge_runs", "sort_lines", "sort_tiles"]
