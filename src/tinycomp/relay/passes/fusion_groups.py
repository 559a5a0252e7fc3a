"""Partition of a function's bindings into groups that become one kernel each.

TVM's algorithm: every binding starts as its own group; a group is merged into the post-dominator
of its output, with all groups on the paths between, if the operator patterns on them allow it. So
a group has exactly one output, nothing is computed twice, and groups never depend on each other
in a circle. Three phases: matmul-like operators take what follows them; rows are stitched
through reductions (see `stitching`); the rest is fused by pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...types import TensorType
from ..dominators import NO_PARENT, Edge, post_dominators
from ..nodes import Binding, Call, Constant, Function, Value, Var
from ..op import Op, OpPattern
from .stitching import find_row_space, goes_past_reduction, is_composite, stitchable

_EXPENSIVE_NAMES = """
    exp log log1p expm1 exp2 log2 erf tanh sigmoid sqrt rsqrt power sin cos tan asin acos atan
    sinh cosh asinh acosh atanh atan2
"""
EXPENSIVE = frozenset(_EXPENSIVE_NAMES.split())
PROLOGUES = frozenset({"transpose", "strided_slice"})
SLICES = frozenset({"strided_slice", "reshape"})
MOVES_ONCE = frozenset({"concatenate", "nn.pad", "reshape", "transpose", "strided_slice"})


@dataclass
class Group:
    """Members by binding number, ascending; the last one is the output."""

    members: list[int]
    pattern: OpPattern
    rows: int | None = None  # number of row dimensions, if stitched

    @property
    def output(self) -> int:
        return self.members[-1]


def node_pattern(binding: Binding) -> OpPattern:
    """How a binding may be fused; a broadcast of equal shapes counts as elementwise."""
    value = binding.value
    if not isinstance(value, Call) or not isinstance(value.op, Op):
        return OpPattern.OPAQUE
    op = value.op
    if is_composite(op):
        return OpPattern.OPAQUE  # a composite is fused by stitching only
    if op.pattern is OpPattern.COMM_REDUCE and op.name.startswith(("nn.", "image.")):
        return OpPattern.OUT_ELEMWISE_FUSABLE  # windows overlap: nothing may be fused into them
    if op.pattern is OpPattern.BROADCAST and all(_same_shape(a, binding.var) for a in value.args):
        return OpPattern.ELEMWISE
    return op.pattern


def _same_shape(a: Var | Constant, b: Var) -> bool:
    return (
        isinstance(a.type, TensorType)
        and isinstance(b.type, TensorType)
        and a.type.shape == b.type.shape
    )


def _grows(producer: Var, consumer: Var) -> bool:
    """Whether the consumer reads elements of the producer more than once."""
    a, b = producer.type, consumer.type
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return True
    return a.size < b.size if a.is_static and b.is_static else a.shape != b.shape


class Partitioner:
    """Groups the bindings of one function.

    Args:
        function: its bindings are operators; calls of fused functions are left alone.
        max_ops, max_args: limits of one group.
        max_row_bytes: limit of the row buffers of a stitched group; 0 turns stitching off.
        columns: whether groups over inner axes are stitched too.
    """

    def __init__(
        self,
        function: Function,
        max_ops: int,
        max_args: int,
        max_row_bytes: int,
        columns: bool = False,
    ) -> None:
        self.bindings = function.bindings
        self.max_ops, self.max_args, self.max_row_bytes = max_ops, max_args, max_row_bytes
        self.columns = columns
        self.kinds = [node_pattern(b) for b in self.bindings]
        self.consumers, escaping = self._edges(function)
        self.tree = post_dominators(self.consumers, escaping)
        self.groups = [Group([i], kind) for i, kind in enumerate(self.kinds)]

    def run(self) -> list[Group]:
        """All groups, ordered by their outputs."""
        self._fuse_anchors()
        if self.max_row_bytes:
            self._stitch()
        self._fuse_broadcasts()
        self._fuse_injectives()
        self._fuse_prologues()
        unique = {id(g): g for g in self.groups}
        return sorted(unique.values(), key=lambda g: g.output)

    def _edges(self, function: Function) -> tuple[list[list[Edge]], set[int]]:
        number = {b.var: i for i, b in enumerate(self.bindings)}
        consumers: list[list[Edge]] = [[] for _ in self.bindings]
        for i, binding in enumerate(self.bindings):
            for atom in binding.args:
                if isinstance(atom, Var) and atom in number:
                    kind = self.kinds[i]
                    if kind is OpPattern.BROADCAST and _same_shape(atom, binding.var):
                        kind = OpPattern.ELEMWISE
                    consumers[number[atom]].append((i, kind))
        result = function.result
        escaping = {number[result]} if isinstance(result, Var) and result in number else set()
        return consumers, escaping

    def _path(self, source: int, sink: int) -> list[int] | None:
        """All nodes on paths from source to its post-dominator sink, both included; None if
        there are too many."""
        seen, stack = {source, sink}, [source]
        while stack:
            for consumer, _ in self.consumers[stack.pop()]:
                if consumer not in seen:
                    seen.add(consumer)
                    stack.append(consumer)
                    if len(seen) > self.max_ops:
                        return None
        return sorted(seen)

    def _merge(self, source: int, allowed: Callable[[OpPattern, bool], bool] | None) -> bool:
        """Merge source's group into its post-dominator with the groups between.

        `allowed(pattern of a group on the way, whether it is the sink)`; None asks for a row space.
        """
        sink = self.tree.parent[source]
        if sink == NO_PARENT or self.groups[source] is self.groups[sink]:
            return False
        path = self._path(source, sink)
        if path is None:
            return False
        if allowed is not None and not all(
            allowed(self.groups[n].pattern, n == sink) for n in path if n != source
        ):
            return False
        groups = {id(self.groups[n]): self.groups[n] for n in path}.values()
        members = sorted(m for g in groups for m in g.members)
        if len(members) > self.max_ops or self._count_args(members) > self.max_args:
            return False
        merged = Group(members, max(g.pattern for g in groups))
        if allowed is None:
            bindings = [self.bindings[m] for m in members]
            space = find_row_space(bindings, self.max_row_bytes, self.columns)
            if space is None:
                return False
            if goes_past_reduction(bindings):
                merged.rows = len(space.rows)
        elif self._recomputes(members):
            return False
        for member in members:
            self.groups[member] = merged
        return True

    def _count_args(self, members: list[int]) -> int:
        inside = {self.bindings[m].var for m in members}
        return len({a for m in members for a in self.bindings[m].args} - inside)

    def _recomputes(self, members: list[int]) -> bool:
        """Whether an expensive operator would be evaluated again for each broadcast element."""
        costly: set[Var] = set()
        for member in members:
            binding = self.bindings[member]
            value = binding.value
            assert isinstance(value, Call)
            assert isinstance(value.op, Op)
            inputs = [a for a in value.args if isinstance(a, Var) and a in costly]
            if value.op.name not in MOVES_ONCE and any(_grows(a, binding.var) for a in inputs):
                return True
            if inputs or value.op.name in EXPENSIVE:
                costly.add(binding.var)
        return False

    def _fuse_anchors(self) -> None:
        """Matmuls and convolutions take the elementwise operators after them."""
        for node in range(len(self.groups)):
            if (
                self.groups[node].pattern is OpPattern.OUT_ELEMWISE_FUSABLE
                and self.tree.pattern[node] is OpPattern.ELEMWISE
            ):
                self._merge(node, lambda kind, _: kind <= OpPattern.BROADCAST)

    def _stitch(self) -> None:
        """Reductions of rows take all that works on the same rows, until nothing changes."""
        candidates = [i for i, b in enumerate(self.bindings) if stitchable(b)]
        changed = True
        while changed:
            changed = False
            for node in candidates:
                changed |= self._merge(node, None)
        for group in self.groups:
            members = [self.bindings[m] for m in group.members]
            if group.rows is None and len(members) == 1 and stitchable(members[0]):
                space = find_row_space(members, self.max_row_bytes, self.columns)
                if space is not None and goes_past_reduction(members):
                    group.rows = len(space.rows)
            if group.rows is not None:
                group.pattern = OpPattern.OPAQUE  # complete

    def _fuse_broadcasts(self) -> None:
        """Elementwise operators go into what reads them."""

        def allowed(kind: OpPattern, is_sink: bool) -> bool:
            limit = OpPattern.OUT_ELEMWISE_FUSABLE if is_sink else OpPattern.INJECTIVE
            return kind <= limit

        for node in range(len(self.groups)):
            if (
                self.groups[node].pattern <= OpPattern.BROADCAST
                and self.tree.pattern[node] <= OpPattern.COMM_REDUCE
            ):
                self._merge(node, allowed)

    def _fuse_injectives(self) -> None:
        """Data movement goes into the elementwise and injective operators that read it."""
        for node in range(len(self.groups)):
            if self.groups[node].pattern is OpPattern.INJECTIVE:
                self._merge(node, lambda kind, _: kind <= OpPattern.INJECTIVE)

    def _fuse_prologues(self) -> None:
        """Changes of layout go into the convolution that copies its input to pad it anyway, slices
        into the attention that copies its operands to faster memory."""
        for node, binding in enumerate(self.bindings):
            sink = self.tree.parent[node]
            if sink == NO_PARENT or self.groups[node].output != node:
                continue
            reader, members = self.bindings[sink].value, self.groups[node].members
            names = [_name_of(self.bindings[m].value) for m in members]
            if names[0] in PROLOGUES and len(names) == 1 and _copies_input(reader):
                wanted = reader.args[0] is binding.var  # type: ignore[union-attr]
            else:
                wanted = _name_of(reader) == "nn.attention" and "strided_slice" in names
                wanted = wanted and SLICES.issuperset(names)
            if wanted:
                self._merge(node, lambda kind, is_sink: is_sink or kind <= OpPattern.INJECTIVE)


def _name_of(value: Value) -> str:
    is_operator = isinstance(value, Call) and isinstance(value.op, Op)
    return value.op.name if is_operator else ""  # type: ignore[union-attr]


def _copies_input(value: Value) -> bool:
    """Whether this is a convolution whose kernel makes a padded copy of its input."""
    if not isinstance(value, Call) or repr(value.op) != "nn.conv2d":
        return False
    attrs: Any = value.attrs
    return attrs.kernel_layout == "packed" and any(attrs.padding)
