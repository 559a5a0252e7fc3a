"""Tensor expressions: what to compute, element by element, without saying how.

>>> A = placeholder((8, 16), name="A")
>>> k = reduce_axis((0, 16), name="k")
>>> from tinycomp.te.reducers import sum
>>> B = compute((8,), lambda i: sum(A[i, k], axis=k), name="B")
>>> B.shape, B.op.reduce_axis[0].var.name
((8,), 'k')

Source of the vocabulary: TVM's tensor expressions (Chen et al., OSDI 2018), after Halide's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ..diagnostics import NO_SPAN, Span
from ..dtype import DType
from ..ir.expr import Expr, ExprLike, Interned, Load, Var, as_expr, const
from ..ir.node import postorder
from .extent import as_extent


class IterKind(StrEnum):
    """How the values of an axis may be visited."""

    SPATIAL = "spatial"  # any order, also at once
    REDUCE = "reduce"  # any order, but each contributes to one accumulator
    ORDERED = "ordered"  # in sequence (scan)


class _AxisSeparator:
    """The type of `AXIS_SEPARATOR`."""

    def __repr__(self) -> str:
        return "te.AXIS_SEPARATOR"


AXIS_SEPARATOR = _AxisSeparator()
"""Between the indices that a `transform_layout` function returns; see there."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class IterVar:
    """An axis: a variable with its domain [min, min + extent) and kind. Compares by identity."""

    var: Var
    min: Expr
    extent: Expr
    kind: IterKind = IterKind.SPATIAL

    @property
    def name(self) -> str:
        return self.var.name

    def __expr__(self) -> Expr:
        return self.var

    def __repr__(self) -> str:
        return f"{self.kind} {self.name} in [{self.min}, {self.min + self.extent})"

    def __add__(self, other: ExprLike) -> Expr:
        return self.var + other

    def __radd__(self, other: ExprLike) -> Expr:
        return other + self.var

    def __sub__(self, other: ExprLike) -> Expr:
        return self.var - other

    def __rsub__(self, other: ExprLike) -> Expr:
        return other - self.var

    def __mul__(self, other: ExprLike) -> Expr:
        return self.var * other

    def __rmul__(self, other: ExprLike) -> Expr:
        return other * self.var

    def __floordiv__(self, other: ExprLike) -> Expr:
        return self.var // other

    def __mod__(self, other: ExprLike) -> Expr:
        return self.var % other

    def __lt__(self, other: ExprLike) -> Expr:
        return self.var < other

    def __le__(self, other: ExprLike) -> Expr:
        return self.var <= other

    def __gt__(self, other: ExprLike) -> Expr:
        return self.var > other

    def __ge__(self, other: ExprLike) -> Expr:
        return self.var >= other


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Combiner:
    """A commutative, associative reduction over one or several values.

    `results[i]` combines accumulators `lhs` with new values `rhs`; `identity[i]` starts it.
    """

    name: str
    lhs: tuple[Var, ...]
    rhs: tuple[Var, ...]
    results: tuple[Expr, ...]
    identity: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reduce(Expr, metaclass=Interned):
    """Output `index` of a reduction of `sources` over `axes`; only at the top of a compute body.

    Iterations whose `condition` is false contribute nothing.
    """

    CHILDREN = ("sources", "condition")
    combiner: Combiner
    sources: tuple[Expr, ...]
    axes: tuple[IterVar, ...]
    condition: Expr
    index: int

    @property
    def dtype(self) -> DType:
        return self.sources[self.index].dtype


@dataclass(frozen=True, slots=True, eq=False)
class PlaceholderOp:
    """An input of the computation."""

    name: str
    shape: tuple[Expr, ...]
    dtype: DType

    @property
    def num_outputs(self) -> int:
        return 1

    def output(self, index: int) -> Tensor:
        return Tensor(self, index, self.shape, self.dtype)

    @property
    def inputs(self) -> list[Tensor]:
        return []


@dataclass(frozen=True, slots=True, eq=False)
class ComputeOp:
    """Outputs defined elementwise: `out[axis] = body`, all outputs over the same axes.

    `tag` names the computation for default schedules (such as "matmul"); `attrs` holds what such
    a schedule needs to know. `span` holds the ONNX nodes.
    """

    name: str
    axis: tuple[IterVar, ...]
    body: tuple[Expr, ...]
    tag: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    span: Span = NO_SPAN

    @property
    def num_outputs(self) -> int:
        return len(self.body)

    @property
    def reduce_axis(self) -> tuple[IterVar, ...]:
        first = self.body[0]
        return first.axes if isinstance(first, Reduce) else ()

    @property
    def shape(self) -> tuple[Expr, ...]:
        return tuple(axis.extent for axis in self.axis)

    def output(self, index: int) -> Tensor:
        return Tensor(self, index, self.shape, self.body[index].dtype)

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors that the body reads, each once, in order of appearance."""
        loads = (n.source for n in postorder(self.body) if isinstance(n, Load))
        return list(dict.fromkeys(loads))


@dataclass(frozen=True, slots=True, eq=False)
class ScanOp:
    """A recurrence over axis 0: `state[0:k] = init`, then `state[t] = update` for t >= k.

    `state` are the placeholders that `update` reads at earlier times; they are no inputs of the
    computation. `body` are the operations to repeat at each time: those that depend on a state.
    """

    name: str
    axis: IterVar
    init: tuple[Tensor, ...]
    update: tuple[Tensor, ...]
    state: tuple[Tensor, ...]
    scan_inputs: tuple[Tensor, ...] = ()
    body: tuple[ComputeOp, ...] = ()

    @property
    def num_outputs(self) -> int:
        return len(self.state)

    @property
    def scan_axis(self) -> IterVar:
        """The axis of time (TVM's name for `axis`)."""
        return self.axis

    def output(self, index: int) -> Tensor:
        return Tensor(self, index, self.state[index].shape, self.state[index].dtype)

    @property
    def inputs(self) -> list[Tensor]:
        return list(dict.fromkeys([*self.init, *self.update]))


@dataclass(frozen=True, slots=True, eq=False)
class ExternOp:
    """Outputs filled by statements of the loop IR: `make(in_buffers, out_buffers) -> Stmt`."""

    name: str
    inputs: list[Tensor]
    out_shapes: tuple[tuple[Expr, ...], ...]
    out_dtypes: tuple[DType, ...]
    make: Callable[[list[Any], list[Any]], Any]
    tag: str = "extern"
    attrs: Mapping[str, Any] = field(default_factory=dict)
    span: Span = NO_SPAN

    @property
    def num_outputs(self) -> int:
        return len(self.out_shapes)

    def output(self, index: int) -> Tensor:
        return Tensor(self, index, self.out_shapes[index], self.out_dtypes[index])


Operation = PlaceholderOp | ComputeOp | ScanOp | ExternOp


@dataclass(frozen=True, slots=True, repr=False)
class Tensor:
    """Output `index` of an operation. Equal if it is the same output of the same operation.

    `A[i, j]` and `A(i, j)` read an element inside a compute body.
    """

    op: Operation
    index: int
    shape: tuple[Expr, ...]
    dtype: DType

    @property
    def name(self) -> str:
        return self.op.name if self.op.num_outputs == 1 else f"{self.op.name}.v{self.index}"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, indices: Any) -> Any:
        indices = indices if isinstance(indices, tuple) else (indices,)
        if len(indices) < len(self.shape):
            return TensorSlice(self, tuple(as_expr(i) for i in indices))
        return self(*indices)

    def __call__(self, *indices: ExprLike | IterVar) -> Expr:
        if len(indices) != len(self.shape):
            raise TypeError(
                f"tensor {self.name} has {len(self.shape)} dimensions, but was read with "
                f"{len(indices)} indices"
            )
        return Load(self, tuple(as_expr(i) for i in indices), None)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"Tensor({self.name}: {self.dtype}[{', '.join(map(str, self.shape))}])"


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """`A[i]` of a tensor of higher rank, to be indexed further: `A[i][j]`."""

    tensor: Tensor
    indices: tuple[Expr, ...]

    def __getitem__(self, indices: Any) -> Any:
        more = indices if isinstance(indices, tuple) else (indices,)
        return self.tensor[(*self.indices, *more)]

    def __expr__(self) -> Expr:
        return self.tensor(*self.indices)


def placeholder(
    shape: Sequence[ExprLike], dtype: str | DType = DType.FLOAT32, name: str = "placeholder"
) -> Tensor:
    """An input tensor of the given shape (ints or expressions) and dtype.

    >>> from tinycomp import te
    >>> te.placeholder((4, 8), "int8", name="A")
    Tensor(A: int8[4, 8])
    """
    return PlaceholderOp(name, tuple(as_extent(d, name) for d in shape), DType(dtype)).output(0)


def compute(
    shape: Sequence[ExprLike],
    fcompute: Callable[..., Any],
    name: str = "compute",
    tag: str = "",
    attrs: Mapping[str, Any] | None = None,
    span: Span = NO_SPAN,
) -> Any:
    """The tensor whose element at `i, j, ...` is `fcompute(i, j, ...)`.

    Axes are named after the parameters of `fcompute`; with `*args` they are i0, i1, ... A tuple
    result gives a list of tensors over the same axes. A reduction must be the whole body.

    Raises:
        TypeError: the number of parameters differs from the rank, or a reduction is inside a
            larger expression; split it into two computes.

    >>> from tinycomp import te
    >>> A = te.placeholder((4, 8), name="A")
    >>> te.compute((8, 4), lambda i, j: A[j, i] + 1.0, name="B")
    Tensor(B: float32[8, 4])
    """
    parameters = inspect.signature(fcompute).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        names = [f"i{d}" for d in range(len(shape))]
    else:
        names = [p.name for p in parameters]
        if len(names) != len(shape):
            raise TypeError(
                f"compute {name}: the shape has {len(shape)} dimensions, the function takes "
                f"{len(names)}"
            )
    axis = tuple(
        IterVar(Var(n), const(0), as_extent(d, name)) for n, d in zip(names, shape, strict=True)
    )
    result = fcompute(*(a.var for a in axis))
    body = tuple(as_expr(e) for e in (result if isinstance(result, tuple | list) else (result,)))
    _check_reductions(name, body)
    outer_tag, outer_attrs = _TAG.get()
    op = ComputeOp(name, axis, body, tag or outer_tag, {**outer_attrs, **(attrs or {})}, span)
    outputs = [op.output(i) for i in range(len(body))]
    return outputs if isinstance(result, tuple | list) else outputs[0]


def _check_reductions(name: str, body: tuple[Expr, ...]) -> None:
    for expr in body:
        if any(isinstance(n, Reduce) and n is not expr for n in postorder(expr)):
            raise TypeError(
                f"compute {name}: a reduction must be the whole body; compute the reduction as one "
                f"tensor, then use that tensor in a second compute:\n"
                f"  total = te.compute(shape, lambda ...: te.sum(...))\n"
                f"  {name} = te.compute(shape, lambda ...: total[...] + ...)"
            )
    first = body[0]
    if not any(isinstance(e, Reduce) for e in body):
        return
    if not isinstance(first, Reduce) or any(
        not isinstance(e, Reduce)
        or (e.combiner, e.sources, e.axes, e.condition, e.index)
        != (first.combiner, first.sources, first.axes, first.condition, i)
        for i, e in enumerate(body)
    ) or len(body) != len(first.sources):  # fmt: skip
        raise TypeError(
            f"compute {name}: several outputs with a reduction must be the results of one "
            "comm_reducer, all of them and in order"
        )


_TAG: ContextVar[tuple[str, Mapping[str, Any]]] = ContextVar("tag", default=("", {}))


@contextmanager
def tag_scope(tag: str, attrs: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Gives `tag` (and `attrs`) to every compute made inside that names no tag of its own.

    >>> with tag_scope("elemwise"):
    ...     B = compute((4,), lambda i: i, name="B")
    >>> B.op.tag
    'elemwise'
    """
    token = _TAG.set((tag, dict(attrs or {})))
    try:
        yield
    finally:
        _TAG.reset(token)


def extern(
    shape: Sequence[Any],
    inputs: Sequence[Tensor],
    fcompute: Callable[[list[Any], list[Any]], Any],
    name: str = "extern",
    dtype: str | DType | Sequence[str | DType] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Tensors filled by hand-written loop IR: `fcompute(in_buffers, out_buffers)` returns a Stmt.

    >>> from tinycomp.ir.expr import Load
    >>> from tinycomp.tir.nodes import For, Store
    >>> A, i = placeholder((8,), name="A"), var("i")
    >>> def reverse(ins, outs):
    ...     value = Load(ins[0], (7 - i,), None)
    ...     return For(i, const(0), const(8), Store(outs[0], (i,), value))
    >>> extern((8,), [A], reverse, name="reverse")
    Tensor(reverse: float32[8])

    Args:
        shape: of the output, or a list of the shapes of several.
        dtype: of the output, or one for each; by default that of the inputs.

    Returns:
        The output, or a list if `shape` is a list of shapes.

    Raises:
        TypeError: no dtype is given and the inputs do not have one in common, or the number of
            dtypes is not that of the shapes.
    """
    several = bool(shape) and all(isinstance(d, Sequence) for d in shape)
    shapes = [tuple(as_extent(d, name) for d in one) for one in (shape if several else [shape])]
    if dtype is None:
        common = {t.dtype for t in inputs}
        if len(common) != 1:
            raise TypeError(f"extern {name}: give dtype=, the inputs do not have one in common")
        dtypes = list(common) * len(shapes)
    else:
        dtypes = [DType(d) for d in ([dtype] if isinstance(dtype, str) else dtype)]
    if len(dtypes) != len(shapes):
        raise TypeError(f"extern {name}: {len(shapes)} outputs, but {len(dtypes)} dtypes")
    op = ExternOp(
        name, list(inputs), tuple(shapes), tuple(dtypes), fcompute, "extern", dict(attrs or {})
    )
    outputs = [op.output(i) for i in range(len(shapes))]
    return outputs if several else outputs[0]


def scan(
    init: Tensor | Sequence[Tensor],
    update: Tensor | Sequence[Tensor],
    state: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor] = (),
    name: str = "scan",
) -> Any:
    """The recurrence whose first rows are `init` and later rows `update`, which reads `state`.

    Axis 0 of every state, update, and stage between them is time. A stage may read the states at
    earlier times, and stages between at its own time.

    >>> X, state = placeholder((9, 4), name="X"), placeholder((9, 4), name="state")
    >>> init = compute((1, 4), lambda t, i: X[0, i], name="init")
    >>> update = compute((9, 4), lambda t, i: state[t - 1, i] + X[t, i], name="update")
    >>> scan(init, update, state, [X], name="cumulative")
    Tensor(cumulative: float32[9, 4])

    Args:
        init: the first rows, [k, ...]; for several states a list of one each, as for the others.
        update: the next row at each time, [T, ...].
        state: placeholders that stand for the result, [T, ...].
        inputs: other tensors that are read; for the reader only.

    Raises:
        TypeError: shapes or dtypes of the three differ, or a stage reads a state at a time that
            is not proven to be earlier.
    """
    as_tuple = lambda t: (t,) if isinstance(t, Tensor) else tuple(t)  # noqa: E731
    first, step, states = as_tuple(init), as_tuple(update), as_tuple(state)
    from .recurrence import scan_body  # needs the simplifier, which is above this module

    body = scan_body(name, first, step, states)
    start = first[0].shape[0]
    axis = IterVar(Var(f"{name}.t"), start, states[0].shape[0] - start, IterKind.ORDERED)
    op = ScanOp(name, axis, first, step, states, tuple(inputs), body)
    outputs = [op.output(i) for i in range(len(states))]
    return outputs[0] if isinstance(init, Tensor) else outputs


def var(name: str, dtype: str | DType = DType.INT64) -> Var:
    """A symbolic scalar, for instance a dimension.

    >>> from tinycomp import te
    >>> n = te.var("n")
    >>> te.placeholder((n, 4), name="A").shape
    (n, 4)
    """
    return Var(name, DType(dtype))


def size_var(name: str, dtype: str | DType = DType.INT64) -> Var:
    """A symbolic dimension; TVM's name for a `var` that is not negative.

    >>> from tinycomp import te
    >>> te.placeholder((te.size_var("n"), 4), name="A")
    Tensor(A: float32[n, 4])
    """
    return var(name, dtype)


class ThreadAxis(str):
    """A GPU thread axis: its tag, such as "threadIdx.x", and its extent if given."""

    extent: Expr | None = None

    @property
    def var(self) -> Var:
        """Stands for the loop that is bound to this axis, in conditions of a schedule."""
        return Var(str(self))


def thread_axis(dom: str | tuple[ExprLike, ExprLike] | ExprLike | None = None,
                tag: str = "", name: str = "") -> ThreadAxis:  # fmt: skip
    """A thread axis to bind a loop to: `thread_axis("threadIdx.x")` or `thread_axis((0, 64), tag)`.

    The string itself, "threadIdx.x", does as well.

    >>> from tinycomp import te
    >>> te.thread_axis("threadIdx.x")
    'threadIdx.x'
    """
    if isinstance(dom, str):
        dom, tag = None, dom
    axis = ThreadAxis(tag)
    if dom is not None:
        low, high = dom if isinstance(dom, tuple) else (0, dom)
        axis.extent = as_expr(high) - as_expr(low)
    return axis


def reduce_axis(dom: tuple[ExprLike, ExprLike], name: str = "k") -> IterVar:
    """An axis over [dom[0], dom[1]) to reduce over.

    >>> from tinycomp import te
    >>> A = te.placeholder((4, 8), name="A")
    >>> k = te.reduce_axis((0, 8), name="k")
    >>> te.compute((4,), lambda i: te.sum(A[i, k], axis=k), name="B")
    Tensor(B: float32[4])
    """
    low, high = (as_extent(d, name) for d in dom)
    return IterVar(Var(name), low, high - low, IterKind.REDUCE)


def topological(outputs: Sequence[Tensor]) -> list[Operation]:
    """All operations that the outputs need, producers first, each once. Iterative.

    >>> from tinycomp import te
    >>> A = te.placeholder((4, 8), name="A")
    >>> B = te.compute((4, 8), lambda i, j: A[i, j] + 1.0, name="B")
    >>> [op.name for op in te.topological([B])]
    ['A', 'B']
    """
    order: list[Operation] = []
    seen: set[int] = set()
    stack: list[tuple[Operation, bool]] = [(t.op, False) for t in reversed(outputs)]
    while stack:
        op, ready = stack.pop()
        if ready:
            order.append(op)
        elif id(op) not in seen:
            seen.add(id(op))
            stack.append((op, True))
            stack.extend((t.op, False) for t in reversed(op.inputs) if id(t.op) not in seen)
    return order


def inputs_of(outputs: Sequence[Tensor]) -> list[Tensor]:
    """The placeholders that the outputs depend on, in order of appearance, without scan states.

    >>> from tinycomp import te
    >>> A = te.placeholder((4, 8), name="A")
    >>> B = te.compute((4, 8), lambda i, j: A[i, j] + 1.0, name="B")
    >>> te.inputs_of([B])
    [Tensor(A: float32[4, 8])]
    """
    operations = topological(outputs)
    states = {t.op for op in operations if isinstance(op, ScanOp) for t in op.state}
    return [op.output(0) for op in operations if isinstance(op, PlaceholderOp) and op not in states]


def tensor_of(load: Load) -> Tensor:
    """The tensor that a load reads, before lowering."""
    return load.source


def is_reduction(op: Operation) -> bool:
    return isinstance(op, ComputeOp) and isinstance(op.body[0], Reduce)
