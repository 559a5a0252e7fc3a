"""What one compute contributes to the adjoints of the tensors that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ir.expr import (
    Binary,
    BinaryOp,
    Expr,
    IntImm,
    Load,
    Var,
    all_of,
    const,
    if_then_else,
    select,
    substitute,
    variables,
)
from ..ir.node import postorder
from .derivatives import load_adjoints
from .reducers import prod
from .reducers import sum as te_sum
from .simplify import Analyzer
from .tensor import ComputeOp, IterVar, Reduce, Tensor, compute, reduce_axis


def reads(op: ComputeOp, tensor: Tensor, seed: Expr) -> list[tuple[Load, Expr, Expr]]:
    """For each element that output `tensor` of `op` reads: the load, the condition under which it
    is read, and `seed` times the derivative, in terms of the axes of `op`."""
    body = op.body[tensor.index]
    if not isinstance(body, Reduce):
        return load_adjoints(body, seed)
    seed = seed * _through_reduction(op, body)
    found = load_adjoints(body.sources[0], seed)
    return [(load, body.condition & guard, value) for load, guard, value in found]


def contributions(
    op: ComputeOp, tensor: Tensor, adjoint: Tensor | None, prefix: Sequence[Expr]
) -> list[tuple[Tensor, Tensor]]:
    """For each element that the compute reads: its tensor and the adjoint through this read."""
    heads = tuple(Var(f"p{d}") for d in range(len(prefix)))
    own = tuple(a.var for a in op.axis)
    seed: Expr = const(1.0, tensor.dtype) if adjoint is None else adjoint(*heads, *own)
    found: list[tuple[Tensor, Tensor]] = []
    for load, guard, value in reads(op, tensor, seed):
        problem = Inversion((*op.axis, *op.reduce_axis), [value, guard])
        for axis, head, extent in zip(own, heads, prefix, strict=False):
            problem.bind(head, extent)
            if adjoint is None:
                problem.equations.append((head, axis))
        targets = tuple(Var(f"i{d}") for d in range(load.source.ndim))
        for index, target, extent in zip(load.indices, targets, load.source.shape, strict=True):
            problem.bind(target, extent)
            problem.equations.append((target, index))
        shape = (*prefix, *load.source.shape)
        name = f"{load.source.name}.grad"
        found.append((load.source, problem.tensor(name, shape, (*heads, *targets))))
    return found


def _through_reduction(op: ComputeOp, body: Reduce) -> Expr:
    """The derivative of a reduction by its source at one point, over the axes of `op`."""
    source, result = body.sources[0], op.output(0)
    own = tuple(a.var for a in op.axis)
    one, zero = const(1.0, source.dtype), const(0.0, source.dtype)

    def over(name: str, reducer: object, value: Expr) -> Expr:
        """A reduction of `value` over the same axes, read at the same point."""
        fresh = [reduce_axis((a.min, a.min + a.extent), a.name) for a in body.axes]
        names: dict[Var, Expr] = {a.var: b.var for a, b in zip(body.axes, fresh, strict=True)}

        def element(*i: Var) -> Expr:
            values = {**names, **dict(zip(own, i, strict=True))}
            where = substitute(body.condition, values)
            return reducer(substitute(value, values), axis=fresh, where=where)  # type: ignore[operator]

        return compute(op.shape, element, name=f"{op.name}.{name}")(*own)

    match body.combiner.name:
        case "sum":
            return one
        case "max" | "min":
            attains = select(source.equal(result(*own)), one, zero)
            return attains / over("ties", te_sum, attains)
        case "prod":
            is_zero = source.equal(zero)
            zeros = over("zeros", te_sum, select(is_zero, one, zero))
            others = over("nonzero", prod, select(is_zero, one, source))
            quotient = others / select(is_zero, one, source)
            return select(
                is_zero,
                select(zeros.equal(one), others, zero),
                select(zeros.equal(zero), quotient, zero),
            )
    raise TypeError(
        f"te.gradient: the reducer {body.combiner.name!r} of {op.name} has no derivative; "
        "sum, prod, max and min have one"
    )


def element_of(body: Expr, formal: Sequence[Var]) -> Callable[..., Expr]:
    """The function of the variables `formal` whose value is `body`, which may be a reduction."""

    def element(*actual: Var) -> Expr:
        values: dict[Var, Expr] = dict(zip(formal, actual, strict=True))
        if not isinstance(body, Reduce):
            return substitute(body, values)
        return Reduce(
            body.combiner,
            tuple(substitute(s, values) for s in body.sources),
            body.axes,
            substitute(body.condition, values),
            body.index,
        )

    return element


@dataclass
class _Axis:
    """An axis that is still summed over."""

    var: Var
    min: Expr
    extent: Expr

    @property
    def name(self) -> str:
        return self.var.name


class Inversion:
    """Equations `target == index(axes)`, solved for axes one after the other.

    What is solved for is substituted into `expressions`, and leaves conditions: that the value
    lies in the axis's domain and, for a coefficient other than 1, that it divides.
    """

    def __init__(self, axes: Sequence[IterVar], expressions: Sequence[Expr]) -> None:
        self.axes = [_Axis(Var(a.name), a.min, a.extent) for a in axes]
        names: dict[Var, Expr] = {a.var: b.var for a, b in zip(axes, self.axes, strict=True)}
        self._names = names
        self.expressions = [substitute(e, names) for e in expressions]
        self.equations: list[tuple[Var, Expr]] = []
        self.conditions: list[Expr] = []
        self._analyzer = Analyzer()
        for axis in self.axes:
            self._analyzer.bind(axis.var, axis.min, axis.extent)

    def bind(self, var: Var, extent: Expr) -> None:
        self._analyzer.bind(var, const(0), extent)

    def solve(self) -> None:
        self.equations = [(t, substitute(e, self._names)) for t, e in self.equations]
        self._split_divided()
        while True:
            candidates = [
                (self._extent(axis), -abs(c), number, axis, c)
                for number, (_, index) in enumerate(self.equations)
                for axis in self.axes
                if axis.var in variables(index) and (c := self._coefficient(index, axis.var))
            ]
            if not candidates:
                break
            # Summing over what is small: solve for the longest axis first.
            _, _, number, axis, factor = max(candidates, key=lambda c: (c[0], c[1], -c[2]))
            target, index = self.equations.pop(number)
            self._eliminate(target, index, axis, factor)
        self.conditions += [self._simplify(t.equal(e)) for t, e in self.equations]

    def tensor(self, name: str, shape: Sequence[Expr], formal: Sequence[Var]) -> Tensor:
        """The first expression where the second one holds, summed over the axes that are left, as
        a tensor over `formal`."""
        self.solve()
        value, where = self.expressions
        condition = self.condition(where)
        if self.axes:
            axes = [reduce_axis((a.min, a.min + a.extent), a.name) for a in self.axes]
            fresh: dict[Var, Expr] = {a.var: b.var for a, b in zip(self.axes, axes, strict=True)}
            body = te_sum(substitute(value, fresh), axis=axes, where=substitute(condition, fresh))
        else:
            body = if_then_else(condition, value, 0.0)
        return compute(shape, element_of(body, formal), name=name)

    def condition(self, also: Expr) -> Expr:
        parts = [*self.conditions, self._simplify(also)]
        return all_of(c for c in parts if not self._analyzer.proves(c))

    @staticmethod
    def _extent(axis: _Axis) -> float:
        return axis.extent.value if isinstance(axis.extent, IntImm) else float("inf")

    def _simplify(self, expr: Expr) -> Expr:
        return self._analyzer.simplify(expr)

    def _coefficient(self, index: Expr, var: Var) -> int:
        """c if index = c * var + (terms without var), else 0."""
        step = self._simplify(substitute(index, {var: var + 1}) - index)
        return step.value if isinstance(step, IntImm) else 0

    def _eliminate(self, target: Var, index: Expr, axis: _Axis, factor: int) -> None:
        """Solve target == factor * axis + rest for the axis."""
        zero: dict[Var, Expr] = {axis.var: const(0)}
        distance = self._simplify((target - substitute(index, zero)) * (1 if factor > 0 else -1))
        size = abs(factor)
        if size > 1:
            self.conditions.append((distance % size).equal(0))
        value = self._simplify(distance // size)
        self._substitute(axis, value)
        self.conditions += [value >= axis.min, value < axis.min + axis.extent]

    def _substitute(self, axis: _Axis, value: Expr) -> None:
        values: dict[Var, Expr] = {axis.var: value}
        self.axes.remove(axis)
        self.expressions = [substitute(e, values) for e in self.expressions]
        self.equations = [(t, self._simplify(substitute(e, values))) for t, e in self.equations]
        self.conditions = [self._simplify(substitute(c, values)) for c in self.conditions]

    def _split_divided(self) -> None:
        """Write an axis as q * c + r where an index divides it by c, so that q and r are linear."""
        for _ in range(8 * (1 + len(self.axes))):
            found = self._divided()
            if found is None:
                return
            axis, divisor = found
            parts = -(-(axis.extent + axis.min) // const(divisor))
            quotient = _Axis(Var(f"{axis.name}.outer"), const(0), self._simplify(parts))
            rest = _Axis(Var(f"{axis.name}.inner"), const(0), const(divisor))
            for new in (quotient, rest):
                self.axes.append(new)
                self._analyzer.bind(new.var, new.min, new.extent)
            value = quotient.var * divisor + rest.var
            self._substitute(axis, value)
            self.conditions += [value >= axis.min, value < axis.min + axis.extent]

    def _divided(self) -> tuple[_Axis, int] | None:
        own = {axis.var: axis for axis in self.axes if isinstance(axis.extent, IntImm)}
        for _, index in self.equations:
            for node in postorder(index):
                if (
                    isinstance(node, Binary)
                    and node.op in (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD)
                    and isinstance(node.a, Var)
                    and node.a in own
                    and isinstance(node.b, IntImm)
                    and node.b.value > 1
                ):
                    return own[node.a], node.b.value
        return None
