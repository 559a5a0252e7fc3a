"""Several products or convolutions of one input become one wide one.

As in TVM (CombineParallelDense, CombineParallelConv2D): branches that read the same input with
constant weights of the same shape but for the output channels, and the constant bias that may
follow each, are joined along the output channels; each branch becomes a slice of the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ...diagnostics import NO_SPAN
from ...types import TensorType
from ..builder import Builder
from ..nodes import Atom, Binding, Call, Constant, Function, Var, replace_args
from ..op import Op
from ..pass_infra import FunctionPass, PassContext
from ..pattern import op_name


@dataclass(frozen=True)
class _Branch:
    """A product or convolution, and the addition of a constant bias that follows it, if any."""

    binding: Binding
    weight: np.ndarray
    bias: np.ndarray | None  # one element per output channel
    result: Var  # what the rest of the function reads


@dataclass(frozen=True)
class _CombineParallel(FunctionPass):
    """Options: `min_branches`, the least number of branches that are joined; `only_for`, operators
    of which one must read a branch, through reshapes at most."""

    min_opt_level: ClassVar[int] = 4
    op_name: ClassVar[str]
    min_branches: int = 2
    only_for: frozenset[str] = frozenset()

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        branches = self._branches(function)
        joined = [group for group in _by_input(branches) if len(group) >= self.min_branches]
        if not joined:
            return function
        first = {group[0].binding.var: group for group in joined}
        gone = {b.binding.var for group in joined for b in group}
        gone |= {b.result for group in joined for b in group}
        builder = Builder(ctx.ops)
        env: dict[Var, Atom] = {}
        for binding in function.bindings:
            if binding.var in first:
                env.update(self._join(builder, first[binding.var], env))
            if binding.var not in gone:
                builder.bindings.append(_substituted(binding, env))
        result = function.result
        if isinstance(result, Var):
            result = env.get(result, result)
        return replace(function, bindings=tuple(builder.bindings), result=result)

    def axes(self, binding: Binding) -> tuple[int, int] | None:
        """The channel axes (from the right, negative) of weight and result; None to leave it."""
        raise NotImplementedError

    def _branches(self, function: Function) -> list[_Branch]:
        uses = Counter(a for b in function.bindings for a in b.args)
        uses[function.result] += 1
        reader = {a: b for b in function.bindings for a in b.args if uses[a] == 1}
        branches = []
        for binding in function.bindings:
            value = binding.value
            if not isinstance(value, Call) or not isinstance(value.op, Op):
                continue
            if value.op.name != self.op_name or not isinstance(value.args[1], Constant):
                continue
            axes = self.axes(binding)
            if axes is None:
                continue
            weight = value.args[1].data
            bias = _bias_of(reader.get(binding.var), binding.var, weight.shape[axes[0]], axes[1])
            result = binding.var if bias is None else reader[binding.var].var
            if not self.only_for or _final_reader(result, reader) in self.only_for:
                branches.append(_Branch(binding, weight, bias, result))
        return branches

    def _join(
        self, builder: Builder, group: list[_Branch], env: dict[Var, Atom]
    ) -> list[tuple[Var, Atom]]:
        head = group[0].binding
        value = head.value
        assert isinstance(value, Call)
        assert isinstance(value.op, Op)
        axes = self.axes(head)
        assert axes is not None
        weight_axis, axis = axes
        span = NO_SPAN
        for branch in group:
            span |= branch.binding.span
        with builder.at(span):
            weight = Constant(np.concatenate([b.weight for b in group], weight_axis), span)
            total = weight.data.shape[weight_axis]
            attrs = value.attrs
            if getattr(attrs, "out_channels", 0):
                attrs = replace(attrs, out_channels=total)  # type: ignore[call-arg]
            data = _renamed(value.args[0], env)
            wide = builder.call(value.op, data, weight, attrs=attrs)
            biases = [b.bias for b in group if b.bias is not None]
            if biases:
                shape = (total,) + (1,) * (-axis - 1)
                wide = builder.call("add", wide, Constant(np.concatenate(biases).reshape(shape)))
            parts = _split(builder, wide, axis, [b.weight.shape[weight_axis] for b in group])
        return [(b.result, part) for b, part in zip(group, parts, strict=True)]


@dataclass(frozen=True)
class CombineParallelDense(_CombineParallel):
    """nn.matmul with constant matrices: the projections to query, key and value are one product.

    The slices cost a copy where they do not fuse; they do into nn.attention.
    """

    min_opt_level: ClassVar[int] = 2
    op_name: ClassVar[str] = "nn.matmul"

    def axes(self, binding: Binding) -> tuple[int, int] | None:
        assert isinstance(binding.value, Call)
        weight, type_ = binding.value.args[1].type, binding.var.type
        assert isinstance(weight, TensorType)
        assert isinstance(type_, TensorType)
        return (-1, -1) if weight.rank == 2 and type_.is_static else None


@dataclass(frozen=True)
class CombineParallelConv2D(_CombineParallel):
    """nn.conv2d of one group with constant weights in OIHW, as in Inception blocks; level 4."""

    op_name: ClassVar[str] = "nn.conv2d"

    def axes(self, binding: Binding) -> tuple[int, int] | None:
        assert isinstance(binding.value, Call)
        attrs, type_ = binding.value.attrs, binding.var.type
        assert isinstance(type_, TensorType)
        if attrs.groups != 1 or attrs.kernel_layout != "OIHW":  # type: ignore[attr-defined]
            return None
        nhwc = attrs.data_layout == "NHWC"  # type: ignore[attr-defined]
        return (-4, -1 if nhwc else -3) if type_.is_static else None


def _split(builder: Builder, wide: Atom, axis: int, sizes: Sequence[int]) -> list[Atom]:
    """Consecutive slices of these sizes along an axis (negative)."""
    assert isinstance(wide.type, TensorType)
    end, position = list(wide.type.static_shape), 0
    begin, ones = [0] * len(end), (1,) * len(end)
    parts: list[Atom] = []
    for size in sizes:
        begin[axis], end[axis] = position, position + size
        position += size
        first, last = tuple(begin), tuple(end)
        parts.append(builder.call("strided_slice", wide, begin=first, end=last, strides=ones))
    return parts


def _final_reader(var: Var, reader: Mapping[Atom, Binding]) -> str:
    """The operator that alone reads `var`, reshapes left out; empty if there are several."""
    while var in reader:
        binding = reader[var]
        name = op_name(binding.value) if isinstance(binding.value, Call) else ""
        if name != "reshape":
            return name
        var = binding.var
    return ""


def _by_input(branches: list[_Branch]) -> list[list[_Branch]]:
    """Branches that can be joined: same input, attributes, other weight dimensions, bias or not."""
    groups: dict[object, list[_Branch]] = {}
    for branch in branches:
        value = branch.binding.value
        assert isinstance(value, Call)
        rest = branch.weight.shape[1:] if branch.weight.ndim == 4 else branch.weight.shape[:1]
        attrs = value.attrs
        if hasattr(attrs, "out_channels"):
            attrs = replace(attrs, out_channels=int(attrs.out_channels > 0))  # type: ignore[call-arg]
        key = (value.args[0], attrs, rest, branch.weight.dtype, branch.bias is None)
        groups.setdefault(key, []).append(branch)
    return list(groups.values())


def _bias_of(reader: Binding | None, var: Var, channels: int, axis: int) -> np.ndarray | None:
    """The constant that `reader` adds to each channel of `var`, one element per channel."""
    if reader is None or not isinstance(reader.value, Call) or len(reader.args) != 2:
        return None
    op, other = reader.value.op, next((a for a in reader.args if a is not var), var)
    if not isinstance(op, Op) or op.name != "add" or not isinstance(other, Constant):
        return None
    shape = other.data.shape
    expected = (channels,) + (1,) * (-axis - 1)
    has_rank = len(shape) <= var.type.rank if isinstance(var.type, TensorType) else False
    leading = shape[: max(len(shape) - len(expected), 0)]
    if not has_rank or shape[len(leading) :] != expected or any(d != 1 for d in leading):
        return None
    return other.data.reshape(channels)


def _renamed(atom: Atom, env: dict[Var, Atom]) -> Atom:
    return env.get(atom, atom) if isinstance(atom, Var) else atom


def _substituted(binding: Binding, env: dict[Var, Atom]) -> Binding:
    args = [_renamed(a, env) for a in binding.args]
    value = replace_args(binding.value, args)
    return binding if value is binding.value else replace(binding, value=value)
