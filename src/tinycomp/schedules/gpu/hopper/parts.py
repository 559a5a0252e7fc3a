"""Products of float32 matrices on Hopper's tensor cores, which take shorter operands: each element
is split into parts, and the products of parts are added in float32.

A float32 is exactly the sum of three bfloat16, of 8 bits each:

    high = x cut to 8 bits,   middle = x - high rounded,   low = x - high - middle

and of the nine products of parts six count; what the others add is below 2^-24 of the product.
(Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for
higher-precision computations", ARITH 2019.) `high` is cut, not rounded, so that no finite number
becomes infinite.

Tensor cores cut their sums to float32 where a processor rounds, and always towards zero, so long
sums drift. Therefore every stage of the ring, 32 steps of the sum, is added up on its own, the
small products first, while the sum is small, and then added to the result by ordinary additions,
which round. (DeepSeek-V3, arXiv:2412.19437, section 3.3.2, does this every 128 steps.) By a model
of tensor cores (`tir.tile.arithmetic`) the error is below that of a loop over float32
multiply-adds, or one unit in the last place where that loop as good as rounds once.

Infinities: their lower parts are 0, and where `high` meets a lower part of the other operand, which
may be 0 or of either sign, an infinite `high` counts as 0; so infinity times x is what IEEE says.
Constant operands are finite; others have a part for this. NaN stays NaN. Bits below 2^-133, the
least bfloat16, are lost: numbers below 2^-110 are less exact, those below 2^-133 count as 0.

The left operand goes through registers: consumers load float32 from shared memory, split it and
pass the parts to wgmma as operand A. The alternative, a warpgroup that writes parts back to shared
memory, costs 6 bytes of it per element, 12 KB more per stage of 64 rows than the 8 KB that arrive,
and as much bandwidth as wgmma needs to read them; in registers the parts of a stage are 32. For a
stage of 64 x 128 results tensor cores work 768 cycles, splitting takes about 170 instructions per
warp, which another consumer's products hide. 64 registers of sums, 64 of results and 32 of parts
fit the 232 of each of two consumers. The right operand is split when compiling, or by a launch of
its own, whose time is small beside that of the six products.

tf32 is the same with one part, rounded to nearest, and without the second sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ....dtype import DType
from ....ir.expr import BinaryOp as Op
from ....ir.expr import Expr, Load, Var, binary, call, const, select
from ....ops.operand_parts import BF16X6, BF16X6_ANY, TF32, Split
from ....target import Target
from ....tir.nodes import Alloc, Buffer, For, ForKind, PrimFunc, Scope, Seq, Stmt, Store
from ....tir.passes.simplify import simplify
from ....tir.passes.vectorize import vectorize
from ....tir.tile.layout import (
    ROW_BYTES,
    Major,
    MatrixDescriptor,
    Swizzle,
    WgmmaShape,
    fragment_row,
    left_element,
)
from ....tir.tile.nodes import (
    Accumulator,
    Advance,
    Arrive,
    Barrier,
    Cursor,
    Fragment,
    LetStage,
    NamedBarrier,
    Operand,
    SharedTile,
    TensorMap,
    ThreadCode,
    TileProgram,
    TmaLoad,
    Wait,
    Wgmma,
    WgmmaCommit,
    WgmmaFence,
    WgmmaWait,
)
from .copies import Copies, Step
from .epilogue import ROWS, shared_tile
from .operands import Epilogue, HopperTile, Operands
from .program import ROLLED, Gemm, zero

_WIDE = Target("cuda", vector_bits=128)  # a thread loads 16 bytes
_F32 = DType.FLOAT32


@dataclass(frozen=True)
class Plan:
    """How products of parts make one product.

    Attributes:
        left: names of the parts of A.
        products: part of A and part of B, in the order they are added: small ones first.
        promotes: whether the sum of a stage is added to the result by ordinary additions.
    """

    left: tuple[str, ...]
    products: tuple[tuple[str, int], ...]
    promotes: bool


PLANS: dict[Split, Plan] = {
    BF16X6: Plan(
        ("high", "finite", "middle", "low"),
        (("finite", 2), ("low", 0), ("middle", 1), ("finite", 1), ("middle", 0), ("high", 0)),
        promotes=True,
    ),
    BF16X6_ANY: Plan(
        ("high", "finite", "middle", "low"),
        (("finite", 2), ("low", 3), ("middle", 1), ("finite", 1), ("middle", 3), ("high", 0)),
        promotes=True,
    ),
    TF32: Plan(("rounded",), (("rounded", 0),), promotes=False),
}


def parts_program(
    name: str, operands: Operands, epilogue: Epilogue, tile: HopperTile, blocks: int
) -> TileProgram:
    """The program of a product whose B is in parts, as `nn.split_operand` makes them.

    Args:
        operands: with a `b_split`; k is the length of the sum before it was padded.
        blocks: as for `gemm_program`.
    """
    return _PartsGemm(name, operands, epilogue, tile, blocks).program()


class _PartsCopies(Copies):
    """B is one tensor [part, k, n], or [part, n, k]. All parts of 128 bytes of columns lie together
    in shared memory."""

    def __init__(self, operands: Operands, tile: HopperTile, rank: Var) -> None:
        assert operands.b_split is not None
        self.split = split = operands.b_split
        self.width = ROW_BYTES // split.dtype.itemsize
        super().__init__(operands, tile, rank)

    def _b_map(self, b: Buffer) -> TensorMap:
        o, split = self.operands, self.split
        count, outer, inner = split.shape(o.taps, self.depth, o.n)
        row = inner * split.dtype.itemsize
        rows = self.tile.columns // self.tile.cluster if split.transposed else self.step
        strides, box = (row, row * outer), (self.width, rows, count)
        return TensorMap("b", b, (inner, outer, count), strides, box, Swizzle(ROW_BYTES))

    def load_b(
        self, step: Step, column: Expr, tile: SharedTile, cursor: Cursor, full: Barrier
    ) -> Iterator[TmaLoad]:
        assert self.b_map is not None
        cluster, nbytes = self.tile.cluster, self.b_map.box_bytes
        k = step.tap * (self.per_tap * self.step) + step.element
        part = self.tile.columns // cluster
        share = self.rank if cluster > 1 else const(0)
        first = column + share * part
        for number in range(1 if self.split.transposed else part // self.width):
            at = (k, first) if self.split.transposed else (first + number * self.width, k)
            where = share * (tile.nbytes // cluster) + number * nbytes
            yield TmaLoad(self.b_map, (*at, const(0)), tile, where, cursor, full, cluster > 1)


class _PartsGemm(Gemm):
    def __init__(
        self, name: str, operands: Operands, epilogue: Epilogue, tile: HopperTile, blocks: int
    ) -> None:
        assert operands.b_split is not None
        self.split, self.plan = operands.b_split, PLANS[operands.b_split]
        super().__init__(name, operands, epilogue, tile, blocks)
        assert self.per_consumer == 1, "the parts of one tile fit the registers"
        self.shape = WgmmaShape(tile.columns, self.split.dtype)
        held = ROWS * self.step // 128  # elements of a stage that a thread has
        self.parts = {
            part: Buffer(f"a_{part}", (const(held),), self.split.dtype, Scope.LOCAL)
            for part in self.plan.left
        }
        registers = (const(self.shape.registers),)
        self.total = Buffer("total", registers, _F32, Scope.LOCAL)
        self.arrays = (*self.parts.values(), *([self.total] if self.plan.promotes else []))

    def _copies(self) -> Copies:
        return _PartsCopies(self.operands, self.tile, self.rank)

    def _shared(self) -> None:
        super()._shared()
        nbytes = self.tile.columns * self.step * self.split.dtype.itemsize * self.split.count
        self.b_tile = shared_tile("b_tile", self.split.dtype, nbytes, self.tile.depth)

    def _result(self, acc: Accumulator) -> Accumulator:
        return replace(acc, buffer=self.total) if self.plan.promotes else acc

    def _main_loop(
        self, acc: Accumulator, read: Cursor, release: Cursor, part: Expr
    ) -> tuple[list[Stmt], list[Stmt]]:
        stage, promotes = Var("stage"), self.plan.promotes
        body: list[Stmt] = [Wait(self.full, read), LetStage(stage, read)]
        body.append(ThreadCode(self._split(stage, part)))
        # Other threads may still read A when the one that frees the stage is done.
        body += [
            NamedBarrier(self.warpgroup + 1, 1),
            WgmmaFence(),
            *self._multiply_parts(acc, read),
        ]
        body += [WgmmaCommit(), Advance(read), WgmmaWait(0)]
        body += [Arrive(self.empty, release, self.tile.cluster > 1), Advance(release)]
        if promotes:
            body.append(ThreadCode(self._added(acc)))
        loop = For(Var("k"), const(0), const(self.steps), Seq(tuple(body)), annotations=ROLLED)
        return [ThreadCode(zero(self._result(acc))), loop], []

    def _split(self, stage: Var, part: Expr) -> Stmt:
        """The parts of this thread's elements of A in one stage. Sixteen bytes are loaded at a
        time, of neighbouring rows from different banks: `Split.place` says which steps of the sum
        they are."""
        pack = 4 // self.split.dtype.itemsize
        which, half, lane = Var("which"), Var("half"), Var("lane")
        row = part * ROWS + fragment_row(self.thread, half * 2)
        unit = binary(Op.BIT_XOR, self.thread % 4 * 2 + which, self.thread % 32 // 4)
        where = stage * (self.a_tile.nbytes // 16) + row * (ROW_BYTES // 16) + unit
        raw = Buffer("raw", (const(4),), _F32, Scope.LOCAL)
        load = Store(raw, (lane,), Load(self.a_tile.buffer, (where * 4 + lane,), None))
        loaded = For(lane, const(0), const(4), load, ForKind.VECTORIZED)
        pieces = [
            self._piece(raw, first, which * 8 + at + first // (2 * pack) * (4 * pack), pack)
            for first in range(0, 4, pack)
            for at in [left_element(half, first // pack % 2, pack)]
        ]
        body: Stmt = Alloc(raw, Seq((loaded, *pieces)))
        for var in (half, which):
            body = For(var, const(0), const(2), body, ForKind.UNROLLED)
        return simplify(vectorize(PrimFunc(self.name, (), 0, body), _WIDE)).body

    def _piece(self, raw: Buffer, first: int, at: Expr, count: int) -> Stmt:
        """Splits raw[first], ..., which are `count` neighbours of a fragment from `at` on."""
        lane, out = Var("lane"), []
        x = Load(raw, (lane + first,), None)

        def held(part: str) -> Expr:
            return Load(self.parts[part], (at + lane,), None)

        def store(buffer: Buffer, index: Expr, value: Expr) -> None:
            one = Store(buffer, (index,), value)
            vector = ForKind.VECTORIZED if count > 1 else ForKind.UNROLLED
            out.append(For(lane, const(0), const(count), one, vector))

        def keep(part: str, value: Expr) -> None:
            store(self.parts[part], at + lane, value.astype(self.split.dtype))

        def rest(value: Expr) -> None:
            store(raw, lane + first, value)

        if self.split is TF32:
            keep("rounded", call("round_tf32", x))
            return Seq(tuple(out))
        high = held("high").astype(_F32)
        keep("high", call("truncate_bf16", x))
        keep("finite", select(call("isfinite", high), high, const(0.0, _F32)))
        rest(select(x.equal(high), const(0.0, _F32), x - high))
        keep("middle", x)
        rest(x - held("middle").astype(_F32))
        keep("low", x)
        return Seq(tuple(out))

    def _multiply_parts(self, acc: Accumulator, read: Cursor) -> Iterator[Wgmma]:
        """The products of the parts in one stage."""
        split, k = self.split, self.shape.k
        layout = MatrixDescriptor(Major.K, 16, 8 * ROW_BYTES)
        plane, along = 0, k * split.dtype.itemsize
        if not split.transposed:
            plane, along = self.step * ROW_BYTES, k * ROW_BYTES
            layout = MatrixDescriptor(Major.MN, split.count * plane, 8 * ROW_BYTES)
        begun = not self.plan.promotes
        for left, right in self.plan.products:
            for p in range(self.step // k):
                b = Operand(self.b_tile, read, const(right * plane + p * along), layout)
                a = Fragment(self.parts[left], p * (ROWS * k // 128))
                yield Wgmma(acc, 0, a, b, begun)
                begun = True

    def _added(self, acc: Accumulator) -> Stmt:
        """The sum of a stage, added to the result."""
        register = Var("register")
        at = (register,)
        value = Load(self.total, at, None) + Load(acc.buffer, at, None)
        count = const(self.shape.registers)
        return For(register, const(0), count, Store(self.total, at, value), ForKind.UNROLLED)
