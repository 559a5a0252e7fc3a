"""AlterOpLayout: weights of matmuls and convolutions in the layout of the fast kernels.

Packing operators are inserted; FoldConstant evaluates those of constant weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ...types import TensorType
from ..builder import Builder
from ..nodes import Atom, Binding, Call, Constant, Function, replace_args
from ..op import Op
from ..pass_infra import FunctionPass, PassContext
from .layouts import is_pointwise

ChooseTile = Callable[[Binding], tuple[int, ...] | None]


@dataclass(frozen=True)
class AlterOpLayout(FunctionPass):
    """Packs the weights of nn.matmul and of NHWC nn.conv2d.

    - `nn.matmul(A, B)` becomes `nn.matmul_packed(A, nn.pack_matmul(B))`. If B is a matrix, A is
      reshaped to one too, so that a linear layer of any rank is one large product; elementwise
      operators after it (bias, activation, residual) stay in that form, which keeps them fusable.
    - Depthwise `nn.conv2d` gets its weight as [kh, kw, C], kernel_layout "HWC".
    - Other `nn.conv2d` get `nn.pack_conv2d(weight)`, kernel_layout "packed"; groups are merged or
      padded so that blocks of channels do not cross them, see `fill_blocks`.

    `choose_tile` is asked for the register tile, (rows, columns) of a matmul and (rows, columns,
    channels) of a convolution; None leaves the operator as it is.
    """

    choose_tile: ChooseTile

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        rewriter = _Rewriter(function, ctx, self.choose_tile)
        return rewriter.run()


class _Rewriter:
    """`flat[v]` is v reshaped to [product of leading dimensions, last dimension]."""

    def __init__(self, function: Function, ctx: PassContext, choose_tile: ChooseTile) -> None:
        self.function, self.choose_tile = function, choose_tile
        self.builder = Builder(ctx.ops)
        self.builder.params = list(function.params)
        self.plain: dict[Atom, Atom] = {p: p for p in function.params}
        self.flat: dict[Atom, Atom] = {}
        self.packed: dict[tuple[str, Atom, tuple[int, ...]], Atom] = {}
        self.regrouped: dict[tuple[Constant, int, int, int], Constant] = {}
        self.changed = False

    def run(self) -> Function:
        for binding in self.function.bindings:
            with self.builder.at(binding.span):
                if self._rewrite(binding):
                    self.changed = True
                    continue
                value = replace_args(binding.value, [self.as_is(a) for a in binding.args])
                kept = binding if value is binding.value else replace(binding, value=value)
                self.builder.bindings.append(kept)
                self.plain[binding.var] = binding.var
        if not self.changed:
            return self.function
        result = self.as_is(self.function.result)
        return replace(self.function, bindings=tuple(self.builder.bindings), result=result)

    def as_is(self, atom: Atom) -> Atom:
        if isinstance(atom, Constant):
            return atom
        if atom not in self.plain:
            assert isinstance(atom.type, TensorType)
            flat = self.flat[atom]
            self.plain[atom] = self.builder.call("reshape", flat, newshape=atom.type.shape)
        return self.plain[atom]

    def flattened(self, atom: Atom) -> Atom:
        """A tensor of rank >= 2 as a matrix; no memory moves."""
        if atom not in self.flat:
            assert isinstance(atom.type, TensorType)
            *lead, last = atom.type.static_shape
            shape = (math.prod(lead), last)
            self.flat[atom] = self.builder.call("reshape", self.as_is(atom), newshape=shape)
        return self.flat[atom]

    def _rewrite(self, binding: Binding) -> bool:
        value = binding.value
        if not isinstance(value, Call) or not isinstance(value.op, Op):
            return False
        name = value.op.name
        if name == "nn.matmul":
            return self._matmul(binding, value)
        if name == "nn.conv2d":
            return self._conv2d(binding, value)
        pending = [a for a in value.args if a in self.flat and a not in self.plain]
        if not pending:
            return False
        if name == "reshape":
            (source,) = pending
            self.plain[binding.var] = self.builder.call(
                value.op, self.flat[source], attrs=value.attrs
            )
            return True
        if is_pointwise(value.op):
            return self._elementwise(binding, value)
        return False

    def _elementwise(self, binding: Binding, value: Call) -> bool:
        """Work on matrices if every operand is one, a row that is added to all, or a scalar."""
        type_ = binding.var.type
        assert isinstance(value.op, Op)
        if not isinstance(type_, TensorType) or not type_.is_static or type_.rank < 2:
            return False
        kinds = [_operand_kind(a, type_) for a in value.args]
        if "other" in kinds:
            return False
        args = []
        for atom, kind in zip(value.args, kinds, strict=True):
            if kind == "full":
                args.append(self.flattened(atom))
            elif kind == "row":
                row = self.as_is(atom)
                args.append(self.builder.call("reshape", row, newshape=(type_.static_shape[-1],)))
            else:
                scalar = self.as_is(atom)
                args.append(self.builder.call("reshape", scalar, newshape=()))
        self.flat[binding.var] = self.builder.call(value.op, *args, attrs=value.attrs)
        return True

    def _matmul(self, binding: Binding, value: Call) -> bool:
        a, b = value.args
        assert isinstance(a.type, TensorType)
        assert isinstance(b.type, TensorType)
        k, n = b.type.shape[-2:]
        if not isinstance(k, int) or not isinstance(n, int):
            return False
        if 0 in (*a.type.shape, *b.type.shape):  # nothing to be fast at
            return False
        tile = self.choose_tile(binding)
        if tile is None:
            return False
        packed = self._packed("nn.pack_matmul", self.as_is(b), tile)
        is_flat = b.type.rank == 2 and a.type.rank > 2 and a.type.is_static
        left = self.flattened(a) if is_flat else self.as_is(a)
        result = self.builder.call("nn.matmul_packed", left, packed, n=n, k=k, tile=tile)
        (self.flat if is_flat else self.plain)[binding.var] = result
        return True

    def _packed(self, op: str, weight: Atom, tile: tuple[int, ...]) -> Atom:
        """The packed weight, made once for all operators that share it (unrolled recurrences)."""
        key = (op, weight, tile)
        if key not in self.packed:
            self.packed[key] = self.builder.call(op, weight, tile=tile)
        return self.packed[key]

    def _regrouped(self, weight: Constant, groups: int, merged: int, channels: int) -> Constant:
        """The weight of groups of `channels`, `merged` old ones each; made once per weight."""
        key = (weight, groups, merged, channels)
        if key not in self.regrouped:
            data = merge_groups(weight.data, groups, merged)
            grouped = data.reshape(groups // merged, -1, *data.shape[1:])
            after = channels - grouped.shape[1]
            padded = np.pad(grouped, [(0, 0), (0, after)] + [(0, 0)] * (data.ndim - 1))
            self.regrouped[key] = Constant(padded.reshape(-1, *data.shape[1:]), weight.span)
        return self.regrouped[key]

    def _conv2d(self, binding: Binding, value: Call) -> bool:
        attrs, (x, w) = value.attrs, value.args
        layouts = (attrs.data_layout, attrs.kernel_layout)  # type: ignore[attr-defined]
        if layouts != ("NHWC", "OIHW") or not isinstance(w.type, TensorType):
            return False
        if not w.type.is_static or 0 in w.type.shape or 0 in binding.var.type.shape:  # type: ignore[union-attr]
            return False
        o, i, kh, kw = w.type.static_shape
        groups: int = attrs.groups  # type: ignore[attr-defined]
        if groups == 1 or (groups, i) != (o, 1):
            tile = self.choose_tile(binding)
            return tile is not None and self._conv2d_packed(binding, value, tile)
        moved = self.builder.call("transpose", self.as_is(w), axes=(2, 3, 0, 1))
        packed = self.builder.call("reshape", moved, newshape=(kh, kw, o))
        new = replace(attrs, out_channels=o, kernel_size=(kh, kw), kernel_layout="HWC")  # type: ignore[call-arg]
        assert isinstance(value.op, Op)
        self.plain[binding.var] = self.builder.call(value.op, self.as_is(x), packed, attrs=new)
        return True

    def _conv2d_packed(self, binding: Binding, value: Call, tile: tuple[int, ...]) -> bool:
        attrs, (x, w), type_ = value.attrs, value.args, binding.var.type
        assert isinstance(w.type, TensorType)
        assert isinstance(type_, TensorType)
        o, _, *kernel = w.type.static_shape
        groups: int = attrs.groups  # type: ignore[attr-defined]
        merged, channels = fill_blocks(groups, o // groups, tile[2])
        weight, used = self.as_is(w), merged * o // groups  # output channels of a new group
        if merged > 1 or channels > used:
            if not isinstance(weight, Constant):
                return False
            weight = self._regrouped(weight, groups, merged, channels)
        groups //= merged
        new = replace(
            attrs, out_channels=groups * channels, kernel_size=tuple(kernel),
            kernel_layout="packed", tile=tile, groups=groups,
        )  # type: ignore[call-arg]  # fmt: skip
        packed = self._packed("nn.pack_conv2d", weight, tile)
        call = self.builder.call
        result = call(value.op, self.as_is(x), packed, attrs=new)  # type: ignore[arg-type]
        if channels > used:
            lead = type_.shape[:-1]
            apart = call("reshape", result, newshape=(*lead, groups, channels))
            end = (*lead, groups, used)
            taken = call("strided_slice", apart, begin=(0,) * 5, end=end, strides=(1,) * 5)
            result = call("reshape", taken, newshape=type_.shape)
        self.plain[binding.var] = result
        return True


COPY_COST = 1.3
"""What padded groups cost more than their products: their results are copied together."""


def fill_blocks(groups: int, channels: int, block: int) -> tuple[int, int]:
    """How to keep blocks of output channels from crossing groups, with the least work.

    Args:
        channels: output channels of one group.
        block: output channels of one block of packed weights.

    Returns:
        How many neighbouring groups become one, and the output channels of a new group with
        padding; one group alone needs none.

    >>> fill_blocks(32, 4, 16), fill_blocks(2, 96, 32), fill_blocks(3, 20, 16)
    ((4, 16), (1, 96), (1, 32))
    """
    divisors = (d for d in range(1, groups) if groups % d == 0)
    merged = next((d for d in divisors if d * channels % block == 0), groups)
    padded = -(-channels // block) * block
    if padded * COPY_COST < merged * channels:
        return 1, padded
    return merged, merged * channels


def merge_groups(weight: np.ndarray, groups: int, count: int) -> np.ndarray:
    """The weight [O, count * I, ...] of a convolution with groups / count groups: zero where an
    output channel meets an input channel of another old group."""
    o, i, *kernel = weight.shape
    old = weight.reshape(groups // count, count, o // groups, i, *kernel)
    new = np.zeros((groups // count, count, o // groups, count, i, *kernel), weight.dtype)
    for k in range(count):
        new[:, k, :, k] = old[:, k]
    return new.reshape(o, count * i, *kernel)


def _operand_kind(atom: Atom, result: TensorType) -> str:
    """How an operand broadcasts to the result: "full", "row" (last axis), "scalar" or "other"."""
    type_ = atom.type
    if not isinstance(type_, TensorType):
        return "other"
    if all(d == 1 for d in type_.shape) and type_.rank <= result.rank:
        return "scalar"
    if type_.shape == result.shape:
        return "full"
    is_row = all(d == 1 for d in type_.shape[:-1]) and type_.shape[-1] == result.shape[-1]
    return "row" if is_row else "other"
