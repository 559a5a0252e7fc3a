"""The loop IR: statements over buffers, as a tree.

Before lowering, computations sit in `Block`s. A block's body is written in terms of its own
iteration variables, and `bindings` says what these are in terms of the loops around it; so loops
can be split, fused and reordered freely without touching the body. (The idea is TensorIR's, Feng
et al., ASPLOS 2023.) The lowering passes substitute bindings, place allocations, and expand vector
and unrolled loops; after them no Block is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any

from ..diagnostics import NO_SPAN, Span
from ..dtype import DType
from ..ir.expr import TRUE, Expr
from ..ir.node import Node, dataclass
from ..te.tensor import Combiner, IterKind, IterVar

__all__ = [
    "ONCE", "ONCE_PER_CLUSTER", "Alloc", "Async", "Block", "Buffer", "Collective", "Evaluate",
    "For", "ForKind", "If", "IterKind", "IterVar", "PrimFunc", "Scope", "Seq", "Stmt", "Store",
]  # fmt: skip


ONCE = "once"
"""Intrinsic that marks a condition in the predicate of a Block: where it is false, what the block
would compute is there already, since an earlier iteration of the loops it mentions."""

ONCE_PER_CLUSTER = "once_per_cluster"
"""Intrinsic that marks a condition of a store that one block of a cluster does for all, if all of
them see the result."""


class ForKind(StrEnum):
    """How a loop runs."""

    SERIAL = "serial"
    PARALLEL = "parallel"  # iterations spread over threads
    VECTORIZED = "vectorized"  # iterations become vector lanes
    UNROLLED = "unrolled"  # iterations are written out
    THREAD = "thread"  # bound to a GPU thread axis named by For.thread


class Scope(StrEnum):
    """Where a buffer lives."""

    GLOBAL = "global"  # memory; inside a kernel: workspace
    SHARED = "shared"  # GPU block memory
    CLUSTER = "cluster"  # the same of all blocks of a cluster: element [b, ...] is in block b
    LOCAL = "local"  # registers or the stack, private to a thread
    WARP = "warp"  # registers of a warp, each lane has a part (a fragment)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Buffer:
    """A region of memory with a dense row-major shape. Compares by identity.

    Attributes:
        alignment: in bytes.
        aligned: (dimension, factor, offset) if the stride of a dimension shall be offset modulo
            factor elements; placing the buffer enlarges the next dimension for it.
        offset: bytes from the start of a block's shared memory, once that has been laid out.
    """

    name: str
    shape: tuple[Expr, ...]
    dtype: DType
    scope: Scope = Scope.GLOBAL
    alignment: int = 64
    aligned: tuple[int, int, int] | None = None
    offset: int | None = None

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}] {self.scope}"


class Stmt(Node):
    """A statement of the loop IR."""

    __slots__ = ()

    def __str__(self) -> str:
        from .printer import stmt_text  # the printer imports this module

        return stmt_text(self)

    __repr__ = __str__


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Seq(Stmt):
    """Statements one after the other; an empty Seq does nothing."""

    CHILDREN = ("stmts",)
    stmts: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class For(Stmt):
    """`for var in range(min, min + extent): body`. `var` is a Var, an axis of the schedule."""

    CHILDREN = ("min", "extent", "body")
    var: Any  # ir.expr.Var; not a child: it is a binder
    min: Expr
    extent: Expr
    body: Stmt
    kind: ForKind = ForKind.SERIAL
    thread: str = ""  # "blockIdx.x", "cluster.x", "threadIdx.y", "vthread" for ForKind.THREAD
    annotations: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Block(Stmt):
    """One computation, over its own iteration variables.

    `init` runs before the first iteration of the reduction variables; `predicate` (over loop
    variables) guards iterations that a non-dividing split added. `combiner` says how a reduction
    merges two results, one value for each buffer it accumulates into; None if that is not known.
    """

    CHILDREN = ("bindings", "predicate", "init", "body")
    name: str
    iter_vars: tuple[IterVar, ...]
    bindings: tuple[Expr, ...]
    body: Stmt
    init: Stmt | None = None
    predicate: Expr = TRUE
    annotations: Mapping[str, Any] = field(default_factory=dict)
    span: Span = NO_SPAN
    combiner: Combiner | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Store(Stmt):
    """`buffer[indices] = value`; lanes whose `predicate` is false are not written."""

    CHILDREN = ("indices", "value", "predicate")
    buffer: Buffer
    indices: tuple[Expr, ...]
    value: Expr
    predicate: Expr | None = None
    span: Span = NO_SPAN


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class If(Stmt):
    CHILDREN = ("condition", "then", "otherwise")
    condition: Expr
    then: Stmt
    otherwise: Stmt | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Alloc(Stmt):
    """`buffer` exists while `body` runs. Appears only after buffers have been placed."""

    CHILDREN = ("body",)
    buffer: Buffer
    body: Stmt


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Evaluate(Stmt):
    """An expression run for its effect: prefetch, barrier and other intrinsics."""

    CHILDREN = ("value",)
    value: Expr


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Async(Stmt):
    """Copies that run beside what follows: what `body` stores is there once the thread has called
    `async_commit`, which ends a group of copies, and then `async_wait(n)`, which waits until at
    most the n latest groups are under way."""

    CHILDREN = ("body",)
    body: Stmt


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Collective(Stmt):
    """What the 32 threads of a warp do together.

    `body` are the loops that say what is computed, which is the statement's whole meaning; `op`
    (a `tensor_intrinsics.warp.WarpOp`) says by which instruction and over which registers.
    `operands` are loads of the first element of each input.
    """

    CHILDREN = ("operands", "body")
    op: Any
    operands: tuple[Expr, ...]
    body: Stmt


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PrimFunc:
    """A kernel: parameters are buffers, inputs first and `num_outputs` outputs last.

    `allocs` are the intermediate buffers of a function whose blocks are not lowered yet; `sizes`
    the variables, not negative, that shapes and extents are expressed in (see `sizes.py`).
    """

    name: str
    params: tuple[Buffer, ...]
    num_outputs: int
    body: Stmt
    allocs: tuple[Buffer, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    span: Span = NO_SPAN
    sizes: tuple[Any, ...] = ()  # of ir.expr.Var

    def __str__(self) -> str:
        from .printer import func_text

        return func_text(self)

    __repr__ = __str__
