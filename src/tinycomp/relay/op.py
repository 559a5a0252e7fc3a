"""What an operator is. The operators themselves are in `tinycomp.ops`, one file per family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from ..te.tensor import Tensor
from ..types import TensorType, Type


class OpPattern(IntEnum):
    """How an operator may be fused; the numbers are TVM's, and combining two takes the maximum."""

    ELEMWISE = 0  # out[i] from in[i]
    BROADCAST = 1  # out[i] from in[subset of i]
    INJECTIVE = 2  # each output element from one element per input, anywhere (transpose, concat)
    COMM_REDUCE = 3  # reductions
    OUT_ELEMWISE_FUSABLE = 4  # matmul, convolution: elementwise work may follow in the same kernel
    TUPLE = 7
    OPAQUE = 8  # never fused


@dataclass(frozen=True)
class Attrs:
    """Base of operator attributes: frozen dataclasses of ints, floats, strings and tuples."""


NO_ATTRS = Attrs()


@dataclass(frozen=True)
class Sample:
    """One call of an operator for tests: inputs (arrays) and attributes."""

    inputs: tuple[np.ndarray, ...]
    attrs: Attrs = NO_ATTRS
    rtol: float = 1e-5
    atol: float = 1e-6


@dataclass(frozen=True, eq=False)
class Op:
    """One operator, completely.

    Args:
        name: as in the text form, for instance "nn.conv2d".
        pattern: fusion kind.
        infer: `(attrs, argument types) -> result type`; raises TypeMismatch naming the argument.
        compute: `(attrs, tensors, result type) -> output tensors` in tensor expressions. None only
            for operators that a pass always removes before lowering.
        reference: `(attrs, arrays) -> array or tuple of arrays` with NumPy; defines the meaning.
        attrs_type: the class of its attributes.
        samples: calls to test every level with.
        stitchable: an elementwise, broadcast or last-axes-reduction operator, or one like softmax
            that is made of them, whose rows are independent: it may be stitched.
        view: `(attrs, argument type) -> byte` of the argument's memory at which the result begins,
            which is there already (a reshape, rows of a matrix); or None. See `views.view_offset`.
        doc: what it computes, with its ONNX counterpart.
    """

    name: str
    pattern: OpPattern
    infer: Callable[[Any, Sequence[Type]], Type]
    compute: Callable[[Any, Sequence[Tensor], Any], list[Tensor]] | None
    reference: Callable[[Any, Sequence[np.ndarray]], Any]
    attrs_type: type[Attrs] = Attrs
    samples: Callable[[], Iterable[Sample]] = field(default=lambda: ())
    stitchable: bool = False
    view: Callable[[Any, TensorType], int | None] | None = None
    doc: str = ""

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class OpSet:
    """Operators by name. An explicit value: nothing registers itself on import."""

    ops: Mapping[str, Op]

    def __getitem__(self, name: str) -> Op:
        return self.ops[name]

    def __contains__(self, name: str) -> bool:
        return name in self.ops

    def extend(self, *ops: Op) -> OpSet:
        """A larger set; a name that is already taken is a ValueError."""
        for op in ops:
            if op.name in self.ops:
                raise ValueError(f"operator {op.name} is already in the set")
        return OpSet({**self.ops, **{op.name: op for op in ops}})
