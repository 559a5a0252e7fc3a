"""How an elementwise kernel walks through memory: strides of its loads, vectors, merged axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ... import te
from ...ir.expr import Binary, BinaryOp, Call, Expr, IntImm, Load, Var, as_int, const, variables
from ...ir.node import postorder
from ...te.simplify import Analyzer
from ...te.tensor import Tensor, placeholder
from ...tir.nodes import Buffer, Store
from ...tir.passes.uniform_conditions import is_condition
from ...tir.passes.visit import substituter
from ...tir.schedule import Stage, create_schedule
from ..common import Kernel


def address(load: Load) -> Expr:
    """The number of the element that is loaded, in row-major order."""
    buffer: Buffer = load.source  # type: ignore[assignment]
    linear: Expr = const(0)
    for index, extent in zip(load.indices, buffer.shape, strict=True):
        linear = linear * as_int(extent) + index
    return linear


@dataclass(frozen=True)
class Walk:
    """The loads of an elementwise stage and what an iteration of each axis adds to their addresses.

    Attributes:
        axes: iteration variables of the stage's block.
        strides: of each load, by axis; None where the address is not affine in the axes.
    """

    axes: tuple[Var, ...]
    extents: tuple[int, ...]
    body: Expr
    strides: Mapping[Load, Mapping[Var, int] | None]

    @staticmethod
    def of(stage: Stage) -> Walk | None:
        """The walk of a stage with one store; None for others."""
        block = stage.block
        if not isinstance(block.body, Store):
            return None
        axes = {v.var: as_int(v.extent) for v in block.iter_vars}
        return Walk._over(axes, block.body.value)

    @staticmethod
    def _over(axes: Mapping[Var, int], body: Expr) -> Walk:
        analyzer = _bound(axes)
        strides: dict[Load, Mapping[Var, int] | None] = {}
        for load in (n for n in postorder(body) if isinstance(n, Load)):
            found = coefficients(analyzer.simplify(address(load)))
            strides[load] = found if found is not None and set(found) <= set(axes) else None
        return Walk(tuple(axes), tuple(axes.values()), body, strides)

    def split(self) -> Walk:
        """The walk with axes apart that reshapes had merged: i // 4 and i % 4 become two axes."""
        axes = dict(zip(self.axes, self.extents, strict=True))
        body = self.body
        while True:
            analyzer = _bound(axes)
            loads = [n for n in postorder(body) if isinstance(n, Load) and n.indices]
            cut = _first_cut([analyzer.simplify(address(load)) for load in loads], axes)
            if cut is None:
                return Walk._over(axes, body)
            axis, inner = cut
            high, low = Var(f"{axis.name}.outer"), Var(f"{axis.name}.inner")
            pairs: list[tuple[Var, int]] = []
            for var, extent in axes.items():
                both = [(high, extent // inner), (low, inner)]
                pairs += both if var is axis else [(var, extent)]
            axes = dict(pairs)
            body = _bound(axes).simplify(substituter({axis: high * inner + low})(body))

    def vector_lanes(self, most: int) -> int:
        """The most neighbouring outputs (up to `most`, a power of two) that are worth a vector.

        In a vector no choice may depend on the lane, and large inputs must be read side by side
        or be the same for all lanes; few lines of a small one stay in the cache.
        """
        total = math.prod(self.extents)
        lanes = most
        while lanes > 1 and (total % lanes or not self._is_vector(lanes)):
            lanes //= 2
        return lanes

    def _is_vector(self, lanes: int) -> bool:
        group = Var("group")
        analyzer = Analyzer()
        analyzer.bind(group, const(0), const(math.prod(self.extents) // lanes))

        def in_lane(lane: int) -> Mapping[Var, Expr]:
            values: dict[Var, Expr] = {}
            flat: Expr = group * lanes + lane
            for axis, extent in zip(reversed(self.axes), reversed(self.extents), strict=True):
                values[axis] = analyzer.simplify(flat % extent)
                flat = flat // extent
            return values

        put = [substituter(in_lane(lane)) for lane in range(lanes)]
        conditions = [n for n in postorder(self.body) if is_condition(n)]
        if any(len({analyzer.simplify(p(c)) for p in put}) > 1 for c in conditions):
            return False
        for load in self.strides:
            first = put[0](address(load))
            steps = [analyzer.simplify(p(address(load)) - first) for p in put]
            same = all(isinstance(s, IntImm) and s.value == 0 for s in steps)
            beside = all(isinstance(s, IntImm) and s.value == i for i, s in enumerate(steps))
            if not same and not beside and _nbytes(load) > _CACHED:
                return False
        return True

    def across(self) -> dict[Load, Var]:
        """The loads of large inputs that are contiguous along another axis than the last, and
        that axis."""
        found: dict[Load, Var] = {}
        if not self.axes:
            return found
        for load, strides in self.strides.items():
            if not strides or strides.get(self.axes[-1], 0) in (0, 1):
                continue
            unit = next((v for v, s in strides.items() if s == 1), None)
            if unit is not None:
                found[load] = unit
        return found


def _bound(axes: Mapping[Var, int]) -> Analyzer:
    analyzer = Analyzer()
    for var, extent in axes.items():
        analyzer.bind(var, const(0), const(extent))
    return analyzer


def _first_cut(addresses: Sequence[Expr], axes: Mapping[Var, int]) -> tuple[Var, int] | None:
    """An axis that is divided by a divisor of its extent in some address, and that divisor."""
    for node in postorder(addresses):
        if isinstance(node, Binary) and node.op in (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD):
            divisor = node.b.value if isinstance(node.b, IntImm) else 0
            axis = node.a
            if isinstance(axis, Var) and divisor > 1 and axes.get(axis, 1) % divisor == 0:
                return axis, divisor
    return None


_CACHED = 32 * 1024  # bytes of an input that stay in the cache next to a multiprocessor


def _nbytes(load: Load) -> int:
    buffer: Buffer = load.source  # type: ignore[assignment]
    return math.prod(map(as_int, buffer.shape)) * buffer.dtype.itemsize


def coefficients(expr: Expr) -> dict[Var, int] | None:
    """{v: c} for an expression in normal form that is the sum of c * v."""
    terms: dict[Var, int] = {}
    stack: list[tuple[Expr, int]] = [(expr, 1)]
    while stack:
        node, times = stack.pop()
        if isinstance(node, Var):
            terms[node] = terms.get(node, 0) + times
        elif isinstance(node, Binary) and node.op in (BinaryOp.ADD, BinaryOp.SUB):
            sign = -1 if node.op is BinaryOp.SUB else 1
            stack += [(node.a, times), (node.b, sign * times)]
        elif isinstance(node, Binary) and node.op is BinaryOp.MUL and isinstance(node.b, IntImm):
            stack.append((node.a, times * node.b.value))
        elif not isinstance(node, IntImm) or node.value:
            return None
    return terms


def merge_axes(kernel: Kernel) -> Kernel:
    """The same elementwise kernel over as few axes as its memory layout needs.

    Neighbouring axes of the output that every input has as neighbours too, or lacks, become one;
    an input gets its axes in the order of its memory. So whatever reshapes and transposes an
    expression was made of, it becomes one permutation per input. A kernel with other accesses
    (slices, conditions by position) comes back as it is.
    """
    walk = Walk.of(kernel.stage(kernel.outputs[0].op)) if len(kernel.outputs) == 1 else None  # type: ignore[arg-type]
    if walk is None:
        return kernel
    walk = walk.split()
    if _reads_position(walk):
        return kernel
    order: dict[Buffer, list[Var]] = {}
    for load, strides in walk.strides.items():
        buffer: Buffer = load.source  # type: ignore[assignment]
        axes = None if strides is None else _dense_order(walk, strides, buffer)
        if axes is None or order.setdefault(buffer, axes) != axes:
            return kernel
    groups = _groups(walk)
    if not groups:
        return kernel
    return _rebuilt(kernel, walk, groups, order)


def _reads_position(walk: Walk) -> bool:
    """Whether the value depends on axes otherwise than through what is loaded."""
    outside = substituter({load: Var("loaded", load.dtype) for load in walk.strides})(walk.body)
    calls = (n.name for n in postorder(outside) if isinstance(n, Call))
    return bool(set(variables(outside)) & set(walk.axes)) or "checked_index" in calls


def _dense_order(walk: Walk, strides: Mapping[Var, int], buffer: Buffer) -> list[Var] | None:
    """The axes in the order of a buffer's memory, outermost first, if they cover it exactly."""
    extents = dict(zip(walk.axes, walk.extents, strict=True))
    axes = sorted((v for v, s in strides.items() if s and extents[v] > 1), key=lambda v: strides[v])
    size = 1
    for axis in axes:
        if strides[axis] != size:
            return None
        size *= extents[axis]
    return axes[::-1] if size == math.prod(map(as_int, buffer.shape)) else None


def _groups(walk: Walk) -> list[list[Var]]:
    """Runs of axes that all inputs treat alike; axes of extent 1 disappear."""
    extents = dict(zip(walk.axes, walk.extents, strict=True))

    def joined(a: Var, b: Var) -> bool:
        return all(
            (s or {}).get(a, 0) == (s or {}).get(b, 0) * extents[b] for s in walk.strides.values()
        )

    groups: list[list[Var]] = []
    for axis in (v for v in walk.axes if extents[v] > 1):
        if groups and joined(groups[-1][-1], axis):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def _rebuilt(
    kernel: Kernel, walk: Walk, groups: list[list[Var]], order: Mapping[Buffer, Sequence[Var]]
) -> Kernel:
    extents = dict(zip(walk.axes, walk.extents, strict=True))
    sizes = [math.prod(extents[v] for v in group) for group in groups]
    heads = {group[0]: number for number, group in enumerate(groups)}
    func, old = kernel.schedule.func, kernel.outputs[0].op
    inputs: dict[Buffer, Tensor] = {}
    for buffer in func.params[: len(func.params) - func.num_outputs]:
        shape = [sizes[heads[v]] for v in order.get(buffer, ()) if v in heads] or [1]
        inputs[buffer] = placeholder(
            shape if buffer in order else buffer.shape, buffer.dtype, buffer.name
        )

    def value(*index: Var) -> Expr:
        loads = {}
        for load in walk.strides:
            source: Buffer = load.source  # type: ignore[assignment]
            at = [index[heads[v]] for v in order[source] if v in heads]
            loads[load] = inputs[source](*(at or [const(0)]))
        return substituter(loads)(walk.body)

    out = te.compute(sizes, value, name=old.name, span=getattr(old, "span", func.span))
    schedule = create_schedule([out], list(inputs.values()), func.name)
    return Kernel(schedule, [out], kernel.target)
