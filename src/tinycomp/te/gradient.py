"""Reverse-mode differentiation of tensor expressions.

Each element that a compute reads gets a contribution. For `B[v] = f(T[e(v)], ...)`

    dT[x] += sum over v where e(v) == x of dB[v] * df/dT

and solving `e(v) == x` for as many axes as possible turns the sum into what one would write by
hand: elementwise stays elementwise, the gradients of a matmul are two matmuls, a transposed
convolution comes out of a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.expr import (
    TRUE,
    Binary,
    BinaryOp,
    Expr,
    IntImm,
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
from .tensor import (
    ComputeOp,
    IterVar,
    PlaceholderOp,
    Reduce,
    Tensor,
    compute,
    reduce_axis,
    topological,
)


def gradient(
    output: Tensor, inputs: Tensor | Sequence[Tensor], head: Tensor | None = None
) -> list[Tensor]:
    """The adjoints of `inputs`: derivatives of `output`, weighted with `head`.

    Args:
        output: a float tensor of shape S.
        inputs: tensors that it depends on, of shapes I; one tensor or several.
        head: a tensor of shape [*P, *S], the derivative of something of shape P by the output
            (for a scalar loss simply S). None stands for the identity, and gives the Jacobians.

    Returns:
        For each input a tensor of shape [*P, *I]; with no head, [*S, *I].

    Where several elements attain a maximum or minimum, they share the derivative evenly.

    Raises:
        TypeError: a scan, an extern operation or a custom reducer lies between them.

    >>> from tinycomp import te
    >>> A = te.placeholder((4, 8), name="A")
    >>> B = te.compute((4,  8), lambda i, j: A[i, j] * A[i, j], name="B")
    >>> H = te.placeholder((4, 8), name="H")
    >>> te.gradient(B, [A], H)
    [Tensor(A.grad: float32[4, 8])]
    """
    wanted = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if head is not None and head.shape[head.ndim - output.ndim :] != output.shape:
        raise TypeError(
            f"te.gradient: head {head} does not end in the shape of {output}, "
            f"[{', '.join(map(str, output.shape))}]"
        )
    prefix = output.shape if head is None else head.shape[: head.ndim - output.ndim]
    terms: dict[Tensor, list[Tensor | None]] = {output: [head]}  # None: the identity
    for op in reversed(topological([output])):
        for tensor in [op.output(i) for i in range(op.num_outputs)]:
            if tensor not in terms or isinstance(op, PlaceholderOp):
                continue
            if not isinstance(op, ComputeOp):
                raise TypeError(f"te.gradient: {op.name} is a {type(op).__name__}, not a compute")
            adjoint = _sum_terms(tensor, terms[tensor], prefix)
            for source, term in _contributions(op, tensor, adjoint, prefix):
                terms.setdefault(source, []).append(term)
    return [_result(t, _sum_terms(t, terms.get(t, []), prefix), prefix) for t in wanted]


def _sum_terms(tensor: Tensor, terms: list[Tensor | None], prefix: Sequence[Expr]) -> Tensor | None:
    """The adjoint of `tensor`: the sum of its contributions; None is the identity."""
    known = [t for t in terms if t is not None]
    if len(terms) == 1:
        return terms[0]
    if not known:
        zero = const(0.0, tensor.dtype)
        return compute((*prefix, *tensor.shape), lambda *i: zero, name=f"{tensor.name}.grad")

    def total(*i: Var) -> Expr:
        result = known[0](*i)
        for other in known[1:]:
            result = result + other(*i)
        return result

    return compute(known[0].shape, total, name=f"{tensor.name}.grad")


def _result(tensor: Tensor, adjoint: Tensor | None, prefix: Sequence[Expr]) -> Tensor:
    if adjoint is not None:
        return adjoint

    def identity(*i: Var) -> Expr:
        pairs = zip(i[: len(prefix)], i[len(prefix) :], strict=True)
        same = all_of(a.equal(b) for a, b in pairs)
        return select(same, const(1.0, tensor.dtype), const(0.0, tensor.dtype))

    return compute((*prefix, *tensor.shape), identity, name=f"{tensor.name}.grad")


def _contributions(
    op: ComputeOp, tensor: Tensor, adjoint: Tensor | None, prefix: Sequence[Expr]
) -> list[tuple[Tensor, Tensor]]:
    """For each element that the compute reads: its tensor and the adjoint through this read."""
    body = op.body[tensor.index]
    heads = tuple(Var(f"p{d}") for d in range(len(prefix)))
    own = tuple(a.var for a in op.axis)
    seed: Expr = const(1.0, tensor.dtype) if adjoint is None else adjoint(*heads, *own)
    where: Expr = TRUE
    if isinstance(body, Reduce):
        where = body.condition
        seed = seed * _through_reduction(op, body)
        body = body.sources[0]
    found: list[tuple[Tensor, Tensor]] = []
    for load, guard, value in load_adjoints(body, seed):
        problem = _Inversion((*op.axis, *op.reduce_axis), [value, where & guard])
        for axis, head, extent in zip(own, heads, prefix, strict=False):
            problem.bind(head, extent)
            if adjoint is None:
                problem.equations.append((head, axis))
        targets = tuple(Var(f"i{d}") for d in range(load.source.ndim))
        for index, target, extent in zip(load.indices, targets, load.source.shape, strict=True):
            problem.bind(target, extent)
            problem.equations.append((target, index))
        found.append((load.source, _contribution(load.source, problem, heads, targets, prefix)))
    return found


def _contribution(
    source: Tensor,
    problem: _Inversion,
    heads: tuple[Var, ...],
    targets: tuple[Var, ...],
    prefix: Sequence[Expr],
) -> Tensor:
    problem.solve()
    value, where = problem.expressions
    condition = problem.condition(where)
    if problem.axes:
        axes = [reduce_axis((a.min, a.min + a.extent), a.name) for a in problem.axes]
        fresh: dict[Var, Expr] = {a.var: b.var for a, b in zip(problem.axes, axes, strict=True)}
        body = te_sum(substitute(value, fresh), axis=axes, where=substitute(condition, fresh))
    else:
        body = if_then_else(condition, value, 0.0)
    formal = (*heads, *targets)

    def element(*actual: Var) -> Expr:
        values: dict[Var, Expr] = dict(zip(formal, actual, strict=True))
        if not isinstance(body, Reduce):
            return substitute(body, values)
        return Reduce(
            body.combiner,
            tuple(substitute(s, values) for s in body.sources),
            body.axes,
            substitute(body.condition, values),
            0,
        )

    return compute((*prefix, *source.shape), element, name=f"{source.name}.grad")


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


@dataclass
class _Axis:
    """An axis that is still summed over."""

    var: Var
    min: Expr
    extent: Expr

    @property
    def name(self) -> str:
        return self.var.name


class _Inversion:
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


__all__ = ["gradient"]
