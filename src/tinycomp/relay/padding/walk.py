"""From claims about the inputs of a model to claims about its results, operator by operator."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...dtype import DType
from ...types import TensorType
from ..builder import Builder
from ..nodes import Atom, Binding, Call, Constant, IRModule, Tuple, TupleGetItem, replace_args
from ..op import Op, OpPattern, OpSet
from .facts import FACTS
from .layout import Claim, Factor, Place, refined
from .operators import Agreement, Use, agreement, trivial
from .rewrites import REWRITES, Axes

Path = tuple[int, ...]
"""The number of a binding; in what an operator was rewritten to, also the number there."""

Slot = tuple[Path, int]
"""An operand of a binding."""

Step = tuple[Path, Binding, Binding]
"""A binding of the small and of the large model."""

Extent = tuple[Slot, Place]
"""The extent of an operand in one place."""


@dataclass(frozen=True, slots=True)
class Mask:
    """An operand's padding in some places is replaced by a value.

    Attributes:
        sizes: of all factors of all axes in the large model, which `places` refer to.
    """

    fill: float | int | bool
    places: frozenset[Place]
    sizes: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(claim: Claim, fill: float | int | bool, places: Iterable[Place]) -> Mask:
        sizes = tuple(tuple(f.large for f in axis) for axis in claim.axes)
        return Mask(fill, frozenset(places), sizes)

    def applied(self, claim: Claim) -> Claim | None:
        """The claim about the masked operand; None if its axes have other factors."""
        axes = [refined(axis, s) for axis, s in zip(claim.axes, self.sizes, strict=True)]
        if None in axes:
            return None
        return Claim(tuple(axes), self.fill, self.places)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Plan:
    """What a model for larger sizes does so that padding does not count.

    Attributes:
        rewritten: operators that are expressed by others, so that sizes become constants; and the
            axes for which they are.
        masks: operands whose padding is replaced.
        fed: constants that depend on the sizes, which are inputs therefore.
    """

    rewritten: Mapping[Path, Axes] = field(default_factory=dict)
    masks: Mapping[Slot, Mask] = field(default_factory=dict)
    fed: frozenset[Slot] = frozenset()

    def with_rewritten(self, path: Path, axes: Axes) -> Plan:
        """Also this operator, for which other decisions do not hold then."""
        return Plan(
            {**self.rewritten, path: axes},
            {slot: mask for slot, mask in self.masks.items() if slot[0] != path},
            frozenset(slot for slot in self.fed if slot[0] != path),
        )

    @property
    def is_empty(self) -> bool:
        return not (self.rewritten or self.masks or self.fed)


@dataclass
class Walk:
    """A small and a large model side by side.

    Args:
        ops: what operators are rewritten with.
        plan: what the large model does about padding.
        extend: whether the plan may be extended where that proves more.

    Attributes:
        steps: the bindings of both, as rewritten, with the values that they read.
        claims: about every value of the large model, for each field.
        values: of the fed constants, in both models.
        extents: of masked operands, in both models.
    """

    small: IRModule
    large: IRModule
    ops: OpSet
    plan: Plan = field(default_factory=Plan)
    extend: bool = False
    steps: list[Step] = field(default_factory=list)
    claims: dict[Atom, tuple[Claim, ...]] = field(default_factory=dict)
    values: dict[Slot, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    extents: dict[Extent, Factor] = field(default_factory=dict)
    _counterpart: dict[Atom, Atom] = field(default_factory=dict)  # small by large
    _instead: tuple[dict[Atom, Atom], dict[Atom, Atom]] = field(  # of results that were rewritten
        default_factory=lambda: ({}, {})
    )
    _known: dict[Any, Agreement] = field(default_factory=dict)
    _repeating: set[Atom] = field(default_factory=set)  # whose padding repeats what is inside
    _indices: dict[Path, int] = field(default_factory=dict)  # see `Rewrite.indices`

    def run(self) -> str | None:
        """None if the results agree as `result` says; else why that is not proven."""
        f, g = self.small.main, self.large.main
        if len(f.bindings) != len(g.bindings):
            return "the model has another number of operators for other sizes"
        for p, q in zip(f.params, g.params, strict=True):
            self._counterpart[q] = p
            self.claims[q] = trivial(p.type, q.type)
            self._repeating.add(q)
        pairs = zip(f.bindings, g.bindings, strict=True)
        pending: deque[Step] = deque(((k,), a, b) for k, (a, b) in enumerate(pairs))
        while pending:
            path, a, b = pending.popleft()
            a, b = (_reading(x, n) for x, n in zip((a, b), self._instead, strict=True))
            reason = "it is expressed in another way for other sizes"
            if path not in self.plan.rewritten:
                reason = self._step(path, a, b)
                if reason is None:
                    continue
                if not self.extend:
                    return _at(reason, a)
            parts = self._rewritten(path, a, b)
            if parts is None:
                return _at(reason, a)
            pending.extendleft(reversed(parts))
        return None if self.result is not None else "a result is another value"

    @property
    def final(self) -> Atom:
        """What the large model returns."""
        result = self.large.main.result
        return self._instead[1].get(result, result)

    @property
    def result(self) -> tuple[Claim, ...] | None:
        """The claims about the model's results; None if they are other values."""
        ours = self.small.main.result
        a, b = self._instead[0].get(ours, ours), self.final
        if isinstance(a, Constant) and isinstance(b, Constant):
            return trivial(a.type, b.type) if _agree(a.data, b.data) else None
        return self.claims.get(b) if self._counterpart.get(b) is a else None

    # -- one binding -------------------------------------------------------------------------

    def _step(self, path: Path, a: Binding, b: Binding) -> str | None:
        """Extend the claims to one more binding, or say why not."""
        x, y = a.value, b.value
        if type(x) is not type(y) or not isinstance(x, Call | Tuple | TupleGetItem):
            return f"{type(x).__name__} is not followed"
        if len(x.args) != len(y.args):
            return "an operand is another value"
        operands: list[tuple[Claim, ...]] = []
        for number, (p, q) in enumerate(zip(x.args, y.args, strict=True)):
            claims = self._operand((path, number), p, q)
            if claims is None:
                return "an operand is another value, such as a size used as a number"
            operands.append(claims)
        if isinstance(x, Call) and isinstance(y, Call):
            found = self._call(path, (a, x), (b, y), operands)
            if found.claims is None:
                return found.reason
            results = found.claims
        elif isinstance(x, TupleGetItem) and isinstance(y, TupleGetItem):
            if x.index != y.index:
                return "another element of a tuple"
            results = (operands[0][x.index],)
        else:
            results = tuple(claim for claims in operands for claim in claims)
        self.claims[b.var] = results
        self._counterpart[b.var] = a.var
        self.steps.append((path, a, b))
        if isinstance(y, Call) and self._repeats(y):
            self._repeating.add(b.var)
        return None

    def _operand(self, slot: Slot, p: Atom, q: Atom) -> tuple[Claim, ...] | None:
        if not (isinstance(p, Constant) and isinstance(q, Constant)):
            return self.claims[q] if self._counterpart.get(q) is p else None
        fits = p.data.dtype == q.data.dtype and p.data.ndim == q.data.ndim
        if not fits or any(n > m for n, m in zip(p.data.shape, q.data.shape, strict=True)):
            return None
        if slot not in self.plan.fed and not _agree(p.data, q.data):
            if not self.extend or 0 in p.data.shape:
                return None
            self.plan = replace(self.plan, fed=self.plan.fed | {slot})
        if slot in self.plan.fed:
            self.values[slot] = p.data, q.data
        return trivial(p.type, q.type)

    def _call(
        self,
        path: Path,
        a: tuple[Binding, Call],
        b: tuple[Binding, Call],
        operands: Sequence[tuple[Claim, ...]],
    ) -> Agreement:
        """The claims about a call's results, with the masks of the plan, or with new ones."""
        (ours, x), (theirs, y) = a, b
        if x.op is not y.op or not isinstance(x.op, Op):
            return Agreement(None, "another operator")
        if any(len(claims) != 1 for claims in operands):
            return Agreement(None, f"{x.op.name} takes a tuple")
        small = Use(x.op, x.attrs, tuple(v.type for v in x.args), ours.var.type)
        large = Use(x.op, y.attrs, tuple(v.type for v in y.args), theirs.var.type)
        given = [claims[0] for claims in operands]
        prove = functools.partial(self._masked, path, given, (small, large), x.args)
        masks = {n: m for n in range(len(given)) if (m := self.plan.masks.get((path, n)))}
        found = prove(masks)
        if found.claims is None and self.extend:
            masks, found = _filled(prove, found, given, large)
        loose = [n for n in sorted(found.indexed) if self._is_loose(y.args[n], given[n])]
        if found.claims is not None and any(n not in masks for n in loose):
            if not self.extend:
                return Agreement(None, f"{x.op.name} may read anywhere for the padding of indices")
            masks |= {n: Mask.of(given[n], 0, given[n].padded()) for n in loose}
            found = prove(masks)
        if self.extend and found.claims is not None:
            slots = {(path, n): m for n, m in masks.items()}
            self.plan = replace(self.plan, masks={**self.plan.masks, **slots})
        return found

    def _is_loose(self, indices: Atom, claim: Claim) -> bool:
        """Whether indices in the padding may be out of range where those inside are not."""
        return bool(claim.padded()) and indices not in self._repeating

    def _repeats(self, call: Call) -> bool:
        """Whether what a call computes for padding, it computes for something inside too."""
        assert isinstance(call.op, Op)
        moves = call.op.pattern <= OpPattern.BROADCAST or call.op.name in ("reshape", "transpose")
        variables = [x for x in call.args if not (isinstance(x, Constant) and x.data.size == 1)]
        return moves and len(variables) == 1 and variables[0] in self._repeating

    def _masked(
        self,
        path: Path,
        given: Sequence[Claim],
        uses: tuple[Use, Use],
        args: Sequence[Atom],
        masks: Mapping[int, Mask],
    ) -> Agreement:
        """The claims about a call's results if operands are masked."""
        claims = list(given)
        for number, mask in masks.items():
            claim = mask.applied(claims[number])
            if claim is None:
                return Agreement(None, f"{uses[0].op.name} merges axes in another way")
            claims[number] = claim
        found = self._agreement(*uses, tuple(claims), args, self._indices.get(path))
        if found.claims is not None:
            for n, mask in masks.items():
                self.extents |= {((path, n), p): claims[n].at(p) for p in mask.places}
        return found

    def _agreement(
        self,
        small: Use,
        large: Use,
        operands: tuple[Claim, ...],
        args: Sequence[Atom],
        indices: int | None,
    ) -> Agreement:
        if small == large:
            return Agreement(trivial(small.result, large.result))
        if small.op.name in FACTS:
            return FACTS[small.op.name](small, large, operands)
        constants = tuple(map(_integers, args))
        ids = tuple(map(id, constants))  # which live as long as the models
        key = (small, large, operands, ids, indices)
        if key not in self._known:
            self._known[key] = agreement(small, large, operands, constants, indices)
        return self._known[key]

    # -- rewriting ---------------------------------------------------------------------------

    def _rewritten(self, path: Path, a: Binding, b: Binding) -> list[Step] | None:
        """What stands for a binding in both models, if its operator can be expressed by others."""
        x, y = a.value, b.value
        if not (isinstance(x, Call) and isinstance(y, Call) and x.op is y.op) or len(path) > 1:
            return None
        rewrite = REWRITES.get(x.op.name) if isinstance(x.op, Op) else None
        axes = self.plan.rewritten.get(path)
        if axes is None and rewrite is not None:
            axes = rewrite.axes(x, y)
        if not axes or rewrite is None:
            return None
        builders = [Builder(self.ops, fold=False) for _ in range(2)]
        results: list[Atom] = []
        for builder, call, span in zip(builders, (x, y), (a.span, b.span), strict=True):
            with builder.at(span):
                results.append(rewrite.emit(builder, call, axes))
        ours, theirs = (builder.bindings for builder in builders)
        if len(ours) != len(theirs):
            return None
        self._instead[0][a.var], self._instead[1][b.var] = results
        self.plan = self.plan.with_rewritten(path, axes)
        if rewrite.indices is not None:
            self._indices[*path, len(ours) - 1] = rewrite.indices
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [((*path, k), p, q) for k, (p, q) in pairs]


_FILLS = (0, -np.inf, np.inf, 1)
"""What padding may be replaced by: infinite stands for the limits of integers."""


def _filled(
    prove: Callable[[Mapping[int, Mask]], Agreement],
    found: Agreement,
    given: Sequence[Claim],
    use: Use,
) -> tuple[dict[int, Mask], Agreement]:
    """Masks of what is read of the operands' padding with which a call can be proven, and what
    follows; else none, and what was found without."""
    for fill in _FILLS if found.outside else ():
        numbers = range(len(given))
        masks = {n: m for n in numbers if (m := _mask(n, fill, found, given, use))}
        better = prove(masks)
        if better.claims is not None:
            return masks, better
    return {}, found


def _mask(
    number: int, fill: float, found: Agreement, given: Sequence[Claim], use: Use
) -> Mask | None:
    """The mask for what is read of an operand's padding, where it is not filled so already."""
    claim, type_ = given[number], use.args[number]
    assert isinstance(type_, TensorType)
    value = _fill_value(fill, type_.dtype)
    places = {place for n, place in found.outside if n == number}
    if not places or (claim.fill == value and places <= claim.filled):
        return None
    return Mask.of(claim, value, places)


def _fill_value(fill: float, dtype: DType) -> float | int | bool:
    if np.isinf(fill):
        return dtype.max_value if fill > 0 else dtype.min_value
    return dtype.numpy.type(fill).item() if dtype is DType.BOOL else type(dtype.min_value)(fill)


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether an array is the corner of another."""
    if a.dtype != b.dtype or a.ndim != b.ndim:
        return False
    if any(n > m for n, m in zip(a.shape, b.shape, strict=True)):
        return False
    if a.shape == b.shape and a.ctypes.data == b.ctypes.data and a.strides == b.strides:
        return True
    bits = f"u{a.dtype.itemsize}"  # so that NaN is equal to itself, and 0 not to -0
    return np.array_equal(a.view(bits), b[tuple(slice(n) for n in a.shape)].view(bits))


def _integers(atom: Atom) -> np.ndarray | None:
    """The array of a constant of integers."""
    if isinstance(atom, Constant) and atom.type.dtype.is_int and atom.data.size:
        return atom.data
    return None


def _reading(binding: Binding, instead: Mapping[Atom, Atom]) -> Binding:
    """The binding with what stands for the values that it reads."""
    value = replace_args(binding.value, [instead.get(x, x) for x in binding.args])
    return binding if value is binding.value else replace(binding, value=value)


def _at(reason: str | None, binding: Binding) -> str:
    where = f" (node {binding.span})" if binding.span.nodes else ""
    return f"{reason}{where}"
