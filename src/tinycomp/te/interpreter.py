"""The NumPy meaning of tensor expressions: the reference that compiled kernels are tested against.

>>> from tinycomp.te.tensor import compute, placeholder, reduce_axis
>>> from tinycomp.te.reducers import sum
>>> A, k = placeholder((2, 3), name="A"), reduce_axis((0, 3), name="k")
>>> B = compute((2,), lambda i: sum(A[i, k], axis=k), name="B")
>>> evaluate([B], {A: np.arange(6, dtype="float32").reshape(2, 3)})[0].tolist()
[3.0, 12.0]

Each element's expression is evaluated for all elements at once: an axis is an index array, shaped
to broadcast against the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..diagnostics import InputError, VerifyError
from ..dtype import DType
from ..ir.expr import (
    TRUE,
    Binary,
    Broadcast,
    Call,
    Cast,
    Expr,
    FloatImm,
    IntImm,
    Load,
    Ramp,
    Select,
    Var,
    const,
)
from ..ir.node import fold
from .evaluate_expr import BINARY, INTRINSIC, cast
from .tensor import ComputeOp, ExternOp, PlaceholderOp, Reduce, ScanOp, Tensor, topological

RunExtern = Callable[[ExternOp, list[np.ndarray], list[np.ndarray]], None]
_CHUNK = 1 << 22  # largest number of grid points evaluated at once


def evaluate(
    outputs: Sequence[Tensor],
    feeds: Mapping[Tensor, np.ndarray],
    run_extern: RunExtern | None = None,
) -> list[np.ndarray]:
    """The values of `outputs`, given the placeholders' values.

    Args:
        outputs: tensors of any operations.
        feeds: an array of the exact shape and dtype for every placeholder needed; symbolic
            dimensions take their values from these shapes.
        run_extern: `run_extern(op, inputs, outputs)` fills the outputs of an ExternOp.

    Raises:
        InputError: a placeholder has no array, or one of another shape or dtype.
        VerifyError: an element is read outside its tensor.
        ExecutionError: a checked index is out of range.
    """
    sizes: dict[Var, int] = {}
    for tensor, array in feeds.items():
        _bind_shape(tensor, array, sizes)
    machine = _Machine(dict(feeds), sizes, run_extern)
    with np.errstate(all="ignore"):
        machine.run(outputs)
    return [machine.values[t] for t in outputs]


def _bind_shape(tensor: Tensor, array: np.ndarray, sizes: dict[Var, int]) -> None:
    if array.ndim != tensor.ndim or DType.of(array.dtype) is not tensor.dtype:
        raise InputError(
            f"{tensor.name} is {tensor.dtype} of rank {tensor.ndim}, "
            f"but was fed {array.dtype} of shape {array.shape}"
        )
    for dim, n in zip(tensor.shape, array.shape, strict=True):
        expected = sizes.setdefault(dim, n) if isinstance(dim, Var) else None
        if isinstance(dim, IntImm):
            expected = dim.value
        if expected is not None and expected != n:
            raise InputError(f"{tensor} was fed an array of shape {array.shape}")


class _Machine:
    """Values of the tensors computed so far, and of the symbolic dimensions."""

    def __init__(
        self, values: dict[Tensor, np.ndarray], sizes: dict[Var, int], run_extern: RunExtern | None
    ) -> None:
        self.values, self.sizes, self.run_extern = values, sizes, run_extern

    def run(self, outputs: Sequence[Tensor]) -> None:
        scans = [op for op in topological(outputs) if isinstance(op, ScanOp)]
        inside = {o for scan in scans for o in (*scan.body, *(s.op for s in scan.state))}
        for op in topological(outputs):
            if op in inside:
                continue
            match op:
                case PlaceholderOp():
                    if op.output(0) not in self.values:
                        raise InputError(f"no array was fed for the placeholder {op.name}")
                case ComputeOp():
                    self.compute(op)
                case ScanOp():
                    self.scan(op)
                case ExternOp():
                    self.extern(op)

    def size(self, expr: Expr) -> int:
        return int(evaluate_expr([expr], self.sizes, self.values)[0])

    def shape(self, shape: Sequence[Expr]) -> tuple[int, ...]:
        return tuple(self.size(d) for d in shape)

    def compute(self, op: ComputeOp) -> None:
        low, extent = self._domain(op)
        for i, result in enumerate(self._points(op, low, extent)):
            self.values[op.output(i)] = result

    def _domain(self, op: ComputeOp) -> tuple[list[int], list[int]]:
        axes = (*op.axis, *op.reduce_axis)
        return [self.size(a.min) for a in axes], [self.size(a.extent) for a in axes]

    def _points(self, op: ComputeOp, low: list[int], extent: list[int]) -> list[np.ndarray]:
        """The values of a compute over part of its domain."""
        axes = (*op.axis, *op.reduce_axis)
        spatial = extent[: len(op.axis)]
        results = [np.empty(spatial, expr.dtype.numpy) for expr in op.body]
        step, rows = self._chunk(op, extent)
        for start in range(0, rows, step):
            count = list(extent)
            first = list(low)
            part: Any = ()
            if op.axis:
                count[0], first[0] = min(step, rows - start), low[0] + start
                part = slice(start, start + count[0])
            env: dict[Var, Any] = dict(self.sizes)
            for d, axis in enumerate(axes):
                index = np.arange(first[d], first[d] + count[d], dtype=axis.var.dtype.numpy)
                env[axis.var] = index.reshape([-1 if e == d else 1 for e in range(len(axes))])
            for result, value in zip(results, self._body(op, env, count), strict=True):
                result[part] = value
        return results

    @staticmethod
    def _chunk(op: ComputeOp, extent: list[int]) -> tuple[int, int]:
        """(rows of axis 0 evaluated at once, rows in all)."""
        if not op.axis:
            return 1, 1
        return max(1, _CHUNK // max(1, math.prod(extent[1:]))), extent[0]

    def _body(self, op: ComputeOp, env: dict[Var, Any], count: list[int]) -> list[np.ndarray]:
        if 0 in count:  # nothing is read, also where an index does not depend on any axis
            node = op.body[0]
            zeros = [const(0, e.dtype) for e in op.body]
            values = node.combiner.identity if isinstance(node, Reduce) else zeros
            shape = count[: len(op.axis)]
            return [np.broadcast_to(v, shape) for v in evaluate_expr(values, {}, {})]
        if op.reduce_axis:
            return self._reduce(op, env, count)
        values = evaluate_expr(op.body, env, self.values)
        return [np.broadcast_to(v, count) for v in values]

    def _reduce(self, op: ComputeOp, env: dict[Var, Any], count: list[int]) -> list[np.ndarray]:
        node = op.body[0]
        assert isinstance(node, Reduce)
        combiner, rank = node.combiner, len(op.axis)
        *sources, condition = evaluate_expr(
            [*node.sources, node.condition], env, self.values, node.condition is not TRUE
        )
        identity = evaluate_expr(combiner.identity, {}, {})
        grids = [
            np.broadcast_to(np.where(condition, s, np.asarray(i, expr.dtype.numpy)), count)
            for s, i, expr in zip(sources, identity, node.sources, strict=True)
        ]
        axes = tuple(range(rank, len(count)))
        fast = _FAST_REDUCE.get(combiner.name) if len(grids) == 1 else None
        if fast is not None:
            return [fast(grids[0], axes, identity[0])]
        flat = [g.reshape(*count[:rank], -1) for g in grids]
        state = [
            np.full(count[:rank], i, expr.dtype.numpy)
            for i, expr in zip(identity, node.sources, strict=True)
        ]
        for k in range(flat[0].shape[-1]):
            names: dict[Var, Any] = dict(zip(combiner.lhs, state, strict=True))
            names.update(zip(combiner.rhs, (f[..., k] for f in flat), strict=True))
            state = evaluate_expr(combiner.results, names, {})
        return [state[expr.index] for expr in op.body if isinstance(expr, Reduce)]

    def scan(self, op: ScanOp) -> None:
        start, count = self.size(op.axis.min), self.size(op.axis.extent)
        for state, init in zip(op.state, op.init, strict=True):
            array = np.zeros(self.shape(state.shape), state.dtype.numpy)
            array[:start] = self.values[init]
            self.values[state] = array
        for step in op.body:
            for i in range(step.num_outputs):
                shape = self.shape(step.shape)
                self.values[step.output(i)] = np.zeros(shape, step.body[i].dtype.numpy)
        for t in range(start, start + count):
            for step in op.body:
                low, extent = self._domain(step)
                rows = self._points(step, [t, *low[1:]], [1, *extent[1:]])
                for i, row in enumerate(rows):
                    self.values[step.output(i)][t] = row[0]
            for state, update in zip(op.state, op.update, strict=True):
                self.values[state][t] = self.values[update][t]
        for i, state in enumerate(op.state):
            self.values[op.output(i)] = self.values[state]

    def extern(self, op: ExternOp) -> None:
        if self.run_extern is None:
            raise InputError(f"{op.name} is an extern operation; pass run_extern to evaluate it")
        arrays = [
            np.zeros(self.shape(shape), dtype.numpy)
            for shape, dtype in zip(op.out_shapes, op.out_dtypes, strict=True)
        ]
        self.run_extern(op, [self.values[t] for t in op.inputs], arrays)
        for i, array in enumerate(arrays):
            self.values[op.output(i)] = array


def _sum(grid: np.ndarray, axes: tuple[int, ...], identity: Any) -> np.ndarray:
    wide = np.float64 if DType.of(grid.dtype).is_float else grid.dtype
    return grid.sum(axis=axes, dtype=wide).astype(grid.dtype)


def _prod(grid: np.ndarray, axes: tuple[int, ...], identity: Any) -> np.ndarray:
    wide = np.float64 if DType.of(grid.dtype).is_float else grid.dtype
    return grid.prod(axis=axes, dtype=wide).astype(grid.dtype)


def _by(function: np.ufunc) -> Callable[[np.ndarray, tuple[int, ...], Any], np.ndarray]:
    return lambda grid, axes, identity: function.reduce(grid, axis=axes, initial=identity)


_FAST_REDUCE: Mapping[str, Callable[[np.ndarray, tuple[int, ...], Any], np.ndarray]] = {
    "sum": _sum,
    "prod": _prod,
    "min": _by(np.minimum),
    "max": _by(np.maximum),
    "all": lambda grid, axes, identity: np.bitwise_and.reduce(grid, axis=axes),
    "any": lambda grid, axes, identity: np.bitwise_or.reduce(grid, axis=axes),
}


def evaluate_expr(
    roots: Sequence[Expr],
    env: Mapping[Var, Any],
    tensors: Mapping[Tensor, np.ndarray],
    roots_guarded: bool = False,
) -> list[Any]:
    """Values of expressions over index arrays.

    A load that is only reached through a side of an `if_then_else` (or any of `roots` but the
    last, with `roots_guarded`) may be out of bounds where it is not used: its
    indices are clipped. Others raise VerifyError.
    """
    certain = _always_evaluated(roots[-1:] if roots_guarded else roots)

    def step(node: Any, args: list[Any]) -> Any:
        match node:
            case Var():
                if node not in env:
                    raise VerifyError(f"variable {node.name} is not bound by any axis")
                return env[node]
            case IntImm() | FloatImm():
                return node.dtype.numpy.type(node.value)
            case Binary():
                return BINARY[node.op](*args)
            case Cast():
                return cast(args[0], node.to)
            case Select():
                return np.where(*args)
            case Call(name="checked_index") if node not in certain:
                wrapped = np.where(args[0] < 0, args[0] + args[1], args[0])
                return np.clip(wrapped, 0, np.maximum(args[1] - 1, 0))
            case Call():
                return INTRINSIC[node.name](*args)
            case Load():
                return _gather(node, args[: len(node.indices)], tensors, node in certain)
            case Ramp() | Broadcast() | _:
                raise VerifyError(f"{node} cannot appear inside a tensor expression")

    memo: dict[Any, Any] = {}
    return [fold(root, step, memo) for root in roots]


def _always_evaluated(roots: Sequence[Expr]) -> set[Any]:
    """The nodes reached without passing into a side of an if_then_else."""
    seen: set[Any] = set()
    stack: list[Any] = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            guard = isinstance(node, Call) and node.name == "if_then_else"
            stack.extend(node.args[:1] if guard else node.children())
    return seen


def _gather(
    load: Load, indices: list[Any], tensors: Mapping[Tensor, np.ndarray], certain: bool
) -> Any:
    array = tensors[load.source]
    for d, n in enumerate(array.shape):
        if certain and np.size(indices[d]) and (np.min(indices[d]) < 0 or np.max(indices[d]) >= n):
            raise VerifyError(
                f"{load.source.name}{list(load.indices)} reads outside dimension {d}: indices "
                f"{np.min(indices[d])}..{np.max(indices[d])}, extent {n}"
            )
        if not certain:
            indices[d] = np.clip(indices[d], 0, max(n - 1, 0))
    if array.size == 0:
        return np.zeros(np.broadcast_shapes(*(np.shape(i) for i in indices)), array.dtype)
    return array[tuple(indices)]
