"""What warps do together, as the program of one lane.

Buffers in `Scope.WARP` become register arrays of each lane, [.., tile row, tile column, register],
by the layout with which the instructions use them. `ldmatrix` and `mma` become calls whose
arguments are loads that stand for places:

    with warp(mma.m16n8k16.bfloat16):              mma.m16n8k16.bfloat16(
        for i, j, k: C[i, j] += A[i, k] * B[j, k]      C[0, 0, 0], A[0, 0, 0], B[0, 0, 0])

and element by element statements run for the elements that the lane holds:

    with warp(map):                                for r in unrolled(2):
        for i, j: S[i, j] = C[i, j]                    for h in vectorized(2):
                                                           S[lane / 4 + 8 r, lane % 4 * 2 + h]
                                                               = C[0, 0, 2 r + h]
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...diagnostics import InternalError, ScheduleError
from ...dtype import DType
from ...ir.expr import Binary, Call, Expr, Load, Var, as_int, const
from ...te.simplify import Analyzer
from ..nodes import (
    Alloc,
    Buffer,
    Collective,
    Evaluate,
    For,
    ForKind,
    PrimFunc,
    Scope,
    Seq,
    Stmt,
    Store,
)
from ..tensor_intrinsics.fragments import FragmentLayout
from ..tree import statements
from .bind_threads import LANE
from .visit import Visit, drive, rebuilt, rewriter, substituter

_SHARED_ROW = 16  # bytes of a row of the matrices that ldmatrix loads
_MATRIX = 8  # rows of such a matrix


def lower_collectives(func: PrimFunc) -> PrimFunc:
    """Replace every Collective, and every buffer in the registers of a warp.

    Raises:
        ScheduleError: two instructions want different layouts of one buffer, or a part of a
            buffer is no whole fragment.
    """
    if not any(isinstance(s, Collective) for s in statements(func.body)):
        return func
    body = drive(_Lowering(func).visit(func.body))
    return replace(func, body=body)


class _Lowering:
    def __init__(self, func: PrimFunc) -> None:
        self.func = func
        self.analyzer = Analyzer(func.sizes)
        self.lane: Expr = const(0)
        self.layouts: dict[Buffer, FragmentLayout] = {}
        self.registers: dict[Buffer, Buffer] = {}
        for stmt in statements(func.body):
            if isinstance(stmt, Collective):
                self._note_layouts(stmt)

    def _note_layouts(self, stmt: Collective) -> None:
        buffers = [*(o.source for o in stmt.operands), _store(stmt).buffer]  # type: ignore[attr-defined]
        for buffer, layout in zip(buffers, stmt.op.layouts, strict=True):
            if (layout is None) is (buffer.scope is Scope.WARP):
                where = "the registers of a warp" if layout else "memory"
                raise ScheduleError(f"{stmt.op.name} wants {buffer} in {where}")
            if layout is None:
                continue
            if self.layouts.setdefault(buffer, layout) != layout:
                raise ScheduleError(
                    f"{self.func.name}: {buffer.name!r} is {self.layouts[buffer]} for one "
                    f"instruction and {layout} for {stmt.op.name}",
                    hint="load it for each of them",
                )
            if buffer not in self.registers:
                self.registers[buffer] = self._register_array(buffer, layout)

    def _register_array(self, buffer: Buffer, layout: FragmentLayout) -> Buffer:
        *lead, rows, columns = (as_int(d) for d in buffer.shape)
        height, width = layout.shape
        if rows % height or columns % width:
            raise ScheduleError(
                f"{self.func.name}: a warp's part of {buffer.name!r} is {rows} x {columns}, no "
                f"multiple of a fragment of {height} x {width}",
                hint="split the loops by multiples of the instruction's shape",
            )
        dtype = buffer.dtype if layout.packed == 1 else DType.UINT32
        shape = (*lead, rows // height, columns // width, layout.registers)
        extents = tuple(const(n) for n in shape)
        return replace(buffer, shape=extents, dtype=dtype, scope=Scope.LOCAL)

    # -- statements --------------------------------------------------------------------------

    def visit(self, stmt: Stmt) -> Visit[Stmt]:
        if isinstance(stmt, For):
            self.analyzer.bind(stmt.var, stmt.min, stmt.extent)
            self.lane = stmt.var if stmt.thread == LANE else self.lane
        if isinstance(stmt, Collective):
            return self.collective(stmt)
        result = yield rebuilt(stmt, self.visit)
        if isinstance(result, Alloc) and result.buffer in self.registers:
            return Alloc(self.registers[result.buffer], result.body)
        return result

    def collective(self, stmt: Collective) -> Stmt:
        if stmt.op.name == "map":
            return self.map(stmt)
        if stmt.op.name == "ldmatrix":
            return self.load(stmt)
        if stmt.op.name == "across":
            return self.across(stmt)
        if stmt.op.name == "pack":
            return self.pack(stmt)
        store = _store(stmt)
        output = self.fragment(store.buffer, _start(stmt, store.indices))
        inputs = [self.fragment(o.source, o.indices) for o in stmt.operands]  # type: ignore[attr-defined]
        return Evaluate(Call(stmt.op.name, (output, *inputs), DType.BOOL))

    def fragment(self, buffer: Buffer, indices: tuple[Expr, ...], tile: Any = (0, 0)) -> Load:
        """The first register of a fragment."""
        return Load(self.registers[buffer], self.tile(buffer, indices, tile, const(0)), None)

    def tile(
        self, buffer: Buffer, indices: tuple[Expr, ...], skip: tuple[int, int], register: Expr
    ) -> tuple[Expr, ...]:
        """The register array's indices of a fragment that starts at these indices."""
        *lead, row, column = indices
        places: list[Expr] = []
        for index, extent, more in zip(
            (row, column), self.layouts[buffer].shape, skip, strict=True
        ):
            if not self.analyzer.proves((index % extent).equal(0)):
                raise ScheduleError(
                    f"{self.func.name}: {buffer.name}[.., {row}, {column}] is not the start of a "
                    f"fragment of {self.layouts[buffer].shape}",
                    hint="split the loops by multiples of the instruction's shape",
                )
            places.append(self.analyzer.simplify(index // extent) + more)
        return (*lead, *places, register)

    def load(self, stmt: Collective) -> Stmt:
        """ldmatrix: lane 8 m + r gives the address of row r of the matrix that goes to the m-th
        register; which of them that is follows from the layout."""
        (source,) = stmt.operands
        assert isinstance(source, Load)
        store = _store(stmt)
        layout = self.layouts[store.buffer]
        count = 4 // layout.registers
        matrix, row = self.lane // _MATRIX, self.lane % _MATRIX
        register = matrix % layout.registers
        i, j = layout.place(const(0), register * layout.packed)
        extent = layout.shape[1 if layout.transposed else 0]
        skipped = matrix // layout.registers * extent
        *lead, x, y = source.indices
        if layout.transposed:
            x, y = x + i + row, y + j + skipped
        else:
            x, y = x + i + row + skipped, y + j
        start = _start(stmt, store.indices)
        tiles = [(0, n) if layout.transposed else (n, 0) for n in range(count)]
        outs = [self.fragment(store.buffer, start, tile) for tile in tiles]
        self._require_rows(source.source, layout)
        place = Load(source.source, (*lead, self.simple(x), self.simple(y)), None)
        name = "ldmatrix.x4.trans" if layout.transposed else "ldmatrix.x4"
        return Evaluate(Call(name, (place, *outs), DType.BOOL))

    def _require_rows(self, buffer: Buffer, layout: FragmentLayout) -> None:
        width = as_int(buffer.shape[-1]) * layout.bits // 8
        if buffer.scope is not Scope.SHARED or width % _SHARED_ROW:
            raise ScheduleError(
                f"{self.func.name}: ldmatrix reads rows of {_SHARED_ROW} bytes of shared memory, "
                f"which {buffer} does not have",
                hint="copy tiles of whole multiples of 16 bytes to shared memory",
            )

    def simple(self, expr: Expr) -> Expr:
        return self.analyzer.simplify(expr)

    def across(self, stmt: Collective) -> Stmt:
        """A lane has two columns of each of its rows; the others are with the next three lanes."""
        store = _store(stmt)
        assert isinstance(store.value, Binary)
        op, (source,) = store.value.op, stmt.operands
        assert isinstance(source, Load)
        pair = Var("pair")
        self.analyzer.bind(pair, const(0), const(2))

        def register(buffer: Buffer, indices: tuple[Expr, ...], half: int) -> tuple[Expr, ...]:
            return self.tile(buffer, indices, (0, 0), self.simple(pair * 2 + half))

        both = [
            Load(self.registers[source.source], register(source.source, source.indices, h), None)  # type: ignore[index]
            for h in range(2)
        ]
        value: Expr = Binary(op, *both)
        for distance in (1, 2):
            other = Call("shuffle_xor", (value, const(distance)), value.dtype)
            value = Binary(op, value, other)
        target, start = store.buffer, _start(stmt, store.indices)
        places = [register(target, start, h) for h in range(2)]
        buffer = self.registers[target]
        first = Store(buffer, places[0], Binary(op, Load(buffer, places[0], None), value))
        second = Store(buffer, places[1], Load(buffer, places[0], None))
        return For(pair, const(0), const(2), Seq((first, second)), ForKind.UNROLLED)

    def pack(self, stmt: Collective) -> Stmt:
        """Register r of the target takes elements 2 r and 2 r + 1 of two fragments."""
        (source,) = stmt.operands
        assert isinstance(source, Load)
        store = _store(stmt)
        buffer, start = store.buffer, _start(stmt, store.indices)
        calls: list[Stmt] = []
        for r in range(4):
            to = Load(self.registers[buffer], self.tile(buffer, start, (0, 0), const(r)), None)
            at = self.tile(source.source, source.indices, (0, r // 2), const(r % 2 * 2))  # type: ignore[arg-type]
            pair = Load(self.registers[source.source], at, None)  # type: ignore[index]
            calls.append(Evaluate(Call(f"pack.x2.{store.value.dtype}", (to, pair), DType.BOOL)))
        return Seq(tuple(calls))

    def map(self, stmt: Collective) -> Stmt:
        """Each lane's elements; those of an accumulator in pairs, which are neighbours in a row."""
        loops, body = _loops(stmt.body)
        layout = next(one for one in stmt.op.layouts if one is not None)
        if len(loops) != 2 or layout.packed != 1:
            raise InternalError(f"{stmt.op.name} over {len(loops)} loops of {layout}")
        together = 2 if layout.role == "c" else 1
        count = layout.elements // together
        pair, half = Var("pair"), Var("half")
        self.analyzer.bind(pair, const(0), const(count))
        self.analyzer.bind(half, const(0), const(together))
        element = self.simple(pair * together + half)
        first = substituter({loop.var: loop.min for loop in loops})

        def change(node: Any) -> Any:
            if isinstance(node, Load) and node.source in self.registers:
                place = self.tile(node.source, tuple(map(first, node.indices)), (0, 0), element)
                return Load(self.registers[node.source], place, None)
            if isinstance(node, Store) and node.buffer in self.registers:
                place = self.tile(node.buffer, tuple(map(first, node.indices)), (0, 0), element)
                return replace(node, buffer=self.registers[node.buffer], indices=place)
            return node

        places: dict[Any, Expr] = {
            loop.var: self.simple(loop.min + place)
            for loop, place in zip(loops, layout.place(self.lane, element), strict=True)
        }
        body = substituter(places)(rewriter(change)(body))
        body = For(half, const(0), const(together), body, ForKind.VECTORIZED)
        return For(pair, const(0), const(count), body, ForKind.UNROLLED)


def _store(stmt: Collective) -> Store:
    """The one store in the loops of a collective."""
    (store,) = (s for s in statements(stmt.body) if isinstance(s, Store))
    return store


def _loops(stmt: Stmt) -> tuple[list[For], Stmt]:
    loops: list[For] = []
    while isinstance(stmt, For):
        loops.append(stmt)
        stmt = stmt.body
    return loops, stmt


def _start(stmt: Collective, indices: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Indices at the first iteration of the collective's loops."""
    first = substituter({loop.var: loop.min for loop in _loops(stmt.body)[0]})
    return tuple(first(index) for index in indices)


__all__ = ["lower_collectives"]
