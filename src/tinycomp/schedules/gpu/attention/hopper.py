"""Attention of 16-bit operands on Hopper: which becomes a tile program, and of what shape."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .... import te
from ....dtype import DType
from ....ir.expr import Call, Expr, IntImm, Load, Var, as_int, const, substitute
from ....ir.node import postorder
from ....ops.common import read_broadcast
from ....ops.fused_attention import AttentionAttrs, Axes, transposed_read
from ....relay.nodes import Call as RelayCall
from ....relay.nodes import Function
from ....relay.op import Op
from ....target import Target
from ....te.simplify import Analyzer
from ....te.tensor import ComputeOp, Tensor, topological
from ....tir.nodes import Buffer, PrimFunc, Store
from ....tir.schedule import create_schedule
from ....tir.tile.layout import ROW_BYTES
from ....tir.tile.verify import SHARED_LIMIT
from ....types import TensorType
from ...to_te import to_te
from ..strides import address, coefficients
from .fragments import ROWS
from .online_softmax import Mask, OnlineSoftmax
from .program import GRAIN, AttentionTile, Heads, attention_program

_ARCH = "sm_90a"
_BLOCKS = 132  # multiprocessors of an H100 or H200
_DTYPES = (DType.FLOAT16, DType.BFLOAT16)
_WIDEST = 256  # head of one wgmma
_MOST_KEYS = 128  # of a tile
_MOST_STAGES = 4
_ALONE = 0.65  # time of a block with one consumer, of that with two
_BARRIER_BYTES = 1024
_ROOM = {1: 196, 2: 176}  # registers of a thread for operands, by consumers


def build_hopper_attention(function: Function, target: Target, name: str) -> PrimFunc | None:
    """The kernel of one nn.attention as a tile program.

    None where this recipe does not apply: another machine, operands of other dtypes, heads that are
    no multiples of 16 elements or over 256, rows of heads that do not lie in memory as TMA needs
    them (elements side by side, all strides multiples of 16 bytes), fewer than 64 queries.
    """
    if target.arch != _ARCH or not isinstance(function.ret_type, TensorType):
        return None
    last = function.bindings[-1].value
    if not (isinstance(last, RelayCall) and isinstance(last.op, Op)):
        return None
    if last.op.name != "nn.attention" or function.ret_type.dtype not in _DTYPES:
        return None
    return _Attention(function, name).build()


class _Attention:
    """One nn.attention whose operands may be views of the parameters of the function."""

    def __init__(self, function: Function, name: str) -> None:
        self.name = name
        self.attrs, self.args = AttentionAttrs(), list[Tensor]()
        self.inputs, (self.out,) = to_te(function, {"nn.attention": self._expand})

    def _expand(self, attrs: Any, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
        self.attrs, self.args = attrs, list(args)
        return [te.placeholder(out.static_shape, out.dtype, "out")]

    def build(self) -> PrimFunc | None:
        params, elements = self._elements()
        heads = [e.heads() for e in elements[:3]]
        masks = [e.mask() for e in elements[3:]]
        if None in heads or None in masks:
            return None
        q, k, v = (h for h in heads if h is not None)
        (batch, count, queries, depth), keys, v_depth = q.shape, k.shape[2], v.shape[3]
        fits = all(d % GRAIN == 0 and 0 < d <= _WIDEST for d in (depth, v_depth))
        aligned = all(h.aligned for h in (q, k, v))
        if not fits or not aligned or queries < ROWS or 0 in (batch, count, keys):
            return None
        result = Buffer("out", tuple(const(d) for d in map(as_int, self.out.shape)), self.out.dtype)
        out = _stored(result, self.attrs.out_axes)
        tile = choose_attention_tile(batch * count, queries, keys, depth, v_depth, out.aligned)
        softmax = OnlineSoftmax(
            self.attrs, tuple(m for m in masks if m is not None), DType.FLOAT32, queries, keys,
            (tile.queries, tile.keys),
        )  # fmt: skip
        program = attention_program(self.name, q, k, v, out, softmax, tile, _BLOCKS)
        return PrimFunc(self.name, (*params, result), 1, program)

    def _elements(self) -> tuple[list[Buffer], list[_Element]]:
        """The parameters, and in terms of these the operands as [batch, head, row, element], then
        the masks as [batch, head, query, key]."""
        attrs = self.attrs
        reads: list[Tensor] = []
        for tensor, axes in zip(
            self.args, (attrs.q_axes, attrs.k_axes, attrs.v_axes), strict=False
        ):
            shape = tuple(as_int(tensor.shape[a]) for a in axes)
            read = functools.partial(_transposed, tensor, axes)
            reads.append(te.compute(shape, read, name="element"))
        scores = (*map(as_int, reads[0].shape[:3]), as_int(reads[1].shape[2]))
        for tensor in self.args[3:]:
            read = functools.partial(_broadcast, tensor, scores)
            reads.append(te.compute(scores, read, name="element"))
        schedule = create_schedule(reads, self.inputs, self.name)
        outputs = {t.op for t in reads}
        for op in topological(reads):
            if isinstance(op, ComputeOp) and op not in outputs:
                schedule[op.output(0)].compute_inline()
        elements = []
        for tensor in reads:
            block = schedule[tensor].block
            assert isinstance(block.body, Store)
            place = {v.var: as_int(v.extent) for v in block.iter_vars}
            elements.append(_Element(block.body.value, place))
        return list(schedule.func.params[: len(self.inputs)]), elements


@dataclass(frozen=True)
class _Element:
    """The element of an operand at the variables of `place`, whose extents that holds."""

    value: Expr
    place: Mapping[Var, int]

    def heads(self) -> Heads | None:
        """Where the operand lies; None if it is computed, or rows are not side by side."""
        value, place = self.value, list(self.place)
        if not isinstance(value, Load) or value.predicate is not None:
            return None
        analyzer = Analyzer()
        for var, extent in self.place.items():
            analyzer.bind(var, 0, extent)
        where = analyzer.simplify(address(value))
        first = analyzer.simplify(substitute(where, {var: const(0) for var in place}))
        terms = coefficients(analyzer.simplify(where - first))
        if not isinstance(first, IntImm) or terms is None or not set(terms) <= set(place):
            return None
        b, h, i, element = (terms.get(var, 0) for var in place)
        shape = tuple(self.place.values())
        if element != 1 and shape[3] > 1:
            return None
        return Heads(value.source, shape, (b, h, i), first.value)  # type: ignore[arg-type]

    def mask(self) -> Mask | None:
        """None if an index is computed from data, which may be out of range."""
        if any(isinstance(n, Call) and n.name == "checked_index" for n in postorder(self.value)):
            return None
        place = list(self.place)

        def read(at: Sequence[Expr]) -> Expr:
            return substitute(self.value, dict(zip(place, at, strict=True)))

        return Mask(self.value.dtype, read)


def _transposed(tensor: Tensor, axes: Axes, *index: Any) -> Any:
    return transposed_read(tensor, axes, index)


def _broadcast(tensor: Tensor, shape: Sequence[int], *index: Any) -> Any:
    return read_broadcast(tensor, index, shape)


def _stored(buffer: Buffer, axes: Axes) -> Heads:
    """The result, whose dimension `d` is dimension `axes[d]` of [batch, head, row, element]."""
    stored = [as_int(d) for d in buffer.shape]
    shape, strides = [0] * 4, [0] * 4
    for d, axis in enumerate(axes):
        shape[axis], strides[axis] = stored[d], math.prod(stored[d + 1 :])
    contiguous = strides[3] == 1 or shape[3] == 1
    lead = strides[:3] if contiguous else [0] * 3  # not to be stored by TMA
    return Heads(buffer, tuple(shape), tuple(lead))  # type: ignore[arg-type]


@functools.cache
def choose_attention_tile(
    heads: int, queries: int, keys: int, depth: int, v_depth: int, aligned: bool = True
) -> AttentionTile:
    """The shape of the program.

    Two consumers hide each other's softmax; one alone is for what has too few tiles of queries for
    all multiprocessors. Scores, weights and results have to fit in the registers, the rings in
    shared memory; tiles of keys are of equal size.

    Args:
        heads: in the whole batch.
        aligned: TMA can store the result.

    >>> choose_attention_tile(64, 2048, 2048, 128, 128)
    AttentionTile(consumers=2, keys=128, stages=2, staged=True)
    >>> choose_attention_tile(12, 197, 197, 64, 64)
    AttentionTile(consumers=1, keys=112, stages=4, staged=True)
    """

    def waves(consumers: int) -> int:
        return math.ceil(heads * math.ceil(queries / (consumers * ROWS)) / _BLOCKS)

    consumers = 2 if waves(2) <= _ALONE * waves(1) else 1
    held = _ROOM[consumers] - v_depth // 2  # of scores and weights, 3/4 of a register for each key
    most = min(_MOST_KEYS, held * 4 // 3 // GRAIN * GRAIN)
    for staged in (True, False) if aligned else (False,):
        for limit in range(most, most // 2, -GRAIN):
            tile = _tile(consumers, keys, limit, (depth, v_depth), staged)
            if tile.stages >= 2:
                return tile
    return _tile(consumers, keys, GRAIN, (depth, v_depth), False)


def _tile(
    consumers: int, keys: int, limit: int, depths: tuple[int, int], staged: bool
) -> AttentionTile:
    per_tile = math.ceil(keys / math.ceil(keys / limit) / GRAIN) * GRAIN
    depth, v_depth = (math.ceil(d * 2 / ROW_BYTES) * ROW_BYTES for d in depths)  # bytes of a row
    fixed = consumers * ROWS * (depth + v_depth * staged) + _BARRIER_BYTES
    stages = (SHARED_LIMIT - fixed) // (per_tile * (depth + v_depth))
    return AttentionTile(consumers, per_tile, min(_MOST_STAGES, stages), staged)
