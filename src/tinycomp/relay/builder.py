"""Building graph IR: every binding is typed and located when it is made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..diagnostics import NO_SPAN, InternalError, Span, TypeMismatch
from ..dtype import DType
from ..types import TensorType, TupleType, Type
from .nodes import (
    Atom,
    Binding,
    Call,
    Constant,
    Function,
    If,
    Tuple,
    TupleGetItem,
    Value,
    Var,
    While,
)
from .op import Attrs, Op, OpSet


class Builder:
    """Emits bindings into a function under construction.

    With `fold`, an operator whose arguments are all constant is evaluated at once by its NumPy
    reference, up to `fold_limit` result elements; so shape arithmetic never reaches the graph.

    >>> from tinycomp.ops import default_ops
    >>> b = Builder(default_ops())
    >>> x = b.param("x", (1, 3), "float32")
    >>> str(b.finish(b.call("nn.relu", x)).ret_type)
    'float32[1, 3]'
    """

    def __init__(self, ops: OpSet, *, fold: bool = True, fold_limit: int = 1 << 16) -> None:
        self.ops, self.fold, self.fold_limit = ops, fold, fold_limit
        self.params: list[Var] = []
        self.bindings: list[Binding] = []
        self.span = NO_SPAN

    @contextlib.contextmanager
    def at(self, span: Span) -> Iterator[None]:
        """Bindings made inside come from `span`."""
        outer, self.span = self.span, span
        try:
            yield
        finally:
            self.span = outer

    def param(
        self, name: str, shape: Sequence[Any] | Type, dtype: str | DType = DType.FLOAT32
    ) -> Var:
        """A new parameter of a shape and dtype, or of a ready type."""
        from ..types import tensor_type

        type_ = shape if isinstance(shape, TensorType | TupleType) else tensor_type(shape, dtype)
        var = Var(name, type_)
        self.params.append(var)
        return var

    def const(self, value: Any, dtype: str | DType | None = None) -> Constant:
        """A constant from anything NumPy takes; without `dtype`, float64 becomes float32."""
        array = np.asarray(value, dtype=None if dtype is None else DType(dtype).numpy)
        if dtype is None and not isinstance(value, np.ndarray) and array.dtype == np.float64:
            array = array.astype(np.float32)
        return Constant(array, self.span)

    def call(self, op: str | Op, *args: Atom, attrs: Attrs | None = None, **kwargs: Any) -> Atom:
        """The result of an operator; attributes as keywords, or ready-made in `attrs`.

        Raises:
            TypeMismatch: the operator does not accept these types.
        """
        op = self.ops[op] if isinstance(op, str) else op
        attrs = op.attrs_type(**kwargs) if attrs is None else attrs
        try:
            type_ = op.infer(attrs, [a.type for a in args])
            _check_dims(op, type_)
        except TypeMismatch as error:
            error.span = error.span | self.span
            raise
        if self.fold and args and all(isinstance(a, Constant) for a in args):
            folded = self._evaluate(op, attrs, args, type_)
            if folded is not None:
                return folded
        return self.bind(Call(op, args, attrs), type_)

    def _evaluate(self, op: Op, attrs: Attrs, args: Sequence[Any], type_: Type) -> Constant | None:
        if not isinstance(type_, TensorType) or not type_.is_static or type_.size > self.fold_limit:
            return None
        with np.errstate(all="ignore"):
            array = np.asarray(op.reference(attrs, [a.data for a in args]))
        if array.shape != type_.shape or DType.of(array.dtype) is not type_.dtype:
            raise InternalError(
                f"{op.name}: the reference gave {array.dtype}{array.shape}, its type says {type_}"
            )
        return Constant(array, self.span)

    def bind(self, value: Value, type_: Type, name: str = "") -> Var:
        """A new binding of a value whose type is known."""
        var = Var(name or str(len(self.bindings)), type_, self.span)
        self.bindings.append(Binding(var, value, self.span))
        return var

    def tuple(self, fields: Sequence[Atom]) -> Var:
        return self.bind(Tuple(tuple(fields)), TupleType(tuple(f.type for f in fields)))

    def get(self, value: Atom, index: int) -> Var:
        """Field `index` of a tuple."""
        assert isinstance(value.type, TupleType)
        return self.bind(TupleGetItem(value, index), value.type.fields[index])

    def call_many(self, op: str | Op, *args: Atom, **kwargs: Any) -> list[Atom]:
        """Like `call`, for an operator of several results: its fields."""
        result = self.call(op, *args, **kwargs)
        assert isinstance(result.type, TupleType)
        return [self.get(result, i) for i in range(len(result.type.fields))]

    def if_(
        self, condition: Atom, then: Function, otherwise: Function, operands: Sequence[Atom]
    ) -> Var:
        """A branch; both functions take `operands` and return one type."""
        if then.ret_type != otherwise.ret_type:
            raise TypeMismatch(
                f"If: the branches return {then.ret_type} and {otherwise.ret_type}", span=self.span
            )
        return self.bind(If(condition, then, otherwise, tuple(operands)), then.ret_type)

    def while_(
        self,
        condition: Function,
        body: Function,
        init: Sequence[Atom],
        captured: Sequence[Atom] = (),
    ) -> Var:
        """A loop over a state; see `relay.nodes.While`."""
        type_ = TupleType(tuple(i.type for i in init))
        if body.ret_type != type_:
            raise TypeMismatch(
                f"While: the state is {type_}, the body returns {body.ret_type}", span=self.span
            )
        return self.bind(While(condition, body, tuple(init), tuple(captured)), type_)

    def finish(
        self, result: Atom | Sequence[Atom], attrs: Mapping[str, Any] | None = None
    ) -> Function:
        """The function; several results are returned as a tuple."""
        if not isinstance(result, Var | Constant):
            result = self.tuple(result)
        return Function(tuple(self.params), tuple(self.bindings), result, dict(attrs or {}))


def _check_dims(op: Op, type_: Type) -> None:
    """Refuse a result of negative size, whatever attributes led to it."""
    if isinstance(type_, TensorType) and any(isinstance(d, int) and d < 0 for d in type_.shape):
        raise TypeMismatch(f"{op.name}: the result would be {type_}")
