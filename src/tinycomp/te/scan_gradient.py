"""The gradient of a scan: a scan that runs from the last time to the first.

For `S[t] = f(S[t - 1], X[t])` the adjoints follow the recurrence

    dS[t] = head[t] + df/dS (S[t], X[t + 1])^T dS[t + 1]

which is backpropagation through time (Werbos, 1990). Here it is a te.scan over `s = T - 1 - t`. The
stages between the states are repeated outside of it, over all times; only adjoints are carried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..ir.expr import Expr, IntImm, Load, Var, const, if_then_else, substitute
from ..ir.node import rewrite
from .contributions import Inversion, contributions, reads
from .simplify import Analyzer
from .tensor import (
    ComputeOp,
    Reduce,
    ScanOp,
    Tensor,
    compute,
    placeholder,
    scan,
)


def scan_contributions(
    op: ScanOp, heads: Mapping[Tensor, Tensor], prefix: Sequence[Expr]
) -> list[tuple[Tensor, Tensor]]:
    """For each tensor outside that a scan reads, also as init, what the scan adds to its adjoint.

    Args:
        heads: the adjoint of each output of the scan that is used; shapes [*prefix, T, ...].

    Raises:
        TypeError: a stage reads a state at a time that is not a fixed number of steps back.
    """
    back = _Backward(op, heads, tuple(prefix))
    back.run()
    return [*back.of_inits(), *back.of_inputs()]


@dataclass
class _Backward:
    """The reverse recurrence of one scan.

    Attributes:
        stages: the operations of the body over all times, reading the scan's results.
        adjoints: the result of the reverse scan for each state, [T, *prefix, ...], from the last
            time to the first.
    """

    op: ScanOp
    heads: Mapping[Tensor, Tensor]
    prefix: tuple[Expr, ...]
    stages: list[ComputeOp] = field(default_factory=list)
    adjoints: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.times = self.op.state[0].shape[0]
        self.start = self.op.axis.min  # the first time that is updated
        self.results = [self.op.output(i) for i in range(self.op.num_outputs)]
        known: dict[Tensor, Tensor] = dict(zip(self.op.state, self.results, strict=True))
        for stage in self.op.body:
            full = _over_all_times(stage, known, self.start)
            known.update({stage.output(i): full.output(i) for i in range(stage.num_outputs)})
            self.stages.append(full)
        self.updates = [known[u] for u in self.op.update]

    # -- the recurrence ----------------------------------------------------------------------

    def run(self) -> None:
        states = [
            placeholder((self.times, *self.prefix, *r.shape[1:]), r.dtype, f"{r.name}.adjoint")
            for r in self.results
        ]
        parts: dict[Tensor, list[Tensor]] = {r: [] for r in self.results}
        for distance in self._distances():
            for source, part in self._step(states, distance):
                parts[source].append(part)
        first = [self._head(r, f"{r.name}.last", const(1)) for r in self.results]
        update = [
            self._update(r, state, parts[r]) for r, state in zip(self.results, states, strict=True)
        ]
        self.adjoints = scan(first, update, states, name=f"{self.op.name}.grad")

    def _distances(self) -> list[int]:
        """By how many times stages look back."""
        found = {
            self._distance(stage, load)
            for stage in self.stages
            for i in range(stage.num_outputs)
            for load, _, _ in reads(stage, stage.output(i), const(1.0, stage.output(i).dtype))
            if load.source in self.results
        }
        return sorted(found)

    def _distance(self, stage: ComputeOp, load: Load) -> int:
        time = stage.axis[0].var
        distance = Analyzer().simplify(time - load.indices[0])
        if not isinstance(distance, IntImm):
            raise TypeError(
                f"te.gradient: {stage.name} of scan {self.op.name} reads {load}, whose time is not "
                f"a fixed number of steps before {time}"
            )
        return distance.value

    def _step(self, states: Sequence[Tensor], distance: int) -> list[tuple[Tensor, Tensor]]:
        """What the states get at scan time s from the time `distance` later, s - distance."""
        s = Var("s")
        time = const(-1) + self.times + distance - s
        runs = (s >= distance) & (time >= self.start)
        adjoint: dict[Tensor, list[Tensor]] = {}
        found: list[tuple[Tensor, Tensor]] = []
        heads = tuple(Var(f"p{d}") for d in range(len(self.prefix)))
        for stage in reversed(self.stages):
            for tensor in map(stage.output, range(stage.num_outputs)):
                own = tuple(a.var for a in stage.axis[1:])
                terms = [t(s, *heads, *own) for t in adjoint.get(tensor, [])]
                for update, state in zip(self.updates, states, strict=True):
                    if update == tensor:
                        terms.append(if_then_else(runs, state(s - distance, *heads, *own), 0.0))
                if not terms:
                    continue
                seed = terms[0]
                for term in terms[1:]:
                    seed = seed + term
                for load, guard, value in reads(stage, tensor, seed):
                    inside = load.source in adjoint or load.source.op in self.stages
                    is_state = load.source in self.results
                    if not inside and not (is_state and self._distance(stage, load) == distance):
                        continue
                    part = self._part(stage, load, guard & runs, value, s, time, heads)
                    if is_state:
                        found.append((load.source, part))
                    else:
                        adjoint.setdefault(load.source, []).append(part)
        return found

    def _part(
        self, stage: ComputeOp, load: Load, guard: Expr, value: Expr, s: Var, time: Expr,
        heads: tuple[Var, ...],
    ) -> Tensor:  # fmt: skip
        """The adjoint of what a stage reads at one time, as a stage of the reverse scan."""
        now: dict[Var, Expr] = {stage.axis[0].var: time}
        axes = (*stage.axis[1:], *stage.reduce_axis)
        problem = Inversion(axes, [substitute(value, now), substitute(guard, now)])
        problem.bind(s, self.times)
        for head, extent in zip(heads, self.prefix, strict=True):
            problem.bind(head, extent)
        shape = load.source.shape[1:]
        targets = tuple(Var(f"i{d}") for d in range(len(shape)))
        for index, target, extent in zip(load.indices[1:], targets, shape, strict=True):
            problem.bind(target, extent)
            problem.equations.append((target, substitute(index, now)))
        whole = (self.times, *self.prefix, *shape)
        return problem.tensor(f"{load.source.name}.grad", whole, (s, *heads, *targets))

    def _head(self, result: Tensor, name: str, times: Expr) -> Tensor:
        """The adjoint from outside of the scan, from the last time on, for so many times."""
        head, rank = self.heads.get(result), len(self.prefix)

        def element(s: Var, *rest: Var) -> Expr:
            if head is None:
                return const(0.0, result.dtype)
            return head(*rest[:rank], self.times - 1 - s, *rest[rank:])

        shape = (times, *self.prefix, *result.shape[1:])
        return compute(shape, lambda *i: element(*i), name=name)

    def _update(self, result: Tensor, state: Tensor, parts: Sequence[Tensor]) -> Tensor:
        own = self._head(result, f"{result.name}.head", self.times)

        def element(s: Var, *rest: Var) -> Expr:
            total = own(s, *rest)
            for part in parts:
                total = total + part(s, *rest)
            # A scan's updates look back; one without parts does so at no time (s starts at 1).
            return total if parts else if_then_else(s < 1, state(s - 1, *rest), total)

        return compute(state.shape, lambda *i: element(*i), name=f"{result.name}.step")

    # -- what the scan reads -----------------------------------------------------------------

    def _at(self, index: int, name: str, times: Expr, first: Expr) -> Tensor:
        """The adjoint of a state in forward order for `times` times, zero before `first`."""
        adjoint, rank = self.adjoints[index], len(self.prefix)

        def element(*i: Var) -> Expr:
            heads, time, rest = i[:rank], i[rank], i[rank + 1 :]
            value = adjoint(self.times - 1 - time, *heads, *rest)
            return value if first is const(0) else if_then_else(time >= first, value, 0.0)

        shape = (*self.prefix, times, *self.results[index].shape[1:])
        return compute(shape, lambda *i: element(*i), name=name)

    def of_inits(self) -> list[tuple[Tensor, Tensor]]:
        rows = self.start
        return [
            (init, self._at(i, f"{init.name}.grad", rows, const(0)))
            for i, init in enumerate(self.op.init)
        ]

    def of_inputs(self) -> list[tuple[Tensor, Tensor]]:
        """Through the stages of the body, over all times at once."""
        adjoint: dict[Tensor, list[Tensor]] = {}
        for i, update in enumerate(self.updates):
            whole = self._at(i, f"{update.name}.grad", self.times, self.start)
            adjoint.setdefault(update, []).append(whole)
        found: list[tuple[Tensor, Tensor]] = []
        for stage in reversed(self.stages):
            for tensor in map(stage.output, range(stage.num_outputs)):
                terms = adjoint.get(tensor, [])
                for term in terms:
                    for source, part in contributions(stage, tensor, term, self.prefix):
                        if source.op in self.stages:
                            adjoint.setdefault(source, []).append(part)
                        elif source not in self.results:
                            found.append((source, part))
        return found


def _over_all_times(op: ComputeOp, known: Mapping[Tensor, Tensor], start: Expr) -> ComputeOp:
    """A stage of a scan outside of it, reading results in place of states; 0 before `start`."""
    time = op.axis[0].var

    def redirect(node: object) -> object:
        if isinstance(node, Load) and node.source in known:
            return Load(known[node.source], node.indices, node.predicate)  # type: ignore[index]
        return node

    body: list[Expr] = []
    for value in op.body:
        moved = rewrite(value, redirect)
        if isinstance(moved, Reduce):
            condition = (time >= start) & moved.condition
            moved = Reduce(moved.combiner, moved.sources, moved.axes, condition, moved.index)
        else:
            moved = if_then_else(time >= start, moved, const(0, moved.dtype))
        body.append(moved)
    return replace(op, body=tuple(body))


__all__ = ["scan_contributions"]
