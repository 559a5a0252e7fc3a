"""ConvertLayout: two-dimensional convolutional networks run in NHWC.

One pass from first to last binding. A value may be known in a stored form (see `layouts`) instead
of its own; operators that do not care for the order of axes work on the stored form and give a
stored result, so transposes sink through the network and meet their inverses. Whoever needs the
value itself gets a transpose, made once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...dtype import DType
from ...types import TensorType
from ..builder import Builder
from ..nodes import Atom, Binding, Call, Constant, Function, Var, replace_args
from ..op import Attrs, Op
from ..pass_infra import FunctionPass, PassContext
from .layouts import (
    NHWC,
    Layout,
    compose,
    inverse,
    is_identity,
    is_pointwise,
    keeps_order,
    reshaped_layout,
)


@dataclass(frozen=True)
class ConvertLayout(FunctionPass):
    """NCHW to NHWC for nn.conv2d, pooling and resizing, and all that lies between them.

    Weights keep their layout, see AlterOpLayout. A function without NCHW convolutions, or with none
    of one of `dtypes`, is left as it is.
    """

    dtypes: frozenset[DType] = frozenset(DType)

    def run_function(self, function: Function, ctx: PassContext) -> Function:
        if not any(_is_nchw(b, "nn.conv2d") and self._takes(b.var) for b in function.bindings):
            return function
        return _Converter(function, ctx, self._takes).run()

    def _takes(self, var: Var) -> bool:
        return isinstance(var.type, TensorType) and var.type.dtype in self.dtypes


def _is_nchw(binding: Binding, *names: str) -> bool:
    value = binding.value
    return (
        isinstance(value, Call)
        and isinstance(value.op, Op)
        and (not names or value.op.name in names)
        and getattr(value.attrs, "data_layout", "") == "NCHW"
    )


@dataclass(frozen=True)
class _Stored:
    """A value by its stored form; `sinks` if operators after it should keep this form."""

    atom: Atom
    layout: Layout
    sinks: bool


def _rank(atom: Atom) -> int:
    assert isinstance(atom.type, TensorType)
    return atom.type.rank


def _axis(attrs: Attrs, layout: Layout) -> Attrs:
    axis = attrs.axis % len(layout)  # type: ignore[attr-defined]
    return replace(attrs, axis=layout.index(axis))  # type: ignore[call-arg]


def _slice(attrs: Attrs, layout: Layout) -> Attrs:
    fields = {n: tuple(getattr(attrs, n)[a] for a in layout) for n in ("begin", "end", "strides")}
    return replace(attrs, **fields)


def _axes(attrs: Attrs, layout: Layout) -> Attrs:
    axes = tuple(layout.index(a % len(layout)) for a in attrs.axes)  # type: ignore[attr-defined]
    return replace(attrs, axes=axes)  # type: ignore[call-arg]


def _permuted(name: str) -> Callable[[Attrs, Layout], Attrs]:
    def change(attrs: Attrs, layout: Layout) -> Attrs:
        return replace(attrs, **{name: tuple(getattr(attrs, name)[a] for a in layout)})

    return change


# operators whose result is stored as their arguments are, with attributes changed like this
SAME_LAYOUT: dict[str, Callable[[Attrs, Layout], Attrs]] = {
    "concatenate": _axis,
    "cumsum": _axis,
    "cumprod": _axis,
    "nn.softmax": _axis,
    "nn.log_softmax": _axis,
    "nn.lrn": _axis,
    "strided_slice": _slice,
    "nn.pad": _permuted("pad_width"),
    "tile": _permuted("reps"),
    "broadcast_to": _permuted("shape"),
    "image.resize": _axes,
}
REDUCTIONS = frozenset({"sum", "mean", "prod", "max", "min", "all", "any", "argmax", "argmin"})


class _Converter:
    def __init__(self, function: Function, ctx: PassContext, takes: Callable[[Var], bool]) -> None:
        self.function, self.takes = function, takes
        self.builder = Builder(ctx.ops)
        self.builder.params = list(function.params)
        self.plain: dict[Atom, Atom] = {p: p for p in function.params}
        self.stored: dict[Atom, _Stored] = {}
        self.transposed: dict[tuple[Atom, Layout], Atom] = {}

    def run(self) -> Function:
        for binding in self.function.bindings:
            with self.builder.at(binding.span):
                if not self._convert(binding):
                    args = [self.as_is(a) for a in binding.args]
                    value = replace_args(binding.value, args)
                    kept = binding if value is binding.value else replace(binding, value=value)
                    self.builder.bindings.append(kept)
                    self.plain[binding.var] = binding.var
        result = self.as_is(self.function.result)
        return replace(self.function, bindings=tuple(self.builder.bindings), result=result)

    def as_is(self, atom: Atom) -> Atom:
        """The value in its own layout."""
        if isinstance(atom, Constant):
            return atom
        if atom not in self.plain:
            stored = self.stored[atom]
            self.plain[atom] = self._transpose(stored.atom, inverse(stored.layout))
        return self.plain[atom]

    def in_layout(self, atom: Atom, layout: Layout) -> Atom:
        """The value stored in a layout."""
        stored = self.stored.get(atom)
        if stored is None:
            return self._transpose(self.as_is(atom), layout)
        return self._transpose(stored.atom, compose(inverse(stored.layout), layout))

    def _transpose(self, atom: Atom, axes: Layout) -> Atom:
        if is_identity(axes):
            return atom
        if isinstance(atom, Constant):
            return Constant(np.ascontiguousarray(atom.data.transpose(axes)), atom.span)
        if (atom, axes) not in self.transposed:
            assert isinstance(atom.type, TensorType)
            shape = atom.type.shape
            with self.builder.at(atom.span):
                if keeps_order(shape, axes):
                    new = self.builder.call("reshape", atom, newshape=tuple(shape[a] for a in axes))
                else:
                    new = self.builder.call("transpose", atom, axes=axes)
            self.transposed[atom, axes] = new
        return self.transposed[atom, axes]

    def _call(self, value: Call, *args: Atom, attrs: Attrs) -> Atom:
        assert isinstance(value.op, Op)
        return self.builder.call(value.op, *args, attrs=attrs)

    def _define(self, var: Var, atom: Atom, layout: Layout, sinks: bool = True) -> bool:
        if is_identity(layout):
            self.plain[var] = atom
        else:
            self.stored[var] = _Stored(atom, layout, sinks)
        return True

    def _convert(self, binding: Binding) -> bool:
        """Define the binding's variable by a stored form; False if its operator needs plain ones.

        The layout to work in is that of the largest argument that sinks.
        """
        value = binding.value
        if not isinstance(value, Call) or not isinstance(value.op, Op):
            return False
        if value.op.name == "nn.conv2d" and _is_nchw(binding) and self.takes(binding.var):
            return self._layout_op(binding.var, value)
        if value.op.name == "transpose":
            return self._user_transpose(binding.var, value)
        sinking = [a for a in value.args if a in self.stored and self.stored[a].sinks]
        if not sinking:
            return False
        main = max(sinking, key=_rank)
        layout = self.stored[main].layout
        if value.op.name == "reshape":
            return self._reshape(binding.var, value, layout)
        if value.op.name in REDUCTIONS:
            return self._reduction(binding.var, value, layout)
        if value.op.name in SAME_LAYOUT and _rank(binding.var) == _rank(main):
            args = [self.in_layout(a, layout) for a in value.args]
            attrs = SAME_LAYOUT[value.op.name](value.attrs, layout)
            return self._define(binding.var, self._call(value, *args, attrs=attrs), layout)
        if _is_nchw(binding):
            return self._layout_op(binding.var, value)
        if is_pointwise(value.op):
            return self._elementwise(binding.var, value, layout)
        return False

    def _layout_op(self, var: Var, value: Call) -> bool:
        data = self.in_layout(value.args[0], NHWC)
        attrs = replace(value.attrs, data_layout="NHWC")  # type: ignore[call-arg]
        others = [self.as_is(a) for a in value.args[1:]]
        return self._define(var, self._call(value, data, *others, attrs=attrs), NHWC)

    def _user_transpose(self, var: Var, value: Call) -> bool:
        """A transpose of the model: remembered, and made only if someone needs its result."""
        (source,), axes = value.args, tuple(value.attrs.axes)  # type: ignore[attr-defined]
        if isinstance(source, Constant):
            return False
        stored = self.stored.get(source)
        if stored is None:
            return self._define(var, self.as_is(source), inverse(axes), sinks=False)
        whole = compose(inverse(stored.layout), axes)
        layout = stored.layout
        moved = [i for i, a in enumerate(layout) if axes[a] != a]
        together = bool(moved) and moved == list(range(moved[0], moved[-1] + 1))
        if stored.sinks and together and not is_identity(whole):  # shuffles channels, say
            shuffle = compose(inverse(layout), compose(axes, layout))
            return self._define(var, self._transpose(stored.atom, shuffle), layout)
        return self._define(var, stored.atom, inverse(whole), sinks=False)

    def _reshape(self, var: Var, value: Call, layout: Layout) -> bool:
        old, new = value.args[0].type, var.type
        assert isinstance(old, TensorType)
        assert isinstance(new, TensorType)
        after = reshaped_layout(old.shape, new.shape, layout)
        if after is None:
            return False
        shape = tuple(new.shape[a] for a in after)
        source = self.stored[value.args[0]].atom
        return self._define(var, self.builder.call("reshape", source, newshape=shape), after)

    def _reduction(self, var: Var, value: Call, layout: Layout) -> bool:
        axis = value.attrs.axis  # type: ignore[attr-defined]
        axes = [a % len(layout) for a in ((axis,) if isinstance(axis, int) else axis)]
        where = sorted(layout.index(a) for a in axes)
        new_axis = where[0] if isinstance(axis, int) else tuple(where)
        attrs = replace(value.attrs, axis=new_axis)  # type: ignore[call-arg]
        source = self.in_layout(value.args[0], layout)
        result = self._call(value, source, attrs=attrs)
        if not value.attrs.keepdims:  # type: ignore[attr-defined]
            left = [a for a in layout if a not in axes]
            layout = tuple(sorted(left).index(a) for a in left)
        return self._define(var, result, layout)

    def _elementwise(self, var: Var, value: Call, layout: Layout) -> bool:
        if not isinstance(var.type, TensorType) or var.type.rank != len(layout):
            return False
        args = [self._aligned(a, layout) for a in value.args]
        return self._define(var, self._call(value, *args, attrs=value.attrs), layout)

    def _aligned(self, atom: Atom, layout: Layout) -> Atom:
        """An operand that broadcasts against values of a layout."""
        type_ = atom.type
        assert isinstance(type_, TensorType)
        if all(d == 1 for d in type_.shape):
            return self.as_is(atom)
        missing = len(layout) - type_.rank
        shape = (1,) * missing + type_.shape
        if isinstance(atom, Constant):
            data = atom.data.reshape(shape).transpose(layout)  # type: ignore[arg-type]
            return Constant(np.ascontiguousarray(_without_leading_ones(data)), atom.span)
        if not missing:
            return self.in_layout(atom, layout)
        return self._transpose(
            self.builder.call("reshape", self.as_is(atom), newshape=shape), layout
        )


def _without_leading_ones(data: np.ndarray) -> np.ndarray:
    shape: Sequence[int] = data.shape
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return data.reshape(shape)
