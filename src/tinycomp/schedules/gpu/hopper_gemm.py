"""Matrix products with 16-bit operands on Hopper: which become a tile program, and of what shape.

The epilogue, everything that is fused behind the product, is computed on the accumulators.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ... import te
from ...dtype import DType
from ...ir.expr import Call, Expr, Load, Var, as_int, const, substitute
from ...ir.node import rewrite
from ...relay.nodes import Call as RelayCall
from ...relay.nodes import Function
from ...relay.op import Op
from ...target import Target
from ...te.simplify import Analyzer
from ...te.tensor import ComputeOp, PlaceholderOp, Tensor, is_reduction, topological
from ...tir.nodes import Buffer, PrimFunc, Store
from ...tir.schedule import create_schedule
from ...tir.tile.layout import ROW_BYTES
from ...tir.tile.verify import SHARED_LIMIT
from ...types import TensorType
from ..to_te import to_te
from .hopper_program import Epilogue, HopperTile, Operands, gemm_program

_ARCH = "sm_90a"
_BLOCKS = 132  # multiprocessors of an H100 or H200
_MIN_ROWS = 64  # of one wgmma
_DTYPES = (DType.FLOAT16, DType.BFLOAT16)


def build_hopper_matmul(function: Function, target: Target, name: str) -> PrimFunc | None:
    """The kernel of a function around one nn.matmul as a tile program.

    None where this recipe does not apply: another machine, operands of other dtypes or that are
    computed in the kernel, fewer than 64 rows, rows that are not multiples of 16 bytes (which TMA
    needs), or an epilogue that reduces or moves elements.
    """
    if target.arch != _ARCH or not isinstance(function.ret_type, TensorType):
        return None
    found = _Matmul(function).find()
    if found is None:
        return None
    operands, epilogue, params = found
    itemsize = epilogue.out.dtype.itemsize
    staged = operands.n * itemsize % 16 == 0 and itemsize > 1
    tile = choose_hopper_tile(operands.batch, operands.m, operands.n, operands.k, itemsize, staged)
    program = gemm_program(name, operands, epilogue, tile, _BLOCKS)
    return PrimFunc(name, params, 1, program)


class _Matmul:
    """The product and the epilogue of a primitive function."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.product: Tensor | None = None
        self.operands: tuple[Tensor, Tensor] | None = None
        self.sizes = (0, 0, 0, 0)

    def find(self) -> tuple[Operands, Epilogue, tuple[Buffer, ...]] | None:
        products = [
            b.value
            for b in self.function.bindings
            if isinstance(b.value, RelayCall)
            and isinstance(b.value.op, Op)
            and b.value.op.name == "nn.matmul"
        ]
        if len(products) != 1:
            return None
        inputs, outputs = to_te(self.function, {"nn.matmul": self._expand})
        if self.product is None or self.operands is None or len(outputs) != 1:
            return None
        stages = [op for op in topological(outputs) if isinstance(op, ComputeOp)]
        if any(is_reduction(op) for op in stages) or self.product.op not in topological(outputs):
            return None
        return self._epilogue(inputs, outputs[0], stages)

    def _expand(self, attrs: Any, args: Sequence[Tensor], out: TensorType) -> list[Tensor] | None:
        """nn.matmul as a read of the product, which is an input of the epilogue."""
        a, b = args
        if a.dtype not in _DTYPES or not all(isinstance(t.op, PlaceholderOp) for t in args):
            return None
        *batch, m, n = out.static_shape
        k, count = as_int(a.shape[-1]), math.prod(batch)
        a_count, b_count = (math.prod(map(as_int, t.shape[:-2])) for t in args)
        if b_count == 1:  # one product of all rows
            m, count = a_count * m, 1
        elif a_count not in (1, count) or b_count != count:
            return None
        aligned = k * a.dtype.itemsize % 16 == 0 and n * b.dtype.itemsize % 16 == 0
        if m < _MIN_ROWS or count * n * k == 0 or not aligned:
            return None
        self.operands, self.sizes = (a, b), (count, m, n, k)
        self.a_batches, self.b_batches = a_count == count, b_count == count
        product = self.product = te.placeholder((count, m, n), DType.FLOAT32, "product")

        def read(*index: Any) -> Any:
            flat: Any = te.const(0)
            for i, extent in zip(index, out.static_shape, strict=True):
                flat = flat * extent + i
            found = product(flat // (m * n), flat // n % m, flat % n)
            return found.astype(out.dtype)

        return [te.compute(out.shape, read, name="matmul")]

    def _epilogue(
        self, inputs: list[Tensor], out: Tensor, stages: list[ComputeOp]
    ) -> tuple[Operands, Epilogue, tuple[Buffer, ...]] | None:
        assert self.product is not None
        assert self.operands is not None
        batch, m, n, k = self.sizes
        if math.prod(map(as_int, out.shape)) != batch * m * n:
            return None
        schedule = create_schedule([out], [*inputs, self.product], "epilogue")
        for op in stages:
            if op is not out.op:
                schedule[op.output(0)].compute_inline()
        *params, product, result = schedule.func.params
        block = schedule[out].block
        store = block.body
        if not isinstance(store, Store):
            return None
        b, i, j, acc = Var("b"), Var("i"), Var("j"), Var("acc", DType.FLOAT32)
        analyzer = Analyzer()
        for var, extent in ((b, batch), (i, m), (j, n)):
            analyzer.bind(var, 0, extent)
        element = (b if batch > 1 else const(0), i, j)
        flat = (element[0] * m + i) * n + j
        place = _unravel(flat, [as_int(d) for d in out.shape], analyzer)
        known = {v.var: at for v, at in zip(block.iter_vars, place, strict=True)}
        value = _on_accumulator(substitute(store.value, known), product, element, acc, analyzer)
        if value is None:
            return None
        by_name = {p.name: p for p in params}
        a_buffer, b_buffer = (by_name[t.name] for t in self.operands)
        operands = Operands(
            a_buffer, b_buffer, batch, m, n, k, a_batches=self.a_batches, b_batches=self.b_batches
        )
        epilogue = Epilogue(result, tuple(place), value, b, i, j, acc)
        return operands, epilogue, (*params, result)


def _unravel(flat: Expr, shape: list[int], analyzer: Analyzer) -> list[Expr]:
    index: list[Expr] = []
    stride = 1
    for extent in reversed(shape):
        index.insert(0, analyzer.simplify(flat // stride % extent))
        stride *= extent
    return index


def _on_accumulator(
    value: Expr, product: Buffer, place: tuple[Expr, ...], acc: Var, analyzer: Analyzer
) -> Expr | None:
    """`value` with the variable `acc` for its reads of the product; None if one of these is of
    another element than `place`, or an index is computed from data."""
    moved = False

    def replace_read(node: Any) -> Any:
        nonlocal moved
        if isinstance(node, Call) and node.name == "checked_index":
            moved = True
        if not isinstance(node, Load) or node.source is not product:
            return node
        found = tuple(analyzer.simplify(i) for i in node.indices)
        expected = tuple(analyzer.simplify(v) for v in place)
        moved = moved or found != expected
        return acc

    result = rewrite(value, replace_read)
    return None if moved else result


# -- choice of the tile -----------------------------------------------------------------------

_TENSOR = 5.98e12  # sustained FLOP/s of one multiprocessor, 16-bit operands
_REFILL = 61e9  # bytes/s from L2 to one multiprocessor
_STORE = 33e9  # bytes/s to memory, one multiprocessor's share
_SHARED = 128 * 1.46e9  # bytes/s that wgmma reads
_FILL = 1.2e-6  # seconds until the first product
_MEETING = 0.3e-6  # seconds until the blocks of a cluster have met
_BARRIERS = 50e-9  # seconds that a step waits, whatever its size


@dataclass(frozen=True, slots=True)
class _Shape:
    rows: int
    columns: int
    consumers: int
    alternate: bool


_SHAPES = tuple(
    _Shape(rows, columns, consumers, alternate)
    for rows, consumers, widest, alternate in (
        (64, 1, 256, False), (128, 1, 128, False), (128, 2, 256, False), (256, 2, 128, False),
        (64, 2, 256, True), (128, 2, 128, True),
    )
    for columns in (64, 128, 192, 256)
    if columns <= widest
)  # fmt: skip


@functools.cache
def choose_hopper_tile(
    batch: int, m: int, n: int, k: int, itemsize: int = 2, staged: bool = True
) -> HopperTile:
    """The tile of least estimated time, by a model of waves, tensor cores and copies.

    >>> tile = choose_hopper_tile(1, 8192, 8192, 8192)
    >>> tile.rows, tile.columns, tile.depth, tile.consumers, tile.cluster, tile.alternate
    (128, 256, 4, 2, 2, False)
    """
    return min(_candidates(staged), key=lambda t: estimated_seconds(t, batch, m, n, k, itemsize))


def _candidates(staged: bool) -> Iterator[HopperTile]:
    for shape in _SHAPES:
        for cluster in (1, 2):
            stage = (shape.rows + shape.columns) * ROW_BYTES
            boxes = shape.consumers * 2 * 64 * ROW_BYTES * staged
            depth = min(8, (SHARED_LIMIT - boxes - 1024) // stage)
            yield HopperTile(
                shape.rows, shape.columns, depth, shape.consumers, cluster, staged=staged,
                alternate=shape.alternate,
            )  # fmt: skip


def estimated_seconds(
    tile: HopperTile, batch: int, m: int, n: int, k: int, itemsize: int = 2
) -> float:
    """Estimated time of a product with 16-bit operands."""
    rows = math.ceil(math.ceil(m / tile.rows) / tile.cluster) * tile.cluster
    tiles = batch * rows * math.ceil(n / tile.columns)
    waves = math.ceil(tiles / _BLOCKS)
    flops = 2 * tile.rows * tile.columns * (ROW_BYTES // 2)
    copied = (tile.rows + tile.columns / tile.cluster) * ROW_BYTES
    read = tile.rows // 64 * (64 + tile.columns) * ROW_BYTES
    step = max(flops / _TENSOR, copied / _REFILL, read / _SHARED) + _BARRIERS
    epilogue = tile.rows * tile.columns * itemsize / _STORE
    start = _FILL + _MEETING * (tile.cluster > 1)
    products = math.ceil(k * 2 / ROW_BYTES) * step
    if tile.alternate:  # only the last write of a block is exposed
        return waves * max(products, epilogue) + epilogue + start
    # Writes overlap with copies for the next tile, not with its products.
    return waves * (products + epilogue / 2) + epilogue / 2 + start


__all__ = ["build_hopper_matmul", "choose_hopper_tile", "estimated_seconds"]
