"""Whether an operator keeps what is claimed of its operands.

The tensor expressions of the operator are made for both sets of types. Reads of a large operand are
written as reads of the small one, with what is known of its padding beside them:

    large[i]     ->     if_then_else(i < n, small[i], fill)

Then the bodies must be equal for every index of the small result, and what a longer reduction adds
must be the identity of its combiner. So matrix products of operands filled with 0, softmax of
operands filled with -inf and sums over other axes keep the claim; products with padding of unknown
values, flips, and sizes used as numbers do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...ir.expr import Call as ScalarCall
from ...ir.expr import (
    Cast,
    Expr,
    IntImm,
    Load,
    all_of,
    const,
    if_then_else,
    is_const,
    rebuild,
    substitute,
)
from ...ir.expr import Var as ScalarVar
from ...ir.node import postorder
from ...te.simplify import Analyzer
from ...te.tensor import (
    ComputeOp,
    IterVar,
    Operation,
    PlaceholderOp,
    Reduce,
    Tensor,
    placeholder,
    topological,
)
from ...types import TensorType, TupleType, Type
from ..op import Attrs, Op
from .equality import equal, keeps, settle
from .layout import Axis, Claim, Factor, Place, extents, regroup

Operand = tuple[int, Place]
"""A place in the operand of a number."""


@dataclass(frozen=True)
class Use:
    """An operator with what decides about its tensor expressions."""

    op: Op
    attrs: Attrs
    args: tuple[Type, ...]
    result: Type

    def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Placeholders for the arguments, and the outputs."""
        assert self.op.compute is not None
        arguments = [placeholder(t.static_shape, t.dtype) for t in self.args]  # type: ignore[union-attr]
        return arguments, self.op.compute(self.attrs, arguments, self.result)


@dataclass(frozen=True)
class Agreement:
    """What follows for the results of an operator.

    Attributes:
        claims: of each output; None if nothing does.
        reason: why not.
        outside: the padding of operands that the results may depend on.
        indexed: operands whose elements are indices that are checked when the model runs.
    """

    claims: tuple[Claim, ...] | None
    reason: str = ""
    outside: frozenset[Operand] = frozenset()
    indexed: frozenset[int] = frozenset()


def agreement(
    small: Use,
    large: Use,
    operands: Sequence[Claim],
    constants: Sequence[np.ndarray | None],
    indices: int | None = None,
) -> Agreement:
    """What the claims about the operands of two uses of an operator say about its results.

    Args:
        constants: the values in the small model of operands that are constants of integers.
        indices: the operand whose elements are known to be indices that are inside the small
            model's axes or outside of both models'.
    """
    name = small.op.name
    if small.op.compute is None or not all(isinstance(t, TensorType) for t in small.args):
        return Agreement(None, f"{name} has no tensor expression")
    comparison = _Comparison(operands)
    (inputs, outputs), (others, results) = small.tensors(), large.tensors()
    for number, (a, b) in enumerate(zip(inputs, others, strict=True)):
        comparison.add(a.op, b.op, [operands[number]])
        comparison.number[a.op] = comparison.number[b.op] = number
        if number == indices:
            comparison.indices.add(a.op)
    comparison.constants = {
        t.op: c for t, c in zip(inputs, constants, strict=True) if c is not None
    }
    ours, theirs = topological(outputs), topological(results)
    if len(ours) != len(theirs):
        return Agreement(None, f"{name} is computed in another way for other sizes")
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, PlaceholderOp):
            same = b in comparison.known and comparison.known[b][0] is a
        else:
            same = comparison.stage(a, b)
        if not same:
            reason = f"{name} mixes or counts what is padded"
            return Agreement(None, reason, frozenset(comparison.outside))
    pairs = [(comparison.known[t.op], o, t) for o, t in zip(outputs, results, strict=True)]
    if any(found[0] is not o.op or t.index != o.index for found, o, t in pairs):
        return Agreement(None, f"{name} has other outputs")
    claims = tuple(found[1][t.index] for found, _, t in pairs)
    return Agreement(claims, indexed=frozenset(comparison.indexed))


def trivial(small: Type, large: Type) -> tuple[Claim, ...]:
    """For every field that the small value is the corner of the large one."""
    if isinstance(small, TupleType):
        assert isinstance(large, TupleType)
        pairs = zip(small.fields, large.fields, strict=True)
        return tuple(claim for a, b in pairs for claim in trivial(a, b))
    assert isinstance(large, TensorType)
    return (Claim.corner(small.static_shape, large.static_shape),)


@dataclass
class _Comparison:
    """The stages of two uses of an operator, one after the other.

    Attributes:
        known: by operation of either model, that of the small one and the claims about its outputs.
        number: of the operand, by its placeholders.
        indices: what they are read from if they need no check for the larger sizes.
        outside, indexed: see `Agreement`.
    """

    operands: Sequence[Claim]
    known: dict[Operation, tuple[Operation, list[Claim]]] = field(default_factory=dict)
    number: dict[Operation, int] = field(default_factory=dict)
    constants: Mapping[Operation, np.ndarray] = field(default_factory=dict)
    indices: set[Operation] = field(default_factory=set)
    outside: set[Operand] = field(default_factory=set)
    indexed: set[int] = field(default_factory=set)

    def add(self, a: Operation, b: Operation, claims: list[Claim]) -> None:
        self.known[a] = self.known[b] = a, claims

    def stage(self, a: Operation, b: Operation) -> bool:
        """Whether stage `b` of the large model follows stage `a` of the small one."""
        if not (isinstance(a, ComputeOp) and isinstance(b, ComputeOp)):
            return False
        counts = [(len(op.axis), len(op.body), len(op.reduce_axis)) for op in (a, b)]
        summed = list(zip(a.reduce_axis, b.reduce_axis, strict=False))
        if counts[0] != counts[1] or any(i.min is not j.min for i, j in summed):
            return False
        return any(self._stage(a, b, axes) for axes in self._layouts(a, b))

    def _layouts(self, a: ComputeOp, b: ComputeOp) -> Iterable[tuple[Axis, ...]]:
        """The factors that the axes of a stage's result may have, the likely ones first."""
        small = [_size(i) for i in a.axis]
        large = [_size(i) for i in b.axis]
        plain = tuple((Factor(s, n),) for s, n in zip(small, large, strict=True))
        found = [tuple(map(self._structured, plain))]
        if len(self.operands) == 1:  # a reshape
            grouped = regroup(self.operands[0].factors, small, large)
            found += [] if grouped is None else [grouped]
        return dict.fromkeys([*found, plain])

    def _structured(self, axis: Axis) -> Axis:
        """The factors of an operand's axis that has these sizes, if there is one."""
        claims = (claim for _, found in self.known.values() for claim in found)
        axes = (x for claim in claims for x in claim.axes if len(x) > 1)
        return next((x for x in axes if extents(x) == extents(axis)), axis)

    def _stage(self, a: ComputeOp, b: ComputeOp, axes: tuple[Axis, ...]) -> bool:
        space = _Space()
        for i, j, axis in zip(a.axis, b.axis, axes, strict=True):
            space.add(i, j, axis)
        reduced: list[Axis] = []
        for i, j in zip(a.reduce_axis, b.reduce_axis, strict=True):
            reduced.append(self._structured((Factor(_size(i), _size(j)),)))
            space.add(i, j, reduced[-1])
        read = _Reader(self, space, space.inside())
        for x, y in zip(a.body, b.body, strict=True):
            parts = _parts(x, y)
            if parts is None:
                return False
            if not all(equal(read.small(p), read.large(q), read.analyzer) for p, q in parts):
                return False
            if isinstance(y, Reduce) and not self._adds_nothing(y, space, len(axes)):
                return False
        self.add(a, b, [self._claim(y, space, axes) for y in b.body])
        return True

    def _adds_nothing(self, reduce: Reduce, space: _Space, first: int) -> bool:
        """Whether iterations beyond the small extents, of axes from `first` on, change nothing."""
        anywhere = {place for place in space.places() if place[0] >= first}
        inside = _Reader(self, space, space.inside())
        earlier = [inside.analyzer.bounds(inside.large(s)) for s in reduce.sources]
        for place in sorted(anywhere):
            if not space.factor(place).is_padded:
                continue
            read = _Reader(self, space, space.beyond(place, anywhere))
            added = [
                settle(read.analyzer.simplify(if_then_else(condition, read.large(s), i)))
                for condition in [read.large(reduce.condition)]
                for s, i in zip(reduce.sources, reduce.combiner.identity, strict=True)
            ]
            same = zip(added, reduce.combiner.identity, strict=True)
            if not all(a is i for a, i in same) and not keeps(
                reduce.combiner, earlier, added, read.analyzer
            ):
                return False
        return True

    def _claim(self, body: Expr, space: _Space, axes: tuple[Axis, ...]) -> Claim:
        """What is known of a stage's result, given that it agrees inside the small extents."""
        plain = Claim(axes)
        if isinstance(body, Reduce) or not any(c.filled for _, k in self.known.values() for c in k):
            return plain
        fill, filled = None, set[Place]()
        for place in plain.padded():
            value = self._beyond(body, space, place, set())
            if value is not None and fill in (None, value):
                fill = value
                filled.add(place)
        if any(self._beyond(body, space, place, filled) != fill for place in filled):
            return plain
        return Claim(axes, fill, frozenset(filled))

    def _beyond(
        self, body: Expr, space: _Space, place: Place, anywhere: set[Place]
    ) -> float | int | None:
        """The one value that the body has beyond the small extent in one place."""
        read = _Reader(self, space, space.beyond(place, anywhere), watch=False)
        value = settle(read.analyzer.simplify(read.large(body)))
        return value.value if is_const(value) else None  # type: ignore[union-attr]


@dataclass
class _Space:
    """The axes of a stage, spatial before reduced, as variables for each factor."""

    axes: list[Axis] = field(default_factory=list)
    variables: list[tuple[ScalarVar, ...]] = field(default_factory=list)
    small: dict[ScalarVar, Expr] = field(default_factory=dict)
    large: dict[ScalarVar, Expr] = field(default_factory=dict)

    def add(self, i: IterVar, j: IterVar, axis: Axis) -> None:
        names = tuple(ScalarVar(f"{i.var.name}{n or ''}") for n in range(len(axis)))
        self.axes.append(axis)
        self.variables.append(names)
        self.small[i.var] = _join(names, [f.small for f in axis]) + i.min
        self.large[j.var] = _join(names, [f.large for f in axis]) + j.min

    def places(self) -> list[Place]:
        return [(a, f) for a, axis in enumerate(self.axes) for f in range(len(axis))]

    def factor(self, place: Place) -> Factor:
        return self.axes[place[0]][place[1]]

    def inside(self) -> Analyzer:
        """Knows that all indices are inside the small extents."""
        return self._bound(lambda place, factor: (0, factor.small))

    def beyond(self, place: Place, anywhere: set[Place]) -> Analyzer:
        """Knows that the index in one place is beyond the small extent; those in `anywhere` may be
        inside or not, and all others are inside."""

        def bounds(at: Place, factor: Factor) -> tuple[int, int]:
            if at == place:
                return factor.small, factor.large - factor.small
            return 0, factor.large if at in anywhere else factor.small

        return self._bound(bounds)

    def _bound(self, bounds: Callable[[Place, Factor], tuple[int, int]]) -> Analyzer:
        analyzer = Analyzer()
        for place in self.places():
            variable = self.variables[place[0]][place[1]]
            analyzer.bind(variable, *bounds(place, self.factor(place)))
        return analyzer


@dataclass
class _Reader:
    """Expressions of both models in the variables of a space and the tensors of the small model."""

    comparison: _Comparison
    space: _Space
    analyzer: Analyzer
    watch: bool = True  # whether reads of padding are noted

    def __post_init__(self) -> None:
        bounds = {v: self.analyzer.bounds(v) for axis in self.space.variables for v in axis}
        self._single: dict[ScalarVar, Expr] = {
            v: const(low) for v, (low, high) in bounds.items() if low is not None and low == high
        }

    def small(self, expr: Expr) -> Expr:
        return self._rewritten(expr, self.space.small, self._read_small)

    def large(self, expr: Expr) -> Expr:
        return self._rewritten(expr, self.space.large, self._read_large)

    def _rewritten(
        self, expr: Expr, variables: Mapping[ScalarVar, Expr], read: Callable[[Load], Expr]
    ) -> Expr:
        known = {v: substitute(e, self._single) for v, e in variables.items()}

        def handler(node: Expr) -> Expr:
            if isinstance(node, ScalarVar):
                return known.get(node, node)
            if isinstance(node, Load):
                return read(node)
            if isinstance(node, ScalarCall) and node.name == "checked_index":
                index, extent = node.args
                self._note_index(index)
                if isinstance(extent, IntImm) and self._known_below(index, extent.value):
                    return index
            return node

        return rebuild(expr, handler)

    def _read_small(self, load: Load) -> Expr:
        source, claims = self.comparison.known[load.source.op]
        indices = [
            part
            for index, axis in zip(load.indices, claims[load.source.index].axes, strict=True)
            for part in _split(index, [f.small for f in axis])
        ]
        return Load(source.output(load.source.index), tuple(indices), load.predicate)

    def _read_large(self, load: Load) -> Expr:
        source, claims = self.comparison.known[load.source.op]
        claim = claims[load.source.index]
        indices: list[Expr] = []
        filled: list[Expr] = []
        unknown: list[Expr] = []
        for a, (index, axis) in enumerate(zip(load.indices, claim.axes, strict=True)):
            for f, part in enumerate(_split(index, [x.large for x in axis])):
                indices.append(part)
                inside = part < axis[f].small
                if not axis[f].is_padded or self.analyzer.proves(inside):
                    continue
                if self._known_below(part, axis[f].small):
                    continue
                self._note(load, (a, f))
                (filled if (a, f) in claim.filled else unknown).append(inside)
        result: Expr = Load(source.output(load.source.index), tuple(indices), load.predicate)
        if filled:
            assert claim.fill is not None
            result = if_then_else(all_of(filled), result, const(claim.fill, load.dtype))
        if unknown:
            anything = placeholder((), load.dtype, "padding")
            result = if_then_else(all_of(unknown), result, Load(anything, (), None))
        return result

    def _note(self, load: Load, place: Place) -> None:
        number = self.comparison.number.get(load.source.op)
        if number is not None and self.watch:
            self.comparison.outside.add((number, place))

    def _note_index(self, index: Expr) -> None:
        for node in postorder(index):
            if isinstance(node, Load) and node.source.op not in self.comparison.constants:
                number = self.comparison.number.get(node.source.op)
                self.comparison.indexed |= set() if number is None else {number}

    def _known_below(self, index: Expr, extent: int) -> bool:
        """Whether an index is read from a constant, and all it may be lie in [0, extent); or is
        known to be the same in both models."""
        load = index.value if isinstance(index, Cast) else index
        if isinstance(load, Load) and load.source.op in self.comparison.indices:
            return True
        if not isinstance(load, Load) or load.source.op not in self.comparison.constants:
            return False
        array = self.comparison.constants[load.source.op]
        if array.ndim == len(load.indices):
            at = tuple(i.value if isinstance(i, IntImm) else slice(None) for i in load.indices)
            array = array[at]
        return bool(array.size) and int(array.min()) >= 0 and int(array.max()) < extent


def _size(axis: IterVar) -> int:
    assert isinstance(axis.extent, IntImm)
    return axis.extent.value


def _join(indices: Sequence[ScalarVar], sizes: Sequence[int]) -> Expr:
    result: Expr = const(0)
    for index, size in zip(indices, sizes, strict=True):
        result = result * size + index
    return result


def _split(index: Expr, sizes: Sequence[int]) -> list[Expr]:
    """The indices of the factors of an axis, for an index of the axis."""
    parts: list[Expr] = []
    for size in reversed(sizes[1:]):
        parts.append(index % size)
        index = index // size
    return [index, *reversed(parts)]


def _parts(x: Expr, y: Expr) -> list[tuple[Expr, Expr]] | None:
    """The pairs of expressions that must be equal for two bodies to be; None if they differ."""
    if not isinstance(x, Reduce) or not isinstance(y, Reduce):
        return None if isinstance(x, Reduce) or isinstance(y, Reduce) else [(x, y)]
    if x.index != y.index or len(x.sources) != len(y.sources):
        return None
    c, d = x.combiner, y.combiner
    renamed = dict(zip(d.lhs + d.rhs, c.lhs + c.rhs, strict=True))

    def rename(expr: Expr) -> Expr:
        return rebuild(expr, lambda n: renamed.get(n, n) if isinstance(n, ScalarVar) else n)

    combine = zip(c.results + c.identity, d.results + d.identity, strict=True)
    if any(p is not rename(q) for p, q in combine):
        return None
    return [*zip(x.sources, y.sources, strict=True), (x.condition, y.condition)]
