"""Tensor intrinsics: what a hardware instruction computes, and the statement that calls it.

>>> from tinycomp.te.reducers import sum
>>> from tinycomp.te.tensor import compute, placeholder, reduce_axis
>>> a, b, k = placeholder((4,), name="a"), placeholder((4,), name="b"), reduce_axis((0, 4))
>>> dot = compute((), lambda: sum(a[k] * b[k], axis=k), name="dot")
>>> decl_tensor_intrin(dot, lambda ins, outs: None, name="dot4").name
'dot4'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.expr import Expr, ExprLike, Load, Ramp, as_expr, const
from .tensor import ComputeOp, Operation, PlaceholderOp, Tensor


@dataclass(frozen=True, eq=False)
class TensorIntrin:
    """A computation on small tensors and the statements that perform it.

    Attributes:
        name: by which steps and traces name it.
        op: the computation, of placeholders.
        fcompute: called with the operands as `BufferView`s, inputs and outputs, it returns the
            statement; for a reduction also `(body, reset, update)`: computing from scratch,
            setting the outputs to the identity, and accumulating into them (None where missing).
    """

    name: str
    op: ComputeOp
    fcompute: Callable[[list[BufferView], list[BufferView]], Any]


@dataclass(frozen=True)
class BufferView:
    """The part of a buffer that an operand of an intrinsic means, as a small tensor.

    Attributes:
        buffer: the buffer.
        base: where the part starts, one index per dimension of the buffer.
        shape: of the part, over the last dimensions of the buffer.
        store: makes a store statement; the layer of statements provides it.
    """

    buffer: Any
    base: tuple[Expr, ...]
    shape: tuple[Expr, ...]
    make_store: Callable[[Any, tuple[Expr, ...], Expr], Any]

    def indices(self, indices: Sequence[ExprLike]) -> tuple[Expr, ...]:
        """The indices of the buffer for indices of the part."""
        if len(indices) != len(self.shape):
            raise TypeError(f"{self.buffer.name} is seen with {len(self.shape)} dimensions")
        skipped = len(self.base) - len(indices)
        inner = [b + as_expr(i) for b, i in zip(self.base[skipped:], indices, strict=True)]
        return (*self.base[:skipped], *inner)

    def __getitem__(self, indices: Any) -> Expr:
        return Load(self.buffer, self.indices(_listed(indices)), None)

    def store(self, value: Expr, *indices: ExprLike) -> Any:
        """The statement that stores a scalar at these indices."""
        return self.make_store(self.buffer, self.indices(indices), value)

    def vload(self, indices: Sequence[ExprLike], lanes: int) -> Expr:
        """The vector of `lanes` elements along the last dimension from these indices on."""
        return Load(self.buffer, self._ramp(indices, lanes), None)

    def vstore(self, value: Expr, indices: Sequence[ExprLike]) -> Any:
        """The statement that stores a vector along the last dimension."""
        return self.make_store(self.buffer, self._ramp(indices, value.lanes), value)

    def _ramp(self, indices: Sequence[ExprLike], lanes: int) -> tuple[Expr, ...]:
        *outer, last = self.indices(indices)
        return (*outer, Ramp(last, const(1), lanes))


def _listed(indices: Any) -> Sequence[Any]:
    return indices if isinstance(indices, tuple | list) else (indices,)


def decl_tensor_intrin(
    op: Operation | Tensor,
    fcompute: Callable[[list[BufferView], list[BufferView]], Any],
    name: str = "",
) -> TensorIntrin:
    """Declare an intrinsic for `Stage.tensorize`.

    Args:
        op: a compute of placeholders with known shapes; its operands, in the order in which the
            body reads them, are what `fcompute` gets.
        fcompute: returns a statement of the loop IR, or (body, reset, update) of them.
        name: in traces; by default the operation's.

    Raises:
        TypeError: `op` is not a compute of placeholders.

    >>> from tinycomp import te
    >>> a = te.placeholder((8,), name="a")
    >>> twice = te.compute((8,), lambda i: a[i] * 2.0, name="twice")
    >>> double = lambda ins, outs: outs[0].vstore(ins[0].vload([0], 8) * 2.0, [0])
    >>> te.decl_tensor_intrin(twice, double).name
    'twice'
    """
    operation = op.op if isinstance(op, Tensor) else op
    if not isinstance(operation, ComputeOp) or not all(
        isinstance(t.op, PlaceholderOp) for t in operation.inputs
    ):
        raise TypeError(f"intrinsic {name or operation.name}: give a compute of placeholders")
    return TensorIntrin(name or operation.name, operation, fcompute)
